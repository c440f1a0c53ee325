"""Model-specific registers, machine checks and performance counters, by CPU model."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from emu86 import Machine
from emu86.cpu.models import MODELS
from emu86.rings.insn import msr
from support.cases import Case, on_emu86
from support.flat import guest, guest64

ATOM = 0x1C  # its model, for a family of its own
FAMILY = {
    "pentium": 5, "pentium2": 6, "pentium3": 6, "pentium3-pae": 6, "pentium4": 15,
    "atom": ATOM, "skylake": ATOM,
}  # fmt: skip
# Which families have which MSRs, with their values at first: SDM Vol. 4 tables 2-2,
# 2-4 (Atom), 2-41 (Pentium 4), 2-55 (P6 family) and 2-56 (Pentium). Machine checks have
# 5 banks in family 6 and 4 in the Pentium 4. What CPUID denies is not there.
HAVE = {
    0x0: (5, 6, 15), 0x1: (5, 6, 15), 0x10: (5, 6, 15), 0x11: (5,), 0x12: (5,),
    0x13: (5,), 0x17: (6, 15), 0x1B: (6, 15), 0x2A: (6, 15), 0x2B: (15,), 0x2C: (15,),
    0x33: (6,), 0x88: (6,), 0x89: (6,), 0x8A: (6,), 0x8B: (6, 15), 0xC1: (6,),
    0xC2: (6,), 0x116: (6,), 0x118: (6,), 0x119: (6,), 0x11B: (6,), 0x11E: (6,),
    0x179: (6, 15), 0x17A: (6, 15), 0x186: (6,), 0x187: (6,), 0x1A0: (15,),
    0x1D7: (15,), 0x1D8: (15,), 0x1D9: (6, 15), 0x1DA: (15,), 0x1DB: (6, 15),
    0x1DC: (6, 15), 0x1DD: (6, 15), 0x1DE: (6, 15), 0x1E0: (6,), 0x400: (6, 15),
    0x403: (6, 15), 0x40F: (6, 15), 0x410: (6,), 0x413: (6,),
}  # fmt: skip
OF_ATOM_ALONE = (0x40, 0x47, 0x60, 0x67, 0xCD)
ATOM_HAS = (
    0x0, 0x1, 0x10, 0x17, 0x1B, 0x40, 0x47, 0x60, 0x67, 0x8B, 0xCD, 0x174, 0x175, 0x176,
    0x179, 0x17A, 0x1A0, 0x1C9, 0x1D9, 0x1DB, 0x1DC, 0x1DD, 0x1DE, 0x277, 0x400, 0x403,
    0x40F, 0x410, 0x413, *range(0xC0000080, 0xC0000085), *range(0xC0000100, 0xC0000103),
)  # fmt: skip
AT_FIRST = {
    (6, 0x1B): 0xFEE00100, (15, 0x1B): 0xFEE00100, (6, 0x2A): 0x0AC80000,
    (15, 0x2C): 0x0A000000, (6, 0x11E): 0x4501, (6, 0x179): 5, (15, 0x179): 4,
    (15, 0x1A0): 0x1801, (6, 0x1E0): 4, (ATOM, 0x1B): 0xFEE00100, (ATOM, 0xCD): 5,
    (ATOM, 0x179): 5, (ATOM, 0x1A0): 0x1801, (ATOM, 0x277): 0x0007040600070406,
}  # fmt: skip
TSC_AUX = 0xC0000103
NONE = (
    0x2, 0xE, 0x14, 0x3A, 0x79, 0xC0, 0xC3, 0x11A, 0x178, 0x17B, 0x188,
    0x414, 0xC0000080, 0xFFFFFFFF,
    0xFE, 0x200, 0x20F, 0x250, 0x258, 0x268, 0x2FF,  # MTRRs
    0x277,  # PAT
    0x174, 0x175, 0x176,  # SYSENTER
    0x19A, 0x19B, 0x19C,  # ACPI
    0x600,  # the debug store
    0xC0000085, 0xC0000103,  # RDTSCP
)  # fmt: skip


def cases(*codes, ring=0):
    return tuple(Case(code, code, ring) for code in codes)


@pytest.mark.parametrize("name", MODELS)
def test_which_there_are(name):
    numbers = sorted({*HAVE, *NONE, *ATOM_HAS})
    told = on_emu86(
        cases(*(f"mov ecx, {number}\nrdmsr" for number in numbers)),
        options={"cpu": name},
    )
    for number, record in zip(numbers, told, strict=True):
        has = FAMILY[name] in HAVE.get(number, ())
        if name in ("atom", "skylake"):
            has = number in ATOM_HAS
        if name == "skylake":
            has = number == TSC_AUX or (has and number not in OF_ATOM_ALONE)
        has = has or (number == 0xC0000080 and name == "pentium3-pae")
        assert (record["vector"], hex(number)) == (0x40 if has else 13, hex(number))
        if has and number != 0x10:
            value = record["edx"] << 32 | record["eax"]
            assert value == AT_FIRST.get((FAMILY[name], number), 0), hex(number)


def write(number, low, high=0):
    return f"mov ecx, {number}\nmov eax, {low}\nmov edx, {high}\nwrmsr\nmov eax, 0x77\nmov edx, eax\nrdmsr"


def held(cpu, *writes):
    """What the MSRs hold after these writes of (MSR, 64 bits); None: #GP."""
    codes = (write(number, value & 0xFFFFFFFF, value >> 32) for number, value in writes)
    told = on_emu86(cases(*codes), options={"cpu": cpu})
    return [None if r["vector"] == 13 else r["edx"] << 32 | r["eax"] for r in told]


def test_tsc_aux_has_32_bits():
    written = (TSC_AUX, 0xFFFFFFFF), (TSC_AUX, 1 << 32)
    assert held("skylake", *written) == [0xFFFFFFFF, None]
    assert held("atom", *written) == [None, None]


def test_the_apic_stays_disabled():
    """SDM Vol. 3A 10.4.3 and 10.4.4: BSP is bit 8, the enable bit 11; 36 bits."""
    for cpu in ("pentium3", "pentium4"):
        assert held(
            cpu,
            (0x1B, 0xFEE00800),
            (0x1B, 0xF12345100),
            (0x1B, 0xFEE00500),  # bit 10 is reserved: x2APIC
            (0x1B, 0xFEE00101),
            (0x1B, 1 << 36),
        ) == [0xFEE00100, 0xF12345100, None, None, None]  # fmt: skip


def test_what_registers_take():
    """SDM Vol. 4 table 2-55: reserved bits are #GP, read-only ones stay."""
    assert held(
        "pentium3",
        (0x2A, 0x0AC80002),
        (0x2A, 0x00000002),  # the ratio is read-only
        (0x2A, 0x00000020),
        (0x33, 0x40000000),
        (0x33, 1),
        (0x88, 0x123456789ABCDEF0),
        (0x116, 0x7),
        (0x119, 0x200000),  # no processor serial number
        (0x11B, 0),
        (0x11E, 0x4101),  # 2 ways in place of 4
        (0x11E, 0x80000),
        (0x1D9, 0x7F),  # branches are not recorded
        (0x1D9, 0x80),
        (0x1DB, 0),
        (0x17, 0),
        (0x1E0, 0),
        (0x1E0, 1),
    ) == [
        0x0AC80002, 0x0AC80002, None, 0x40000000, None, 0x123456789ABCDEF0, None,
        0x200000, None, 0x4501, None, 0x3C, None, None, None, 0, None,
    ]  # fmt: skip


def test_what_registers_of_a_pentium_take():
    assert held("pentium", (0x11, 0x3FF03FF), (0x11, 0x400), (0x12, 1 << 39), (0x0, 0)) == [
        0x3FF03FF, None, 1 << 39, None,
    ]  # fmt: skip


def test_what_registers_of_a_pentium_4_take():
    assert held(
        "pentium4", (0x2A, 0), (0x2B, 0x7F), (0x2C, 0), (0x1A0, 0x1A89), (0x1A0, 2),
        (0x1D9, 0x7F),
    ) == [None, 0x7F, None, 0x1801, None, 0]  # fmt: skip


NOT_CANONICAL = (0x0000800000000000, 0xFFFF7FFFFFFFFFFF, 1 << 63)
ENDS = (0x00007FFFFFFFFFFF, 0xFFFF800000000000)


def test_what_registers_of_an_atom_take():
    """SDM Vol. 4 tables 2-2 and 2-4; Vol. 3A 2.2.1 (EFER) and 11.12.2 (PAT).

    SYSENTER's CS is 16 bits; FMASK is 32; LMA is only read; XD stays enabled.
    """
    assert held(
        "atom",
        (0x174, 0x12340010),
        (0x1A0, 1 << 34),
        (0x277, 0x0007010500070406),
        (0x277, 0x0007040600070402),
        (0x277, 8),
        (0xC0000080, 0x901),
        (0xC0000080, 0xD01),
        (0xC0000080, 0x002),
        (0xC0000081, 0xFEDCBA9876543210),
        (0xC0000084, 0xFFFFFFFF),
        (0xC0000084, 1 << 32),
    ) == [
        0x10, 0x1800, 0x0007010500070406, None, None, 0x901, 0x901, None,
        0xFEDCBA9876543210, 0xFFFFFFFF, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "number",
    [0x175, 0x176, 0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102],
)
def test_addresses_are_canonical(number):
    """SDM Vol. 2D WRMSR: of these MSRs a value that is not canonical is #GP(0)."""
    writes = ((number, value) for value in (*ENDS, *NOT_CANONICAL))
    assert held("atom", *writes) == [*ENDS, None, None, None]


def test_triggers_can_only_be_written():
    """BIOS_UPDT_TRIG takes an update, which does nothing; BBL_CR_TRIG takes 0."""
    code = "mov ecx, {}\nxor edx, edx\nmov eax, 0x10000 * {}\nwrmsr"
    told = on_emu86(cases(code.format(0x79, 1), code.format(0x11A, 0)))
    assert [record["vector"] for record in told] == [0x40, 0x40]
    assert held("pentium3", (0x79, 0), (0x8B, 0)) == [None, 0]


def test_msrs_are_saved():
    machine = guest("mov ecx, 0x33\nmov eax, 0x40000000\nxor edx, edx\nwrmsr\ncli\nhlt")
    machine.run()
    again = Machine.restore(machine.save())
    assert again.save().technique.vcpu.msr == {0x33: 0x40000000}


def test_msrs_of_intel64_are_saved():
    numbers = (0x176, *range(0xC0000080, 0xC0000085), *range(0xC0000100, 0xC0000103))
    code = "\n".join(write(number, 0x800 + i) for i, number in enumerate(numbers))
    machine = guest(code + "\ncli\nhlt", cpu="atom")
    machine.run()
    state = machine.save()
    again = Machine.restore(state)
    assert [msr.read(again.vmm.cpu, number) for number in numbers] == [
        0x800 + i for i in range(len(numbers))
    ]
    assert again.save().technique == state.technique


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


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_the_tsc_of_64_bits(technique):
    """All of it can be written, and it wraps."""
    for high in (7, 0x80000000, 0xFFFFFFFF):
        code = f"mov ecx, 0x10\nxor eax, eax\nmov edx, {high}\nwrmsr\nrdtsc\nhlt"
        machine = guest64(code, technique=technique)
        assert machine.run(timeout=20).reason == "halted"
        assert machine.registers["rdx"] == high
