"""Two trees measured in turn: this one as it stands, and another revision of it.

Both run by this tree's benchmarks and Python environment, each in processes that have
one tree's `emu86` alone on their path. A pair is one run of either; which is first
changes from pair to pair. A ratio is taken within its pair: a busy machine is busy for
both.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Final

from bench.tools import ENVIRONMENT, ROOT, BenchError, doing, say, show

KINDS: Final = ("start", "spin", "exits", "programs", "linux")
TIMEOUT: Final = 1200


def unpack(revision: str, folder: Path) -> None:
    """Write the files of `revision` to `folder`."""
    done = subprocess.run(
        ["git", "archive", f"{revision}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"no revision {revision}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")


def parent_of_package(tree: Path) -> Path:
    """Return the folder that has `emu86` in it: `src` in older trees."""
    for folder in (tree, tree / "src"):
        if (folder / "emu86" / "__init__.py").exists():
            return folder
    raise BenchError(f"no package emu86 in {tree}")


def measure(kind: str, folder: Path) -> tuple[dict[str, float], str]:
    """Measure with the emu86 in `folder`; give rows, or none and why not.

    Raises BenchError if it was another emu86 that ran.
    """
    # The tree's comes first; the benchmarks are always this tree's. With a safe path
    # -m does not put the current folder before them.
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "bench.rows", kind],
        env=ENVIRONMENT | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        return {}, done.stderr.strip().rpartition("\n")[2] or f"{done.returncode}"
    told = json.loads(done.stdout)
    if Path(told["emu86"]).parents[1] != folder.resolve():
        raise BenchError(f"asked for the emu86 in {folder}, got {told['emu86']}")
    return told["rows"], ""


def compare(name: str, old: Sequence[float], new: Sequence[float]) -> list[str]:
    """Return the table's line: medians, the median of paired ratios, their spread."""
    ratios = sorted(ours / theirs for theirs, ours in zip(old, new, strict=True))
    return [
        name,
        f"{median(old):.3g}",
        f"{median(new):.3g}",
        f"{median(ratios):.3f}",
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}",
    ]


def main(revision: str, kinds: Sequence[str], pairs: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        unpack(revision, Path(temporary))
        trees = {"old": parent_of_package(Path(temporary)), "new": ROOT}
        lines: list[list[str]] = []
        skipped: list[str] = []
        for kind in kinds:
            seen: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
            whys: dict[str, str] = {}
            for number in range(pairs):
                for tree in ("old", "new") if number % 2 == 0 else ("new", "old"):
                    doing(f"{kind}: pair {number + 1} of {pairs}, {tree}")
                    found, why = measure(kind, trees[tree])
                    seen[tree].append(found)
                    if why:
                        whys[tree] = why
                say(f"{kind}: pair {number + 1} of {pairs}")
                if whys:
                    break
            skipped += [f"{kind}, {tree}: {why}" for tree, why in whys.items()]
            if whys:
                continue
            first = {tree: seen[tree][0].keys() for tree in seen}
            for tree, other in ("old", "new"), ("new", "old"):
                skipped += [f"{row}: only {tree}" for row in first[tree] - first[other]]
            lines += [
                compare(row, *([run[row] for run in seen[tree]] for tree in seen))
                for row in seen["old"][0]
                if row in first["new"]
            ]
    show(
        f"this tree (new) against {revision} (old), {pairs} pairs",
        ("row", "old", "new", "new / old", "spread"),
        lines,
    )
    for line in skipped:
        say(f"skipped: {line}")
