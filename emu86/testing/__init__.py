"""Property tests on instruction semantics and on VMMs: a library for users' own tests.

`run` plays a program on a stage of tables and handlers; `assert_equivalent` says that a
deprivileged guest cannot tell itself from a bare one.
"""

from emu86.testing.equivalence import assert_equivalent
from emu86.testing.outcome import Event, Outcome, differences
from emu86.testing.run import run
from emu86.testing.stage import State

__all__ = ["Event", "Outcome", "State", "assert_equivalent", "differences", "run"]
