"""How many examples of a property of `emu86.testing` one core tries in a minute.

An example is a short random program that hypothesis draws and `assert_equivalent` holds
against the bare machine. All in one process, in CPU time; and where it goes: drawing it
(hypothesis and the strategies), the run on the bare machine, and the one under `patch`
with the comparison.
"""

from time import process_time
from typing import Final

from hypothesis import HealthCheck, Phase, given, settings

from bench.tools import asked, doing, say, show
from emu86.testing import State, assert_equivalent, run
from emu86.testing import strategies as guests

EXAMPLES: Final = 300
_ROWS: Final = 100  # examples
TARGET: Final = 1000  # examples in a minute

# Classes of instructions, none for all; whether time and interrupts are the law's too.
_PROPERTIES: Final[dict[str, tuple[tuple[str, ...], bool]]] = {
    "moves and arithmetic": (("moves", "arithmetic"), False),
    "sensitive": (("sensitive", "moves"), False),
    "page tables": (("page_table_edits", "moves"), False),
    "all": ((), False),
    "all, by the clock": ((), True),
}


def measure(name: str, examples: int) -> tuple[float, float, float]:
    """Return CPU seconds of all examples; of their bare runs; of all but drawing."""
    classes, clocked = _PROPERTIES[name]
    bare = law = 0.0

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(guests.programs(*classes), guests.states(clocked=clocked))
    def tries(program: bytes, state: State) -> None:
        nonlocal bare, law
        start = process_time()
        assert_equivalent(program, state)
        middle = process_time()
        run(program, state, "bare")  # once more, for its own time
        end = process_time()
        law += middle - start
        bare += end - middle

    run(b"\xf4")  # what is imported and probed once
    start = process_time()
    tries()
    return process_time() - start - bare, bare, law


def rows() -> dict[str, float]:
    """What two trees are compared by."""
    found = {}
    for name in ("all", "all, by the clock"):
        total, _, _ = measure(name, _ROWS)
        found[f"an example of {name}, ms"] = total * 1000 / _ROWS
    return found


def main(examples: int = EXAMPLES) -> None:
    """Measure all properties and print a table."""
    rows = []
    slowest = float("inf")
    for name in _PROPERTIES:
        doing(f"programs: {examples} examples of {name}")
        total, bare, law = measure(name, examples)
        pace = 60 * examples / total
        slowest = min(slowest, pace)
        parts = (total - law, bare, law - bare)
        milliseconds = [f"{1000 * part / examples:.1f}" for part in parts]
        rows.append((name, f"{pace:.0f}", *milliseconds))
    headings = ("classes", "in a minute", "ms: drawing", "bare", "patch")
    show(f"Examples, of {examples}", headings, rows)
    say(f"slowest: {slowest:.0f} in a minute (target: {TARGET})")


if __name__ == "__main__":
    main(**asked(__doc__, examples=EXAMPLES))
