"""What needs no machine."""

import subprocess
import sys

import pytest


def emu86(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "emu86", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"]])
def test_help(arguments):
    result = emu86(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: emu86" in result.stdout


def test_version():
    assert emu86("--version").stdout == "emu86 0.1.0\n"


def test_help_needs_nothing_heavy():
    program = (
        "import sys; from emu86 import cli; "
        "print(sorted({'numba', 'numpy', 'unicorn', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert result.stdout == "[]\n"
