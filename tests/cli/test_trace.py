"""`emu86 trace`: a story, sums, and pictures of a trace."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from emu86 import Machine, cli, images
from emu86.cli.story import explained
from emu86.rings.insn.table import RECORDS


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    machine = Machine(memory=16 << 20)
    machine.load_kernel(images.path("exits"), append="5")
    path = tmp_path_factory.mktemp("trace") / "t.gz"
    trace = machine.trace(path)
    machine.run(timeout=60)
    trace.close()
    return str(path)


@pytest.fixture
def emu86(monkeypatch, capsys):
    """The command in this process: its status, and what it says."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emu86", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def shown(emu86):
    """What `emu86 trace` shows."""

    def run(*arguments):
        status, out, error = emu86("trace", *arguments)
        assert (status, error) == (0, "")
        return out

    return run


def test_a_story(shown, path):
    text = shown(path)
    assert text.startswith("A trace of emu86 ")
    assert "Ring 0 runs, in the engine's ring 1, CR3 " in text
    assert re.search(
        r"mov cr3, eax\n +MOV to CR: #GP\(0\); Python, 1,000 ns\n +CR3 0 → \w+h\n",
        text,
    )
    assert re.search(r"#PF fill: .*\n +fetch of \w+: shadow none → \w+ -r-x", text)
    assert re.search(r"\.\.\. \d+ more of this, to 0\.\d{9} s", text)


def test_some_of_it(shown, path):
    text = shown("--filter", "reason=CR3", "--last", "1", path)
    assert text.count("MOV to CR") + text.count("MOV from CR") == 1


def test_names_from_a_file(shown, path, tmp_path):
    names = tmp_path / "System.map"
    names.write_text("00100000 T the_start\n")
    assert "the_start+" in shown("--symbols", str(names), path)


def test_a_summary(shown, path):
    text = shown("--summary", path)
    assert re.match(r"[\d,]+ exits from 0\.\d{9} s to 0\.\d{9} s, [\d,]+ changes", text)
    assert "by reason" in text
    assert "by process" in text
    assert shown("--summary", "--filter", "ring=2", path) == "no exits\n"


def test_chromes_format(shown, path):
    events = json.loads(shown("--json", "-", path))["traceEvents"]
    exits = [one for one in events if one.get("cat") == "exit"]
    ran = [one for one in events if one.get("cat") == "guest"]
    assert {one["name"] for one in exits} >= {"MOV to CR", "#PF fill", "CLI"}
    assert exits[0]["args"]["engine"] == 1
    assert all(one["dur"] > 0 and one["tid"] in (0, 3) for one in ran)
    named = {(one["pid"], one["tid"]) for one in events if one["name"] == "thread_name"}
    assert {(one["pid"], one["tid"]) for one in exits + ran} == named


def test_a_page(shown, path, tmp_path):
    assert shown("--html", str(tmp_path / "t.html"), path) == ""
    page = (tmp_path / "t.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page
    data = json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1])
    assert len(data["rows"]) > 50
    for row in data["rows"]:
        assert data["codes"][row[6]]
        assert all(data["reasons"][row[7]])


def test_every_reason_is_explained():
    for record in RECORDS:
        assert explained(record.mnemonic)[1]
    for reason in ("#PF fill", "#PF guest", "#PF I/O", "#PF ahead", "interrupt"):
        assert "of the guest's own" not in explained(reason)[0]
    assert explained("INT 80h")[1]
    assert explained("#DE") == (
        "#DE of the guest's own",
        "It goes to the guest's handler, through the guest's interrupt table.",
    )


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["run", "--trace", "/nonexistent/x"], "trace: /nonexistent/x: No such file"),
        (["run", "--trace", "x", "--trace-filter", "rnig=3"], "did you mean 'ring'"),
        (
            ["run", "--trace", "x", "--symbols", "/dev/null"],
            "symbols: /dev/null: neither",
        ),
        (["trace", "--filter", "ring", "PATH"], "filter 'ring': it ends too soon"),
        (["trace", "--symbols", "/dev/null", "PATH"], "symbols: /dev/null: neither"),
    ],
)
def test_mistakes(emu86, path, tmp_path, monkeypatch, arguments, mistake):
    monkeypatch.chdir(tmp_path)
    status, out, error = emu86(*(path if one == "PATH" else one for one in arguments))
    assert (status, out) == (2, "")
    assert error.startswith("emu86: ")
    assert error.count("\n") == 1
    assert mistake in error
    assert not list(tmp_path.iterdir())


def test_a_run_is_traced(emu86, shown, tmp_path, monkeypatch):
    path = tmp_path / "t"
    kernel = str(images.path("exits"))
    options = ["--trace", str(path), "--trace-filter", "reason=CR", "--trace-last", "2"]
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        status, _, error = emu86("run", kernel, "--append", "5", *options)
    assert (status, error.count("exits")) == (0, 1)
    assert shown("--summary", str(path)).startswith("2 exits from ")
