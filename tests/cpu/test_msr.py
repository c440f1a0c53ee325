"""Model-specific registers, machine checks and performance counters, by CPU model."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from emu86.cpu.models import MODELS
from support.cases import Case, on_emu86

FAMILY = {"pentium": 5, "pentium2": 6, "pentium3": 6, "pentium4": 15}
# Which families have which MSRs: SDM Vol. 4 tables 2-2, 2-41, 2-55 and 2-56. Machine
# checks have 5 banks in the P6 family and 4 in the Pentium 4.
HAVE = {
    0x0: (5,), 0x1: (5,), 0x10: (5, 6, 15), 0x17: (6, 15), 0x8B: (6, 15),
    0xC1: (6,), 0xC2: (6,), 0x179: (6, 15), 0x17A: (6, 15), 0x186: (6,), 0x187: (6,),
    0x1A0: (15,), 0x400: (6, 15), 0x403: (6, 15), 0x40F: (6, 15), 0x410: (6,),
    0x413: (6,),
}  # fmt: skip
NONE = (0x2, 0x11, 0x1B, 0xC0, 0xC3, 0x178, 0x17B, 0x188, 0x414, 0xC0000080, 0xFFFFFFFF)


def cases(*codes, ring=0):
    return tuple(Case(code, code, ring) for code in codes)


@pytest.mark.parametrize("name", MODELS)
def test_which_there_are(name):
    numbers = (*HAVE, *NONE)
    told = on_emu86(
        cases(*(f"mov ecx, {number}\nrdmsr" for number in numbers)),
        options={"cpu": name},
    )
    for number, record in zip(numbers, told, strict=True):
        has = FAMILY[name] in HAVE.get(number, ())
        assert (record["vector"], hex(number)) == (0x40 if has else 13, hex(number))


def write(number, low, high=0):
    return f"mov ecx, {number}\nmov eax, {low}\nmov edx, {high}\nwrmsr\nmov eax, 0x77\nmov edx, eax\nrdmsr"


def test_machine_checks():
    """SDM Vol. 3B section 15.3: an error-reporting bank takes zeros in its status."""
    told = on_emu86(
        cases(
            "mov ecx, 0x179\nrdmsr",
            write(0x17A, 5),
            write(0x17A, 8),
            write(0x400, 0xFFFFFFFF, 0x12345678),
            write(0x401, 0),
            write(0x401, 1),
            write(0x403, 0, 1),
            write(0x179, 5),
        )
    )
    values = [
        None if record["vector"] == 13 else (record["edx"], record["eax"])
        for record in told
    ]
    assert values == [
        (0, 5),
        (0, 5),
        None,
        (0x12345678, 0xFFFFFFFF),
        (0, 0),
        None,
        None,
        None,
    ]


def test_fast_strings():
    told = on_emu86(
        cases("mov ecx, 0x1a0\nrdmsr", write(0x1A0, 0)), options={"cpu": "pentium4"}
    )
    assert [record["eax"] for record in told] == [0x1801, 0x1800]


EN, USR, OS, CLOCKS = 1 << 22, 1 << 16, 1 << 17, 0x79
SPIN = "mov ecx, 100000\n.spin{0}: loop .spin{0}\n"


def counted(select, body, ring=0):
    """Count with counter 0 over `body`; give its value and virtual time, both in ns."""
    start = f"mov ecx, 0xc1\nxor eax, eax\nxor edx, edx\nwrmsr\nmov ecx, 0x186\nmov eax, {select}\nwrmsr\nrdtsc\nmov esi, eax\n"
    end = "mov ecx, 0\nrdpmc\nmov ebx, eax\nrdtsc\nsub eax, esi\n"
    into = "mov eax, cr4\nor eax, 0x100\nmov cr4, eax\nmov edi, .user\nmov ebp, esp\npush DATA3\npush ebp\npush 0x3002\npush CODE3\npush edi\niret\n.user:\n"
    (record,) = on_emu86(cases(start + (into if ring else "") + body + end))
    assert record["vector"] == 0x40
    return record["ebx"], record["eax"]


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("rings", [USR, OS, USR | OS])
def test_clocks_are_counted_in_the_rings_asked_for(ring, rings):
    clocks, passed = counted(EN | rings | CLOCKS, SPIN.format(1), ring)
    assert passed > 50_000
    wanted = rings & (USR if ring else OS)
    if wanted:
        assert abs(passed - clocks) < passed // 10
    else:
        assert clocks < passed // 10


@pytest.mark.parametrize(
    "select", [OS | USR | CLOCKS, EN | OS | USR | 0xC0, EN | CLOCKS]
)
def test_nothing_else_is_counted(select):
    assert counted(select, SPIN.format(1))[0] == 0


def test_a_counter_is_40_bits_wide():
    """SDM Vol. 3B, P6 family: 32 bits are written, bit 31 is extended."""
    told = on_emu86(cases(write(0xC1, 0x80000001, 7), write(0xC2, 0x7FFFFFFF, 7)))
    assert [(r["edx"], r["eax"]) for r in told] == [(0xFF, 0x80000001), (0, 0x7FFFFFFF)]


def test_a_pentium_has_no_rdpmc():
    """SDM Vol. 2B RDPMC: it came with the Pentium MMX and the Pentium Pro."""
    (record,) = on_emu86(cases("xor ecx, ecx\nrdpmc"), options={"cpu": "pentium"})
    assert record["vector"] == 6


def test_rdpmc_needs_pce_in_ring_3():
    told = on_emu86(
        cases("mov ecx, 1\nrdpmc", ring=3)
        + cases("mov ecx, 1\nrdpmc", "mov ecx, 2\nrdpmc")
    )
    assert [record["vector"] for record in told] == [13, 0x40, 13]
