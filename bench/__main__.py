"""Run all benchmarks, or those that are named: `python -m bench start compute`."""

import sys
from collections.abc import Callable
from typing import Final

from bench import compute, exits, linux, programs, start
from bench.tools import say

BENCHMARKS: Final[dict[str, Callable[[], None]]] = {
    "start": start.main,
    "compute": compute.main,
    "exits": exits.main,
    "programs": programs.main,
    "linux": linux.main,
}


def main() -> None:
    """Run them in the order given."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    for name in names:
        say(
            f"\n[bold]{name}[/bold]  {sys.modules[BENCHMARKS[name].__module__].__doc__}"
        )
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
