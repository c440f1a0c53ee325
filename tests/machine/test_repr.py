"""What objects say of themselves, in a shell and in a notebook."""

import re
from html import escape
from xml.etree import ElementTree as ET

import pytest

from emu86 import Machine, Stop
from emu86.spec import x86
from emu86.testing import State, stage
from emu86.testing.ring3 import User
from emu86.testing.semantics import run_on_emu86
from support.flat import MEMORY


@pytest.fixture(scope="module")
def machine():
    built = Machine(memory=MEMORY)
    before = repr(built)
    built.load_flat(bytes.fromhex("fa f4"), 0x10000)
    built.run()
    assert re.fullmatch(
        r"<Machine: 16M of memory, pentium3, patch; no guest, 0.0+ s of virtual time>",
        before,
    )
    return built


def cells(html):
    """The rows of a table: that it is well formed, too."""
    rows = ET.fromstring(html).iter("tr")
    return [[cell.text for cell in row] for row in rows]


def test_a_machine(machine):
    assert "patch; at 0010:00010002, 0.0000" in repr(machine)
    shown = dict(cells(machine._repr_html_()))
    assert shown["eip"] == "00010002"
    assert shown.keys() == machine.registers.keys()


def test_stats(machine):
    assert re.match(
        r"<Stats: 3 exits, \d blocks scanned, 0 sites patched, ", repr(machine.stats)
    )
    shown = cells(machine.stats._repr_html_())
    assert shown[0] == ["reason", "count"]
    assert ["CLI", "1"] in shown
    assert shown[-1] == ["all", "3"]


def test_what_holds_all_of_ram(machine):
    """No page of bytes is printed."""
    assert len(repr(machine.save())) < 500
    outcome = run_on_emu86(b"\x90", User(bits=32, data=b"text"))
    assert len(repr(outcome)) < 500


def test_a_stop():
    stop = Stop("unsupported", 0, "<b>")
    assert repr(stop) == "Stop(reason='unsupported', code=0, detail='<b>')"
    assert cells(stop._repr_html_()) == [["reason", "unsupported"], ["detail", "<b>"]]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State(), "State()"),
        (State(ring=3, limit=2), "State(ring=3, limit=2)"),
        (State(flags=2, registers={"eax": 5}), "State(registers={'eax': 5})"),
        (State(at=0x30000, paging=True), "State(paging=True, at=0x30000)"),
        (State(flags=0x202), "State(flags=0x202)"),
        (State(interrupts=()), "State(interrupts=())"),
        (State(patches=((stage.DATA, b"ab"),)), "State(patches=((327680, b'ab'),))"),
        (State(cr4=x86.CR4_PSE, large=True), "State(cr4=0x10, large=True)"),
    ],
)  # fmt: skip
def test_a_state_says_what_differs(state, text):
    assert repr(state) == text
    assert eval(text) == state
    assert len(cells(state._repr_html_())) == text.count("=")


def test_a_report_and_a_trace_in_a_notebook():
    machine = Machine(memory=1 << 20)
    machine.load_flat(b"\xfa\xf4", 0x10000)
    trace = machine.trace()
    machine.run(timeout=60)
    assert (
        machine.report()._repr_html_() == f"<pre>{escape(str(machine.report()))}</pre>"
    )
    assert cells(trace._repr_html_()) == [["#PF fill", "1"], ["CLI", "1"], ["HLT", "1"]]
