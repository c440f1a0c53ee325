"""The law: a deprivileged run equals a bare run, for random programs of every kind.

`make soak` tries more of them, with fresh seeds.
"""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu86.spec import x86
from emu86.testing import assert_equivalent
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


@EQUAL
@given(guests.programs(*HARMLESS), guests.states())
def test_iopl_is_bare_but_for_iopl(program, state):
    flags = state.flags & ~x86.IOPL
    # A handler that returns runs an IRET, which may be to VM86 beyond 64 KiB.
    assert_equivalent(program, replace(state, flags=flags, limit=1), ("iopl",))


@EQUAL
@given(guests.programs(*HARMLESS), guests.states())
def test_trap_is_bare_where_nothing_sensitive_runs(program, state):
    # A handler that returns runs an IRET, which is.
    assert_equivalent(program, replace(state, flags=2, limit=1), ("trap",))


@pytest.mark.parametrize("kind", KINDS)
@FEWER
@given(guests.programs("segment_loads", "transfers", "sensitive"), st.data())
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
