"""Run a program on the stage under a technique, and return its outcome."""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from emu86 import config
from emu86.cpu.models import MODELS
from emu86.cpu.state import BASE, RIP, SELECTOR
from emu86.errors import expect
from emu86.mmu.paging import LARGE_RESERVED
from emu86.mmu.ram import Ram
from emu86.native import abi
from emu86.rings import operand
from emu86.rings.descriptor import Descriptor
from emu86.rings.technique.bare import Bare
from emu86.rings.technique.base import Technique, TechniqueState
from emu86.rings.technique.registry import build
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.clock import InstructionClock, Line
from emu86.testing.image import ram_image
from emu86.testing.outcome import Event, Outcome
from emu86.testing.reset import changed_pages, put
from emu86.testing.stage import State


@dataclass
class Traced:
    """An instruction about to run.

    registers: of the guest; memory: a checksum of RAM, less the page tables, where
    accessed bits may differ; exits: those it takes.
    """

    registers: dict[str, int]
    memory: int
    exits: list[str] = field(default_factory=list)


Trace = list[Traced]

_MOV_TO_CR: Final = 0x0F22
_INVLPG: Final = 0x0F01, 7  # opcode, ModRM.reg
_AROUND: Final = range(-64, x86.LONGEST_INSN)  # an instruction: where its block may be
PAUSED: Final = "paused"
_CPU64: Final = "atom"
EVENTS: Final = 100  # that a bare run may see
STEPS: Final = 2000  # instructions that a bare run may take
# What a deprivileged one may take for them: virtual time, quarter nanoseconds.
_BUDGET: Final = 8 * STEPS * abi.EXIT_TIME


class Ports:
    """A board whose ports answer by the port's number and the turn alone."""

    def __init__(self) -> None:
        self._turns: Counter[int] = Counter()

    def port_read(self, port: int, width: int) -> int:
        """Read a port."""
        self._turns[port] += 1
        value = (port + 1) * 0x9E3779B1 + self._turns[port] * 0x85EBCA6B
        return value >> 5 & (1 << 8 * width) - 1

    def port_write(self, port: int, width: int, value: int) -> None:
        """Write a port: nothing happens."""

    def mmio_read(self, _gpa: int, width: int) -> bytes:
        """Read what is no RAM."""
        return b"\xff" * width

    def mmio_write(self, gpa: int, data: bytes) -> None:
        """Write what is no RAM: it is lost."""

    def catch_up(self) -> None:
        """Compiled code does nothing here."""

    def timer_changed(self) -> None:
        """There is no timer."""

    def coprocessor_error(self) -> None:
        """Nobody listens."""


class Recorder:
    """Observes a VMM and keeps the events, and with a trace the exits.

    wide: see `observe`.
    """

    def __init__(
        self, vmm: Technique, trace: Trace | None, *, wide: bool = False
    ) -> None:
        self.vmm = vmm
        self.wide = wide
        self.events: list[Event] = []
        self.trace = trace
        self.start = vmm.ram.map[:]
        self._last = bytearray(self.start)  # as of the last event

    def vm_exit(self, reason: str, _cs: int, _eip: int) -> None:
        """Keep an exit with the instruction that took it; the guest cannot tell."""
        if self.trace:
            self.trace[-1].exits.append(reason)

    def inject(self, vector: int, error: int | None) -> None:
        """Keep an exception or interrupt."""
        what = x86.event_name(vector)
        pages = dict(changed_pages(self.vmm.ram.map, self._last))
        for page, data in pages.items():
            start = page << x86.PAGE_SHIFT
            self._last[start : start + x86.PAGE_SIZE] = data
        self._keep(Event(what, error, observe(self.vmm, wide=self.wide), pages))

    def pio(self, port: int, width: int, value: int, write: bool) -> None:
        """Keep a port access."""
        direction = "OUT" if write else "IN"
        self._keep(Event(f"{direction}{8 * width} {port:X}h", value, {}, {}))

    def _keep(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) > 2 * EVENTS:
            self.vmm.finish("budget")  # nobody compares so many


def observe(vmm: Technique, *, wide: bool = False) -> dict[str, int]:
    """Return all registers that the guest can read, by name; of MSRs a checksum.

    wide: those of IA-32e mode, of 64 bits.
    """
    q, d, vcpu = vmm.q, vmm.d, vmm.vcpu
    names, mask = (x86.GPR_NAMES64, x86.MASK64) if wide else (x86.GPR_NAMES, x86.MASK32)
    values = {name: q[i] & mask for i, name in enumerate(names)}
    values["rip" if wide else "eip"] = q[RIP] & mask
    values["rflags" if wide else "eflags"] = vmm.guest_flags() & ~x86.RF
    for i, name in enumerate(x86.SEGMENT_NAMES):
        values[name] = d[SELECTOR[i]] & 0xFFFF
        values[f"{name}.base"] = q[BASE[i]] & mask
    values |= {"cr0": vcpu.cr0, "cr2": vcpu.cr2, "cr3": vcpu.cr3, "cr4": vcpu.cr4}
    values |= {"gdtr.base": vcpu.gdt_base, "gdtr.limit": vcpu.gdt_limit}
    values |= {"idtr.base": vcpu.idt_base, "idtr.limit": vcpu.idt_limit}
    values |= {"ldtr": vcpu.ldtr.selector, "tr": vcpu.tr.selector}
    values |= {f"dr{n}": vcpu.dr[n] for n in (0, 1, 2, 3, 6, 7)}
    # Those of value 0 are as if they had not been written.
    msrs = sorted((n, value) for n, value in vcpu.msr.items() if value)
    values["msr"] = crc32(repr(msrs).encode()) if msrs else 0
    values["pmu"] = vcpu.pmu.select[0]
    if wide:
        for name in ("efer", "star", "lstar", "cstar", "fmask", "kernel_gs_base"):
            values[name] = getattr(vcpu, name)
        values["cr8"] = vcpu.cr8
    values |= vmm.engine.fpu()
    return values


def _traced(vmm: Technique, recorder: Recorder) -> Traced:
    ram = bytearray(vmm.ram.bytes)
    patch = vmm.pending_patch
    if patch is not None:
        gpa, byte = patch
        ram[gpa] = byte
    for table in stage.TABLES[recorder.wide]:
        ram[table : table + x86.PAGE_SIZE] = bytes(x86.PAGE_SIZE)
    return Traced(observe(vmm, wide=recorder.wide), crc32(ram))


def run(
    program: bytes,
    state: State | None = None,
    technique: str = "patch",
    trace: Trace | None = None,
    instructions: int | None = None,
    cpu: str | None = None,
) -> Outcome:
    """Run `program`, machine code, from `state` under a technique.

    technique: "bare", "trap", "patch" or "iopl"; trace: a list that gets each
    instruction that runs; instructions: the run is "paused" after so many of the
    program and its handlers; cpu: a CPU model (by default the machine's, or for IA-32e
    mode the 64-bit one); what it lacks is #UD. Ports answer as on a board that has no
    device. Raises ValueError for an unknown technique, or a CPU model that has not the
    state's mode, TypeError for a program or a state of the wrong type.
    """
    __tracebackhide__ = True
    state = State() if state is None else state
    expect("program", program, bytes)
    expect("state", state, State)
    config.check_technique(technique)
    cpu = cpu or cpu_of(state.mode)
    config.check_cpu(cpu)
    if state.is_long and not MODELS[cpu].is_64_bit:
        message = f"cpu: {cpu} has no 64-bit mode, and the state's is {state.mode!r}"
        raise ValueError(message)
    image = ram_image(program, state)
    if technique == "bare":
        return _bare(image, state, trace, instructions, cpu)
    return _deprivileged(image, state, technique, trace, instructions, cpu)


def cpu_of(mode: stage.Mode) -> str:
    """Return the CPU model that programs of a mode have unless one is named."""
    return config.CPU if mode == "protected" else _CPU64


def _outcome(vmm: Technique, recorder: Recorder, technique: str, end: str) -> Outcome:
    detail = vmm.end[1] if vmm.end else ""
    events, memory = tuple(recorder.events), bytes(vmm.ram.bytes)
    registers = observe(vmm, wide=recorder.wide)
    return Outcome(technique, end, detail, events, registers, recorder.start, memory)


_A_AND_D: Final = x86.PTE_A | x86.PTE_D
_LARGE: Final = x86.PTE_P | x86.PDE_PS
# What the engine takes for an address, and the CPU models for reserved.
_BEYOND: Final = 0xF << x86.MAXPHYADDR


class Tlb:
    """Knows when a translation may be used that the page tables no longer have.

    The SDM leaves open which one is used then (Vol. 3A 4.10.4.3), so that there is no
    more to compare.
    """

    _GRACE: Final = 3  # instructions from the change of an entry to its invalidation

    def __init__(self, ram: Ram, *, wide: bool = False) -> None:
        self._ram = ram
        self._tables = stage.TABLES[wide]
        self._root = self._tables[0]
        self._size, self._bits = (8, 9) if wide else (4, 10)
        count = len(self._tables) * x86.PAGE_SIZE // self._size
        kept = (1 << 8 * self._size) - 1 & ~_A_AND_D
        self._but_a_and_d = int.from_bytes(
            kept.to_bytes(self._size, "little") * count, "little"
        )
        self._raw = b""  # the tables as last read
        self._now = bytearray()  # without what accesses change by themselves
        self.reserved = False  # some entry has a bit set that the engine takes
        self._known = self._read()
        self.late = 0  # instructions since an entry was changed

    def _read(self) -> bytearray:
        ram = self._ram.map
        raw = b"".join(ram[at : at + x86.PAGE_SIZE] for at in self._tables)
        if raw != self._raw:
            self._raw = raw
            kept = int.from_bytes(raw, "little") & self._but_a_and_d
            now = bytearray(kept.to_bytes(len(raw), "little"))
            if now != self._now:
                self._now = now
                self.reserved = self._is_reserved()
        return self._now

    def _is_reserved(self) -> bool:
        """Tell of a bit that the engine takes for an address, and no model has."""
        if self._size == 8:
            words = memoryview(self._now).cast("Q")
            return any(word & x86.PTE_P and word & _BEYOND for word in words)
        directory = memoryview(self._now)[: x86.PAGE_SIZE].cast("I")
        return any(
            entry & _LARGE == _LARGE and entry & LARGE_RESERVED for entry in directory
        )

    def _invalidate(self, gva: int) -> None:
        """Learn of INVLPG: what it has the CPU read again is known."""
        self._known = bytearray(self._known)
        last = len(self._tables) - 1
        for number in range(len(self._tables)):
            # The last two tables are both page tables.
            level = last - 1 - min(number, last - 1)
            index = gva >> 12 + level * self._bits & (1 << self._bits) - 1
            at = number * x86.PAGE_SIZE + index * self._size
            word = slice(at, at + self._size)
            self._known[word] = self._now[word]

    def is_stale(self, bare: Bare) -> bool:
        """Look at the tables after a step."""
        if not bare.vcpu.cr0 & x86.CR0_PG:
            self._known = self._read()
            return False
        if bare.vcpu.cr3 & ~0xFFF != self._root:
            return True
        insn = bare.insn
        now = self._read()
        if insn is not None and insn.opcode == _MOV_TO_CR:
            self._known = now
        elif insn is not None and (insn.opcode, insn.reg) == _INVLPG:
            self._invalidate(
                operand.linear_address(bare.cpu, insn) if insn.memory else 0
            )
        self.late = 0 if self._known == now else self.late + 1
        return self.late > (0 if bare.end or bare.vcpu.halted else self._GRACE)


def at_boot(vmm: Technique) -> None:
    """Be at the stage's start with flat segments, as after a boot loader."""
    cpu = vmm.cpu
    for index in range(6):
        kind = x86.DESC_CODE if index == x86.CS else 0
        high = 0x00CF9200 | kind
        cpu.set_segment(index, 0, Descriptor(0x0000FFFF, high))
    cpu.enter_ring()
    vmm.set_guest_flags(0)
    vmm.q[RIP] = stage.BOOT


# Bare machines that have played. Those of a process that forks share their RAM.
idle: Final[list[tuple[Bare, TechniqueState]]] = []
os.register_at_fork(after_in_child=idle.clear)


def _bare_machine(image: bytes, cpu: str) -> tuple[Bare, TechniqueState]:
    """Return a machine at the stage's start, and what it was then.

    Nothing is left of what it has played. A technique's is made anew each time: what a
    VMM has learned of one program changes how it goes about the next.
    """
    model = MODELS[cpu]
    if not idle or idle[-1][0].vcpu.model is not model:
        bare = build("bare", stage.MEMORY, model)
        assert isinstance(bare, Bare)
        bare.connect(Ports(), Line())
        bare.ram.bytes[:] = image
        at_boot(bare)
        return bare, bare.save()
    played, first = idle.pop()
    put(played, image)
    played.restore(first)
    played.observers.clear()
    return played, first


def _bare(
    image: bytes, state: State, trace: Trace | None, most: int | None, cpu: str
) -> Outcome:
    vmm, first = _bare_machine(image, cpu)
    line = vmm.pic = Line(state.interrupts or ())
    vmm.bus = Ports()
    recorder = Recorder(vmm, trace, wide=state.is_long)
    vmm.subscribe(recorder)
    clock = None
    if (trace, most, state.interrupts) != (None, None, None):
        clock = InstructionClock(vmm, line, state.at)
    tlb = Tlb(vmm.ram, wide=state.is_long)
    sound = 0  # events while no translation could be stale
    end = "budget"
    for _ in range(STEPS):
        if clock is not None:
            clock.tick()
            if clock.count == most:
                end = PAUSED
                break
        if not (line.due and vmm.interrupt()):
            if trace is not None:
                trace.append(_traced(vmm, recorder))
            vmm.step()
        if vmm.vcpu.halted and clock is not None and clock.skip():
            vmm.interrupt()
        if tlb.reserved and (state.is_long or vmm.vcpu.cr4 & x86.CR4_PSE):
            vmm.unsupported("reserved bits of a page's address")
        if vmm.distance is not None and vmm.distance in _AROUND:
            vmm.unsupported("a read-modify-write of its own block")
        if vmm.cpu.is_real:
            vmm.unsupported("real mode")  # it has oracles of its own
        if tlb.is_stale(vmm):
            end = "stale"
            del recorder.events[sound:]
        elif vmm.vcpu.halted:
            end = "halted"
        elif vmm.end is not None:
            end = vmm.end[0]
        elif len(recorder.events) < EVENTS:
            if not tlb.late:
                sound = len(recorder.events)
            continue
        break
    outcome = _outcome(vmm, recorder, "bare", end)
    idle.append((vmm, first))
    return outcome


def _deprivileged(
    image: bytes,
    state: State,
    technique: str,
    trace: Trace | None,
    most: int | None,
    cpu: str,
) -> Outcome:
    stepped = (trace, most, state.interrupts) != (None, None, None)
    vmm = build(technique, stage.MEMORY, MODELS[cpu], stepped=stepped)
    vmm.ram.bytes[:] = image
    line = Line(state.interrupts or ())
    vmm.connect(Ports(), line)
    recorder = Recorder(vmm, trace, wide=state.is_long)
    vmm.subscribe(recorder)
    at_boot(vmm)
    vmm.start()
    if stepped:
        end = _by_instruction(
            vmm, line, InstructionClock(vmm, line, state.at), recorder, most
        )
    else:
        end = by_block(vmm)
    vmm.unpatch()
    return _outcome(vmm, recorder, technique, end)


def by_block(vmm: Technique) -> str:
    """Run to the end as a machine does; return what kind of end it was."""
    control = vmm.engine.control
    budget = control[abi.NOW] + _BUDGET
    seen, until = -1, 0
    while control[abi.NOW] < budget:
        exits = sum(count for count, _ in vmm.exits.values())
        exits += control[abi.COUNT_RDTSC]
        if exits == seen and control[abi.NOW] >= until:
            break  # all this was the guest's own code, and more than `STEPS`
        if exits != seen:
            # The engine's clock gains a quarter nanosecond for each byte of code.
            seen, until = exits, control[abi.NOW] + x86.LONGEST_INSN * STEPS
        control[abi.STOP_AT] = until
        vmm.run()
        if vmm.end is not None:
            return vmm.end[0]
        if vmm.vcpu.halted:
            return "halted"
    return "budget"


def _by_instruction(
    vmm: Technique,
    line: Line,
    clock: InstructionClock,
    recorder: Recorder,
    most: int | None,
) -> str:
    """Run to the end by single instructions, by the clock and with interrupts."""
    for _ in range(8 * STEPS):
        clock.tick()
        if clock.count == most:
            return PAUSED
        if line.due and vmm.is_open():
            vmm.unpatch()  # a patched block is translated when it comes to run
            _interrupt(vmm, line)
        else:
            if recorder.trace is not None:
                recorder.trace.append(_traced(vmm, recorder))
            vmm.step()
            if vmm.pending_patch is not None:
                clock.again()
        if vmm.vcpu.halted and clock.skip():
            _interrupt(vmm, line)
        if vmm.end is not None:
            return vmm.end[0]
        if vmm.vcpu.halted:
            return "halted"
    return "budget"


def _interrupt(vmm: Technique, line: Line) -> None:
    """Let the interrupt in; at no other time, as after an exit, would the VMM do so."""
    line.intr = True
    vmm.interrupt()
    line.intr = False
