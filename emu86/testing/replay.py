"""Many short programs on the same few stages, each played as if it were alone.

A play of `run.run` spends its time on making a machine and booting the stage. Here a
bare machine takes back its whole state as of the program's first instruction, and a
deprivileged one is booted anew as after a reset: what stands in RAM is the stage's
again, and the registers are those of the start, while the VMM goes on.
"""

from dataclasses import dataclass, replace
from typing import Final

from emu86.cpu import offsets
from emu86.cpu.engine import Engine
from emu86.cpu.models import MODELS
from emu86.cpu.state import ATTRIBUTES, BASE, CR, RFLAGS, RIP
from emu86.cpu.vcpu import VCpu
from emu86.mmu.ram import Ram
from emu86.rings.events.breakpoints import Breakpoints, held
from emu86.rings.technique.bare import Bare, acts
from emu86.rings.technique.base import Policy, Technique, TechniqueState
from emu86.rings.technique.errata import ERRATA, Erratum
from emu86.rings.technique.registry import build
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.clock import Line
from emu86.testing.image import ram_image
from emu86.testing.outcome import Outcome
from emu86.testing.reset import put
from emu86.testing.run import (
    EVENTS,
    STEPS,
    Ports,
    Recorder,
    at_boot,
    by_block,
    cpu_of,
    observe,
)
from emu86.testing.stage import Mode, State

_SYSTEM_CALL: Final = 2  # bytes
_DR: Final = offsets.DR // 8
_DRS: Final = (0, 1, 2, 3, 6, 7)
_BOOT_STEPS: Final = 200


class _Unarmed(Breakpoints):
    """Breakpoints that only the engine itself could make fire."""

    @property
    def armed(self) -> bool:
        """Nobody else looks."""
        return False


class Raw(Bare):
    """The engine as it is: with what it has wrong (`rings.technique.errata`)."""

    def __init__(
        self, name: str, policy: Policy, engine: Engine, ram: Ram, vcpu: VCpu
    ) -> None:
        super().__init__(name, policy, engine, ram, vcpu)
        self.breakpoints = _Unarmed(self.cpu)

    def _pull(self) -> None:
        super()._pull()
        for number in _DRS:
            self.vcpu.dr[number] = held(number, self.q[_DR + number])


@dataclass(frozen=True)
class Change:
    """What no stage has, set by hand on the bare machine as the program starts.

    cr: CR2, CR3 and CR8, dr: debug registers, by number, 32 bits; msr: MSRs by number,
    64 bits; tsc: what is added to the TSC; counter: what performance counter 0 holds,
    its low 32 bits.
    """

    cr: tuple[tuple[int, int], ...] = ()
    dr: tuple[tuple[int, int], ...] = ()
    msr: tuple[tuple[int, int], ...] = ()
    tsc: int = 0
    counter: int = 0


NO_CHANGE: Final = Change()


def _plain(state: State) -> State:
    return replace(state, patches=())


_stages: Final[dict[str, bytes]] = {}


def _stage(key: str, state: State) -> bytes:
    """Return RAM without a program, by what `_plain` makes of its state."""
    if key not in _stages:
        _stages[key] = ram_image(b"", _plain(state))
    return _stages[key]


def _with(image: bytes, program: bytes, state: State) -> bytearray:
    """Return RAM with a program and the state's patches on it."""
    ram = bytearray(image)
    for place, data in ((state.at, program), *state.patches):
        ram[place : place + len(data)] = data
    return ram


class BareReplay:
    """The bare machine, booted once for a state.

    mode: of the programs; raw: it has the engine's mistakes; erratum: it has all but
    this one. (To boot it has none.)
    """

    def __init__(
        self,
        mode: Mode = "protected",
        *,
        raw: bool = False,
        erratum: Erratum | None = None,
    ) -> None:
        self._technique = "raw" if raw else "bare"
        kind = Raw if raw else Bare
        bare = build("bare", stage.MEMORY, MODELS[cpu_of(mode)], kind=kind)
        assert isinstance(bare, Bare)
        bare.connect(Ports(), Line())
        self._ram = bare.ram
        self._acts = bare.acts
        if raw or erratum is not None:
            self._acts = acts(() if erratum is None else (erratum,))
        self._all = acts(ERRATA)
        bare.engine.on_system_call = self._skip
        self._bare = bare
        at_boot(bare)
        for number in _DRS:
            bare.q[_DR + number] = bare.vcpu.dr[number]
        self._first = bare.save()
        self._booted: dict[str, tuple[bytes, TechniqueState]] = {}

    def play(self, program: bytes, state: State, change: Change = NO_CHANGE) -> Outcome:
        """Run `program` as `run.run` does, from `state` changed; its patches count."""
        bare = self._bare
        image, booted = self._boot(state)
        put(bare, _with(image, program, state))
        bare.restore(booted)
        for number, value in change.cr:
            setattr(bare.vcpu, f"cr{number}", value)
            if number < 4:  # the engine has no CR8 for a guest
                bare.q[CR + number] = value
        for number, value in change.dr:
            bare.q[_DR + number] = bare.vcpu.dr[number] = value
        bare.vcpu.msr.update(change.msr)
        bare.vcpu.pmu.write(0, 0, change.counter)
        bare.clock.tsc_offset = change.tsc
        bare.bus = Ports()
        recorder = Recorder(bare, None, wide=state.is_long)
        bare.observers.clear()
        bare.subscribe(recorder)
        bare.acts = self._acts
        end = "budget"
        for _ in range(STEPS):
            bare.step()
            if bare.cpu.is_real:
                bare.unsupported("real mode")
            if bare.vcpu.halted:
                end = "halted"
            elif bare.end is not None:
                end = bare.end[0]
            elif len(recorder.events) < EVENTS:
                continue
            break
        return _outcome(bare, recorder, self._technique, end, change.tsc)

    def _skip(self) -> int:
        """Do nothing for a SYSCALL or SYSENTER, and tell its bytes."""
        self._bare.q[RIP] += _SYSTEM_CALL
        return _SYSTEM_CALL

    def _boot(self, state: State) -> tuple[bytes, TechniqueState]:
        """Return what RAM and machine are as the program starts."""
        key = repr(_plain(state))
        if key not in self._booted:
            bare = self._bare
            put(bare, _stage(key, state))
            bare.restore(self._first)
            bare.observers.clear()
            bare.acts = self._all
            for _ in range(_BOOT_STEPS):
                if bare.q[RIP] + bare.q[BASE[x86.CS]] == state.at:
                    break
                bare.step()
            self._booted[key] = bytes(self._ram.bytes), bare.save()
        return self._booted[key]


class Replay:
    """A machine under a technique, reset before each program."""

    def __init__(self, technique: str, mode: Mode = "protected") -> None:
        self._technique = technique
        self._model = MODELS[cpu_of(mode)]
        self._vmm: Technique | None = None

    def play(self, program: bytes, state: State) -> Outcome:
        """Run `program` as `run.run` does."""
        image = _with(_stage(repr(_plain(state)), state), program, state)
        if self._vmm is None:
            vmm = self._build(image)
        else:
            vmm = self._vmm
            put(vmm, image)
            _reset(vmm)
        vmm.bus = Ports()
        recorder = Recorder(vmm, None, wide=state.is_long)
        vmm.observers.clear()
        vmm.subscribe(recorder)
        end = by_block(vmm)
        vmm.unpatch()
        # What does not end well is not asked to play again.
        self._vmm = vmm if end == "halted" else None
        return _outcome(vmm, recorder, self._technique, end)

    def _build(self, image: bytearray) -> Technique:
        vmm = build(self._technique, stage.MEMORY, self._model)
        vmm.connect(Ports(), Line())
        vmm.ram.bytes[:] = image
        at_boot(vmm)
        vmm.start()
        return vmm


def _reset(vmm: Technique) -> None:
    """Be a CPU that has just been reset, but in protected mode."""
    first = VCpu(vmm.vcpu.model)
    vmm.q[RFLAGS] = x86.FLAGS_FIXED
    vmm.cpu.iopl = 0
    vmm.d[ATTRIBUTES[x86.CS]] &= ~x86.DESC_L  # where IA-32e mode can be left
    vmm.cpu.update_mode()
    vmm.write_cr0(first.cr0)
    vmm.write_cr4(0)
    vmm.write_cr3(0)
    vmm.write_efer(0)
    vmm.cpu.load_gdt(first.gdt_base, first.gdt_limit)
    vmm.cpu.load_ldt(0)
    vmm.vcpu.restore(first.save())
    vmm.cpu.update_mode()
    for register in range(len(x86.GPR_NAMES)):
        vmm.q[register] = 0
    vmm.clock.tsc_offset = 0
    at_boot(vmm)


def _outcome(
    vmm: Technique,
    recorder: Recorder,
    technique: str,
    end: str,
    tsc: int = 0,
) -> Outcome:
    registers = observe(vmm, wide=recorder.wide)
    written = vmm.clock.tsc_offset != tsc
    registers["tsc"] = int(written)  # time itself is each technique's own
    detail = vmm.end[1] if vmm.end else ""
    events, memory = tuple(recorder.events), bytes(vmm.ram.bytes)
    return Outcome(technique, end, detail, events, registers, recorder.start, memory)
