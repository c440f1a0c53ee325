"""The VMM: one virtual CPU, its memory, and what is done at each exit.

Everything the hardware reports comes in at `on_exception`, `on_invalid`, `on_in`,
`on_out` or `on_cpuid`, is handled there, and the guest goes on when the method returns.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from time import perf_counter_ns
from typing import Final

from emu86.cpu import offsets
from emu86.cpu.engine import Engine
from emu86.cpu.models import CpuModel
from emu86.cpu.state import BASE, CR, ERROR_CODE, HFLAGS, IS_INT, RFLAGS, RIP, SELECTOR
from emu86.cpu.vcpu import SHARED, VCpu
from emu86.mmu.memory import GuestMemory, PageFault
from emu86.mmu.paging import is_canonical
from emu86.mmu.ram import Ram
from emu86.mmu.shadow import (
    FILLED,
    GUEST_FAULT,
    PAGING_CR0,
    PAGING_CR4,
    RELOADING_CR0,
    RELOADING_CR4,
    ShadowMmu,
)
from emu86.mmu.shadow_leaves import ShadowStats
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.rings.cpu import MODE_BITS
from emu86.rings.debug import Trap, Watch
from emu86.rings.decode import Insn
from emu86.rings.events import protection
from emu86.rings.events.accesses import check_canonical, may_not_be_canonical
from emu86.rings.events.inject import as_fault
from emu86.rings.events.single_step import SingleStep
from emu86.rings.fault import GuestFault, gp, undefined
from emu86.rings.insn import sse_operands
from emu86.rings.insn.record import Record
from emu86.rings.insn.segment_loads import loads_ss
from emu86.rings.insn.system_calls import SYSRET
from emu86.rings.insn.table import is_switched_off, needs
from emu86.rings.observers import Observer
from emu86.rings.technique.base import (
    Counts,
    Policy,
    Technique,
    TechniqueState,
    check_cr0,
    check_cr4,
    check_efer,
    efer_by_cr0,
    load_pdptes,
)
from emu86.rings.technique.instruction_cache import InstructionCache
from emu86.rings.technique.mmio import MmioStep
from emu86.rings.technique.scan import INT3, Scanner
from emu86.rings.technique.segment_checks import compiled_access
from emu86.rings.technique.shadow_segments import ShadowCpu
from emu86.spec import x86

_CR2: Final = CR + 2
_CS_SELECTOR: Final = SELECTOR[x86.CS]
_DATA: Final = (x86.ES, x86.DS, x86.FS, x86.GS)
_INTO: Final = 0xCE
_SYSTEM_CALL: Final = 2  # bytes of a SYSCALL or SYSENTER without prefixes
_PUSHF: Final = 0x9C
_SHOW_TF: Final = (0x9C, 0x9D, 0xCF)  # PUSHF, POPF, IRET
# SLDT, STR, LLDT, LTR, VERR, VERW, LAR, LSL; and PUSHF, POPF, IRET, CLI, STI.
_NOT_IN_VIRTUAL_8086: Final = (0x0F00, 0x0F02, 0x0F03)
_BY_IOPL: Final = (0x9C, 0x9D, 0xCF, 0xFA, 0xFB)
_HOST_CR0: Final = (
    x86.CR0_PG | x86.CR0_PE | x86.CR0_WP | x86.CR0_NE | x86.CR0_ET
)  # fmt: skip
_MIRRORED_CR0: Final = x86.CR0_MP | x86.CR0_EM | x86.CR0_TS
_MIRRORED_CR4: Final = x86.CR4_TSD | x86.CR4_OSFXSR | x86.CR4_OSXMMEXCPT
_SEGMENT_VECTORS: Final = (x86.VEC_TS, x86.VEC_NP, x86.VEC_SS, x86.VEC_GP)

# What of EFLAGS the engine holds. No breakpoint of its own fires, so RF does nothing,
# and its PUSHF would show it.
_KEPT_FLAGS: Final = x86.FLAGS_DEFINED & ~(x86.VM | x86.VIF | x86.VIP | x86.RF)


def _raise(fault: GuestFault) -> None:
    raise fault


class Deprivileged(Technique):
    """A guest whose kernel is kept from the hardware: techniques trap, patch, iopl."""

    cpu: ShadowCpu

    def __init__(
        self, name: str, policy: Policy, engine: Engine, ram: Ram, vcpu: VCpu
    ) -> None:
        # In the order in which they are made they are told of what changes.
        shared = engine.control[abi.CR0 : abi.CR0 + SHARED]
        vcpu.share(shared.cast("B").cast("Q"))
        self.mmu = mmu = ShadowMmu(engine, ram, VmmMemory(engine))
        memory = GuestMemory(mmu)
        cpu = ShadowCpu(engine, vcpu, memory, mmu, policy)
        super().__init__(name, policy, engine, cpu)
        self.memory: GuestMemory = memory
        self.instructions = InstructionCache(engine, cpu, memory, mmu)
        self.scanner = Scanner(
            engine, cpu, mmu, self.debug,
            scans=policy.scans, iopl_raised=policy.raises_iopl,
        )  # fmt: skip
        self.single_step = SingleStep(engine)
        self.mmio_step = MmioStep(
            cpu, mmu, self.instructions, self.single_step, self.breakpoints
        )
        self._delivered = False  # an event, in this exit
        self._no_trap_at = -1  # where the next #DB is none of the guest's
        # Where a debugger's step began: EIP, CS and its base; None: TF has trapped.
        self._step_from: tuple[int, ...] | None = None
        self._written: set[int] = set()  # watched pages, since one was last looked at
        self._writes = False  # the instruction that does is under way, stepped
        self._alone = False  # a shadow is the VMM's, for an instruction to run alone
        self._host_cr0 = _HOST_CR0
        self._follow_pe()
        self.mmu.listeners.table_written.append(self._watched_written)
        engine.on_exception = self.on_exception
        engine.on_invalid = self.on_invalid
        engine.on_in = self.on_in
        engine.on_out = self.on_out
        engine.on_cpuid = self.on_cpuid
        engine.on_system_call = self.on_system_call
        if policy.scans:
            engine.on_unguarded = self.scanner.on_unguarded
        engine.hook()
        if policy.raises_iopl:
            engine.shared.kernel_iopl = policy.kernel_ring << 12
            engine.shared.sets_if = 1
        if engine.stepped:
            self._control[abi.TOLD] = 1  # a step ends at each event
        self._sync_host()

    # -- for the machine ---------------------------------------------------------------

    def set_model(self, model: CpuModel) -> None:
        """Be another CPU, before anything has run."""
        super().set_model(model)
        self.scanner.look_up(model.lacks)

    def start(self) -> None:
        """Begin: the registers are loaded."""
        self._configure()

    def run(self) -> None:
        """Run until STOP_AT, or an interrupt can come in, or the guest is done."""
        if self.debug.trap is not None:
            return
        if self.scanner.pending is None and self._step_to_breakpoints():
            return
        try:
            self.engine.run()
        finally:
            self.catch_up()
            self._update_mode()
        if self._written and not self._writes:
            self._look_at_written()
        if self._control[abi.NULL_USED]:
            self._control[abi.NULL_USED] = 0
            self._null_used()

    def step(self) -> None:
        """Run one instruction of an engine that is made to be stepped."""
        pending = self.scanner.pending is not None
        if pending or not (self._step_to_breakpoints() or self._refuses_next()):
            self._alone = False
            if self.cpu.is_real:
                self.q[RFLAGS] |= x86.IOPL  # an IRET may have lowered it
            try:
                self.engine.step()
            finally:
                self.catch_up()
                self._update_mode()
            if self._alone:
                # It may have been for the instruction after, which has not run.
                self.d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ

    def _refuses_next(self) -> bool:
        """Look at the operand of the next instruction; tell if that has faulted.

        Where the engine is not stepped compiled code does so.
        """
        if not self.policy.scans:
            return False
        try:
            insn = self.instructions.at_eip()
        except (GuestFault, PageFault):
            return False  # the fetch's own
        if needs(insn) & self.vcpu.model.lacks:
            return False  # #UD
        try:
            sse_operands.check(self.cpu, insn)
        except GuestFault as refused:
            raised = refused
        except PageFault:
            return False  # it comes again
        else:
            return False
        self._exit_before(partial(_raise, raised))
        return True

    @property
    def pending_patch(self) -> tuple[int, int] | None:
        """Where in RAM (GPA) a patch stands now, and the guest's byte there."""
        return self.scanner.pending

    @property
    def shadow_memory(self) -> memoryview:
        """The VMM's own memory, 64-bit words: shadow page tables are in it."""
        return self.mmu.sptes.toreadonly()

    def unpatch(self) -> None:
        """Put back the byte of a patched block."""
        self.scanner.unpatch()

    def before_write(self, page: int) -> None:
        """Learn that somebody else is about to write to a guest page."""
        self.mmu.use.before_write(page)

    def back(self, pages: range, plain: range) -> None:
        """Have plain memory at `plain`, a device's at the others of `pages`."""
        mmu = self.mmu
        mmu.mmio_pages |= frozenset(pages)
        for page in pages:
            mmu.use.set_backed(page, backed=page in plain)
        self.memory.flush()

    def trap_mmio(self, pages: range) -> None:
        """Have reads of pages beyond RAM reach the board, too: elsewhere are ones."""
        self.mmu.mmio_pages |= frozenset(pages)

    def compile_site(self, insn: Insn, kind: int) -> None:
        """Have compiled code handle the instruction at CS:EIP from now on."""
        # Behind STI the next instruction has to be looked at.
        shadows = kind == abi.SITE_STI and self._has_checks()
        if not (shadows or self.cpu.checks.limits_code(1)):
            self._compile(insn, kind)

    def _compile(self, insn: Insn, kind: int) -> None:
        """Compile a site that a debugger has no breakpoint at, which Python sees."""
        if self.debug.breaks:
            linear = self.cpu.linear_eip
            if self.debug.is_break(linear, self.memory.gpa(linear)):
                return
        self.instructions.compile(insn, kind)

    def watch_exits(self) -> None:
        """Take exits back from compiled code: Python sees them from now on."""
        self._control[abi.TOLD] = 1
        self.instructions.compiles = False
        self.instructions.drop_compiled()

    def subscribe(self, observer: Observer) -> None:
        """Tell `observer` of what it has a method for; TypeError if it has none."""
        super().subscribe(observer)
        if self.observers.inject:
            self.cpu.plans.delivers = False
        observers = self.observers
        if observers.inject or observers.shadow_fill or observers.pio:
            self._control[abi.TOLD] = 1

    def counts(self) -> Counts:
        """Return what scanner and shadow tables have counted."""
        scanner, control = self.scanner, self._control
        shadow = asdict(self.mmu.stats)
        shadow["drops"] += control[abi.COUNT_DROPPED]
        shadow["fills"] += control[abi.COUNT_FILLED]
        shadow["resynced"] += control[abi.COUNT_RESYNCED]
        shadow["switches"] += control[abi.COUNT_SWITCHED]
        patched = dict(scanner.patched.most_common())
        blocks = scanner.blocks + control[abi.COUNT_BLOCKS]
        return Counts(blocks, scanner.decoded, patched, shadow)

    # -- its state ---------------------------------------------------------------------

    def finish_instruction(self) -> None:
        """Run to the end of a step, and put back the byte of a patched block."""
        while (self.mmio_step.active or self._writes) and self.end is None:
            # Longer than one instruction, and shorter than the exit that ends it.
            self.clock.run_for(x86.LONGEST_INSN)
            self.run()
        self.mmio_step.cancel()
        self.unpatch()

    def restore(self, state: TechniqueState) -> None:
        """Become what was saved, with nothing derived yet."""
        self.single_step.forced = 0
        super().restore(state)
        self.drop_derived()
        counts = state.counts
        self.scanner.blocks, self.scanner.decoded = counts.blocks, counts.decoded
        self.scanner.patched = Counter(counts.patched)
        self.mmu.stats = ShadowStats(**counts.shadow)

    def drop_derived(self) -> None:
        """Forget shadow tables, translations, patches, sites and plans.

        And which pages the guest has used for what: they are data until they are used.
        """
        super().drop_derived()
        self.single_step.release()
        self.mmio_step.drop_derived()
        self.scanner.drop_derived()
        self.instructions.drop_derived()
        self.cpu.drop_derived()
        self._follow_pe()
        self.ram.gate_a20(is_open=self.vcpu.a20)
        self.mmu.drop_derived()
        self._configure()
        self.mmu.stats.resets -= 1  # none that the guest has brought about
        self._sync_host()
        self._written.clear()
        self._writes = False
        for page in self.debug.watches:
            self.mmu.use.watch(page)

    # -- a debugger's ------------------------------------------------------------------

    def set_breakpoints(
        self, linear: Collection[int], physical: Collection[int]
    ) -> None:
        """Have these breakpoints and no others, by addresses of instructions."""
        changed = self.debug.set(linear, physical)
        for offset in changed:
            self.scanner.scan_at_offset(offset)
        if changed:
            self.instructions.drop_compiled()

    def set_watches(self, watches: Iterable[Watch]) -> None:
        """Stop behind what changes these bytes, each in one page, and no others.

        Their pages cannot be written, as those of descriptor tables; what does so is
        stepped. Pages that are watched no longer learn that with the next write.
        """
        by_page: dict[int, list[Watch]] = {}
        for watch in watches:
            by_page.setdefault(watch.gpa >> x86.PAGE_SHIFT, []).append(watch)
        self.debug.watches = by_page
        for page in by_page:
            self.mmu.use.watch(page)

    def _watched_written(self, page: int) -> None:
        """Learn that a page is about to be written, by whomever."""
        if page in self.debug.watches and page not in self._written:
            self._written.add(page)
            for watch in self.debug.watches[page]:
                watch.held = self.ram.read(watch.gpa, watch.size)

    def _step_write(self) -> None:
        """Have the instruction at CS:EIP, which writes to what is watched, be alone."""
        insn = self.instructions.at_eip()
        if insn.opcode == _PUSHF:
            self.emulate(insn)  # a step would push its own TF
            return
        self._writes = True
        self.single_step.force()

    def _look_at_written(self) -> None:
        """Stop if what is watched has changed, and watch it again."""
        for page in self._written:
            for watch in self.debug.watches.get(page, ()):
                if self.ram.read(watch.gpa, watch.size) != watch.held:
                    where = f"changed, at {self.where()}"
                    self._stop_for(Trap("watchpoint", watch.linear, where))
            if page in self.debug.watches:
                self.mmu.use.watch(page)
        self._written.clear()
        self._writes = False
        if not (self.breakpoints.armed or self.mmio_step.active):
            self.single_step.release()

    def begin_step(self) -> None:
        """Have the next `run` end after one instruction, or where one is delivered to.

        It runs with TF set, as under the guest's own breakpoints.
        """
        self.debug.stepping = self.breakpoints.stepped = True
        self._step_from = self._place()

    def end_step(self) -> None:
        """Undo `begin_step`, whatever has come of it."""
        self.debug.stepping = self.breakpoints.stepped = False
        self.scanner.end_step()

    def _place(self) -> tuple[int, ...]:
        return self.q[RIP], self.d[_CS_SELECTOR], self.q[BASE[x86.CS]]

    def _stop_for(self, trap: Trap) -> None:
        """Stop for the debugger, which is told of the first reason."""
        if self.debug.trap is None:
            self.debug.trap = trap
        self.engine.stop()

    def _breaks(self) -> bool:
        """Stop at an INT3 that is a breakpoint of the debugger's; tell if it is."""
        if self.debug.stepping:
            return False
        q, mask = self.q, self.cpu.address_mask
        eip = q[RIP] - 1 & mask
        linear = eip + q[BASE[x86.CS]] & mask
        if not self.debug.is_break(linear, self.mmu.fetch_gpa(linear)):
            return False
        q[RIP] = eip
        # No exit of the guest's, and the INT3 no code.
        self._control[abi.NOW] -= self._control[abi.EXIT_COST] + 1
        self._stop_for(Trap("breakpoint", linear, f"at {self.where()}"))
        return True

    # -- breakpoints -------------------------------------------------------------------

    def _step_to_breakpoints(self) -> bool:
        """While a breakpoint is enabled, look at the next instruction before it runs.

        It runs with TF set. What would show that, or hold its trap off, is emulated. Of
        a stepped engine, or for a debugger, that is a step, or a breakpoint is: returns
        whether one is done so.
        """
        if not self.breakpoints.armed:
            if not (self.mmio_step.active or self._writes):
                self.single_step.release()
                self.breakpoints.resume = 0
            return False
        self.single_step.force()
        while not (self.end or self.vcpu.halted) and self._emulates_next():
            if self.engine.stepped:
                return True
            self.clock.count_exit()
            if self.debug.stepping:
                self._stop_for(Trap("step"))
                return True
            if self.clock.is_due:
                self.engine.stop()
                break  # `run` looks again
        return False

    def _emulates_next(self) -> bool:
        """Break before the next instruction, or emulate it; False: the hardware's."""
        if self.breakpoints.before():
            self._exit_before(partial(self.debug_trap, stepped=False))
            return True
        try:
            insn = self.instructions.at_eip()
        except (GuestFault, PageFault):
            return False  # the fetch's own
        self.breakpoints.reach(insn)
        shows = insn.opcode in _SHOW_TF or loads_ss(insn)
        if not shows or not isinstance(insn.record, Record):
            return False
        self._exit_before(partial(self.emulate, insn))
        return True

    def _inject(
        self, vector: int, error: int | None = None, *, interrupt: bool = False
    ) -> None:
        if interrupt and self.cpu.plans.interrupt(vector):
            self.cpu.update_mode()
            return
        # Between a load of DS or ES and the block behind it, which has the guard.
        if self.cpu.code_bits != 64:
            self.cpu.checks.null_used((x86.ES, x86.DS))
        super()._inject(vector, error, interrupt=interrupt)

    def _exit_before(self, act: Callable[[], None]) -> None:
        """Have an exit before an instruction, which `act` does or faults at."""
        self._reason = ""
        try:
            act()
        except (GuestFault, PageFault) as raised:
            self.reflect(*as_fault(self.cpu, raised))
        self._account(0)

    def _go_on(self) -> None:
        """Look at what runs next after an exit; a step ends where it would fetch it."""
        if self._written and (self._delivered or not self._writes):
            self._look_at_written()
        if self.debug.stepping:
            if self._delivered or self._place() != self._step_from:
                self._stop_for(Trap("step"))
            return
        watched = self.single_step.forced or self.breakpoints.armed
        if not self.engine.stepped:
            if watched:
                self._step_to_breakpoints()
        elif watched or self._delivered:
            self.engine.stop()

    def _on_block(self, linear: int, size: int) -> int:
        if self._control[abi.BEHIND]:
            self.catch_up()
        return self.scanner.on_block(linear, size)

    # -- real mode ---------------------------------------------------------------------

    def reset_cpu(self) -> None:
        """Be a CPU as RESET leaves it: SDM Vol. 3A table 9-1."""
        super().reset_cpu()
        self.cpu.switch_real_mode()
        self._follow_pe()
        self._sync_host()

    def _follow_pe(self) -> None:
        """Choose what the engine calls, by CR0.PE."""
        real = not self.vcpu.cr0 & x86.CR0_PE
        self._host_cr0 = _HOST_CR0 & ~x86.CR0_PE if real else _HOST_CR0
        self.engine.on_block = self._on_real_block if real else self._on_block
        self.mmu.use.in_real_mode = real

    def set_a20(self, *, is_open: bool) -> None:
        """Let address line 20 through, or not."""
        if is_open != self.vcpu.a20:
            super().set_a20(is_open=is_open)
            self.mmu.reset()

    def _on_real_block(self, linear: int, size: int) -> int:
        """Take a block of real mode; -1 if its hook has to look at IOPL."""
        if self._control[abi.BEHIND]:
            self.catch_up()
        self.scanner.on_real_block(linear, size)
        return 0 if self.q[RFLAGS] & x86.IOPL == x86.IOPL else -1

    # -- exits ------------------------------------------------------------------------

    def on_exception(self, vector: int) -> None:
        """Take an exception or a software interrupt of the guest."""
        start = perf_counter_ns() if self.timing else 0
        self._begin()
        event = self._control[abi.DELIVERING]
        if event & abi.DELIVERED:
            # Of real mode: the engine has met a fault on the way to its handler. It
            # begins anew, here.
            self._control[abi.DELIVERING] = abi.IDLE
            vector, self.d[IS_INT] = event & 0xFF, event >> 8 & 1
        is_int = self.d[IS_INT]
        if vector == x86.VEC_BP and is_int and self.debug.breaks and self._breaks():
            return
        self._reason = ""
        try:
            if vector == x86.VEC_PF and not is_int:
                self._page_fault()
            else:
                insn = self.instructions.seen(vector, is_int)
                if insn is not None:
                    self.emulate(insn)
                elif is_int:
                    self._software(vector)
                elif vector in _SEGMENT_VECTORS:
                    self._protection(vector)
                else:
                    self._exception(vector)
        except (GuestFault, PageFault) as raised:
            self.reflect(*as_fault(self.cpu, raised))
        if self.pic.intr:
            self.interrupt()
        if self.debug.stepping and self._step_from is None and not self._delivered:
            self._control[abi.NOW] -= self._control[abi.EXIT_COST]
        else:
            self._account(start)
        self._go_on()

    def on_invalid(self) -> None:
        """Take an opcode that the engine does not have."""
        start = perf_counter_ns() if self.timing else 0
        self._begin()
        self._reason = "#UD"
        try:
            insn = self.instructions.at_eip()
            record = insn.record
            if not isinstance(record, Record) or not record.traps.startswith("#UD"):
                raise undefined()
            self.emulate(insn)
        except (GuestFault, PageFault) as raised:
            self.reflect(*as_fault(self.cpu, raised))
        if self.pic.intr:
            self.interrupt()
        self._account(start)
        self._go_on()

    def on_system_call(self) -> int:
        """Take SYSCALL or SYSENTER, whose length in bytes is returned."""
        start = perf_counter_ns() if self.timing else 0
        self._begin()
        self._reason = ""
        length = _SYSTEM_CALL
        stepped = self.q[RFLAGS] & x86.TF
        try:
            insn = self.instructions.at_eip()
            length = insn.length
            self.emulate(insn, hooked=True)
        except (GuestFault, PageFault) as raised:
            self.reflect(*as_fault(self.cpu, raised))
            if stepped:  # behind a SYSENTER the engine traps, whatever came of it
                self._no_trap_at = self.q[RIP]
        if self.pic.intr:
            self.interrupt()
        self._account(start)
        self._go_on()
        return length

    def _begin(self) -> None:
        """Do what comes first in every exit."""
        self._delivered = False
        control = self._control
        now = control[abi.NOW] + control[abi.EXIT_COST]
        control[abi.NOW] = now
        if now >= control[abi.STOP_AT] and self.clock.is_due:
            self.engine.stop()  # there may never be a block that would
        if self.scanner.pending is not None:
            self.scanner.unpatch()
        if control[abi.BEHIND]:
            self.catch_up()
        d = self.d
        known = d[_CS_SELECTOR], d[HFLAGS] & MODE_BITS
        if known != self.cpu.known or self.q[RFLAGS] & x86.VM:
            self._update_mode()
        if self.engine.stepped:
            self._null_may_be_used(
                _DATA
            )  # it has no guards, but sites: `NullSelectors`
        elif self.scanner.null.unguarded:
            self._null_may_be_used((x86.ES, x86.DS))  # it may be behind their load

    def _null_may_be_used(self, registers: tuple[int, ...]) -> None:
        """Arm those of these registers that are null, where that has a meaning."""
        if self.cpu.code_bits != 64:
            self.cpu.checks.null_used(registers)

    def catch_up(self) -> None:
        """Hear of what compiled handlers have done since Python last looked."""
        behind = self._control[abi.BEHIND]
        if behind:
            self._control[abi.BEHIND] = 0
            if behind & abi.HALTED:
                self._halted()
            if behind == abi.HALTED:
                return  # as most often while the guest is idle
            self.cpu.catch_up(behind)  # first: the GDT may be elsewhere by another CR3
            self.mmu.catch_up(behind, self.vcpu.cr3, self.vcpu.pdptes)
            if behind & abi.SENT:
                self.bus.catch_up()
            if behind & abi.TIMER:
                self.bus.timer_changed()

    def _update_mode(self) -> None:
        """Learn what the hardware has done by itself since the last exit."""
        self.cpu.update_mode()
        if self.cpu.is_virtual_8086:
            # An unpatched IRET may have set it.
            self.cpu.iopl = self.q[RFLAGS] >> 12 & 3

    def _software(self, vector: int) -> None:
        """INT n, INT3, INTO, or the INT3 of a patched site."""
        q = self.q
        after, mask = q[RIP], self.cpu.address_mask
        last = (after - 1) & mask
        linear = (last + q[BASE[x86.CS]]) & mask
        gpa = self.memory.gpa(linear)
        if vector == x86.VEC_BP and self.scanner.is_patched(gpa):
            q[RIP] = last
            self._site(self.instructions.at_eip())
            return
        self._reason = f"INT {vector:02X}h"
        self.breakpoints.resume = 0
        self.mmio_step.cancel()
        byte = self.memory.bytes[gpa] if self.memory.ram.backed(gpa >> 12) else 0xFF
        one_byte = (vector == x86.VEC_BP and byte == INT3) or (
            vector == x86.VEC_OF and byte == _INTO
        )
        self._delivered = True
        start = last if one_byte else (after - 2) & mask
        self._software_interrupt(vector, start)

    def _site(self, insn: Insn) -> None:
        """Do the instruction of a patched site, or see that it may run by itself."""
        if isinstance(insn.record, Record):
            self.emulate(insn)
            return
        if needs(insn) & self.vcpu.model.lacks:
            raise undefined()
        self._reason = "segment access"
        self._look_at(insn)
        kind = compiled_access(self.cpu, insn)
        if kind and not self.cpu.checks.limits_code(1, 3):
            self._compile(insn, kind)
        self._run_alone()

    def _run_alone(self) -> None:
        """Have the instruction at CS:EIP run, though its site is patched.

        It runs in the one-instruction block of an interrupt shadow, which `Scanner`
        leaves as it is; what casts a real one is emulated (`emulate` looks behind it).
        """
        self.d[HFLAGS] |= offsets.HF_INHIBIT_IRQ

    def _has_checks(self) -> bool:
        """Tell whether instructions must be looked at before they run."""
        cpu, checks = self.cpu, self.cpu.checks
        armed = checks.armed[3 if cpu.cpl else 1] or self.scanner.null.unguarded
        if cpu.code_bits == 64 or cpu.is_real:
            armed = 0  # they have no segments to be looked at
        return checks.enabled and bool(armed or self.q[RFLAGS] & x86.AC)

    def _null_used(self) -> None:
        """Look at what the block that comes next does: it may use a null register."""
        self._null_may_be_used(_DATA)
        if self.d[HFLAGS] & offsets.HF_INHIBIT_IRQ:  # no site: see `_run_alone`
            self._exit_before(self._look_at_next)

    def _look_at_next(self) -> None:
        self._reason = "segment access"
        self._look_at(self.instructions.at_eip())

    def _look_at(self, insn: Insn) -> None:
        """Raise what segments and alignment forbid `insn`, at CS:EIP."""
        protection.check(self.cpu, insn)
        self.cpu.checks.passed(3 if self.cpu.cpl else 1)

    def _page_fault(self) -> None:
        gva = self.q[_CR2]
        error = self.d[ERROR_CODE]
        if gva > x86.MASK32 == self.cpu.address_mask:
            if self.q[RIP] > x86.MASK32:
                # A conditional jump over either end of 4 GiB.
                self.q[RIP] &= x86.MASK32
                self._reason = "#PF fill"
                return
            if not self.cpu.state.ia32e:
                gva &= x86.MASK32
                self.mmu.wrap()
        if may_not_be_canonical(gva) and self.cpu.state.ia32e:
            # To the engine addresses of 57 bits are canonical.
            self._reason = "#GP"
            if not error & x86.PF_I:
                check_canonical(self.cpu, self.instructions.at_eip())
            if not is_canonical(gva):
                raise gp(0)
        outcome = self.mmu.miss(gva, error)
        if outcome is not FILLED and error & x86.PF_I and self._is_ahead(gva):
            self._reason = "#PF ahead"
            # In an interrupt's shadow a block is one instruction, which ends it.
            self.d[HFLAGS] |= offsets.HF_INHIBIT_IRQ
            self._alone = True
        elif outcome is FILLED:
            self._reason = "#PF fill"
            if self._written:
                self._step_write()
            if self.mmu.use.taken_over >= 0:
                self.mmio_step.contend()
            for shadow_fill in self.observers.shadow_fill:
                shadow_fill(gva)
        elif outcome is GUEST_FAULT:
            self._reason = "#PF guest"
            self.vcpu.cr2 = gva
            # The engine reads first; on a CPU what will be written is asked for so.
            reads = not error & (x86.PF_W | x86.PF_I)
            if reads and self.instructions.at_eip().modifies_memory:
                self.mmu.fault |= x86.PF_W
            self.reflect(x86.VEC_PF, self.mmu.fault)
        else:
            self._reason = "#PF I/O"
            insn = self.instructions.at_eip()
            if insn.opcode == _PUSHF:
                self.emulate(insn)  # a step would push its own TF
                return
            write = bool(error & x86.PF_W)
            user = bool(error & x86.PF_U)
            gpa = self.memory.translate(gva, write=write, user=user)
            index = self.mmu.spte_index(gva)
            if not self.mmio_step.start(gva, gpa, index, write=write):
                raise undefined()

    def _is_ahead(self, gva: int) -> bool:
        """Tell whether code at `gva` was fetched for a block, and not to run at once.

        The engine translates a block before any of it runs, and faults at its start.
        A block of one instruction faults where that does.
        """
        alone = self.q[RFLAGS] & x86.TF or self.d[HFLAGS] & offsets.HF_INHIBIT_IRQ
        return (
            not alone and gva >> x86.PAGE_SHIFT != self.cpu.linear_eip >> x86.PAGE_SHIFT
        )

    def _protection(self, vector: int) -> None:
        """#TS, #NP, #SS, #GP: something to emulate, or the guest's own fault."""
        error = self.d[ERROR_CODE]
        if error & 0xFFFC:
            # Not tried again natively: a far call may push into the page of the table.
            self.cpu.refresh(error)
        insn = self.instructions.at_eip()
        record = insn.record
        if not isinstance(record, Record) or record.anew:
            self._reason = x86.VECTOR_NAMES[vector]
            if needs(insn) & self.vcpu.model.lacks:
                raise undefined()  # the engine has looked at CPL first
            if insn.code64 and vector == x86.VEC_GP and not error:
                check_canonical(self.cpu, insn)  # by the stack it is #SS(0)
            raise GuestFault(vector, error)
        self.emulate(insn)

    def emulate(self, insn: Insn, *, hooked: bool = False) -> None:
        """Do the instruction at CS:EIP; raises the guest's faults.

        hooked: the engine itself looks at TF when it is done.
        """
        record: Record = insn.record  # type: ignore[assignment]
        cpu, q, d = self.cpu, self.q, self.d
        self._reason = record.mnemonic
        if self.mmio_step.active:
            self.mmio_step.cancel()  # it is done here, whole
        if insn.lock and not insn.spec.lock:
            raise undefined()
        if cpu.is_virtual_8086:
            self._check_virtual_8086(insn, record)
        elif record.ring0_only and cpu.cpl:
            raise gp(0)
        segment = insn.segment
        if segment in (x86.FS, x86.GS):
            self._null_may_be_used((segment,))  # no guard knows what its block loads
        if (segment == x86.CS and cpu.code_bits != 64) or self._has_checks():
            self._look_at(insn)
        elif record.anew:
            self._compile(insn, abi.SITE_SPLIT)
        if record.anew:
            self._run_alone()
            return
        # It runs now, so the shadow of the STI before it ends with it.
        shadowed = d[HFLAGS] & offsets.HF_INHIBIT_IRQ
        if shadowed:
            d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ
        trap_flag = 0 if hooked else x86.TF & ~self.single_step.forced
        stepped = q[RFLAGS] & trap_flag
        breakpoints = self.breakpoints
        breakpoints.resume = 0
        eip = cpu.next_eip(insn.length)
        cpl, cs = cpu.cpl, d[_CS_SELECTOR]
        if not record.handler(cpu, insn):
            q[RIP] = eip
        elif cpu.cpl != cpl:
            start = (eip - insn.length) & cpu.address_mask
            self._changed_ring(record.mnemonic, cpl, cs, start)
        if insn.opcode == SYSRET:
            stepped = q[RFLAGS] & trap_flag
        if shadowed:
            # As in the engine, only the first of several holds interrupts off: Vol. 2B
            # MOV and STI leave the others open.
            d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ
        if record.kind == "io" and breakpoints.armed:
            breakpoints.done()
        # A load of SS holds traps off, too: Vol. 3A section 6.8.3.
        if record.kind == "segment" and d[HFLAGS] & offsets.HF_INHIBIT_IRQ:
            if breakpoints.armed:
                breakpoints.hold()
        elif stepped or breakpoints.hits:
            self.debug_trap(stepped=bool(stepped))
        if d[HFLAGS] & offsets.HF_INHIBIT_IRQ and self._has_checks():
            with suppress(PageFault):  # its fetch's, or its own: it comes again
                self._look_at(self.instructions.at_eip())

    def _check_virtual_8086(self, insn: Insn, record: Record) -> None:
        """Raise what virtual-8086 mode raises at an instruction: SDM Vol. 3B 20.2.8."""
        if insn.opcode in _NOT_IN_VIRTUAL_8086:
            raise undefined()
        by_iopl = insn.opcode in _BY_IOPL and self.cpu.iopl < x86.CPL_USER
        if record.ring0_only or by_iopl:
            raise gp(0)

    def _exception(self, vector: int) -> None:
        if vector == x86.VEC_NM and is_switched_off(
            self.cpu, self.instructions.at_eip()
        ):
            vector = x86.VEC_UD  # to the engine CR0.TS comes before EM and OSFXSR
        self._reason = x86.VECTOR_NAMES.get(vector, f"vector {vector}")
        if vector == x86.VEC_DB:
            stepped = not self.single_step.forced
            if self.q[RIP] == self._no_trap_at:
                self._no_trap_at = -1
                return
            self._step_from = (-1,) if self.mmio_step.active else None
            if self._writes:
                self._look_at_written()
            if self.mmio_step.active:
                self.mmio_step.finish()
            if self.breakpoints.armed:
                self.breakpoints.done()
            if stepped or self.breakpoints.hits:
                self.debug_trap(stepped=stepped)
        elif vector == x86.VEC_MF and not self.vcpu.cr0 & x86.CR0_NE:
            self.bus.coprocessor_error()
        else:
            error = self.d[ERROR_CODE] if vector in x86.PUSHES_ERROR else None
            self.reflect(vector, error)

    def debug_trap(self, *, stepped: bool) -> None:
        """Trap after a single step or at breakpoints (SDM Vol. 3B section 17.3.1)."""
        self.breakpoints.report(stepped=stepped)
        self._wake()
        self.reflect(x86.VEC_DB, None)

    def reflect(self, vector: int, error: int | None) -> None:
        """Give the guest an exception of its own."""
        if not self._reason:
            self._reason = x86.VECTOR_NAMES.get(vector, str(vector))
        self.mmio_step.cancel()
        self.breakpoints.hits = 0
        self._delivered = True
        self._inject(vector, error)

    def is_open(self) -> bool:
        """Tell whether the guest lets an interrupt in now."""
        return bool(
            self.q[RFLAGS] & x86.IF
            and not self.d[HFLAGS] & offsets.HF_INHIBIT_IRQ
            and not self.mmio_step.active
            and not self._writes
            and (self.vcpu.halted or not self.debug.stepping)
        )

    def interrupt(self) -> bool:
        """Deliver the interrupt that waits, if the guest lets it in; tell if it did."""
        self._control[abi.LIMIT] = 0  # this exit may have changed when it comes in
        if self._control[abi.BEHIND]:
            self.catch_up()
        if self.scanner.pending is not None or self.end or not self.is_open():
            return False
        self.breakpoints.hits = 0  # of the instruction that it comes before
        self._take_interrupt()
        if self.debug.stepping:
            self._stop_for(Trap("step"))
        elif not self.engine.stepped:
            self._step_to_breakpoints()
        return True

    def may_rest(self, until: int) -> None:
        """Let compiled code sleep and do the timer's interrupts, if nobody else does.

        A profile takes samples by work, and is told of interrupts.
        """
        is_theirs = self.cpu.plans.delivers and self.on_exit is None
        self._control[abi.RESTS] = until if is_theirs else 0

    # -- what handlers use -------------------------------------------------------------

    def guest_flags(self) -> int:
        """Return the guest's EFLAGS, 32 bits."""
        # The hardware's RF is there only behind an IRET that was not patched.
        flags = self.engine.flags() & ~(x86.IOPL | x86.RF | self.single_step.forced)
        return flags | self.cpu.iopl << 12 | self.breakpoints.resume

    def set_guest_flags(self, value: int) -> None:
        """Write the guest's EFLAGS; VM stays, and IOPL is ignored if it is raised.

        A kernel with its IOPL raised sets flags natively, which cannot change IOPL.
        """
        virtual_8086 = self.q[RFLAGS] & x86.VM
        if not self.cpu.raises_iopl or virtual_8086:
            self.cpu.iopl = value >> 12 & 3
        self.engine.set_flags(value & _KEPT_FLAGS | virtual_8086)
        self.cpu.sync_iopl()
        self.single_step.forced = 0
        if self.breakpoints.armed:
            self.breakpoints.resume = value & x86.RF
            self.single_step.force()

    def write_cr0(self, value: int) -> None:
        """MOV to CR0, LMSW, CLTS: raises #GP(0)."""
        if value > x86.MASK32:
            raise gp(0)
        value = value & x86.CR0_DEFINED | x86.CR0_ET
        check_cr0(value)
        efer = efer_by_cr0(self.cpu, value)
        vcpu = self.vcpu
        changed = vcpu.cr0 ^ value
        reloads = changed & RELOADING_CR0 and load_pdptes(
            vcpu, self.ram, value, vcpu.cr3, vcpu.cr4, efer
        )
        vcpu.cr0 = value
        if efer != vcpu.efer:
            vcpu.efer = efer
            self.cpu.switch_ia32e()
            self._publish_cpuid()
        if changed & x86.CR0_PE:
            self.cpu.switch_real_mode()
            self._follow_pe()
        self.cpu.update_mode()
        if changed & PAGING_CR0 or reloads:
            self._configure()
        if changed & x86.CR0_AM and self.scanner.saw_ac:
            self.scanner.scan_again()
        self._sync_host()

    def write_cr3(self, value: int) -> None:
        """MOV to CR3: raises #GP(0) for PDPTEs with reserved bits."""
        vcpu = self.vcpu
        if value >> x86.MAXPHYADDR:  # beyond 32 bits in 64-bit code alone
            raise gp(0)
        load_pdptes(vcpu, self.ram, vcpu.cr0, value, vcpu.cr4, vcpu.efer)
        vcpu.cr3 = value
        self.mmu.switch(value, vcpu.pdptes)

    def write_cr4(self, value: int) -> None:
        """MOV to CR4: raises #GP(0) for what the CPU model lacks."""
        vcpu = self.vcpu
        check_cr4(vcpu, value)
        changed = vcpu.cr4 ^ value
        if changed & RELOADING_CR4:
            load_pdptes(vcpu, self.ram, vcpu.cr0, vcpu.cr3, value, vcpu.efer)
        vcpu.cr4 = value
        if changed & PAGING_CR4:
            self._configure()
        self._sync_host()

    def write_efer(self, value: int) -> None:
        """WRMSR of EFER: raises #GP(0)."""
        value = check_efer(self.vcpu, value)
        changed = self.vcpu.efer ^ value
        self.vcpu.efer = value
        if changed and self.vcpu.cr4 & x86.CR4_PAE:
            self._configure()
            self._sync_host()

    def _configure(self) -> None:
        """Have the shadow tables follow the registers anew."""
        vcpu = self.vcpu
        self.mmu.configure(vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer, vcpu.pdptes)

    def _sync_host(self) -> None:
        vcpu = self.vcpu
        self.engine.set_control(
            self._host_cr0 | vcpu.cr0 & _MIRRORED_CR0,
            self.mmu.root.hpa,
            x86.CR4_PAE | vcpu.cr4 & _MIRRORED_CR4 | self.mmu.host_cr4,
        )

    def invalidate(self, gva: int) -> None:
        """INVLPG."""
        self.mmu.invalidate(gva)
