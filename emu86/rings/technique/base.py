"""What every technique has of a virtual machine monitor: events, ports, time, the end.

A `Technique` runs one virtual CPU on one engine. What is done with the guest's kernel,
to keep it from the hardware (`deprivileged`) or not at all (`bare`), is each one's own.
"""

from dataclasses import asdict, dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from emu86.cpu.engine import Engine
from emu86.cpu.state import RIP, SELECTOR
from emu86.cpu.vcpu import VCpu
from emu86.mmu.ram import Ram
from emu86.mmu.shadow import ShadowStats
from emu86.native import abi
from emu86.rings.descriptors import SegmentRegisters
from emu86.rings.events.breakpoints import Breakpoints
from emu86.rings.events.inject import inject
from emu86.rings.fault import TripleFault, gp
from emu86.rings.protocols import Interrupts, IoBus, LinearMemory, Observer
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.technique.shadow_segments import ShadowSegments

_CS_SELECTOR: Final = SELECTOR[x86.CS]
_IO_NS: Final = 1000  # an ISA bus cycle takes about a microsecond


def check_cr0(value: int) -> None:
    """Raise #GP(0) for what CR0 cannot hold: SDM Vol. 2B MOV to CR."""
    if value & x86.CR0_PG and not value & x86.CR0_PE:
        raise gp(0)
    if value & x86.CR0_NW and not value & x86.CR0_CD:
        raise gp(0)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a technique counts: see `machine.stats.Stats`."""

    blocks: int = 0
    decoded: int = 0
    patched: dict[str, int] = field(default_factory=dict)
    shadow: dict[str, int] = field(default_factory=lambda: asdict(ShadowStats()))


class Technique:
    """One virtual CPU on one engine."""

    segments: SegmentRegisters
    memory: LinearMemory
    ram: Ram
    iopl: int  # the guest's
    plans: "ShadowSegments | None" = None  # of a technique that keeps checked transfers

    def __init__(
        self, engine: Engine, vcpu: VCpu, bus: IoBus, pic: Interrupts, technique: str
    ) -> None:
        self.engine = engine
        self.clock = engine.clock
        self._control = engine.control
        self.q = engine.q
        self.d = engine.d
        self.vcpu = vcpu
        self.bus = bus
        self.pic = pic
        self.technique = technique
        self.breakpoints = Breakpoints(self)
        self.observers: list[Observer] = []
        self.end: tuple[str, str] | None = None
        self.timing = False
        self.exits: dict[str, list[int]] = {}  # reason -> [count, nanoseconds]
        self._reason = ""

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
        """MOV to CR3."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin: the segment registers are loaded, paging is off."""
        raise NotImplementedError

    def run(self) -> None:
        """Run until STOP_AT, or an interrupt can come in, or the guest is done."""
        raise NotImplementedError

    def interrupt(self) -> bool:
        """Deliver the interrupt that waits, if the guest lets it in; tell if it did."""
        raise NotImplementedError

    def lookup(self, gva: int) -> int | None:
        """Return the GPA that the guest's tables give, without effects; or None."""
        raise NotImplementedError

    # -- what only a technique that keeps more than the guest's state has to do --------

    @property
    def busy(self) -> bool:
        """Whether nothing may come between now and the next `run`."""
        return False

    def rest(self) -> None:
        """Put back what stands in guest RAM for a moment only: a run has ended."""

    def written(self, page: int) -> None:
        """Learn that somebody else is about to write to a guest page."""

    def unlearn(self) -> None:
        """Take exits back from compiled code: they are watched from now on."""

    def counts(self) -> "Counts":
        """Return what has been counted beside exits."""
        return Counts()

    # -- exits ------------------------------------------------------------------------

    def on_in(self, port: int, width: int) -> int:
        """Take an IN or INS that the hardware runs."""
        start = perf_counter_ns() if self.timing else 0
        self._reason = "IN"
        value = self.port_read(port, width)
        self._account(start)
        return value

    def on_out(self, port: int, width: int, value: int) -> None:
        """Take an OUT or OUTS that the hardware runs."""
        start = perf_counter_ns() if self.timing else 0
        self._reason = "OUT"
        self.port_write(port, width, value)
        self._account(start)

    def on_cpuid(self) -> None:
        """Take CPUID at any CPL."""
        self.clock.count_exit()
        self._reason = "CPUID"
        q = self.q
        leaf = q[x86.EAX] & x86.MASK32
        a, b, c, d = self.vcpu.model.cpuid(leaf, self.vcpu.hypervisor)
        q[x86.EAX], q[x86.EBX], q[x86.ECX], q[x86.EDX] = a, b, c, d
        self._account(0)

    def _account(self, start: int) -> None:
        stat = self.exits.get(self._reason)
        if stat is None:
            stat = self.exits[self._reason] = [0, 0]
        stat[0] += 1
        if start:
            stat[1] += perf_counter_ns() - start
        for observer in self.observers:
            observer.vm_exit(self._reason, self.d[_CS_SELECTOR], self.q[RIP])

    def _wake(self) -> None:
        """Go on after HLT, if that is where the guest is."""
        if self.vcpu.halted:
            self.vcpu.halted = False
            self.vcpu.pmu.turn(self.now, 0)

    def _take_interrupt(self) -> None:
        """Deliver the interrupt that waits: the guest lets it in."""
        self._wake()
        vector = self.pic.acknowledge()
        self._control[abi.PENDING] = self.pic.intr
        self.exits.setdefault("interrupt", [0, 0])[0] += 1
        self._inject(vector, interrupt=True)

    def _inject(
        self, vector: int, error: int | None = None, *, interrupt: bool = False
    ) -> None:
        try:
            inject(self, vector, error, interrupt=interrupt)
        except TripleFault:
            self.finish("triple fault", f"at {self.where()}")

    # -- time, ports, the end ----------------------------------------------------------

    @property
    def now(self) -> int:
        """Virtual time in nanoseconds."""
        return self.clock.now

    def tsc(self) -> int:
        """Return the guest's TSC: virtual nanoseconds since it was last written."""
        return self.clock.tsc()

    def set_tsc(self, value: int) -> None:
        """WRMSR to the TSC."""
        self.clock.set_tsc(value)

    def port_read(self, port: int, width: int) -> int:
        """Read a port; it takes the guest a microsecond."""
        self.clock.advance(_IO_NS)
        value = self.bus.port_read(port, width)
        self._after_io()
        if self.breakpoints.armed:
            self.breakpoints.port(port, width)
        for observer in self.observers:
            observer.pio(port, width, value, False)
        return value

    def port_write(self, port: int, width: int, value: int) -> None:
        """Write a port; it takes the guest a microsecond."""
        self.clock.advance(_IO_NS)
        self.bus.port_write(port, width, value)
        self._after_io()
        if self.breakpoints.armed:
            self.breakpoints.port(port, width)
        for observer in self.observers:
            observer.pio(port, width, value, True)

    def _after_io(self) -> None:
        self._control[abi.PENDING] = self.pic.intr

    def mmio_write(self, gpa: int, data: bytes) -> None:
        """Write device memory."""
        self.bus.mmio_write(gpa, data)
        self._after_io()

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
        return f"{self.d[_CS_SELECTOR]:04x}:{self.q[RIP] & x86.MASK32:08x}"
