"""The law: a deprivileged run equals a bare run; and what to say if it does not."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Final

import capstone

from emu86.config import DEPRIVILEGED
from emu86.errors import expect
from emu86.spec import x86
from emu86.testing.outcome import FLAGS, differences, place_of
from emu86.testing.run import Trace, run
from emu86.testing.stage import State

_WIDTH: Final = 32
_CAPSTONE: Final = {
    16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64,
}  # fmt: skip
_MIDDLE: Final = 300  # instructions
_TOLD: Final = 20  # lines of differences
# With IOPL raised it shows: the known price of the technique.
HIDDEN: Final = {"iopl": x86.IOPL}


def assert_equivalent(
    program: bytes,
    state: State | None = None,
    techniques: str | tuple[str, ...] = ("patch",),
) -> None:
    """Assert that the guest cannot tell these techniques from the bare machine.

    If it can, AssertionError says at which event and after which instruction the two
    runs begin to differ, shows both states with the bits that differ, and the program
    as assembly. Raises ValueError if no technique is named, or only the bare machine,
    or one that does not exist; TypeError for a program or a state of the wrong type.
    """
    __tracebackhide__ = True
    names = (techniques,) if isinstance(techniques, str) else techniques
    expect("techniques", names, tuple, list)
    if not names or not all(name in DEPRIVILEGED for name in names):
        message = f"techniques: one or more of {', '.join(DEPRIVILEGED)}, not {names!r}"
        raise ValueError(message)
    state = State() if state is None else state
    oracle = run(program, state, "bare")
    # What does not end is looked at in the middle, too.
    middle = oracle.end == "budget" and run(program, state, "bare", None, _MIDDLE)
    for technique in names:
        hidden = HIDDEN.get(technique, 0)
        lines = differences(oracle, run(program, state, technique), hidden)
        if middle:
            there = run(program, state, technique, None, _MIDDLE)
            lines = chain(lines, differences(middle, there, hidden))
        if found := tuple(islice(lines, _TOLD)):
            raise AssertionError(_Parting(program, state, technique, found))


@dataclass(frozen=True)
class _Parting:
    """What an AssertionError says.

    It takes two traced runs, so it is made when it is printed: not for every program
    that hypothesis tries to shrink it with.
    """

    program: bytes
    state: State
    technique: str
    found: tuple[str, ...]

    @cached_property
    def _text(self) -> str:
        lines = [f"{self.technique} is not bare:", *self.found]
        lines += ["", *parting(self.program, self.state, self.technique)]
        lines += ["", *_assembly(self.program, self.state)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self._text


def parting(program: bytes, state: State, technique: str) -> Iterator[str]:
    """Describe the first instruction after which two runs are not the same."""
    traces: list[Trace] = []
    for name in ("bare", technique):
        trace: Trace = []
        run(program, state, name, trace)
        traces.append(_rounds_as_one(trace))
    hidden = ~HIDDEN.get(technique, 0)
    where = ""
    for left, right in zip(*traces, strict=False):
        one, other = left.registers, right.registers
        found = [
            name
            for name in one
            if (one[name] ^ other[name]) & (hidden if name in FLAGS else -1)
        ]
        if found or left.memory != right.memory:
            if where:
                yield f"they part after the instruction at {where}:"
            for name in found:
                yield from _bits(name, technique, one[name], other[name])
            if left.memory != right.memory:
                yield "  RAM is not the same"
            return
        where = place_of(one)
    yield f"they part in the last instruction, at {where}, in how it ends"
    yield "or in page tables alone"
    if state.interrupts is None:
        yield "(or by the time that they read, which State.interrupts makes the same)"


def _rounds_as_one(trace: Trace) -> Trace:
    """Take the rounds of a repeated instruction, and those tried again, as one."""
    return [
        one
        for i, one in enumerate(trace)
        if not i or place_of(one.registers) != place_of(trace[i - 1].registers)
    ]


def _bits(name: str, technique: str, one: int, other: int) -> Iterator[str]:
    width = max(_WIDTH, one.bit_length(), other.bit_length())
    marks = f"{one ^ other:0{width}b}".replace("0", " ").replace("1", "^").rstrip()
    yield f"  {name:12} bare      {one:0{width}b}"
    yield f"  {'':12} {technique:9} {other:0{width}b}"
    yield f"  {'':12} {'':9} {marks}"


def _assembly(program: bytes, state: State) -> Iterator[str]:
    yield f"the program, from {state}:"
    decoder = capstone.Cs(capstone.CS_ARCH_X86, _CAPSTONE[state.bits])
    decoder.skipdata = True
    for insn in decoder.disasm(program, state.at):
        code = f"{insn.bytes.hex():20}"
        yield f"  {insn.address:08X}  {code} {insn.mnemonic} {insn.op_str}".rstrip()
