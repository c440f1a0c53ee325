"""What an installed emu86 puts on the path, and what CI does with it."""

import os
import subprocess
import sys

import pytest

from support.places import ROOT
from tools import check_wheel

FOLDERS = sorted(
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and path.name.isidentifier() and path.name != "emu86"
)


def found(name, folder):
    """Where another program would import `name` from, or ''."""
    look = (
        "import importlib.util, sys; spec = importlib.util.find_spec(sys.argv[1]);"
        "print(*(spec.submodule_search_locations if spec else ()))"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", look, name],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_package_is_on_everybodys_path(tmp_path):
    assert found("emu86", tmp_path) == str(ROOT / "emu86")


@pytest.mark.parametrize("name", FOLDERS)
def test_and_nothing_that_stands_beside_it(name, tmp_path):
    assert {"bench", "tests", "tools"} <= set(FOLDERS)
    assert str(ROOT) not in found(name, tmp_path)


def test_ci_runs_what_the_readme_says():
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "\n    make test " in readme
    assert {"make lint", "make test", "make wheel"} <= set(ci)


def test_what_is_installed_is_counted_by_blocks(tmp_path):
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "two").write_bytes(bytes(5000))
    (tmp_path / "link").symlink_to("one")
    assert check_wheel.installed(tmp_path) == 3 * 4096 / 1e6
