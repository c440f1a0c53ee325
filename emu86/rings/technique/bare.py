"""Technique `bare`: the guest at ring 0 of the engine, by its own page tables.

The oracle: a deprivileged guest must not be able to tell its run from this one. The
engine itself runs the privileged instructions, loads segments, transfers between rings
and walks the guest's page tables; what is done here is what the engine leaves to others
(events, port I/O, time), and what it does wrong (`errata`). One instruction is run
at a time, and all of them are translated anew, so that code written in any way is the
code that runs.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Final

from emu86 import config
from emu86.cpu import offsets
from emu86.cpu.engine import Engine
from emu86.cpu.state import (
    BASE,
    CR,
    ERROR_CODE,
    HFLAGS,
    IS_INT,
    RFLAGS,
    RIP,
    SELECTOR,
)
from emu86.cpu.vcpu import VCpu
from emu86.mmu.memory import PageFault
from emu86.mmu.paging import NO_PDPTES, format_of, read_pdptes
from emu86.mmu.ram import Ram, allocate
from emu86.native import abi
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn, decode
from emu86.rings.events.accesses import check_canonical, may_not_be_canonical
from emu86.rings.events.inject import as_fault
from emu86.rings.fault import GuestFault
from emu86.rings.insn.segment_loads import loads_ss
from emu86.rings.insn.system_calls import SYSCALL, SYSRET
from emu86.rings.insn.table import find
from emu86.rings.technique.bare_guest import BareCpu, BareMemory
from emu86.rings.technique.base import (
    Policy,
    Technique,
    TechniqueState,
    check_efer,
)
from emu86.rings.technique.errata import ERRATA, Erratum, far_pointer, is_far_jump
from emu86.spec import x86

_GDTR: Final = offsets.GDTR // 8
_IDTR: Final = offsets.IDTR // 8
_ONE_BYTE: Final = {x86.VEC_BP: 0xCC, x86.VEC_OF: 0xCE}
_RETURNS: Final = (0xCA, 0xCB, 0xCF)
_WIDEST: Final = 8  # bytes of what is read to be written
_TSS_EIP: Final = 0x20  # of a 32-bit TSS
_IRET: Final = 0xCF
_HLT: Final = 0xF4
_STI: Final = 0xFB
_PERIOD: Final = 1000 * abi.QUARTERS
_EFER: Final = offsets.EFER // 8
_MIB: Final = 1 << 20
_END: Final = 1 << 40  # of the engine's physical space
_PDPT: Final = 1 << 39
"""Where the PDPTE registers lie, which the engine does not have: it reads PDPTEs at
each walk."""


_decode: Final = lru_cache(4096)(decode)


Acts = dict[int, list[Callable[[Cpu, Insn], bool]]]


def acts(errata: Iterable[Erratum]) -> Acts:
    """Return what puts these errata right, by opcode."""
    found: Acts = {}
    for erratum in errata:
        for opcode in erratum.opcodes:
            found.setdefault(opcode, []).append(erratum.act)
    return found


_ACTS: Final = acts(ERRATA)


class Bare(Technique):
    """A guest alone on the hardware, or nearly so; the engine is a stepped one."""

    def __init__(
        self, name: str, policy: Policy, engine: Engine, ram: Ram, vcpu: VCpu
    ) -> None:
        memory = BareMemory(engine, vcpu, ram)
        cpu = BareCpu(engine, vcpu, memory, engine.clock)
        super().__init__(name, policy, engine, cpu)
        engine.shared.sets_if = 1
        self.acts = _ACTS  # what puts the engine right, by opcode
        self._events = 0
        self.insn: Insn | None = None  # what was run last, and where
        self._code = b""  # where EIP is
        # What was code there last, by guest page, and in it by GPA.
        self._translated: dict[int, dict[int, bytes]] = {}
        self.distance: int | None = None  # of its operand, if it reads it to write it
        self._place = 0, 0  # EIP and CS
        self._alone = False  # it is a block of its own
        self._again = False  # it is to run once more, alone
        self._ss = self._cpl = self._task = 0
        engine.on_exception = self._on_exception
        engine.on_invalid = self._on_invalid
        engine.on_in = self.on_in
        engine.on_out = self.on_out
        engine.on_cpuid = self.on_cpuid
        # A large page of the engine's may be beyond 4 GiB (PSE-36), or beyond RAM.
        self._map_beyond(ram)
        pdpt = memoryview(allocate(x86.PAGE_SIZE))
        self._pdpt = pdpt.cast("Q")
        engine.map(_PDPT, pdpt)
        engine.map_nothing(_PDPT + x86.PAGE_SIZE, _END - _PDPT - x86.PAGE_SIZE)
        engine.hook()
        engine.leave_long_mode()
        engine.set_table(offsets.GDTR, vcpu.gdt_base, vcpu.gdt_limit)
        engine.set_table(offsets.IDTR, vcpu.idt_base, vcpu.idt_limit)
        self._push()
        self._pull()

    def _map_beyond(self, ram: Ram) -> None:
        """Map what is behind RAM, or between it and 4 GiB: nothing, and the ROM."""
        engine = self.engine
        holes = [range(ram.size, _PDPT)]
        if ram.low < min(ram.size, config.HIGH):
            holes.insert(0, range(ram.low, config.HIGH))
        rom = ram.rom_window << x86.PAGE_SHIFT
        for hole in holes:
            if rom in hole:
                engine.map_nothing(hole.start, rom - hole.start)
                size = config.HIGH - rom
                engine.map(rom, ram.bytes[_MIB - size : _MIB])
                hole = range(config.HIGH, hole.stop)  # noqa: PLW2901 (its rest)
            if hole:
                engine.map_nothing(hole.start, len(hole))

    def reset_cpu(self) -> None:
        """Be a CPU as RESET leaves it: SDM Vol. 3A table 9-1."""
        super().reset_cpu()
        self.q[CR] = self.vcpu.cr0
        self.engine.protect(on=False)
        self.engine.sync_mode(0)
        self._pull()

    def set_a20(self, *, is_open: bool) -> None:
        """Let address line 20 through, or not."""
        super().set_a20(is_open=is_open)
        self.engine.gate_a20(is_open=is_open)

    def guest_flags(self) -> int:
        """Return the guest's EFLAGS, 32 bits."""
        return self.engine.flags() | self.breakpoints.resume

    def set_guest_flags(self, value: int) -> None:
        """Write the guest's EFLAGS; VM stays."""
        kept = self.q[RFLAGS] & x86.VM
        absent = x86.RF | x86.VM | x86.VIF | x86.VIP  # or, of RF, elsewhere
        self.engine.set_flags(value & x86.FLAGS_DEFINED & ~absent | kept)
        self.breakpoints.resume = value & x86.RF if self.breakpoints.armed else 0

    def write_cr0(self, value: int) -> None:
        """Follow a task switch, which sets CR0.TS."""
        self.vcpu.cr0 = value
        self.q[CR] = value
        self.d[HFLAGS] |= (value & x86.CR0_TS) << offsets.HF_MP_EM_TS_SHIFT

    def write_cr3(self, value: int) -> None:
        """Follow a task switch to another page directory; TR is not pushed yet."""
        self.q[CR + 3] = value
        self._pull_cr3(x86.MASK32)

    def write_cr4(self, value: int) -> None:
        """MOV to CR4, of which the engine would clear SMEP and SMAP."""
        self.engine.set_cr4(value)
        self.engine.flush_tlb()
        self._pull()

    def write_efer(self, value: int) -> None:
        """WRMSR of EFER: raises #GP(0).

        The engine sets LMA by itself, with CR0.PG.
        """
        value = check_efer(self.vcpu, value)
        self.vcpu.efer = self.q[_EFER] = value
        self.engine.flush_tlb()

    def enter_ia32e(self, cr3: int) -> None:
        """Switch IA-32e mode on, before anything runs: CS is to be loaded then."""
        q = self.q
        q[_EFER] = x86.EFER_LME | x86.EFER_LMA
        q[CR], q[CR + 3], q[CR + 4] = q[CR] | x86.CR0_PG, cr3, x86.CR4_PAE
        self.d[HFLAGS] |= offsets.HF_LMA
        self._pull()

    # -- the engine's registers and the virtual CPU's ----------------------------------

    def _pull(self) -> None:
        """Take over what the engine's own instructions have set."""
        vcpu, q, d = self.vcpu, self.q, self.d
        self.cpu.iopl = q[RFLAGS] >> 12 & 3
        q[CR] = q[CR] & x86.CR0_DEFINED | x86.CR0_ET  # the engine keeps reserved bits
        vcpu.efer = q[_EFER]
        self.engine.ia32e = bool(vcpu.efer & x86.EFER_LMA)
        mask = x86.MASK64 if vcpu.efer & x86.EFER_LMA else x86.MASK32
        vcpu.cr0, vcpu.cr2, vcpu.cr4 = (q[CR + i] & mask for i in (0, 2, 4))
        self.engine.protect(on=bool(vcpu.cr0 & x86.CR0_PE))
        self._pull_cr3(mask)
        vcpu.gdt_base, vcpu.gdt_limit = q[_GDTR + 1], d[2 * _GDTR + 4]
        vcpu.idt_base, vcpu.idt_limit = q[_IDTR + 1], d[2 * _IDTR + 4]
        for offset, segment in ((offsets.LDTR, vcpu.ldtr), (offsets.TR, vcpu.tr)):
            segment.selector = d[offset // 4]
            segment.base = q[offset // 8 + 1]
            segment.limit = d[offset // 4 + 4]
            segment.kind = d[offset // 4 + 5] >> 8 & 15
        if not d[offsets.LDTR // 4 + 5] & x86.DESC_P:
            vcpu.ldtr.limit = -1
        self.cpu.update_mode()

    def _pull_cr3(self, mask: int) -> None:
        """Take over CR3, and have the engine walk by the PDPTE registers, if any."""
        vcpu, q = self.vcpu, self.q
        value = q[CR + 3]
        if not format_of(vcpu.cr0, vcpu.cr4, vcpu.efer).in_registers:
            vcpu.pdptes = NO_PDPTES
            if value == _PDPT:
                q[CR + 3] = vcpu.cr3
                self.engine.flush_tlb()
            else:
                vcpu.cr3 = value & mask
            return
        if value != _PDPT:
            vcpu.cr3 = value & mask
            vcpu.pdptes = read_pdptes(self.ram, vcpu.cr3) or NO_PDPTES
        elif tuple(self._pdpt[:4]) == vcpu.pdptes:
            return
        self._show_pdptes()

    def _show_pdptes(self) -> None:
        """Have the engine walk by the PDPTE registers."""
        for i, pdpte in enumerate(self.vcpu.pdptes):
            self._pdpt[i] = pdpte
        self.q[CR + 3] = _PDPT
        self.engine.flush_tlb()

    def _push(self) -> None:
        """Give the engine what the delivery of an event has set."""
        vcpu, q, d = self.vcpu, self.q, self.d
        q[CR + 2] = vcpu.cr2
        for offset, segment in ((offsets.LDTR, vcpu.ldtr), (offsets.TR, vcpu.tr)):
            d[offset // 4] = segment.selector
            q[offset // 8 + 1] = segment.base
            d[offset // 4 + 4] = max(segment.limit, 0)
            present = x86.DESC_P if segment.limit >= 0 else 0
            d[offset // 4 + 5] = segment.kind << 8 | present

    # -- running -----------------------------------------------------------------------

    def start(self) -> None:
        """Begin: the engine has all it needs."""

    def restore(self, state: TechniqueState) -> None:
        """Become what was saved."""
        super().restore(state)
        vcpu = self.vcpu
        self.ram.gate_a20(is_open=vcpu.a20)
        self.engine.gate_a20(is_open=vcpu.a20)
        if format_of(vcpu.cr0, vcpu.cr4, vcpu.efer).in_registers:
            self._show_pdptes()
        self.insn = self.distance = None

    def drop_derived(self) -> None:
        """Forget what was translated, and which instruction was run last."""
        super().drop_derived()
        self._translated.clear()
        self.insn = self.distance = None

    def before_write(self, page: int) -> None:
        """Learn that somebody else is about to write to a guest page."""
        self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
        self._translated.pop(page, None)

    def run(self) -> None:
        """Run until STOP_AT, or an interrupt can come in, or the guest is done.

        An instruction takes a microsecond of virtual time: nobody would live to see
        a timer interrupt if it took what it takes in other techniques.
        """
        control = self._control
        while control[abi.NOW] < control[abi.STOP_AT]:
            self.step()
            control[abi.NOW] += _PERIOD
            if self.end is not None or self.vcpu.halted:
                return
            if self.pic.intr and self.is_open():
                return

    def is_open(self) -> bool:
        """Tell whether the guest lets an interrupt in now."""
        return bool(
            self.q[RFLAGS] & x86.IF and not self.d[HFLAGS] & offsets.HF_INHIBIT_IRQ
        )

    def interrupt(self) -> bool:
        """Deliver the interrupt that waits, if the guest lets it in; tell if it did."""
        if not self.is_open():
            return False
        if not self.breakpoints.armed:
            self.q[RFLAGS] &= ~x86.RF  # an IRET's: the techniques do not keep it
        self._take_interrupt()
        self._push()
        return True

    def step(self) -> None:
        """Run one instruction or deliver one event, if the guest is not halted."""
        self._events = 0
        insn = self._fetch()
        if self.breakpoints.armed and self._breaks(insn):
            return
        trapped = self.q[RFLAGS] & x86.TF
        # Nothing but breakpoints looks at RF, and the engine's PUSHF would show it; its
        # IRET to virtual-8086 mode takes flags that no model has.
        self.q[RFLAGS] &= ~(x86.RF | x86.VIF | x86.VIP)
        try:
            if self._corrected(insn):
                self._push()
                if insn is not None and insn.opcode in (SYSCALL, SYSRET):
                    trapped = self.q[RFLAGS] & x86.TF
                if self.end is None:
                    self._done(stepped=bool(trapped))
                return
        except (GuestFault, PageFault) as raised:
            vector, error = as_fault(self.cpu, raised)
            self._deliver(vector, error)
            return
        self.distance = None
        if insn is not None and insn.modifies_memory:
            self.distance = self._distance(insn)
            if self.distance is not None and -_WIDEST < self.distance < insn.length:
                self.unsupported("a read-modify-write of itself")
                return
        halts = insn is not None and insn.opcode == _HLT and not self.cpu.cpl
        self.insn = insn
        open_before = self.q[RFLAGS] & x86.IF
        self._place = eip, cs = self.q[RIP], self.d[SELECTOR[x86.CS]]
        self._cpl = cpl = self.cpu.cpl
        # What SS is unless it is loaded, which an IRET of 64-bit code always does.
        self._ss = self.d[SELECTOR[x86.SS]]
        if insn is not None and insn.opcode == _IRET and self.cpu.code_bits == 64:
            self._ss = -1
        self._task, self._cr2 = self.vcpu.tr.selector, self.vcpu.cr2
        fetched = self._run_one()
        if not self.d[HFLAGS] & offsets.HF_CS64:
            self.q[RIP] &= x86.MASK32
        trapped_sti = insn is not None and insn.opcode == _STI and not self.cpu.iopl
        if trapped_sti and open_before:
            # The engine's shadow follows any STI: Vol. 2B STI, only if IF was 0. Where
            # IOPL lets it run natively techniques have the engine's.
            self.d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ
        if self._events:
            return
        self._pull()
        if self.vcpu.tr.kind in (x86.SYS_TSS16, x86.SYS_TSS16_BUSY):
            self.unsupported("a 16-bit task")
        elif not fetched and self._begins_in_ram():
            self.unsupported("an instruction that is not all in RAM")
        elif not fetched:
            self._deliver(x86.VEC_UD, None)  # FF FF
        elif halts and not trapped:
            self.vcpu.halted = True
        else:
            if self._is_far():
                if self.cpu.cpl != cpl:
                    how = "IRET" if insn and insn.opcode == _IRET else "far transfer"
                    self._changed_ring(how, cpl, cs, eip)
                self._mark_loaded()
                if self.vcpu.tr.selector != self._task:
                    self.vcpu.dr[7] &= ~x86.DR7_LOCAL
            self._done(stepped=bool(halts))

    def _run_one(self) -> bool:
        """Run the instruction at EIP; False if there is no memory to fetch it from.

        The engine looks ahead at those behind it, which may be the ones not there. If
        they are, the instruction runs again, in an interrupt's shadow: then it is a
        block of its own.
        """
        d = self.d
        self._alone = bool(
            self.q[RFLAGS] & x86.TF or d[HFLAGS] & offsets.HF_INHIBIT_IRQ
        )
        self._again = False
        fetched = self.engine.step() or self._has_moved()
        if self._again or (not fetched and not self._alone and self._is_in_a_page()):
            self._alone = True
            d[HFLAGS] |= offsets.HF_INHIBIT_IRQ
            fetched = self.engine.step() or self._has_moved()
            d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ
        return fetched

    def _is_in_a_page(self) -> bool:
        """Tell whether the instruction at EIP is whole in its page."""
        linear = self.cpu.linear_eip
        insn = _decode(self._read_code(linear), self.cpu.code_bits)
        return insn is not None and (linear & 0xFFF) + insn.length <= x86.PAGE_SIZE

    def _begins_in_ram(self) -> bool:
        gpa = self.memory.lookup(self.cpu.linear_eip)
        return gpa is not None and self.memory.ram.backed(gpa >> x86.PAGE_SHIFT)

    def _breaks(self, insn: Insn | None) -> bool:
        """Look for breakpoints at the instruction to run; tell if one is before it."""
        breakpoints = self.breakpoints
        breakpoints.resume |= self.q[RFLAGS] & x86.RF
        if not breakpoints.before():
            breakpoints.resume = 0
            if insn is not None:
                breakpoints.reach(insn)
            return False
        breakpoints.report()
        self._deliver(x86.VEC_DB, None)
        return True

    def _done(self, *, stepped: bool) -> None:
        """Trap after an instruction, if it was a single step or is broken at."""
        breakpoints = self.breakpoints
        breakpoints.done()
        insn = self.insn
        if insn and loads_ss(insn) and self.d[HFLAGS] & offsets.HF_INHIBIT_IRQ:
            if breakpoints.armed:
                breakpoints.hold()
        elif stepped or breakpoints.hits:
            breakpoints.report(stepped=stepped)
            self._deliver(x86.VEC_DB, None)

    def _is_far(self) -> bool:
        """Tell whether what was run last is a far transfer."""
        insn = self.insn
        if insn is None:
            return False
        return insn.opcode in _RETURNS or is_far_jump(insn)

    def _mark_loaded(self) -> None:
        """Do what a far transfer does, and the engine's does not.

        The accessed bits of CS and SS are set, unless the program has just taken the
        table away from under them; a return to an outer ring makes any null selector 0.
        """
        cpu = self.cpu
        if cpu.has_paragraphs:
            return
        if cpu.cpl > self._cpl:
            for index in (x86.FS, x86.GS):
                if not self.d[SELECTOR[index]] & 0xFFFC:
                    self.d[SELECTOR[index]] = 0
        for index in (x86.CS, x86.SS):
            selector = self.d[SELECTOR[index]]
            if selector & 0xFFFC and (index == x86.CS or selector != self._ss):
                with suppress(GuestFault, PageFault):
                    cpu.mark_accessed(selector, cpu.descriptor(selector))

    def _fetch(self) -> Insn | None:
        """Decode the instruction at CS:EIP; None if there is none.

        What the engine has translated there is dropped if it may have been other code.
        """
        linear = self.cpu.linear_eip
        code = self._read_code(linear)
        first = self.memory.lookup(linear)
        if first is not None and self.memory.ram.backed(first >> x86.PAGE_SHIFT):
            known = self._translated.setdefault(first >> x86.PAGE_SHIFT, {})
            if known.get(first) != code:
                self.engine.drop_code(first, 1)
                known[first] = code
        self._code = code
        return _decode(code, self.cpu.code_bits)

    def _read_code(self, linear: int) -> bytes:
        """Return 15 bytes of code, or fewer if a page is not there."""
        code = b""
        while len(code) < x86.LONGEST_INSN:
            gpa = self.memory.lookup((linear + len(code)) & self.cpu.address_mask)
            if gpa is None:
                break
            part = min(x86.LONGEST_INSN - len(code), x86.PAGE_SIZE - (gpa & 0xFFF))
            code += self.ram.read(gpa, part)
        return code

    def _distance(self, insn: Insn) -> int | None:
        """Return how far from itself in physical memory the operand is, in bytes.

        The engine stores bytes one by one where they are not aligned. If the first is
        not of the block under way, and a later one is, it begins the instruction anew,
        with the first one written: what it adds is added twice.
        """
        here = self.memory.lookup(self.cpu.linear_eip)
        there = self.memory.lookup(operand.linear_address(self.cpu, insn))
        return None if here is None or there is None else there - here

    def _corrected(self, insn: Insn | None) -> bool:
        """Do an instruction that the engine has wrong; tell whether it is done."""
        if insn is None:
            return False
        return any(act(self.cpu, insn) for act in self.acts.get(insn.opcode, ()))

    # -- events ------------------------------------------------------------------------

    def _deliver(self, vector: int, error: int | None) -> None:
        """Deliver an event through the guest's IDT."""
        self._events += 1
        self.breakpoints.hits = 0
        self._inject(vector, error)
        self._push()

    def _end_step(self, *, trapped: bool = False) -> None:
        """Be called by the engine, which may have looked ahead of a far transfer.

        trapped: the instruction is done.
        """
        self.engine.stop()
        self._pull()
        if self._is_far() and (trapped or self._has_moved()):
            self._mark_loaded()

    def _on_exception(self, vector: int) -> None:
        """Take an exception or a software interrupt of the guest; end the step."""
        self._end_step(trapped=vector == x86.VEC_DB)
        if self.vcpu.tr.kind in (x86.SYS_TSS16, x86.SYS_TSS16_BUSY):
            # The engine reads its segment registers from the wrong places.
            self.unsupported("a 16-bit task")
        elif self.d[IS_INT]:
            self._software(vector)
        elif vector == x86.VEC_DB:
            self._done(stepped=True)
        elif vector == x86.VEC_PF and self._is_ahead():
            self.q[CR + 2] = self._cr2
            self._again = not self._has_moved()
        elif self.breakpoints.armed and self._looked_ahead(vector):
            self.q[CR + 2] = self._cr2  # the next step finds it again
        else:
            if self.vcpu.tr.selector != self._task:
                # The new task's own fault: the engine has put back the old one's EIP.
                self.q[RIP] = self.memory.read32(self.vcpu.tr.base + _TSS_EIP)
                self.vcpu.dr[7] &= ~x86.DR7_LOCAL
            error = self.d[ERROR_CODE] if vector in x86.PUSHES_ERROR else None
            insn = self.insn
            if vector == x86.VEC_PF and insn is not None and self._modifies(insn):
                error = (error or 0) | x86.PF_W  # the engine reads first
            if vector == x86.VEC_GP and self._called_beyond():
                error = 0
            if self.cpu.code_bits == 64 and insn is not None:
                vector, error = self._by_canonical(insn, vector, error)
            if vector == x86.VEC_TS and self._to_local_tss():
                vector = x86.VEC_GP
            self._deliver(vector, error)

    def _modifies(self, insn: Insn) -> bool:
        """Tell whether a page fault is at what an instruction is to change.

        If its own bytes are there, it could not be fetched.
        """
        mask = self.cpu.address_mask
        offset = self.q[CR + 2] - self.cpu.linear_eip & mask
        return insn.modifies_memory and offset >= insn.length

    def _by_canonical(
        self, insn: Insn, vector: int, error: int | None
    ) -> tuple[int, int | None]:
        """Return what an access raises that is not canonical.

        The engine has #GP(0) for a stack, too, and looks at each page by itself.
        """
        record = find(insn)
        if vector == x86.VEC_PF:
            may_be = may_not_be_canonical(self.q[CR + 2])
        else:
            may_be = vector == x86.VEC_GP and not error
        if may_be and not (record and record.ring0_only and self.cpu.cpl):
            try:
                check_canonical(self.cpu, insn)
            except GuestFault as raised:
                self.vcpu.cr2 = self._cr2
                return raised.vector, raised.error
        return vector, error

    def _looked_ahead(self, vector: int) -> bool:
        """Tell of a page that the next instruction is not on: this one is done."""
        same_task = self.vcpu.tr.selector == self._task
        return vector == x86.VEC_PF and same_task and self._has_moved()

    def _is_ahead(self) -> bool:
        """Tell of a fault at code behind an instruction that has not run.

        It may be at data there, too, which the instruction finds when it runs alone.
        """
        if self._alone and not self._has_moved():
            return False
        mask = self.cpu.address_mask
        behind = (self.cpu.linear_eip | 0xFFF) + 1 & mask
        return self.q[CR + 2] & mask == behind and self._is_in_a_page()

    def _has_moved(self) -> bool:
        """Tell whether the instruction is done, by where the guest is."""
        return self._place != (self.q[RIP], self.d[SELECTOR[x86.CS]])

    def _called_beyond(self) -> bool:
        """Tell of a far CALL beyond a limit: the engine has the selector as error."""
        pointer = None if self.insn is None else far_pointer(self.cpu, self.insn)
        if pointer is None:
            return False
        try:
            found = self.cpu.check_code(pointer[0], self.cpu.cpl)
        except GuestFault:
            return False
        return pointer[1] > found.limit

    def _to_local_tss(self) -> bool:
        """Tell of a JMP or CALL to a TSS in the LDT, where the engine has #TS."""
        insn = self.insn
        jumps = insn is not None and is_far_jump(insn)
        return jumps and bool(self.d[ERROR_CODE] & 4)

    def _software(self, vector: int) -> None:
        """INT n, INT3 and INTO: EIP is after the instruction."""
        self._events += 1
        after, mask = self.q[RIP], self.cpu.address_mask
        last = (after - 1) & mask
        gpa = self.memory.lookup((last + self.q[BASE[x86.CS]]) & mask)
        one_byte = (
            gpa is not None
            and self.memory.ram.backed(gpa >> 12)
            and self.memory.ram.bytes[gpa] == _ONE_BYTE.get(vector)
        )
        try:
            start = last if one_byte else (after - 2) & mask
            self._software_interrupt(vector, start)
        except (GuestFault, PageFault) as raised:
            self._inject(*as_fault(self.cpu, raised))
        self._push()

    def _on_invalid(self) -> None:
        """Take an opcode that the engine does not have; end the step."""
        self._end_step()
        self._deliver(x86.VEC_UD, None)
