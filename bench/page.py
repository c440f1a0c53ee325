"""The page of docs/ that shows results."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench.plot import plot
from bench.results import Result, table
from bench.tools import Benchmark

_HEAD: Final = """\
# Performance

emu86 beside QEMU's translator (`qemu-system-i386 -accel tcg`) and beside the bare
engine. `make bench` measures it all and writes this page, each figure of it.

    make bench                                # all, an hour or more
    make bench ARGS='linux nano --pairs 9'    # some, and more pairs
    make bench ARGS='--against HEAD~3'        # this tree beside another revision

## How to read it

- **CPU seconds**, user and system, are those of the whole process: compiling and
  devices are in them. Other programs on the machine disturb them less than a clock.
- In a **pair** each program runs once, in turn. The order changes from pair to pair. A
  column has the median of the pairs.
- A **ratio** (÷) is of two runs of one pair. The table has the median of these ratios,
  and in brackets the least and the greatest. Below 1 emu86 needs less than what it is
  divided by. Ratios hold better than seconds on another machine.
- `patch`, `iopl`, `trap` and `bare` are [techniques](techniques.md). Debian's kernel
  runs under the two that it works with: under `trap` its programs lose their
  interrupts, and `bare` is many times too slow. A field with `-` was not measured.
- Sizes are such that QEMU needs a second or more, but for an idle guest, the start, and
  the other exits.
- In a plot a mark is the median, and a line through it goes from the least to the
  greatest. The scale is logarithmic.
"""


def markdown(lines: Iterable[list[str]]) -> str:
    """Return a table."""
    heading, *rows = lines
    rule = ["---", *("---:" for _ in heading[1:])]
    cells = [
        [cell.replace("|", "\\|") for cell in row] for row in (heading, rule, *rows)
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def drawn(benchmark: Benchmark, results: dict[str, Result]) -> str:
    """Return the benchmark's plot; nothing if it has too few rows, or no results."""
    result = results.get(benchmark.name)
    if result is None or benchmark.base not in result.contenders():
        return ""
    return plot(benchmark.title, result, benchmark.base)


def page(benchmarks: Iterable[Benchmark], results: dict[str, Result]) -> str:
    """Return the page: a section for each benchmark that has results."""
    text = _HEAD
    for one in benchmarks:
        if (result := results.get(one.name)) is None:
            continue
        count = len(result.rounds)
        pairs = "Measured once" if count == 1 else f"{count} pairs"
        text += f"\n## {one.title}\n\n{one.about}\n\n<!-- bench: {one.name} -->\n\n"
        text += markdown(table(result, one.base))
        text += f"\n{textwrap.fill(f'{pairs}: {result.where}.', 88)}\n"
        if drawn(one, results):
            text += f"\n![{one.title}, ÷ {one.base}](performance-{one.name}.svg)\n"
    return text


def write(
    folder: Path, benchmarks: Iterable[Benchmark], results: dict[str, Result]
) -> None:
    """Write the page and its plots."""
    benchmarks = list(benchmarks)
    for one in benchmarks:
        if text := drawn(one, results):
            (folder / f"performance-{one.name}.svg").write_text(text)
    (folder / "performance.md").write_text(page(benchmarks, results))
