"""What an example of a property of `emu86.testing` takes.

An example is a short random program that hypothesis draws and `assert_equivalent` holds
against the bare machine. `python -m bench.programs N` measures N of them with the emu86
on its path and prints rows as JSON.
"""

import json
import subprocess
import sys
from math import ceil
from time import process_time
from typing import Final

from bench.tools import BenchError, Benchmark, Contender, contenders

EXAMPLES: Final = 60

# Classes of instructions, none for all; whether time and interrupts are the law's too.
PROPERTIES: Final[dict[str, tuple[tuple[str, ...], bool]]] = {
    "page tables": (("page_table_edits", "moves"), False),
    "all instructions": ((), False),
    "all instructions, by the clock": ((), True),
}


def examples(classes: tuple[str, ...], count: int, *, clocked: bool) -> float:
    """Milliseconds of CPU time of one example, of `count`."""
    from hypothesis import HealthCheck, Phase, given, settings  # noqa: PLC0415

    # Late: of the tree on this process's path, which need not be that of the caller.
    from emu86.testing import State, assert_equivalent, run  # noqa: PLC0415
    from emu86.testing import strategies as guests  # noqa: PLC0415

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(guests.programs(*classes), guests.states(clocked=clocked))
    def tries(program: bytes, state: State) -> None:
        assert_equivalent(program, state)

    run(b"\xf4")  # what is imported and probed once
    begin = process_time()
    tries()
    return (process_time() - begin) * 1000 / count


def measure(contender: Contender, scale: float) -> dict[str, float]:
    """Have the contender's tree draw its examples, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.programs", str(ceil(EXAMPLES * scale))],
        env=contender.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(done.stderr.strip().rpartition("\n")[2])
    rows: dict[str, float] = json.loads(done.stdout)
    return rows


PROGRAMS: Final = Benchmark(
    "programs",
    "Properties",
    f"""\
What an example of a property of `emu86.testing` takes: a program of up to eight
instructions, drawn by hypothesis, run on the bare machine and under `patch`, and
compared. Milliseconds of CPU time, the mean of {EXAMPLES} examples. 60,000 divided by
it is what one core tries in a minute; the aim is 1,000.""",
    contenders("patch"),
    measure,
    base=None,
)

if __name__ == "__main__":
    json.dump(
        {
            f"{name}, ms": examples(classes, int(sys.argv[1]), clocked=clocked)
            for name, (classes, clocked) in PROPERTIES.items()
        },
        sys.stdout,
    )
