"""What every technique has of a virtual machine monitor: events, ports, time, the end.

A `Technique` runs one virtual CPU on one engine. What is done with the guest's kernel,
to keep it from the hardware (`deprivileged`) or not at all (`bare`), is each one's own.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from time import perf_counter_ns
from typing import Final

from emu86.cpu.engine import Engine, EngineState
from emu86.cpu.models import CpuModel
from emu86.cpu.state import ATTRIBUTES, RIP, SELECTOR
from emu86.cpu.vcpu import VCpu, VCpuState
from emu86.mmu.paging import format_of, read_pdptes
from emu86.mmu.ram import DATA, UNBACKED, Ram
from emu86.mmu.shadow_leaves import ShadowStats
from emu86.native import abi
from emu86.rings.cpu import Cpu
from emu86.rings.debug import Debug, Watch
from emu86.rings.decode import Insn
from emu86.rings.events.breakpoints import Breakpoints
from emu86.rings.events.inject import inject, software
from emu86.rings.fault import TripleFault, gp
from emu86.rings.history import Event, Failure, History, RingChange
from emu86.rings.observers import Observer, Observers
from emu86.rings.protocols import Interrupts, IoBus, LinearMemory
from emu86.spec import x86

_CS_SELECTOR: Final = SELECTOR[x86.CS]
_TSS16: Final = (x86.SYS_TSS16, x86.SYS_TSS16_BUSY)


@dataclass(frozen=True, slots=True)
class Policy:
    """What tells one technique from another.

    kernel_ring: the engine's ring that runs the guest's ring 0, 0 or 1; scans: every
    block is scanned before it first runs, and sensitive instructions are patched;
    raises_iopl: the guest's kernel runs with an IOPL of its engine ring; stepped: the
    engine is run instruction by instruction.
    """

    kernel_ring: int
    scans: bool = False
    raises_iopl: bool = False
    stepped: bool = False


COMPILED: Final = {
    "IN": abi.COUNT_IN, "OUT": abi.COUNT_OUT, "CPUID": abi.COUNT_CPUID,
    "CLI": abi.COUNT_CLI, "STI": abi.COUNT_STI, "RDTSC": abi.COUNT_RDTSC,
    "segment access": abi.COUNT_ACCESS,
    "INVLPG": abi.COUNT_INVLPG, "CMPXCHG8B": abi.COUNT_SPLIT, "IRET": abi.COUNT_IRET,
    "MOV to CR": abi.COUNT_WRITE_CR, "MOV from CR": abi.COUNT_READ_CR,
    "CLTS": abi.COUNT_CLTS, "SYSCALL": abi.COUNT_SYSCALL, "SYSRET": abi.COUNT_SYSRET,
    "SWAPGS": abi.COUNT_SWAPGS, "RDMSR": abi.COUNT_RDMSR, "WRMSR": abi.COUNT_WRMSR,
    "HLT": abi.COUNT_HLT, "interrupt": abi.COUNT_INTERRUPT,
    "RDTSCP": abi.COUNT_RDTSCP, "CLAC": abi.COUNT_CLAC, "STAC": abi.COUNT_STAC,
    "MOV to Sreg": abi.COUNT_LOAD_SREG, "POP Sreg": abi.COUNT_POP_SREG,
    "SETcc": abi.COUNT_SETCC, "#PF guest": abi.COUNT_PAGE_FAULT,
    "#PF fill": abi.COUNT_FILLED, "POPF": abi.COUNT_POPF, "VERW": abi.COUNT_VERW,
    **{
        x86.VECTOR_NAMES[vector]: abi.COUNT_EXCEPTIONS + vector
        for vector in (x86.VEC_DE, x86.VEC_BR, x86.VEC_NM)
    },
    **{f"INT {vector:02X}h": abi.COUNT_INT + vector for vector in range(256)},
}  # fmt: skip
"""Exits that compiled handlers count, and in which words."""


def check_cr0(value: int) -> None:
    """Raise #GP(0) for what CR0 cannot hold: SDM Vol. 2B MOV to CR."""
    if value & x86.CR0_PG and not value & x86.CR0_PE:
        raise gp(0)
    if value & x86.CR0_NW and not value & x86.CR0_CD:
        raise gp(0)


def efer_by_cr0(cpu: Cpu, cr0: int) -> int:
    """Return EFER as MOV to CR0 leaves it: LMA follows PG; raises #GP(0).

    Source: SDM Vol. 3A section 9.8.5.
    """
    vcpu = cpu.vcpu
    pg, lma = cr0 & x86.CR0_PG, vcpu.efer & x86.EFER_LMA
    if pg and not vcpu.cr0 & x86.CR0_PG and vcpu.efer & x86.EFER_LME:
        code64 = cpu.d[ATTRIBUTES[x86.CS]] & x86.DESC_L
        if not vcpu.cr4 & x86.CR4_PAE or code64 or vcpu.tr.kind in _TSS16:
            raise gp(0)
        return vcpu.efer | x86.EFER_LMA
    if lma and not pg:
        if cpu.code_bits == 64:
            raise gp(0)
        return vcpu.efer & ~x86.EFER_LMA
    return vcpu.efer


def check_cr4(vcpu: VCpu, value: int) -> None:
    """Raise #GP(0) for what CR4 cannot hold: SDM Vol. 2B MOV to CR."""
    if value & ~vcpu.model.cr4_defined:
        raise gp(0)
    if vcpu.efer & x86.EFER_LMA and not value & x86.CR4_PAE:
        raise gp(0)


def check_efer(vcpu: VCpu, value: int) -> int:
    """Return what WRMSR leaves in EFER: LMA is read only; raises #GP(0).

    LME cannot be changed while paging is on: SDM Vol. 3A section 9.8.5.
    """
    if (vcpu.efer ^ value) & x86.EFER_LME and vcpu.cr0 & x86.CR0_PG:
        raise gp(0)
    return value & ~x86.EFER_LMA | vcpu.efer & x86.EFER_LMA


def load_pdptes(vcpu: VCpu, ram: Ram, cr0: int, cr3: int, cr4: int, efer: int) -> bool:
    """Load the PDPTE registers, if such control registers use them; tell if.

    Raises #GP(0) for reserved bits, and then loads none.
    """
    if not format_of(cr0, cr4, efer).in_registers:
        return False
    pdptes = read_pdptes(ram, cr3)
    if pdptes is None:
        raise gp(0)
    vcpu.pdptes = pdptes
    return True


@dataclass(frozen=True, slots=True)
class Counts:
    """What a technique counts: see `machine.stats.Stats`."""

    blocks: int = 0
    decoded: int = 0
    patched: dict[str, int] = field(default_factory=dict)
    shadow: dict[str, int] = field(default_factory=lambda: asdict(ShadowStats()))


@dataclass(frozen=True, slots=True)
class TechniqueState:
    """What a virtual CPU and its VMM hold between two instructions.

    iopl: the guest's; breakpoints: see `Breakpoints.save`; end: why the run has ended
    and more words for it, if it has; exits: by reason, how many and their nanoseconds;
    counts: what was counted beside.
    """

    engine: EngineState
    vcpu: VCpuState
    iopl: int
    breakpoints: tuple[int, int, int]
    end: tuple[str, str] | None
    exits: dict[str, tuple[int, int]]
    counts: Counts


class Technique:
    """One virtual CPU on one engine, and the `Services` of what it emulates."""

    def __init__(self, name: str, policy: Policy, engine: Engine, cpu: Cpu) -> None:
        self.name = name
        self.policy = policy
        self.engine = engine
        self.clock = engine.clock
        self._control = engine.control
        self.q = engine.q
        self.d = engine.d
        self.cpu = cpu
        cpu.services = self
        self.vcpu = cpu.vcpu
        self.memory: LinearMemory = cpu.memory
        self.ram: Ram = cpu.memory.ram
        self.bus: IoBus
        self.pic: Interrupts
        self.breakpoints = Breakpoints(cpu)
        self.observers = Observers()
        self.history = History(engine.shared)
        self.debug = Debug(engine.shared)
        self.end: tuple[str, str] | None = None
        self.timing = False
        # Told of each exit that Python has handled; where the guest is then, varies.
        self.on_exit: Callable[[str], None] | None = None
        # And of each interrupt, behind its delivery: its vector.
        self.on_interrupt: Callable[[int], None] | None = None
        self.exits: dict[str, list[int]] = {}  # reason -> [count, nanoseconds]
        self._reason = ""
        self._event: Event  # that is being delivered
        self._publish_cpuid()

    def set_model(self, model: CpuModel) -> None:
        """Be another CPU, before anything has run."""
        self.vcpu.model = model
        self._publish_cpuid()

    def connect(self, bus: IoBus, pic: Interrupts) -> None:
        """Stand on a board: its ports and memory, and its interrupt controller."""
        self.bus, self.pic = bus, pic

    def _publish_cpuid(self) -> None:
        """Have compiled code know the leaves that the CPU model has."""
        shared = self.engine.shared
        leaves = (0, 1, 2, 7, *range(0x80000000, 0x80000009), 0x40000000)
        for known, leaf in zip(shared.cpuid, leaves, strict=False):
            known.leaf = leaf
            known.eax, known.ebx, known.ecx, known.edx = self._cpuid(leaf)
        shared.cpuid_count = len(leaves)

    def _cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        vcpu = self.vcpu
        long_mode = bool(vcpu.efer & x86.EFER_LMA)
        return vcpu.model.cpuid(
            leaf, vcpu.hypervisor, subleaf=subleaf, long_mode=long_mode
        )

    # -- what a technique does its own way ---------------------------------------------

    def guest_flags(self) -> int:
        """Return the guest's EFLAGS, 32 bits."""
        raise NotImplementedError

    def set_guest_flags(self, value: int) -> None:
        """Write the guest's EFLAGS."""
        raise NotImplementedError

    def write_cr0(self, value: int) -> None:
        """MOV to CR0: raises #GP(0)."""
        raise NotImplementedError

    def write_cr3(self, value: int) -> None:
        """MOV to CR3: raises #GP(0)."""
        raise NotImplementedError

    def write_cr4(self, value: int) -> None:
        """MOV to CR4: raises #GP(0)."""
        raise NotImplementedError

    def write_efer(self, value: int) -> None:
        """WRMSR of EFER: raises #GP(0)."""
        raise NotImplementedError

    def invalidate(self, gva: int) -> None:
        """INVLPG."""
        raise NotImplementedError

    def enter_ia32e(self, cr3: int) -> None:
        """Switch IA-32e mode on, before anything runs: CS is to be loaded then."""
        self.write_cr4(x86.CR4_PAE)
        self.write_efer(x86.EFER_LME)
        self.write_cr3(cr3)
        self.write_cr0(self.vcpu.cr0 | x86.CR0_PG)

    def reset_cpu(self) -> None:
        """Be a CPU as RESET leaves it, in real mode: SDM Vol. 3A table 9-1."""
        vcpu, q = self.vcpu, self.q
        vcpu.cr0 = x86.CR0_CD | x86.CR0_NW | x86.CR0_ET
        for i in range(len(x86.GPR_NAMES)):
            q[i] = 0
        q[x86.EDX] = vcpu.model.cpuid(1, "", long_mode=False)[0]
        q[RIP] = 0xFFF0
        rights = x86.V86_ATTRIBUTES & ~x86.DESC_DPL
        for i in range(len(x86.SEGMENT_NAMES)):
            self.engine.set_segment(i, 0, 0, x86.V86_LIMIT, rights)
        base = 0xFFFF0000  # until CS is loaded
        self.engine.set_segment(x86.CS, 0xF000, base, x86.V86_LIMIT, rights)
        self.engine.set_flags(0)

    def set_a20(self, *, is_open: bool) -> None:
        """Let address line 20 through, or not."""
        self.vcpu.a20 = is_open
        self.ram.gate_a20(is_open=is_open)

    def start(self) -> None:
        """Begin: the registers are loaded."""
        raise NotImplementedError

    def run(self) -> None:
        """Run until STOP_AT, or an interrupt can come in, or the guest is done."""
        raise NotImplementedError

    def step(self) -> None:
        """Run one instruction or deliver one event, on an engine made to be stepped."""
        raise NotImplementedError

    def is_open(self) -> bool:
        """Tell whether the guest lets an interrupt in now."""
        raise NotImplementedError

    def interrupt(self) -> bool:
        """Deliver the interrupt that waits, if the guest lets it in; tell if it did."""
        raise NotImplementedError

    def may_rest(self, _until: int) -> None:
        """Let compiled code sleep while the CPU is halted, to virtual time `until`.

        0: it may not.
        """

    @property
    def shadow_memory(self) -> memoryview:
        """The VMM's own memory, 64-bit words: shadow page tables are in it."""
        return memoryview(b"").cast("Q")

    # -- what only a technique that keeps more than the guest's state has to do --------

    def unpatch(self) -> None:
        """Put back what stands in guest RAM for a moment only: a run has ended."""

    @property
    def pending_patch(self) -> tuple[int, int] | None:
        """Where in RAM (GPA) a patch stands now, and the guest's byte there; or None.

        The block waits to be translated, and nothing may come between.
        """
        return None

    def before_write(self, page: int) -> None:
        """Learn that somebody else is about to write to a guest page."""

    def back(self, pages: range, plain: range) -> None:
        """Have plain memory at `plain`, a device's at the others of `pages`.

        They are numbers of guest pages; what plain memory holds changes, too.
        """
        for page in pages:
            self.before_write(page)
            self.ram.state[page] = DATA if page in plain else UNBACKED

    def trap_mmio(self, pages: range) -> None:
        """Have reads of pages beyond RAM reach the board, too: elsewhere are ones."""

    def compile_site(self, insn: Insn, kind: int) -> None:
        """Have compiled code handle the instruction at CS:EIP from now on."""

    def watch_exits(self) -> None:
        """Take exits back from compiled code: Python sees them from now on."""

    def measure(self) -> None:
        """Time every exit from now on."""
        self.timing = True
        self.watch_exits()

    def counts(self) -> Counts:
        """Return what has been counted beside exits."""
        return Counts()

    def all_exits(self) -> dict[str, tuple[int, int]]:
        """Return how many exits there were by reason, and nanoseconds if timed."""
        found = {reason: (count, ns) for reason, (count, ns) in self.exits.items()}
        for reason, word in COMPILED.items():
            if self._control[word]:
                count, ns = found.get(reason, (0, 0))
                found[reason] = count + self._control[word], ns
        return found

    def finish_instruction(self) -> None:
        """Run to the end of an instruction that is under way, if one is."""

    # -- for a debugger ----------------------------------------------------------------

    def set_breakpoints(
        self, linear: Collection[int], physical: Collection[int]
    ) -> None:
        """Have these breakpoints and no others, by addresses of instructions."""
        raise NotImplementedError

    def set_watches(self, watches: Iterable[Watch]) -> None:
        """Stop behind what changes these bytes, each in one page, and no others."""
        raise NotImplementedError

    def begin_step(self) -> None:
        """Have the next `run` end after one instruction, or where one is delivered to.

        Interrupts are held off, but for a halted CPU. `Debug.trap` tells of the end.
        """
        raise NotImplementedError

    def end_step(self) -> None:
        """Undo `begin_step`, whatever has come of it."""
        raise NotImplementedError

    # -- its state ---------------------------------------------------------------------

    def save(self) -> TechniqueState:
        """Return what it holds, RAM and board apart; only between two instructions."""
        return TechniqueState(
            self.engine.save(),
            self.vcpu.save(),
            self.cpu.iopl,
            self.breakpoints.save(),
            self.end,
            self.all_exits(),
            self.counts(),
        )

    def restore(self, state: TechniqueState) -> None:
        """Become what was saved; RAM is what it was then, and `before_write` told."""
        self.engine.restore(state.engine)
        self.vcpu.restore(state.vcpu)
        self._publish_cpuid()
        self.cpu.state.ia32e = bool(self.vcpu.efer & x86.EFER_LMA)
        self.cpu.iopl = state.iopl
        self.cpu.update_mode()
        self.breakpoints.restore(state.breakpoints)
        self.end = state.end
        self.exits = {reason: list(stat) for reason, stat in state.exits.items()}
        self.history.clear()

    def drop_derived(self) -> None:
        """Forget all that can be had again from RAM and from what `save` returns."""
        self.engine.drop_derived()

    # -- exits ------------------------------------------------------------------------

    def on_in(self, port: int, width: int) -> int:
        """Take an IN or INS that the hardware runs."""
        if self._control[abi.BEHIND]:
            self.catch_up()
        start = perf_counter_ns() if self.timing else 0
        self._reason = "IN"
        value = self.port_read(port, width)
        self._account(start)
        return value

    def on_out(self, port: int, width: int, value: int) -> None:
        """Take an OUT or OUTS that the hardware runs."""
        if self._control[abi.BEHIND]:
            self.catch_up()
        start = perf_counter_ns() if self.timing else 0
        self._reason = "OUT"
        self.port_write(port, width, value)
        self._account(start)

    def catch_up(self) -> None:
        """Hear of what compiled handlers have done, which only some techniques have."""

    def on_cpuid(self) -> None:
        """Take CPUID at any CPL."""
        self._control[abi.NOW] += self._control[abi.EXIT_COST]
        self._reason = "CPUID"
        q = self.q
        leaf, subleaf = q[x86.EAX] & x86.MASK32, q[x86.ECX] & x86.MASK32
        found = self._cpuid(leaf, subleaf)
        q[x86.EAX], q[x86.EBX], q[x86.ECX], q[x86.EDX] = found
        self._account(0)

    def _account(self, start: int) -> None:
        stat = self.exits.get(self._reason)
        if stat is None:
            stat = self.exits[self._reason] = [0, 0]
        stat[0] += 1
        if start:
            stat[1] += perf_counter_ns() - start
        if self.on_exit is not None:
            self.on_exit(self._reason)
        watchers = self.observers.vm_exit
        if watchers:
            self.cpu.update_mode()  # of what the engine hands over, only now
            for vm_exit in watchers:
                vm_exit(self._reason, self.d[_CS_SELECTOR], self.q[RIP])

    def halt(self) -> None:
        """HLT: nothing runs until the next interrupt."""
        self._halted()
        self.engine.stop()

    def _halted(self) -> None:
        self.vcpu.halted = True
        self.vcpu.pmu.turn(self.clock.now, None)

    def _wake(self) -> None:
        """Go on after HLT, if that is where the guest is."""
        if self.vcpu.halted:
            self.vcpu.halted = False
            self.vcpu.pmu.turn(self.clock.now, 0)

    def _take_interrupt(self) -> None:
        """Deliver the interrupt that waits: the guest lets it in."""
        self._wake()
        vector = self.pic.acknowledge()
        self.sync_intr()
        self._count_interrupt()
        if self.on_exit is not None:
            self.on_exit("interrupt")
        self._inject(vector, interrupt=True)
        if self.on_interrupt is not None:
            self.on_interrupt(vector)

    def _count_interrupt(self) -> None:
        self.exits.setdefault("interrupt", [0, 0])[0] += 1

    def _inject(
        self, vector: int, error: int | None = None, *, interrupt: bool = False
    ) -> None:
        cpu = self.cpu
        cpl, cs, eip = cpu.cpl, self.d[_CS_SELECTOR], self.q[RIP] & cpu.address_mask
        cr2 = self.vcpu.cr2
        self._event = Event(vector, error, interrupt, cs, eip, cr2, [])
        if not interrupt:
            self.history.keep(self._event)
        try:
            inject(cpu, vector, error, interrupt=interrupt)
        except TripleFault:
            self.finish("triple fault", f"at {self.where()}")
            for shutdown in self.observers.shutdown:
                shutdown(cs, eip)
            return
        if cpu.cpl != cpl:
            how = f"interrupt {vector:X}h" if interrupt else x86.event_name(vector)
            self._changed_ring(how, cpl, cs, eip)

    def _software_interrupt(self, vector: int, start: int) -> None:
        """INT n, INT3 or INTO at EIP `start`: raises the guest's faults."""
        cpl, cs = self.cpu.cpl, self.d[_CS_SELECTOR]
        software(self.cpu, vector, start)
        if self.cpu.cpl != cpl:
            self._changed_ring(f"INT {vector:02X}h", cpl, cs, start)

    def _changed_ring(self, how: str, cpl: int, cs: int, eip: int) -> None:
        """Keep where the guest was, in ring `cpl`, before it came where it is."""
        to_cs, to_eip = self.d[_CS_SELECTOR], self.q[RIP] & self.cpu.address_mask
        change = RingChange(how, cpl, cs, eip, self.cpu.cpl, to_cs, to_eip)
        self.history.change_ring(change)

    # -- debug registers, ports, the end -----------------------------------------------

    def read_dr(self, number: int) -> int:
        """MOV from DR: raises #UD and #DB."""
        return self.breakpoints.read(number)

    def write_dr(self, number: int, value: int) -> None:
        """MOV to DR, 64 bits: raises #UD, #GP(0) and #DB."""
        self.breakpoints.write(number, value)

    def port_read(self, port: int, width: int) -> int:
        """Read a port; it takes the guest a microsecond."""
        self._control[abi.NOW] += abi.IO_TIME
        value = self.bus.port_read(port, width)
        self.sync_intr()
        if self.breakpoints.armed:
            self.breakpoints.port(port, width)
        for pio in self.observers.pio:
            pio(port, width, value, False)
        return value

    def port_write(self, port: int, width: int, value: int) -> None:
        """Write a port; it takes the guest a microsecond."""
        self._control[abi.NOW] += abi.IO_TIME
        self.bus.port_write(port, width, value)
        self.sync_intr()
        if self.breakpoints.armed:
            self.breakpoints.port(port, width)
        for pio in self.observers.pio:
            pio(port, width, value, True)

    def sync_intr(self) -> None:
        """Show the engine the INTR pin, which a device or a chip's time has moved."""
        control = self._control
        control[abi.PENDING] = self.pic.intr
        if control[abi.PENDING]:
            control[abi.LIMIT] = 0

    def mmio_read(self, gpa: int, width: int) -> bytes:
        """Read device memory."""
        return self.bus.mmio_read(gpa, width)

    def mmio_write(self, gpa: int, data: bytes) -> None:
        """Write device memory."""
        self.bus.mmio_write(gpa, data)
        self.sync_intr()

    def subscribe(self, observer: Observer) -> None:
        """Tell `observer` of what it has a method for; TypeError if it has none."""
        self.observers.subscribe(observer)
        if self.observers.vm_exit:
            self.watch_exits()

    def delivered(self, vector: int, error: int | None) -> None:
        """Tell who watches of an event, delivered or met by a fault on its way."""
        for told in self.observers.inject:
            told(vector, error)

    def failed(
        self,
        vector: int,
        error: int | None,
        second: int,
        code: int | None,
        instead: int | None,
    ) -> None:
        """Tell who watches of an event that met a fault on its way, and keep that."""
        event = self._event
        if event.interrupt and not event.failures:
            self.history.keep(event)
        address = self.vcpu.cr2 if second == x86.VEC_PF else None
        event.failures.append(Failure(vector, second, code, address, instead))
        self.delivered(vector, error)

    def finish(self, reason: str, detail: str = "") -> None:
        """End the run at the next block."""
        if self.end is None:
            self.end = reason, detail
        self.engine.stop()

    def unsupported(self, what: str) -> None:
        """End the run: the guest needs what emu86 does not have yet."""
        self.finish("unsupported", f"{what} at {self.where()}")

    def where(self) -> str:
        """Return the guest's CS:EIP for messages."""
        rip = self.q[RIP] & self.cpu.address_mask
        return f"{self.d[_CS_SELECTOR]:04x}:{rip:0{16 if rip > x86.MASK32 else 8}x}"
