"""What emu86 costs: all benchmarks, those named, or two trees against each other."""

import argparse
import sys
from collections.abc import Callable
from typing import Final

from bench import against, compute, exits, inside, linux, programs, start
from bench.tools import positive, say

BENCHMARKS: Final[dict[str, Callable[[], None]]] = {
    "start": start.main,
    "compute": compute.main,
    "exits": exits.main,
    "inside": inside.main,
    "programs": programs.main,
    "linux": linux.main,
}


def docstring(benchmark: Callable[[], None]) -> str:
    """Return that of its module."""
    return str(sys.modules[benchmark.__module__].__doc__)


def main() -> None:
    """Run them in the order given."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            [
                "benchmarks:",
                *(
                    f"  {name:9} {docstring(run).splitlines()[0]}"
                    for name, run in BENCHMARKS.items()
                ),
                "with --against:",
                f"  {', '.join(against.KINDS)}",
            ]
        ),
    )
    parser.add_argument(
        "names", nargs="*", help="which ones; all without", metavar="NAME"
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help="compare this tree with that revision, in turn, by ratios",
    )
    parser.add_argument(
        "--pairs", type=positive, default=5, help="of runs with --against (default: 5)"
    )
    asked = parser.parse_args()
    known = list(against.KINDS if asked.against else BENCHMARKS)
    for name in asked.names:
        if name not in known:
            parser.error(f"no benchmark {name!r}: there are {', '.join(known)}")
    names = asked.names or known
    if asked.against:
        against.main(asked.against, names, asked.pairs)
        return
    for name in names:
        say(
            f"\n[bold]{name}[/bold]  {sys.modules[BENCHMARKS[name].__module__].__doc__}"
        )
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
