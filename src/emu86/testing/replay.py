"""Many short programs on the same few stages, each played as if it were alone.

A play of `run.run` spends its time on making a machine and booting the stage. Here a
bare machine takes back its whole state as of the program's first instruction, and a
deprivileged one is booted anew as after a reset: what stands in RAM is the stage's
again, and the registers are those of the start, while the VMM goes on.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from emu86.cpu import control as word
from emu86.cpu import layout as at
from emu86.cpu.engine import BASE, CR, RFLAGS, RIP, Engine
from emu86.cpu.models import DEFAULT, MODELS
from emu86.cpu.vcpu import VCpu
from emu86.mmu.ram import Ram
from emu86.rings.bare import Bare
from emu86.rings.breakpoints import Breakpoints, held
from emu86.rings.decode import Insn
from emu86.rings.monitor import Monitor
from emu86.rings.vmm import Vmm
from emu86.rings.wiring import Bus, Interrupts
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.clock import Line
from emu86.testing.outcome import Outcome
from emu86.testing.run import (
    EVENTS,
    STEPS,
    Ports,
    Recorder,
    at_boot,
    by_block,
    observe,
)
from emu86.testing.stage import State

_DR: Final = at.DR // 8
_DRS: Final = (0, 1, 2, 3, 6, 7)
_BOOT_STEPS: Final = 200
_FIELDS: Final = VCpu.__slots__


class _Unarmed(Breakpoints):
    """Breakpoints that only the engine itself could make fire."""

    @property
    def armed(self) -> bool:
        """Nobody else looks."""
        return False


class Raw(Bare):
    """The engine as it is: with what it has wrong (`rings.errata`)."""

    def __init__(
        self, engine: Engine, ram: Ram, vcpu: VCpu, bus: Bus, pic: Interrupts
    ) -> None:
        super().__init__(engine, ram, vcpu, bus, pic)
        self.breakpoints = _Unarmed(self)

    def _corrected(self, _insn: Insn | None) -> bool:
        return False

    def _pull(self) -> None:
        super()._pull()
        for number in _DRS:
            self.vcpu.dr[number] = held(number, self.q[_DR + number])


@dataclass(frozen=True)
class Change:
    """What no stage has, set by hand on the bare machine as the program starts.

    cr: CR2 and CR3, dr: debug registers, by number, 32 bits; msr: MSRs by number, 64
    bits; tsc: what is added to the TSC; counter: what performance counter 0 holds, its
    low 32 bits.
    """

    cr: tuple[tuple[int, int], ...] = ()
    dr: tuple[tuple[int, int], ...] = ()
    msr: tuple[tuple[int, int], ...] = ()
    tsc: int = 0
    counter: int = 0


NO_CHANGE: Final = Change()


@dataclass(frozen=True)
class _Snapshot:
    """All that a bare machine is."""

    ram: bytes
    cpu: bytes
    vcpu: dict[str, Any]

    @classmethod
    def of(cls, bare: Bare) -> "_Snapshot":
        vcpu = {name: deepcopy(getattr(bare.vcpu, name)) for name in _FIELDS}
        return cls(bytes(bare.ram.bytes), bytes(bare.engine.q.cast("B")), vcpu)

    def restore(self, bare: Bare) -> None:
        bare.ram.bytes[:] = self.ram
        bare.engine.q.cast("B")[:] = self.cpu
        _set(bare.vcpu, deepcopy(self.vcpu))
        bare.iopl = bare.q[RFLAGS] >> 12 & 3
        bare.end = bare.insn = None
        bare.engine.flush_tlb()


def _set(vcpu: VCpu, values: dict[str, Any]) -> None:
    for name, value in values.items():
        # Others hold these three.
        if name in ("ldtr", "tr"):
            for field in type(value).__slots__:
                setattr(getattr(vcpu, name), field, getattr(value, field))
        elif name == "pmu":
            vars(vcpu.pmu).update(vars(value))
        else:
            setattr(vcpu, name, value)


def _plain(state: State) -> State:
    return replace(state, patches=())


_stages: Final[dict[str, bytes]] = {}


def _stage(key: str, state: State) -> bytes:
    """Return RAM without a program, by what `_plain` makes of its state."""
    if key not in _stages:
        _stages[key] = stage.image(b"", _plain(state))
    return _stages[key]


class BareReplay:
    """The bare machine (`raw`: with the engine's mistakes), booted once for a state."""

    def __init__(self, *, raw: bool = False) -> None:
        self._technique = "raw" if raw else "bare"
        engine = Engine(stepped=True)
        self._ram = Ram(stage.MEMORY)
        engine.map(0, self._ram.bytes)
        kind = Raw if raw else Bare
        vcpu = VCpu(MODELS[DEFAULT])
        self._bare = kind(engine, self._ram, vcpu, Ports(), Line())
        at_boot(self._bare)
        for number in _DRS:
            engine.q[_DR + number] = vcpu.dr[number]
        self._first = _Snapshot.of(self._bare)
        self._booted: dict[str, _Snapshot] = {}

    def play(self, program: bytes, state: State, change: Change = NO_CHANGE) -> Outcome:
        """Run `program` as `run.run` does, from `state` changed; its patches count."""
        bare = self._bare
        self._boot(state).restore(bare)
        ram = self._ram.bytes
        for place, data in ((state.at, program), *state.patches):
            ram[place : place + len(data)] = data
        for number, value in change.cr:
            bare.q[CR + number] = value
        for number, value in change.dr:
            bare.q[_DR + number] = bare.vcpu.dr[number] = value
        bare.vcpu.msr.update(change.msr)
        bare.vcpu.pmu.write(0, 0, change.counter)
        control = bare.engine.control
        control[word.NOW] = 0
        control[word.TSC_OFFSET] = change.tsc
        bare.bus = Ports()
        recorder = Recorder(bare, None)
        bare.observers[:] = [recorder]
        end = "budget"
        for _ in range(STEPS):
            bare.step()
            if bare.vcpu.halted:
                end = "halted"
            elif bare.end is not None:
                end = bare.end[0]
            elif len(recorder.events) < EVENTS:
                continue
            break
        return _outcome(bare, recorder, self._technique, end, change.tsc)

    def _boot(self, state: State) -> _Snapshot:
        key = repr(_plain(state))
        if key not in self._booted:
            bare = self._bare
            self._first.restore(bare)
            self._ram.bytes[:] = _stage(key, state)
            for _ in range(_BOOT_STEPS):
                if bare.q[RIP] + bare.q[BASE[x86.CS]] == state.at:
                    break
                bare.step()
            self._booted[key] = _Snapshot.of(bare)
        return self._booted[key]


class Replay:
    """A machine under a technique, reset before each program."""

    def __init__(self, technique: str) -> None:
        self._technique = technique
        self._vmm: Vmm | None = None

    def play(self, program: bytes, state: State) -> Outcome:
        """Run `program` as `run.run` does."""
        image = bytearray(_stage(repr(_plain(state)), state))
        for place, data in ((state.at, program), *state.patches):
            image[place : place + len(data)] = data
        if self._vmm is None:
            vmm = self._build(image)
        else:
            vmm = self._vmm
            _put(vmm, image)
            _reset(vmm)
        vmm.bus = Ports()
        recorder = Recorder(vmm, None)
        vmm.observers[:] = [recorder]
        end = by_block(vmm)
        vmm.rest()
        # What does not end well is not asked to play again.
        self._vmm = vmm if end == "halted" else None
        return _outcome(vmm, recorder, self._technique, end)

    def _build(self, image: bytearray) -> Vmm:
        ram = Ram(stage.MEMORY)
        ram.bytes[:] = image
        engine = Engine()
        engine.map(0, ram.bytes)
        vcpu = VCpu(MODELS[DEFAULT])
        vmm: Vmm = Vmm(engine, ram, vcpu, Ports(), Line(), self._technique)
        at_boot(vmm)
        vmm.start()
        return vmm


def _put(vmm: Vmm, image: bytearray) -> None:
    """Make RAM an image again: the VMM learns which pages change."""
    now = np.frombuffer(vmm.ram.bytes, np.uint8).reshape(-1, x86.PAGE_SIZE)
    then = np.frombuffer(image, np.uint8).reshape(-1, x86.PAGE_SIZE)
    for page in np.flatnonzero((now != then).any(axis=1)):
        vmm.written(int(page))
        start = int(page) << x86.PAGE_SHIFT
        end = start + x86.PAGE_SIZE
        vmm.ram.bytes[start:end] = image[start:end]


def _reset(vmm: Vmm) -> None:
    """Be a CPU that has just been reset, but in protected mode."""
    first = VCpu(vmm.vcpu.model)
    vmm.q[RFLAGS] = x86.FLAGS_FIXED
    vmm.iopl = 0
    vmm.write_cr0(first.cr0)
    vmm.write_cr4(0)
    vmm.write_cr3(0)
    vmm.segments.load_gdt(first.gdt_base, first.gdt_limit)
    vmm.segments.load_ldt(0)
    _set(vmm.vcpu, {name: getattr(first, name) for name in _FIELDS})
    vmm.steps.look()  # no breakpoint is enabled any more
    for register in range(len(x86.GPR_NAMES)):
        vmm.q[register] = 0
    vmm.engine.control[word.TSC_OFFSET] = 0
    at_boot(vmm)


def _outcome(
    monitor: Monitor,
    recorder: Recorder,
    technique: str,
    end: str,
    tsc: int = 0,
) -> Outcome:
    registers = observe(monitor)
    written = monitor.engine.control[word.TSC_OFFSET] != tsc
    registers["tsc"] = int(written)  # time itself is each technique's own
    detail = monitor.end[1] if monitor.end else ""
    events, memory = tuple(recorder.events), bytes(monitor.ram.bytes)
    return Outcome(technique, end, detail, events, registers, recorder.start, memory)
