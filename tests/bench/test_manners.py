"""Every tool tells what it is for, and of a mistake in one line."""

import re
import runpy
import subprocess
import sys

import pytest

from bench import tools
from support.places import ROOT

TOOLS = [
    "bench/__main__", "tools/check_wheel", "tools/fetch_guests", "tools/make_docs",
    "tools/measure_clock", "tools/soak",
]  # fmt: skip


@pytest.fixture
def tool(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        file = str(ROOT / f"{name}.py")
        with pytest.raises(SystemExit) as end:
            runpy.run_path(file, run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", TOOLS)
def test_help(tool, name):
    status, out, err = tool(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")
    assert len(out.splitlines()) > 3


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("argument", ["nonsense", "-1", "nan"])
def test_nonsense(tool, name, argument):
    status, out, err = tool(name, argument)
    assert (status, out) == (2, "")
    assert re.search(r"error: .*(invalid|unrecognized|no benchmark|required)", err)
    assert "Traceback" not in err


def test_what_is_measured_is_told(monkeypatch, capsys):
    tools.doing("one")
    tools.doing("two")
    assert capsys.readouterr().err == "one\ntwo\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tools.doing("one")
    tools.say("a result")
    assert capsys.readouterr().err == "\r\x1b[Kone\r\x1b[K"


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--nonsense", 2)])
def test_install_debian_takes_no_option_for_a_package(argument, status):
    done = subprocess.run(
        [ROOT / "tools" / "install_debian", argument],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == status
    assert done.stdout.startswith("usage: install_debian")
