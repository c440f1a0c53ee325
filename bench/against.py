"""Another revision of this tree, to be measured beside it.

This tree's benchmarks and Python environment run both; a process has one tree's `emu86`
alone on its path.
"""

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Final

from bench.tools import ROOT, BenchError, Contender

TREES: Final = ROOT / "build" / "trees"


def tree_of(revision: str) -> Path:
    """Unpack the package of `revision`, if it is not there yet; the folder that has it.

    Raises BenchError if there is no such revision, or another emu86 would run.
    """
    commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not commit:
        raise BenchError(f"no revision {revision!r}")
    name = commit.decode().strip()
    for source in ("emu86", "src/emu86"):  # older trees have src
        listed = git("ls-tree", "--name-only", name, f"{source}/__init__.py")
        if listed:
            break
    else:
        raise BenchError(f"no package emu86 in {revision!r}")
    tree = TREES / name
    folder = (tree / source).parent
    if not tree.exists():
        # The package alone, not the benchmarks beside it.
        with tarfile.open(fileobj=BytesIO(git("archive", name, source))) as files:
            files.extractall(tree, filter="data")
    check(folder)
    return folder


def git(*command: str) -> bytes:
    """What a git command in this tree prints; nothing if it fails."""
    try:
        done = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, check=False
        )
    except FileNotFoundError:
        return b""
    return b"" if done.returncode else done.stdout


def check(folder: Path) -> None:
    """Raise BenchError unless `python -m emu86` for a contender is that in `folder`."""
    found = subprocess.run(
        [sys.executable, "-c", "import emu86; print(emu86.__file__)"],
        env=Contender("", "patch", folder).environment(),
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if Path(found).resolve().parent.parent != folder.resolve():
        raise BenchError(f"asked for the emu86 in {folder}, got {found}")
