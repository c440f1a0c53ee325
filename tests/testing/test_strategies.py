"""Strategies: what they make, and that it shrinks to something that one can read."""

import capstone
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from emu86.testing import stage
from emu86.testing import strategies as guests

pytestmark = pytest.mark.not_quick

SOON = settings(
    derandomize=True, max_examples=2000, suppress_health_check=list(HealthCheck)
)
KINDS = ("valid", "half-valid", "hostile")
# Bytes of the plainest that there is, of the classes with more than one instruction.
SETUP = {"strings": 16, "descriptor_edits": 20, "page_table_edits": 17}
DECODER = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
DECODER.detail = True


def anything(_found):
    return True


def shortest(strategy, condition=bool):
    return find(strategy, condition, settings=SOON)


@pytest.mark.parametrize("name", guests.CLASSES)
def test_every_class_shrinks(name):
    code = shortest(guests.instructions(name))
    assert len(code) <= SETUP.get(name, 16)


@pytest.mark.parametrize("bits", [16, 65, "64"])
def test_a_width_that_there_is_not(bits):
    for make in (
        guests.instructions,
        guests.programs,
        guests.gates,
        guests.descriptor_tables,
        guests.page_tables,
        guests.page_table_entries,
    ):
        with pytest.raises(ValueError, match=f"^bits: {bits!r} is not 32 or 64$"):
            make(bits=bits)


@pytest.mark.parametrize("rm", range(8))
@pytest.mark.parametrize("mod", [0, 1, 2])
def test_every_16_bit_form(mod, rm):
    code = shortest(
        guests.encoded(b"\x8b", 0),
        lambda code: code[:2] == b"\x67\x8b" and code[2] == mod << 6 | rm,
    )
    (insn,) = DECODER.disasm(code, 0)
    assert insn.size == len(code)
    assert insn.addr_size == 2


@pytest.mark.parametrize("length", [15, 16])
def test_long_instructions(length):
    code = shortest(guests.long(), lambda code: len(code) == length)
    (insn,) = [*DECODER.disasm(code, 0)] or [None]
    assert (insn is not None) == (length == 15)


@settings(SOON, max_examples=100)
@given(guests.access_patterns())
def test_a_pattern_tells_what_its_code_does(pattern):
    code = [*DECODER.disasm(pattern.code, 0)]
    told = [access.at for access in pattern.accesses]
    absolute = [
        operand.mem.disp & 0xFFFFFFFF
        for insn in code
        for operand in insn.operands
        if operand.type == capstone.x86.X86_OP_MEM and not operand.mem.base
    ]
    plain = [
        access.at
        for access in pattern.accesses
        if access.kind in ("load", "store", "modify")
    ]
    assert absolute == plain
    assert sum(insn.mnemonic.startswith("rep ") for insn in code) == len(told) - len(
        plain
    )


def test_a_pattern_shrinks_to_one_access():
    pattern = shortest(guests.access_patterns(), anything)
    assert pattern.accesses == (guests.Access("load", stage.DATA, 1),)


@pytest.mark.parametrize("end", [stage.DATA + 0x1000, 1 << 32])
def test_a_pattern_over_an_end(end):
    pattern = shortest(
        guests.access_patterns(),
        lambda pattern: any(a.at < end < a.at + a.size for a in pattern.accesses),
    )
    assert len(pattern.accesses) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tables", [guests.descriptor_tables, guests.page_tables])
def test_tables_shrink_to_one_entry(tables, kind):
    assert shortest(tables(kind), anything) == ()
    (patch,) = shortest(tables(kind))
    assert len(patch[1]) in (4, 8)


@pytest.mark.parametrize("kind", [4, 5, 6, 7, 12, 14, 15])
def test_every_kind_of_gate(kind):
    gate = shortest(guests.gates(), lambda gate: gate[5] & 0x1F == kind)
    assert gate[5] >> 5 == 7  # present, DPL 3
    assert gate[4] == 0


def decoded(code):
    """What Capstone takes 64-bit code for."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    return [f"{insn.mnemonic} {insn.op_str}" for insn in decoder.disasm(code, 0)]


FORMS64 = {
    "moves": ("[rip +", "+ r", "movsxd r", "movabs r1"),
    "accesses": ("mov rcx", "stosq", "add qword ptr"),
    "privileged": ("swapgs", "cr8"),
    "transfers": ("sysret", "iretq", "retfq"),
}


@pytest.mark.parametrize("name", FORMS64)
def test_64_bit_code(name):
    seen = set()

    @settings(SOON, max_examples=60, phases=[Phase.generate])
    @given(guests.programs(name, most=20, bits=64))
    def draw(code):
        seen.update(decoded(code))

    draw()
    for text in FORMS64[name]:
        assert any(text in one for one in seen), text


@settings(SOON, max_examples=20)
@given(
    st.sampled_from(KINDS).flatmap(
        lambda kind: guests.states(
            mode="long",
            patches=st.one_of(
                guests.descriptor_tables(kind, 64), guests.page_tables(kind, 64)
            ),
        )
    )
)
def test_states_of_64_bit_kernels(state):
    assert state.is_long
    assert {len(data) for _, data in state.patches} <= {8, 16}


@pytest.mark.parametrize("ring", range(4))
def test_states_of_every_ring(ring):
    assert shortest(guests.states(rings=range(4)), lambda s: s.ring == ring).flags == 2


@pytest.mark.parametrize(
    "strategy",
    [guests.programs, guests.instructions, guests.gates, guests.descriptor_tables,
     guests.page_tables],
)  # fmt: skip
def test_a_name_that_there_is_not(strategy):
    with pytest.raises(ValueError, match="no 'magic' \\(there are"):
        strategy("magic")
