"""CPU models: CPUID, and the CR4 bits that go with its features."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from emu86.cpu.models import MODELS
from support.cases import Case, on_emu86

# CPUID.1:EDX bit of each CR4 bit: SDM Vol. 3A section 2.5. Features that no model has
# (VME, ...) have none.
NEEDS = {2: 4, 3: 2, 4: 3, 5: 6, 6: 7, 7: 13, 9: 24, 10: 25}
PCE = 8  # RDPMC's: comes with the counters of the P6 family
SMEP, SMAP = 20, 21  # of leaf 7
READ = (
    "mov eax, {leaf}\nmov ecx, {subleaf}\ncpuid\nmov [SCRATCH], eax\nmov [SCRATCH + 4], ebx\n"
    "mov [SCRATCH + 8], ecx\nmov [SCRATCH + 12], edx"
)
OF_64_BITS = ("atom", "skylake")
LEAVES = (0, 1, 2, 3, 7, 0x40000000, 0x80000000, 0x80000001, 0x80000002, 0x80000003,
          0x80000004, 0x80000005, 0x80000008, 0xC0000000, 0xFFFFFFFF)  # fmt: skip


def leaves(name, **options):
    cases = tuple(
        Case(f"{leaf:#x} at ring {ring}", READ.format(leaf=leaf, subleaf=0), ring)
        for leaf in LEAVES
        for ring in (0, 3)
    )
    told = on_emu86(cases, options={"cpu": name, **options})
    assert [r.scratch for r in told[::2]] == [r.scratch for r in told[1::2]]
    return {leaf: told[2 * i].scratch[:4] for i, leaf in enumerate(LEAVES)}


@pytest.mark.parametrize("name", MODELS)
def test_cpuid(name):
    told = leaves(name)
    vendor = b"".join(told[0][i].to_bytes(4, "little") for i in (1, 3, 2))
    assert vendor == b"GenuineIntel"
    highest = told[0][0]
    assert highest >= 1
    family = told[1][0] >> 8 & 15
    assert family == {"pentium": 5, "pentium4": 15}.get(name, 6)
    # SDM Vol. 2A CPUID: beyond the highest basic leaf, the data of that leaf.
    for leaf in (2, 3, 7, 0x40000000):
        if leaf > highest:
            assert told[leaf] == told[highest]
    if told[0x80000000][0] >> 31:
        brand = b"".join(
            word.to_bytes(4, "little")
            for leaf in (2, 3, 4)
            for word in told[leaf | 1 << 31]
        )
        highest = told[0x80000000][0]
        ends = {"pentium3-pae": 0x80000001, **dict.fromkeys(OF_64_BITS, 0x80000008)}
        assert highest == ends.get(name, 0x80000004)
        if highest >= 0x80000004:
            assert len(brand.rstrip(b"\0")) > 4
        # NX; pages of 1 GiB and LM. SYSCALL is there in IA-32e mode alone: table 3-8.
        bits = {
            "pentium3-pae": 1 << 20,
            **dict.fromkeys(OF_64_BITS, 1 << 20 | 1 << 26 | 1 << 29),
        }.get(name, 0)
        bits |= 1 << 27 if name == "skylake" else 0  # RDTSCP
        assert told[0x80000001][:4] == (0, 0, int(name in OF_64_BITS), bits)
    if name in OF_64_BITS:
        assert told[0x80000008] == (0x3024, 0, 0, 0)  # bits of addresses
        assert told[0x80000005] == (0, 0, 0, 0)
    assert told[1][2] == (1 << 13 if name in OF_64_BITS else 0)  # CMPXCHG16B


def test_leaf_7_tells_of_smep_and_smap():
    cases = tuple(Case(f"{i}", READ.format(leaf=7, subleaf=i)) for i in (0, 1))
    for name in ("atom", "skylake"):
        first, second = on_emu86(cases, options={"cpu": name})
        smep_smap = (0, 1 << 7 | 1 << 20, 0, 0)
        if name == "skylake":
            assert first.scratch[:4] == smep_smap
            assert second.scratch[:4] == (0, 0, 0, 0)
        else:
            assert first.scratch[:4] == second.scratch[:4] != smep_smap


def test_syscall_is_told_of_in_long_mode():
    for long_mode in (False, True):
        told = MODELS["atom"].cpuid(0x80000001, long_mode=long_mode)
        assert told[3] >> 11 & 1 == long_mode


@pytest.mark.parametrize("name", MODELS)
def test_cr4_takes_what_the_features_say(name):
    signature, _, _, features = leaves(name)[1]
    cases = tuple(
        Case(f"bit {bit}", f"mov eax, {1 << bit}\nmov cr4, eax\nmov ebx, cr4\nxor eax, eax\nmov cr4, eax")
        for bit in range(32)
    )  # fmt: skip
    for bit, record in enumerate(on_emu86(cases, options={"cpu": name})):
        has = bit in NEEDS and features >> NEEDS[bit] & 1
        has = has or (bit in (SMEP, SMAP) and name == "skylake")
        has = has or (
            bit == PCE and signature >> 8 & 15 == 6 and name not in OF_64_BITS
        )
        assert record["vector"] == (0x40 if has else 13), bit
        assert record["ebx"] == (1 << bit if has else 0xB3B3B3B3)


def test_a_hypervisor_is_told_of_on_demand():
    assert leaves("pentium3")[1][2] >> 31 == 0
    told = leaves("pentium3", hypervisor=True)
    assert told[1][2] >> 31 == 1
    name = b"".join(word.to_bytes(4, "little") for word in told[0x40000000][1:])
    assert name.rstrip(b"\0") == b"emu86 VMM"


def test_the_id_flag_can_be_changed():
    """How a program finds out that there is CPUID: SDM Vol. 1 section 20.1.1."""
    code = "pushfd\npop eax\nmov ebx, eax\nxor eax, 0x200000\npush eax\npopfd\npushfd\npop ecx\nxor ecx, ebx\npush 2\npopfd"
    for record in on_emu86(tuple(Case(f"{ring}", code, ring) for ring in (0, 3))):
        assert record["ecx"] == 0x200000
