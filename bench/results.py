"""Results: rounds of rows of figures, as they are kept in results.json."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

from bench.against import git
from bench.tools import QEMU, ROOT

FILE: Final = ROOT / "bench" / "results.json"
# What a run writes is no change of what it measures.
_WRITTEN: Final = (":!bench/results.json", ":!docs/performance*", ":!README.md")

Rows = dict[str, float]


@dataclass(slots=True)
class Result:
    """What a benchmark found: a round has the rows of each contender, by its name."""

    where: str  # the machine, versions, date and commit
    rounds: list[dict[str, Rows]] = field(default_factory=list)
    seconds: float = 0.0  # of the clock, of a round

    def contenders(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(name for one in self.rounds for name in one))

    def rows(self) -> list[str]:
        """The names of rows, in order."""
        each = (rows for one in self.rounds for rows in one.values())
        return list(dict.fromkeys(row for rows in each for row in rows))

    def figures(self, row: str, name: str) -> list[float]:
        """The figures of a contender."""
        rounds = [one.get(name, {}) for one in self.rounds]
        return [rows[row] for rows in rounds if row in rows]

    def ratios(self, row: str, name: str, base: str) -> list[float]:
        """Its figures, each divided by the base's of the same round; sorted."""
        pairs = [(one.get(name, {}), one.get(base, {})) for one in self.rounds]
        return sorted(
            rows[row] / theirs[row]
            for rows, theirs in pairs
            if row in rows and theirs.get(row)
        )


def shown(figure: float) -> str:
    """Return a figure, to three digits."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def spread(ratios: Sequence[float]) -> str:
    """Return the median, and the least and the greatest."""
    if not ratios:
        return "-"
    middle, least, greatest = (
        f"{one:.2f}" if one < 100 else f"{one:,.0f}"
        for one in (median(ratios), ratios[0], ratios[-1])
    )
    return middle if least == greatest else f"{middle} ({least} to {greatest})"


def table(result: Result, base: str | None) -> list[list[str]]:
    """Return headings and rows: medians by contender, and their ratios to the base."""
    names = result.contenders()
    if base in names:
        names.remove(base)
        names.insert(0, base)
    divided = [name for name in names if name != base] if base in names else []
    headings = names if len(names) > 1 else ["median"]
    lines = [["", *headings, *(f"{name} ÷ {base}" for name in divided)]]
    for row in result.rows():
        cells = [row]
        for name in names:
            figures = result.figures(row, name)
            cells.append(shown(median(figures)) if figures else "-")
        for name in divided:
            assert base is not None
            cells.append(spread(result.ratios(row, name, base)))
        lines.append(cells)
    return lines


def where() -> str:
    """Say what the figures of this hour are of."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    try:
        told = subprocess.run([QEMU, "--version"], capture_output=True, check=False)
        qemu = told.stdout.decode().partition("\n")[0].split("version ")[-1]
    except FileNotFoundError:
        qemu = "none"
    commit = git("rev-parse", "--short", "HEAD").decode().strip() or "unknown"
    if git("status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN):
        commit += " with changes"
    load = f"load average {os.getloadavg()[0]:.1f} before"
    return (
        f"{datetime.now(UTC):%-d %B %Y}, commit {commit}; {os.cpu_count()} CPUs ({cpu},"
        f" {load}), Linux {platform.release()}, Python {platform.python_version()},"
        f" Unicorn {version('unicorn')}, QEMU {qemu}"
    )


def load(file: Path) -> dict[str, Result]:
    """Return results by benchmark."""
    if not file.exists():
        return {}
    return {name: Result(**one) for name, one in json.loads(file.read_text()).items()}


def save(file: Path, results: dict[str, Result]) -> None:
    """Write them, whole or not at all."""
    text = json.dumps({name: asdict(one) for name, one in results.items()}, indent=1)
    partial = file.with_suffix(".part")
    partial.write_text(text + "\n")
    partial.replace(file)
