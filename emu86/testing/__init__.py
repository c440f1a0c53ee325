"""Property tests of what instructions do and of VMMs: a library for users' own tests.

`run` runs a program on a stage of tables and handlers. `assert_equivalent` checks that
a deprivileged guest cannot tell its run from one on the bare machine.
"""

from emu86.testing.assembler import asm
from emu86.testing.equivalence import assert_equivalent
from emu86.testing.outcome import Event, Outcome, differences
from emu86.testing.run import run
from emu86.testing.stage import State

__all__ = [
    "Event", "Outcome", "State", "asm", "assert_equivalent", "differences", "run",
]  # fmt: skip
