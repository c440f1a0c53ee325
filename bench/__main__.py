"""What emu86 costs: all benchmarks, those named, or two trees against each other.

Results go into bench/results.json, and docs/performance.md is made of them, after every
round: a run that is interrupted leaves what it has measured.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench import page
from bench.against import tree_of
from bench.compute import COMPUTE
from bench.exits import EXITS, NANOBENCHMARKS
from bench.linux import AMD64, IDLE_SHELL, LINUX, MEMORY, PAE
from bench.programs import PROGRAMS
from bench.results import FILE, Result, load, save, shown, spread, where
from bench.start import SIZE, START
from bench.tools import ROOT, BenchError, Benchmark, Contender, doing, say, show

BENCHMARKS: Final = {
    one.name: one
    for one in (
        LINUX, AMD64, PAE, MEMORY, IDLE_SHELL, NANOBENCHMARKS, EXITS, COMPUTE, START,
        SIZE, PROGRAMS,
    )
}  # fmt: skip
COMPARED: Final = ("patch", "iopl")  # of two trees
QUICK: Final = 0.01  # of the sizes


@dataclass(frozen=True, slots=True)
class Run:
    """A contender in a benchmark: whose column, and what its rows begin with."""

    column: str
    prefix: str
    contender: Contender


@dataclass(slots=True)
class Job:
    """A benchmark that is to be run, and what it has found."""

    benchmark: Benchmark
    base: str | None
    runs: list[Run]
    result: Result
    before: float | None = None  # seconds that a round took in an earlier run

    @property
    def pace(self) -> float | None:
        """Seconds that a round takes, as far as it is known."""
        return self.result.seconds if self.result.rounds else self.before

    def left(self, pairs: int) -> int:
        """How many rounds are left of so many."""
        return (1 if self.benchmark.once else pairs) - len(self.result.rounds)


class Session:
    """Rounds of jobs, and what could not be measured."""

    def __init__(self, jobs: Sequence[Job], pairs: int, scale: float) -> None:
        self._jobs = jobs
        self._pairs = pairs
        self._scale = scale
        self.failed: dict[tuple[str, str], str] = {}

    def run(self, done: Callable[[Job], None]) -> None:
        """Measure: in each round every job, in each job every contender in turn."""
        for number in range(self._pairs):
            for job in self._jobs:
                if not (job.benchmark.once and number):
                    self._round(job, number)
                    done(job)

    def _round(self, job: Job, number: int) -> None:
        began = time.monotonic()
        found: dict[str, dict[str, float]] = {run.column: {} for run in job.runs}
        for run in job.runs[:: -1 if number % 2 else 1]:
            name = job.benchmark.name
            who = f"{run.prefix}{run.column}"
            if (name, who) in self.failed:
                continue
            doing(
                f"{name}: pair {number + 1} of {self._pairs}, {who}{self._time_left()}"
            )
            try:
                if why := run.contender.missing():
                    raise BenchError(why)  # noqa: TRY301 - told as any other
                rows = job.benchmark.measure(run.contender, self._scale)
            except BenchError as error:
                self.failed[name, who] = str(error)
                continue
            for row, figure in rows.items():
                found[run.column][f"{run.prefix}{row}"] = float(f"{figure:.6g}")
        if any(found.values()):
            took = time.monotonic() - began
            count = len(job.result.rounds)
            job.result.seconds = round(
                (job.result.seconds * count + took) / (count + 1), 1
            )
            job.result.rounds.append(
                {name: rows for name, rows in found.items() if rows}
            )

    def _time_left(self) -> str:
        """Say how long it takes from here, by what is known of a round."""
        jobs = [job for job in self._jobs if job.left(self._pairs)]
        seconds = sum((job.pace or 0) * job.left(self._pairs) for job in jobs)
        if not seconds:
            return ""
        about = "more than" if any(job.pace is None for job in jobs) else "about"
        return f"; {about} {max(round(seconds / 60), 1)} min left"


def lines(result: Result, base: str | None) -> Iterator[list[str]]:
    """Yield rows for a terminal: a contender each, its median and its ratio."""
    for row in result.rows():
        for number, name in enumerate(result.contenders()):
            if figures := result.figures(row, name):
                ratios = result.ratios(row, name, base) if base else []
                ratio = spread(ratios) if name != base else "-"
                what = "" if number else row
                yield [what, name, shown(median(figures)), ratio]


def of_this_tree(names: Sequence[str], earlier: dict[str, Result]) -> list[Job]:
    """Benchmarks with all of their contenders."""
    jobs, place = [], where()
    for one in (BENCHMARKS[name] for name in names):
        runs = [Run(each.name, "", each) for each in one.contenders()]
        before = earlier[one.name].seconds if one.name in earlier else None
        jobs.append(Job(one, one.base, runs, Result(place), before))
    return jobs


def of_two_trees(names: Sequence[str], revision: str) -> list[Job]:
    """Benchmarks with this tree and that of a revision, for each technique."""
    trees = {"old": tree_of(revision), "new": ROOT}
    jobs = []
    for one in (BENCHMARKS[name] for name in names):
        techniques = [each.name for each in one.contenders() if each.name in COMPARED]
        runs = [
            Run(column, f"{name}: ", Contender(name, name, tree))
            for name in techniques
            for column, tree in trees.items()
        ]
        jobs.append(Job(one, "old", runs, Result("")))
    return jobs


def positive(text: str) -> int:
    """Return the number that `text` is; raises ValueError unless it is above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "number above 0"  # what argparse calls it


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    width = max(map(len, BENCHMARKS))
    listed = [f"  {name:{width}}  {one.title}" for name, one in BENCHMARKS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["benchmarks:", *listed]),
    )
    parser.add_argument(
        "names", nargs="*", help="which ones; all without", metavar="NAME"
    )
    parser.add_argument(
        "--pairs", type=positive, default=5, help="how many rounds (default: 5)"
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help="compare this tree with that revision instead; nothing is written",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a hundredth of the sizes, to see that all runs; nothing is written",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="measure nothing, write the page anew from bench/results.json",
    )
    asked = parser.parse_args()
    if asked.page and (asked.names or asked.quick or asked.against is not None):
        parser.error("--page measures nothing; give it alone")
    if asked.against is not None:
        known = [name for name in BENCHMARKS if name != SIZE.name]
    else:
        known = list(BENCHMARKS)
    for name in asked.names:
        if name not in known:
            parser.error(f"no benchmark {name!r}: there are {', '.join(known)}")
    asked.names = list(dict.fromkeys(asked.names)) or known
    return asked


def main(file: Path = FILE, pages: Path = ROOT / "docs") -> int:
    """Measure, write and show; 1 if a contender could not be measured."""
    asked = arguments()
    results = load(file)
    if asked.page:
        page.write(pages, BENCHMARKS.values(), results)
        return 0
    try:
        if asked.against is not None:
            jobs = of_two_trees(asked.names, asked.against)
        else:
            jobs = of_this_tree(asked.names, results)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    written = asked.against is None and not asked.quick

    def done(job: Job) -> None:
        if written and job.result.rounds:
            results[job.benchmark.name] = job.result
            save(file, results)
            page.write(pages, BENCHMARKS.values(), results)

    session = Session(jobs, asked.pairs, QUICK if asked.quick else 1.0)
    status = 1
    try:
        session.run(done)
        status = 1 if session.failed else 0
    except KeyboardInterrupt:
        say("bench: interrupted; this is what has been measured")
        status = 130
    for job in jobs:
        if job.result.rounds:
            title = f"{job.benchmark.name}: medians of {len(job.result.rounds)} pairs"
            headings = ("", "", "median", f"÷ {job.base}" if job.base else "")
            show(title, headings, lines(job.result, job.base))
    for (name, who), why in session.failed.items():
        say(f"skipped: {name}, {who}: {why}")
    if written:
        say("README.md quotes the page: .venv/bin/python tools/make_docs.py")
    return status


if __name__ == "__main__":
    sys.exit(main())
