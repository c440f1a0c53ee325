"""Build the wheel, install it by itself, and use it from another folder.

What the wheel forgets, a file or a dependency, is found here and not by a user; and how
much it takes of a disk, with all that it needs. The environment is new and temporary;
its packages are those of requirements.lock.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
MOST: Final = 90  # megabytes of a disk that an installed emu86 takes
_BLOCK: Final = 4096  # bytes of a disk that go to one file
PROPERTY = '''
"""A property, as a user of emu86.testing writes it."""

from hypothesis import given, settings

from emu86.testing import assert_equivalent, strategies


@settings(max_examples=20, deadline=None)
@given(strategies.programs(), strategies.states())
def test_a_deprivileged_run_equals_a_bare_run(program, state):
    assert_equivalent(program, state)
'''


def run(*command: str | Path, cwd: Path) -> str:
    """Run it without this tree on its path; return its output, or end if it fails."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}check_wheel: failed: {command}")
    return done.stdout


def pip(*arguments: str | Path, cwd: Path = ROOT) -> None:
    """Run pip, in words as few as it can."""
    quiet = ("--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", *arguments, *quiet, cwd=cwd)


def missing(wheel: Path) -> list[str]:
    """Return the package's files, as git knows them, that the wheel has not."""
    committed = run("git", "ls-files", "emu86", cwd=ROOT).splitlines()
    with ZipFile(wheel) as files:
        return sorted(set(committed) - set(files.namelist()))


def links(wheel: Path) -> list[str]:
    """Return the links of the package's page that need files beside it."""
    with ZipFile(wheel) as files:
        (name,) = (n for n in files.namelist() if n.endswith(".dist-info/METADATA"))
        _headers, _, page = files.read(name).decode().partition("\n\n")
    if not page.strip():
        sys.exit(f"check_wheel: {wheel.name} has no page")
    return re.findall(r"\]\((?!https?:)([^)]*)\)", page)


def installed(environment: Path) -> float:
    """Return how many megabytes of a disk the files of an environment take."""
    files = (path for path in environment.rglob("*") if not path.is_symlink())
    sizes = (path.stat().st_size for path in files if path.is_file())
    return sum(-(-size // _BLOCK) * _BLOCK for size in sizes) / 1e6


def step(what: str) -> None:
    """Tell what takes its time."""
    print(f"check_wheel: {what}", flush=True)


def main(folder: Path) -> None:
    """Do it all in `folder`, which is empty."""
    wheels, environment, elsewhere = (
        folder / n for n in ("wheels", "env", "elsewhere")
    )
    elsewhere.mkdir()
    step("building the wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    (wheel,) = wheels.glob("emu86-*.whl")
    if forgotten := missing(wheel):
        sys.exit(f"check_wheel: {wheel.name} has no {', '.join(forgotten)}")
    if relative := links(wheel):
        sys.exit(f"check_wheel: links of its page lead nowhere: {', '.join(relative)}")

    # First the locked packages, by their hashes; then of these what the wheel asks for.
    step("fetching what it needs")
    lock = ROOT / "requirements.lock"
    pip("download", "--require-hashes", "--no-deps", "-r", lock, "--dest", wheels)
    step("installing it")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    offline = ("--no-index", "--find-links", wheels)
    empty = installed(environment)
    pip("--python", python, "install", *offline, "emu86")
    size = installed(environment) - empty
    if size > MOST:
        sys.exit(f"check_wheel: installed, it takes {size:.1f} MB; the most is {MOST}")

    step("using it")
    emu86 = environment / "bin" / "emu86"
    shown = run(emu86, "run", cwd=elsewhere)
    if "checks passed" not in shown:
        sys.exit(f"{shown}\ncheck_wheel: the teaching kernel fails")
    shown = run(emu86, "lab", "popf", cwd=elsewhere)
    if "== patch: right" not in shown:
        sys.exit(f"{shown}\ncheck_wheel: the lab fails")

    step("testing with it")
    pip("--python", python, "install", *offline, "emu86[testing]", "pytest")
    (elsewhere / "test_property.py").write_text(PROPERTY)
    # The same examples each time: fresh ones are for `make soak`, and may meet what
    # README says that emu86 does not mend.
    seed = "--emu86-seed=0"
    shown = run(python, "-m", "pytest", "test_property.py", seed, cwd=elsewhere)
    if "1 passed" not in shown or "emu86: seed" not in shown:
        sys.exit(f"{shown}\ncheck_wheel: the property was not tried")
    files = len(ZipFile(wheel).namelist())
    print(f"check_wheel: {wheel.name} has all {files} files; installed: {size:.1f} MB")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
