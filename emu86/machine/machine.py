"""The library's front door: build a machine, load a guest, run it, look inside."""

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Final

from emu86 import images
from emu86.cpu.engine import Engine
from emu86.cpu.library import Abilities
from emu86.cpu.models import DEFAULT, MODELS
from emu86.cpu.state import BASE, RFLAGS, RIP, SELECTOR
from emu86.cpu.vcpu import VCpu
from emu86.errors import ConfigError
from emu86.machine import boot, layout
from emu86.machine.board import Board
from emu86.machine.boot import Entry
from emu86.machine.stats import Stats
from emu86.mmu.ram import Ram
from emu86.native import abi
from emu86.rings.protocols import Observer
from emu86.rings.technique.bare import Bare
from emu86.rings.technique.base import Technique
from emu86.rings.technique.deprivileged import TECHNIQUES, Deprivileged
from emu86.spec import x86

SMALLEST: Final = 1 << 20
LARGEST: Final = 3 << 30
_SLICE: Final = 4_000_000  # virtual ns between looks at the host
# Virtual ns of one RDTSC: what its exit would take. Delay loops end sooner for it.
_RDTSC_NS: Final = 500
_SECOND: Final = 1_000_000_000  # ns
_IDLE_POLL: Final = _SECOND // 4


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ended.

    reason: "until", "poweroff", "halted", "reset", "triple fault", "debug exit",
    "unsupported", "timeout" or "interrupted"; code: the value written to the debug exit
    port, else 0; detail: more words for a person, or empty.
    """

    reason: str
    code: int = 0
    detail: str = ""

    @property
    def resumable(self) -> bool:
        """Whether `Machine.run` can go on from here."""
        return self.reason in ("until", "timeout", "interrupted")


class Machine:
    """A PC with one 32-bit CPU, its guest deprivileged (or, to compare, not).

    memory: bytes of RAM, a multiple of 4 KiB from 1 MiB to 3 GiB; cpu: a name in
    `emu86.cpu.models.MODELS`; technique: "patch", "trap" or "iopl", or "bare": the
    guest at ring 0 of the engine, an instruction at a time, to compare with;
    debug_exit: a write to port F4h ends the run; realtime: idle time is slept, not
    skipped; hypervisor: tell the guest of a hypervisor in CPUID; abilities: for tests,
    what of Unicorn's private state to use. Raises ConfigError.
    """

    def __init__(
        self,
        memory: int = 128 << 20,
        cpu: str = DEFAULT,
        technique: str = "patch",
        *,
        debug_exit: bool = False,
        realtime: bool = False,
        hypervisor: bool = False,
        abilities: Abilities | None = None,
    ) -> None:
        if memory % x86.PAGE_SIZE or not SMALLEST <= memory <= LARGEST:
            message = f"memory: {memory} bytes is not a multiple of 4 KiB from 1M to 3G"
            raise ConfigError(message)
        if cpu not in MODELS:
            message = f"cpu: no model {cpu!r} (there are {', '.join(MODELS)})"
            raise ConfigError(message)
        known = (*TECHNIQUES, "bare")
        if technique not in known:
            message = f"technique: no {technique!r} (there are {', '.join(known)})"
            raise ConfigError(message)
        self.realtime = realtime
        bare = technique == "bare"
        self._engine = Engine(abilities, stepped=bare)
        self._ram = Ram(memory)
        self._ram.bytes[layout.ROM : layout.ROM + images.ROM_SIZE] = images.rom()
        self._engine.map(0, self._ram.bytes)
        self._control = self._engine.control
        self._clock = self._engine.clock
        self._clock.set_costs(rdtsc=_RDTSC_NS)
        self.vcpu = VCpu(MODELS[cpu], hypervisor="emu86 VMM" if hypervisor else "")
        self.board = Board(
            self._clock, memory, self._end, self._transmit, debug_exit=debug_exit
        )
        parts = self._engine, self._ram, self.vcpu, self.board, self.board.pic
        self.vmm: Technique = Bare(*parts) if bare else Deprivileged(*parts, technique)
        self._consoles: list[Callable[[bytes], None]] = []
        self._input: deque[bytes] = deque()
        self._wake = threading.Event()
        self._stop_asked = False
        self._until = b""
        self._tail = b""
        self._seen = False
        self._wall = 0.0
        self._slept = 0.0
        self._loaded = False

    # -- loading -----------------------------------------------------------------------

    def load_kernel(
        self,
        kernel: bytes | bytearray | str | PathLike[str],
        *,
        append: str = "",
        initrd: bytes | bytearray | str | PathLike[str] | None = None,
    ) -> None:
        """Load a bzImage, an ELF kernel or a Multiboot kernel (a path, or its bytes).

        append: its command line; initrd: Linux's initial file system or a Multiboot
        module. Raises ConfigError, one clear line, for anything that cannot be started.
        """
        self._must_be_new()
        image = boot.read("kernel", kernel)
        initrds = () if initrd is None else (boot.read("initrd", initrd),)
        self._enter(boot.load(self._ram.bytes, image, cmdline=append, initrds=initrds))

    def load_flat(self, data: bytes, address: int, entry: int | None = None) -> None:
        """Place raw bytes at `address` and start at `entry` (default: there)."""
        self._must_be_new()
        self._enter(boot.flat.load(self._ram.bytes, data, address=address, entry=entry))

    def _must_be_new(self) -> None:
        if self.now:
            message = "kernel: this machine has run; another guest needs a new one"
            raise ConfigError(message)

    def _enter(self, entry: Entry) -> None:
        """Set the CPU up as the boot protocol has it."""
        vmm, q = self.vmm, self.vmm.q
        for i, name in enumerate(x86.GPR_NAMES):
            q[i] = entry.registers.get(name, 0)
        q[RIP] = entry.eip
        vmm.segments.load_gdt(entry.gdt_base, entry.gdt_limit)
        # The CPU starts at CPL 0, which CS's null selector already says.
        vmm.segments.load_code(entry.cs, vmm.segments.descriptor(entry.cs), 0)
        vmm.segments.enter()
        for index in (x86.SS, x86.DS, x86.ES, x86.FS, x86.GS):
            vmm.segments.load(index, entry.ds)
        vmm.set_guest_flags(0)
        vmm.start()
        self._loaded = True

    # -- running -----------------------------------------------------------------------

    def run(self, until: bytes | None = None, timeout: float | None = None) -> Stop:
        """Run until the console shows `until`, `timeout` wall seconds or the end."""
        if not self._loaded:
            message = "kernel: none was loaded"
            raise ConfigError(message)
        start = time.monotonic()
        deadline = None if timeout is None else start + timeout
        longest = threading.TIMEOUT_MAX
        alarm = threading.Timer(min(timeout or 0, longest), self._look_up)
        alarm.daemon = True
        if timeout is not None:
            alarm.start()
        self._until = until or b""
        self._seen = False
        self._tail = b""
        # Reference counting frees what an exit makes; looking for cycles is 5 % of a
        # run.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._loop(deadline)
        finally:
            self.vmm.rest()
            if collecting:
                gc.enable()
            alarm.cancel()
            self._wall += time.monotonic() - start

    def _loop(self, deadline: float | None) -> Stop:
        """Run the guest, serving time and interrupts between two stretches of it."""
        vmm, board, clock = self.vmm, self.board, self._clock
        while True:
            if not vmm.busy:
                # Before the questions below: who answers one later puts 0 there.
                clock.run_for(_SLICE)
            if self._seen:
                self._seen = False
                return Stop("until")
            if vmm.end is not None:
                return self._ended(*vmm.end)
            if self._stop_asked:
                self._stop_asked = False
                return Stop("interrupted")
            if deadline is not None and time.monotonic() >= deadline:
                return Stop("timeout")
            if not vmm.busy:
                self._feed()
                board.advance()
                self._control[abi.PENDING] = board.pic.intr
                if board.pic.intr:
                    vmm.interrupt()
                if self.vcpu.halted:
                    self._idle(deadline)
                    continue
                board.schedule()
            vmm.run()

    def _idle(self, deadline: float | None) -> None:
        """Pass the time of a halted CPU to its next interrupt, or end the run."""
        if not self.vmm.q[RFLAGS] & x86.IF:
            self._end("halted", f"at {self.vmm.where()}, interrupts off")
            return
        clock, due = self._clock, self.board.deadline()
        if self.realtime:
            wait: float = _IDLE_POLL
            if due is not None:
                wait = min(wait, due - clock.now)
            wait /= _SECOND
            if deadline is not None:
                wait = min(wait, deadline - time.monotonic())
            began = time.monotonic()
            woken = wait > 0 and self._wake.wait(wait)
            slept = time.monotonic() - began
            self._slept += slept
            if woken:
                clock.advance(int(slept * _SECOND))
                return
            if due is None:
                clock.advance(_IDLE_POLL)
                return
        elif due is None:
            if not (self._input and self.board.hears()):
                self._end("halted", f"at {self.vmm.where()}, waiting for nothing")
            return
        if self.realtime:
            due = min(due, clock.now + _IDLE_POLL)
        clock.advance_to(due)

    def _feed(self) -> None:
        """Send waiting console input to the serial line when the guest hears it."""
        self._wake.clear()
        while self._input and self.board.hears():
            self.board.uart.receive(self._input.popleft())

    def _ended(self, reason: str, detail: str) -> Stop:
        if reason == "debug exit":
            return Stop(reason, int(detail))
        return Stop(reason, 0, detail)

    def _end(self, reason: str, detail: str) -> None:
        self.vmm.finish(reason, detail)

    def stop(self) -> None:
        """End the run soon, from any thread; before a run, that run at its start."""
        self._stop_asked = True
        self._look_up()

    def _look_up(self) -> None:
        """Come back from the guest, or from idling, soon; from any thread."""
        self._clock.stop_soon()
        self._wake.set()

    # -- console -----------------------------------------------------------------------

    def on_console(self, callback: Callable[[bytes], None]) -> None:
        """Have `callback` told of every byte the guest sends on COM1."""
        self._consoles.append(callback)

    def console_input(self, data: bytes) -> None:
        """Type `data` on COM1, from any thread."""
        if data:
            self._input.append(data)
            self._look_up()

    @property
    def console_waiting(self) -> int:
        """How many bytes typed on COM1 the guest has not taken yet."""
        return sum(map(len, self._input)) + len(self.board.uart.waiting)

    def _transmit(self, byte: int) -> None:
        data = bytes((byte,))
        for callback in self._consoles:
            callback(data)
        if self._until:
            self._tail = (self._tail + data)[-len(self._until) :]
            if self._tail == self._until:
                self._seen = True
                self._until = b""
                self._engine.stop()

    # -- looking inside ----------------------------------------------------------------

    @property
    def now(self) -> int:
        """Virtual time in nanoseconds since the machine was built."""
        return self._clock.now

    @property
    def registers(self) -> dict[str, int]:
        """The registers as the guest sees them: general, EIP, EFLAGS, segments, CR."""
        q, d, vcpu = self.vmm.q, self.vmm.d, self.vcpu
        values = {name: q[i] & x86.MASK32 for i, name in enumerate(x86.GPR_NAMES)}
        values["eip"] = q[RIP] & x86.MASK32
        values["eflags"] = self.vmm.guest_flags()
        for i, name in enumerate(x86.SEGMENT_NAMES):
            values[name] = d[SELECTOR[i]] & 0xFFFF
            values[f"{name}_base"] = q[BASE[i]]
        values |= {"cr0": vcpu.cr0, "cr2": vcpu.cr2, "cr3": vcpu.cr3, "cr4": vcpu.cr4}
        return values

    def set_register(self, name: str, value: int) -> None:
        """Write a general register, EIP or EFLAGS, 32 bits; KeyError for another."""
        if name == "eip":
            self.vmm.q[RIP] = value & x86.MASK32
        elif name == "eflags":
            self.vmm.set_guest_flags(value)
        else:
            if name not in x86.GPR_NAMES:
                raise KeyError(name)
            self.vmm.q[x86.GPR_NAMES.index(name)] = value & x86.MASK32

    def read_physical(self, gpa: int, size: int) -> bytes:
        """Read guest RAM; ones where there is none. ValueError below 0."""
        if gpa < 0:
            message = f"{gpa:#x} is no address"
            raise ValueError(message)
        inside = self._ram.bytes[gpa : min(gpa + size, self._ram.size)]
        return bytes(inside).ljust(size, b"\xff")

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Write guest RAM, translated code included; ValueError outside of it."""
        pages = range(gpa >> 12, (gpa + max(len(data), 1) - 1 >> 12) + 1)
        if gpa < 0 or not all(map(self._ram.backed, pages)):
            message = f"{len(data)} bytes at {gpa:#x} are not all in RAM"
            raise ValueError(message)
        for page in pages:
            self.vmm.written(page)
        self._ram.bytes[gpa : gpa + len(data)] = data

    def read_virtual(self, gva: int, size: int) -> bytes:
        """Read by the guest's page tables; ValueError where nothing is mapped."""
        out = bytearray()
        while size:
            part = min(size, x86.PAGE_SIZE - (gva & 0xFFF))
            out += self.read_physical(self._gpa(gva), part)
            gva = (gva + part) & x86.MASK32
            size -= part
        return bytes(out)

    def write_virtual(self, gva: int, data: bytes) -> None:
        """Write by the guest's page tables; ValueError where nothing is mapped."""
        while data:
            part = min(len(data), x86.PAGE_SIZE - (gva & 0xFFF))
            self.write_physical(self._gpa(gva), data[:part])
            gva, data = (gva + part) & x86.MASK32, data[part:]

    def _gpa(self, gva: int) -> int:
        gpa = self.vmm.lookup(gva & x86.MASK32)
        if gpa is None:
            message = f"nothing is mapped at {gva:#010x}"
            raise ValueError(message)
        return gpa

    def subscribe(self, observer: Observer) -> None:
        """Have `observer` told of exits, events, port accesses and shadow fills."""
        self.vmm.observers.append(observer)
        self.vmm.unlearn()

    def measure(self) -> None:
        """Time every exit from now on; CLI and STI take Python's way, too."""
        self.vmm.timing = True
        self.vmm.unlearn()

    @property
    def stats(self) -> Stats:
        """Counts and times since the start."""
        return Stats.of(self.vmm, self._wall, self._slept)
