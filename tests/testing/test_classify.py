"""The classifier: Robin and Irvine's list, from observation alone."""

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from emu86.cli import commands
from emu86.testing.classify import ROBIN_IRVINE, classify, table

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("classify")


def test_robin_and_irvine_and_what_they_left_out():
    holes = {one.name for one in table() if one.hole}
    more = {"IRET", "MOV to SS", "POP SS", "LSS", "LDS, LES, LFS, LGS"}
    assert holes == ROBIN_IRVINE | more


def test_patch_closes_every_hole_and_trap_does_not():
    assert [one.name for one in table() if one.wrong["patch"]] == []
    wrong = {one.name for one in table() if one.wrong["trap"]}
    assert wrong > {"POPF", "SGDT", "SIDT", "SLDT", "STR", "SMSW", "LAR", "LSL", "VERR"}
    assert not wrong & {"CLI", "MOV to CR3", "LGDT", "HLT", "PUSHF", "MOV from Sreg"}


def test_the_price_of_iopl_is_iopl():
    wrong = {one.name for one in table() if one.wrong["iopl"]}
    assert wrong == {"CLI", "STI", "PUSHF", "POPF", "IRET", "IN", "OUT", "INS", "OUTS"}


@pytest.mark.parametrize(
    ("name", "traps", "iopl3", "vm86", "behaviour", "control"),
    [
        ("CLI", "naaa", "never", "#GP", (), ("IF",)),
        ("HLT", "naaa", "always", "#GP", (), ("the run",)),
        ("LGDT", "naaa", "always", "#GP", (), ("GDTR",)),
        ("IN", "naaa", "never", "#GP", ("TR",), ("ports",)),
        ("SGDT", "nnnn", "never", "runs", ("GDTR",), ()),
        ("STR", "nnnn", "never", "#UD", ("TR",), ()),
        ("PUSHF", "nnnn", "never", "#GP", ("IF", "IOPL"), ()),
        ("POPF", "nnnn", "never", "#GP", ("CPL",), ("IF", "IOPL")),
        ("MOV to Sreg", "nsss", "some", "runs", ("CPL",), ()),
        ("CPUID", "nnnn", "never", "runs", (), ()),
    ],
)
def test_what_is_observed(name, traps, iopl3, vm86, behaviour, control):
    one = classify(name)
    assert "".join(word[0] for word in one.traps) == traps
    assert (one.user_iopl3, one.vm86) == (iopl3, vm86)
    assert (one.behaviour, one.control) == (behaviour, control)


def test_where_the_engine_is_no_cpu():
    assert classify("IN").engine == ("port I/O never faults",)
    assert "IRET takes VM" in " ".join(classify("IRET").engine)


def test_the_command():
    result = CliRunner().invoke(commands, ["classify", "--json", "popf", "CLI"])
    assert result.exit_code == 0
    popf, cli = json.loads(result.output)
    assert (popf["name"], popf["hole"], cli["privileged"]) == ("POPF", True, True)
    shown = CliRunner().invoke(commands, ["classify", "popf"])
    assert "HOLE" in shown.output
    assert "trap: CPL 0: eflags" in shown.output


def test_an_unknown_instruction():
    error = CliRunner().invoke(commands, ["classify", "fnord"]).exception
    assert "no 'fnord'" in str(error)


def test_the_page_is_what_is_observed():
    spec = importlib.util.spec_from_file_location("docs", ROOT / "tools/make_docs.py")
    make_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_docs)
    page = (ROOT / "docs" / "classification.md").read_text()
    assert page == make_docs.classification_page(), "run tools/make_docs.py"
