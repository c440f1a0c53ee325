"""The law: a deprivileged run equals a bare run, for random programs of every kind.

`make soak` tries more of them, with fresh seeds.
"""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu86 import config
from emu86.cpu.models import MODELS
from emu86.rings.decode import decode
from emu86.rings.insn.segment_loads import loaded_by
from emu86.rings.insn.table import find, needs
from emu86.spec import x86
from emu86.testing import State, assert_equivalent, run, stage
from emu86.testing import strategies as guests

EQUAL = settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=list(HealthCheck),
)
ANY = {
    "moves and arithmetic": ("moves", "arithmetic", "strings", "jumps"),
    "privileged": ("privileged", "moves"),
    "sensitive": ("sensitive", "moves"),
    "segments": ("segment_loads", "moves", "sensitive"),
    "transfers": ("transfers", "moves", "sensitive"),
    "ports": ("ports", "privileged"),
    "rewritten code": ("rewriting", "moves", "jumps", "sensitive", "privileged"),
    "page tables": ("page_table_edits", "moves", "arithmetic", "strings"),
    "descriptors": ("descriptor_edits", "segment_loads", "transfers"),
    "accesses": ("accesses", "conditionals", "arithmetic"),
    "prefixes": ("repeated", "long", "sensitive"),
    "breakpoints": ("breakpoints", "accesses", "moves", "strings", "sensitive"),
    "breakpoints and transfers": ("breakpoints", "segment_loads", "transfers", "ports"),
    "LOCK": ("locked", "locked_wrongly", "moves"),
    "all": (),
}
FEWER = settings(EQUAL, max_examples=40)
KINDS = ("valid", "half-valid", "hostile")


@pytest.mark.parametrize("classes", ANY.values(), ids=ANY)
@EQUAL
@given(data=st.data(), state=guests.states())
def test_patch_is_bare(classes, data, state):
    assert_equivalent(data.draw(guests.programs(*classes), "program"), state)


@FEWER
@given(guests.programs(), guests.states(rings=(1, 2)))
def test_in_rings_1_and_2(program, state):
    assert_equivalent(program, state)


@EQUAL
@given(guests.programs(), guests.states(virtual_8086=True))
def test_in_virtual_8086_mode(program, state):
    assert_equivalent(program, state)


@EQUAL
@given(
    st.lists(st.one_of(guests.timed(), guests.instructions()), max_size=10),
    guests.states(clocked=True),
)
def test_by_the_clock_with_interrupts(program, state):
    assert_equivalent(b"".join(program), state)


@FEWER
@given(
    guests.programs("breakpoints", "segment_loads", "sensitive", "accesses"),
    guests.states(clocked=True),
)
def test_breakpoints_by_the_clock(program, state):
    assert_equivalent(program, state)


@FEWER
@given(guests.programs("timed", "sensitive", "transfers"), st.data())
def test_in_virtual_8086_mode_with_interrupts(program, data):
    state = data.draw(guests.states(virtual_8086=True, clocked=True), "state")
    assert_equivalent(program, state)


# What neither tells of IOPL nor of the flags that IRET drops.
HARMLESS = (
    "moves", "arithmetic", "strings", "jumps", "accesses", "privileged", "rewriting",
    "segment_loads", "page_table_edits", "descriptor_edits",
)  # fmt: skip


def executed(program, state):
    """What the bare machine runs, by the bytes there before and after the run.

    A jump may go into the middle of an instruction, and a store may write another one.
    """
    trace = []
    outcome = run(program, state, "bare", trace)
    places = [one.registers["cs.base"] + one.registers["eip"] for one in trace]
    for place in places[places.index(state.at) :]:
        start = place % stage.ALIAS
        for ram in (outcome.start, outcome.memory):
            insn = decode(ram[start : start + x86.LONGEST_INSN], 32)
            if insn is not None:
                yield insn


LACKS = MODELS[config.CPU].lacks


def needs_a_patch(insn):
    record = find(insn)
    # What is loaded may be null or have a limit.
    known = insn.lock or needs(insn) & LACKS or loaded_by(insn) >= 0
    return known or bool(record and record.patched)


def tells_iopl(insn):
    return insn.opcode in (0x9C, 0x9D, 0xCF)  # PUSHF, POPF, IRET


@EQUAL
@given(guests.programs(*HARMLESS), guests.states())
def test_iopl_is_bare_but_for_iopl(program, state):
    # A handler that returns runs an IRET, which may be to VM86 beyond 64 KiB.
    state = replace(state, flags=state.flags & ~x86.IOPL, limit=1)
    try:
        assert_equivalent(program, state, ("iopl",))
    except AssertionError:
        if not any(map(tells_iopl, executed(program, state))):
            raise


@EQUAL
@given(guests.programs(*HARMLESS), guests.states())
def test_trap_is_bare_where_nothing_sensitive_runs(program, state):
    # A handler that returns runs an IRET, which is.
    state = replace(state, flags=2, limit=1)
    try:
        assert_equivalent(program, state, ("trap",))
    except AssertionError:
        if not any(map(needs_a_patch, executed(program, state))):
            raise


def test_what_is_executed_is_known():
    """A soak found an SLDT in the middle of a MOV, reached by a CALL."""
    code = "c705 68100100 ff0f0000  c705 6c100100 0000c000  bb 02000400  ffd3"
    hidden = bytes.fromhex(code)
    assert any(map(needs_a_patch, executed(hidden, State(limit=1))))
    plain = bytes.fromhex("b8 05000000 89c3 fa 0f0b")  # mov; mov; cli; ud2
    assert not any(map(needs_a_patch, executed(plain, State(limit=1))))
    assert not any(map(tells_iopl, executed(plain, State(limit=1))))
    assert any(map(tells_iopl, executed(b"\x9c\xf4", State(limit=1))))


@pytest.mark.parametrize("kind", KINDS)
@FEWER
@given(guests.programs("segment_loads", "transfers", "sensitive"), st.data())
@pytest.mark.not_quick
def test_descriptor_tables(kind, program, data):
    tables = guests.descriptor_tables(kind)
    assert_equivalent(program, data.draw(guests.states(patches=tables), "state"))


@pytest.mark.parametrize("kind", KINDS)
@FEWER
@given(guests.programs("accesses", "moves", "strings"), st.data())
def test_page_tables(kind, program, data):
    states = guests.states(paging=True, patches=guests.page_tables(kind))
    assert_equivalent(program, data.draw(states, "state"))


@FEWER
@given(guests.access_patterns(), guests.states())
def test_access_patterns(pattern, state):
    assert_equivalent(pattern.code, state)
