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
from emu86.testing.run import cpu_of

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


WIDTHS = ((32, "protected"), (64, "long"))


def of_both_widths(*classes, **fields):
    """Pairs of a program and its state: the examples are shared between widths."""
    return st.one_of(
        *(
            st.tuples(
                guests.programs(*classes, bits=bits), guests.states(mode=mode, **fields)
            )
            for bits, mode in WIDTHS
        )
    )


CASES = {name: of_both_widths(*classes) for name, classes in ANY.items()}


@pytest.mark.parametrize("name", ANY)
@EQUAL
@given(data=st.data())
def test_patch_is_bare(name, data):
    assert_equivalent(*data.draw(CASES[name], "case"))


@FEWER
@given(guests.programs(), guests.states(mode="compatibility"))
def test_in_compatibility_mode(program, state):
    assert_equivalent(program, state)


@FEWER
@given(of_both_widths(rings=(1, 2)))
def test_in_rings_1_and_2(case):
    assert_equivalent(*case)


@EQUAL
@given(guests.programs(), guests.states(virtual_8086=True))
def test_in_virtual_8086_mode(program, state):
    assert_equivalent(program, state)


def timed(bits):
    one = st.one_of(guests.timed(bits), guests.instructions(bits=bits))
    return st.lists(one, max_size=10).map(b"".join)


@EQUAL
@given(
    st.one_of(
        *(
            st.tuples(timed(bits), guests.states(mode=mode, clocked=True))
            for bits, mode in WIDTHS
        )
    )
)
def test_by_the_clock_with_interrupts(case):
    try:
        assert_equivalent(*case)
    except AssertionError:
        # The bare machine fetches what goes over 4 GiB from there, and not from 0.
        trace = []
        run(*case, "bare", trace)
        last = x86.MASK32 - x86.LONGEST_INSN
        if not any(one.registers.get("eip", 0) > last for one in trace):
            raise


@FEWER
@given(
    of_both_widths(
        "breakpoints", "segment_loads", "sensitive", "accesses", clocked=True
    )
)
def test_breakpoints_by_the_clock(case):
    assert_equivalent(*case)


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
    name = "rip" if state.is_long else "eip"
    places = [one.registers["cs.base"] + one.registers[name] for one in trace]
    for place in places[places.index(state.at) :]:
        start = place % stage.ALIAS
        for ram in (outcome.start, outcome.memory):
            insn = decode(ram[start : start + x86.LONGEST_INSN], state.bits)
            if insn is not None:
                yield insn


def needs_a_patch(insn, cpu=config.CPU):
    record = find(insn)
    # What is loaded may be null or have a limit.
    lacks = needs(insn) & MODELS[cpu].lacks
    known = insn.lock or lacks or loaded_by(insn) >= 0
    # `trap` lets a store by CS through.
    known = known or (insn.override and insn.segment == x86.CS)
    return known or bool(record and record.patched)


def tells_iopl(insn):
    return insn.opcode in (0x9C, 0x9D, 0xCF)  # PUSHF, POPF, IRET


@EQUAL
@given(of_both_widths(*HARMLESS))
def test_iopl_is_bare_but_for_iopl(case):
    program, state = case
    # A handler that returns runs an IRET, which may be to VM86 beyond 64 KiB.
    state = replace(state, flags=state.flags & ~x86.IOPL, limit=1)
    try:
        assert_equivalent(program, state, ("iopl",))
    except AssertionError:
        if not any(map(tells_iopl, executed(program, state))):
            raise


@EQUAL
@given(of_both_widths(*HARMLESS))
def test_trap_is_bare_where_nothing_sensitive_runs(case):
    program, state = case
    # A handler that returns runs an IRET, which is.
    state = replace(state, flags=2, limit=1)
    try:
        assert_equivalent(program, state, ("trap",))
    except AssertionError:
        cpu = cpu_of(state.mode)
        if not any(needs_a_patch(insn, cpu) for insn in executed(program, state)):
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


def with_tables(tables, *classes, **fields):
    """Pairs of a program and its state, with patches of `tables`, by kind."""
    return {
        kind: st.one_of(
            *(
                st.tuples(
                    guests.programs(*classes, bits=bits),
                    guests.states(mode=mode, patches=tables(kind, bits), **fields),
                )
                for bits, mode in WIDTHS
            )
        )
        for kind in KINDS
    }


DESCRIPTORS = with_tables(
    guests.descriptor_tables, "segment_loads", "transfers", "sensitive"
)
PAGES = with_tables(guests.page_tables, "accesses", "moves", "strings", paging=True)


@pytest.mark.parametrize("kind", KINDS)
@FEWER
@given(st.data())
@pytest.mark.not_quick
def test_descriptor_tables(kind, data):
    assert_equivalent(*data.draw(DESCRIPTORS[kind], "case"))


@pytest.mark.parametrize("kind", KINDS)
@FEWER
@given(st.data())
def test_page_tables(kind, data):
    assert_equivalent(*data.draw(PAGES[kind], "case"))


@FEWER
@given(
    st.one_of(
        *(
            st.tuples(guests.access_patterns(bits=bits), guests.states(mode=mode))
            for bits, mode in WIDTHS
        )
    )
)
def test_access_patterns(case):
    pattern, state = case
    assert_equivalent(pattern.code, state)
