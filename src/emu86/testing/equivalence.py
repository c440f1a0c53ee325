"""The law: a deprivileged run equals a bare run, and what to say when it does not."""

from collections.abc import Iterator
from typing import Final

import capstone

from emu86.spec import x86
from emu86.testing.outcome import differences
from emu86.testing.run import Trace, run
from emu86.testing.stage import State

_WIDTH: Final = 32
# With IOPL raised it shows: the known price of the technique.
HIDDEN: Final = {"iopl": x86.IOPL}


def assert_equivalent(
    program: bytes,
    state: State | None = None,
    techniques: tuple[str, ...] = ("patch",),
) -> None:
    """Assert that the guest cannot tell the techniques from the bare machine.

    Raises AssertionError with the first event and the first instruction where they
    part, both states with the differing bits, and the program as assembly.
    """
    state = state or State()
    oracle = run(program, state, "bare")
    for technique in techniques:
        found = list(
            differences(
                oracle, run(program, state, technique), HIDDEN.get(technique, 0)
            )
        )
        if found:
            lines = [f"{technique} is not bare:", *found[:20]]
            lines += ["", *parting(program, state, technique)]
            lines += ["", *_assembly(program, state)]
            raise AssertionError("\n".join(lines))


def parting(program: bytes, state: State, technique: str) -> Iterator[str]:
    """Tell of the first instruction after which two runs are not the same."""
    traces: list[Trace] = []
    for name in ("bare", technique):
        trace: Trace = []
        run(program, state, name, trace)
        traces.append(_rounds_as_one(trace))
    hidden = ~HIDDEN.get(technique, 0)
    before = None
    for left, right in zip(*traces, strict=False):
        one, other = left.registers, right.registers
        found = [
            name
            for name in one
            if (one[name] ^ other[name]) & (hidden if name == "eflags" else -1)
        ]
        if found:
            if before is not None:
                where = f"{before['cs']:X}h:{before['eip']:08X}"
                yield f"they part after the instruction at {where}:"
            for name in found:
                yield f"  {name:12} bare      {one[name]:0{_WIDTH}b}"
                yield f"  {'':12} {technique:9} {other[name]:0{_WIDTH}b}"
                yield f"  {'':12} {'':9} {_marks(one[name] ^ other[name])}"
            return
        before = one
    yield "they part in memory, in their last instruction or in how they end"
    if state.interrupts is None:
        yield "(or by the time that they read, which State.interrupts makes the same)"


def _rounds_as_one(trace: Trace) -> Trace:
    """Take the rounds of a repeated instruction, and those tried again, as one."""
    return [
        one
        for i, one in enumerate(trace)
        if not i or one.registers["eip"] != trace[i - 1].registers["eip"]
    ]


def _marks(bits: int) -> str:
    return f"{bits:0{_WIDTH}b}".replace("0", " ").replace("1", "^").rstrip()


def _assembly(program: bytes, state: State) -> Iterator[str]:
    yield f"the program, from {state}:"
    mode = capstone.CS_MODE_16 if state.flags & x86.VM else capstone.CS_MODE_32
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    decoder.skipdata = True
    for insn in decoder.disasm(program, state.at):
        code = f"{insn.bytes.hex():20}"
        yield f"  {insn.address:08X}  {code} {insn.mnemonic} {insn.op_str}".rstrip()
