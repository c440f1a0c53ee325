"""PAE paging by guests: against QEMU, against `bare`, and against the SDM's rules."""

import pickle
from itertools import product

import pytest

from emu86 import Machine
from support.cases import (
    LOG,
    RECORD,
    TO_USER,
    Case,
    differences,
    image,
    machine,
    on_emu86,
    on_qemu,
    records,
)
from support.paging import NX, PS, RW, US, WP, A, D, P

SETUP = """
    mov byte [0x250000], 0xC3
    mov byte [0x703000], 0xC3
    mov eax, cr0
    or eax, {cr0:#x}
    mov cr0, eax
    mov dword [PT + 0x703 * 8], {pte:#x}
    mov dword [PT + 0x703 * 8 + 4], {pte_high:#x}
    mov dword [PDE + 24], {pde:#x}
    mov dword [PDE + 28], {pde_high:#x}
    mov eax, cr3
    mov cr3, eax
"""
TOUCH = {
    "read": "mov eax, [0x703004]",
    "write": "mov [0x703004], eax",
    "fetch": "mov ecx, 0x703000\ncall ecx",
}
SHOW = """
    mov esi, [PT + 0x703 * 8]
    mov edi, [PDE + 24]
"""
RIGHTS = [P | rw | us | nx for rw in (0, RW) for us in (0, US) for nx in (0, NX)]
ACCESSES = tuple(product(TOUCH, (False, True)))


def case(pde, pte, cr0, access, user):
    name = f"PDE {pde:#x} PTE {pte:#x} WP {cr0:#x} {access} user {user}"
    high = {"pte_high": pte >> 32, "pde_high": pde >> 32}
    low = {"pte": pte & 0xFFFFFFFF, "pde": f"PT + 0x3000 + {pde & 0xFFF:#x}"}
    code = SETUP.replace("{pde:#x}", "{pde}")
    if pde & PS:
        low["pde"] = f"{pde & 0xFFFFFFFF:#x}"
    setup = code.format(cr0=cr0, **low, **high)
    return Case(name, setup + (TO_USER if user else "") + TOUCH[access] + SHOW)


SMALL = product(RIGHTS, [bits | 0x250000 | used for bits in (0, *RIGHTS)
                         for used in (0, A, A | D)])  # fmt: skip
LARGE = ((PS | bits | used | 0x600000, 0) for bits in RIGHTS for used in (0, A | D))
RESERVED = (
    (P | RW | US | 1 << 62, P | RW | US | 0x250000),
    (P | RW | US, P | RW | US | 0x250000 | 1 << 44),
    (P | RW | US | PS | 0x600000 | 1 << 13, 0),
)
COMBINATIONS = [
    (entries, cr0, access)
    for entries, cr0, access in product((*SMALL, *LARGE), (0, WP), ACCESSES)
]
CASES = tuple(
    case(*entries, cr0, *access)
    for i, (entries, cr0, access) in enumerate(COMBINATIONS)
    if i % 29 == 0
)
SETUP_OPTIONS = {"paging": "pae"}


ABOVE = """
    mov dword [PT + 0x703 * 8], {low:#x} + 7
    mov dword [PT + 0x703 * 8 + 4], {high}
    mov dword [PT + 0x704 * 8], {low:#x} + 7
    mov dword [PT + 0x704 * 8 + 4], {high}
    mov eax, cr3
    mov cr3, eax
    mov dword [0x703000], 0x90C3C0FF  ; inc eax; ret
    xor eax, eax
    mov ecx, 0x703000
    mov edx, 20
.again:
    mov byte [ecx + 0x1001], 0xC0
    call ecx
    call ecx
    mov byte [ecx + 0x1001], 0xC8  ; dec eax
    call ecx
    dec edx
    jnz .again
    mov ebx, [ecx]
    lldt [ecx + 0x800]
    mov [ecx + 4], eax
"""


@pytest.mark.parametrize(
    "technique", ["patch", pytest.param("bare", marks=pytest.mark.slow)]
)
def test_code_above_4_gib_that_changes(technique):
    """Written by another address; of two pages, the first and the last there."""
    places = (0x100000000, 0x13FFFF000)
    cases = tuple(
        Case(f"{at:#x}", ABOVE.format(low=at & 0xFFFFFFFF, high=at >> 32))
        for at in places
    )
    built = machine(
        image(cases, paging="pae"),
        cpu="pentium3-pae", technique=technique, memory=4 << 30,
    )  # fmt: skip
    assert built.run(timeout=300).reason == "debug exit"
    for record in records(built.read_physical(LOG, len(cases) * RECORD), len(cases)):
        assert (record["vector"], record["eax"]) == (0x40, 20)
        assert record["ebx"] == 0x90C3C8FF
    for at in places:
        assert built.read_physical(at, 8) == bytes.fromhex("ffc8c390 14000000")
    assert built.read_physical(0x13FFFFFF8, 16) == bytes(8) + b"\xff" * 8
    assert built.read_physical(0xBFFFFFF8, 16) == bytes(8) + b"\xff" * 8
    assert built.read_physical(0xFFFFFFFC, 5) == b"\xff" * 4 + b"\xff"


IN_THE_HOLE = """
    mov dword [PT + 0x703 * 8], 0xC0000007
    mov eax, cr3
    mov cr3, eax
    mov ebx, [0x703000]
    mov eax, 0x703000
    jmp eax
"""


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_code_where_no_ram_is_below_4_gib(technique):
    """FF FF is #UD there, as beyond RAM."""
    options = {"cpu": "pentium3-pae", "technique": technique, "memory": 4 << 30}
    cases = (Case("in the hole", IN_THE_HOLE),)
    (record,) = on_emu86(cases, options=options, **SETUP_OPTIONS)
    assert (record["vector"], record["ebx"]) == (6, 0xFFFFFFFF)


CALLED_AGAIN = (
    ABOVE.partition(".again:")[0]
    + """
.again:
    xor eax, eax
    call ecx
    add eax, 48
    mov edx, 0x3F8
    out dx, al
    jmp .again
"""
)


@pytest.mark.parametrize(
    "technique", ["patch", pytest.param("bare", marks=pytest.mark.slow)]
)
def test_code_above_4_gib_that_somebody_else_changes(technique):
    """The engine hears of it, which does not know these pages by their address."""
    at = 0x100003000
    code = CALLED_AGAIN.format(low=at & 0xFFFFFFFF, high=at >> 32)
    built = machine(
        image((Case("called again", code),), paging="pae"),
        cpu="pentium3-pae", technique=technique, memory=4 << 30,
    )  # fmt: skip
    assert built.run(until=b"1", timeout=60).reason == "until"
    built.write_physical(at + 1, b"\xc8")  # dec eax
    assert built.run(until=b"/", timeout=60).reason == "until"


PDPTES_ELSEWHERE = """
    mov dword [PD], 0
.again:
    mov eax, 48
    mov edx, 0x3F8
    out dx, al
    invlpg [.again]
    jmp .again
"""


@pytest.mark.parametrize(
    "technique", ["patch", pytest.param("bare", marks=pytest.mark.slow)]
)
def test_pdptes_are_saved_and_restored(technique):
    """They may be in memory no more."""
    built = machine(
        image((Case("saved", PDPTES_ELSEWHERE),), paging="pae"),
        cpu="pentium3-pae", technique=technique,
    )  # fmt: skip
    for _ in range(2):
        assert built.run(until=b"0", timeout=60).reason == "until"
        assert built.vcpu.pdptes == (0x249001, 0, 0, 0)
        assert built.read_physical(0x248000, 4) == bytes(4)
        built = Machine.restore(pickle.loads(pickle.dumps(built.save())))


@pytest.mark.not_quick
def test_reserved_bits():
    """Section 4.7: with RSVD goes P, which QEMU 7.2 leaves out."""
    cases = tuple(
        case(*entries, WP, *access) for entries in RESERVED for access in ACCESSES
    )
    options = {"cpu": "pentium3-pae"}
    told = on_emu86(cases, options=options, **SETUP_OPTIONS)
    bits = {"read": 0, "write": 2, "fetch": 16}
    wanted = [9 | bits[kind] | 4 * user for _ in RESERVED for kind, user in ACCESSES]
    assert [record["error"] for record in told] == wanted
    assert {record["vector"] for record in told} == {14}


@pytest.mark.not_quick
def test_rights_as_on_qemu():
    theirs = on_qemu(CASES, cpu="pentium3,-apic,+nx", **SETUP_OPTIONS)
    ours = on_emu86(CASES, options={"cpu": "pentium3-pae"}, **SETUP_OPTIONS)
    lines = differences(CASES, ours, theirs)
    assert not lines, "\n".join(lines[:40])
    vectors = {record["vector"] for record in theirs}
    assert vectors == {14, 0x40}
    errors = {record["error"] for record in theirs if record["vector"] == 14}
    assert errors == {0, 2, 3, 4, 5, 6, 7, 16, 17, 20, 21}


MOVES = {
    "PDPTEs in memory say nothing": """
    mov dword [PD + 8], PDE + 1
    mov eax, [0x40215000]""",
    "until CR3 is written": """
    mov dword [SCRATCH], 0x12345
    mov dword [PD + 8], PDE + 1
    mov eax, cr3
    mov cr3, eax
    mov eax, [0x40000000 + SCRATCH]""",
    "INVLPG does not load them": """
    mov dword [PD + 8], PDE + 1
    invlpg [0x40215000]
    mov eax, [0x40215000]""",
    "CR4.PGE does": """
    mov dword [PD + 8], PDE + 1
    mov eax, 0xA0
    mov cr4, eax
    mov eax, [0x40000000 + SCRATCH]""",
    "a CR0.CD that changes does": """
    mov dword [PD + 8], PDE + 1
    mov eax, cr0
    or eax, 1 << 30
    mov cr0, eax
    mov eax, [0x40000000 + SCRATCH]""",
    "a CR0 of which nothing of that changes does not": """
    mov dword [PD + 8], PDE + 1
    mov eax, cr0
    or eax, 1 << 16
    mov cr0, eax
    mov eax, [0x40000000 + SCRATCH]""",
    "a PDPT at a multiple of 32": """
    mov dword [SCRATCH], 0x54321
    mov dword [PD + 0xFE0], PDE + 1
    mov dword [PD + 0xFF8], PDE + 1
    mov eax, PD + 0xFE0 + 0x1F
    mov cr3, eax
    mov ebx, cr3
    mov eax, [0xC0000000 + SCRATCH]""",
    "a reserved bit, CR3": """
    mov dword [PD + 8], 3
    mov eax, PD + 0x18
    mov cr3, eax""",
    "and CR3 stays": """
    mov dword [PD + 8], 0x21
    mov eax, cr4
    xor eax, 0x80
    mov cr4, eax""",
    "a reserved bit of one that is not present": """
    mov dword [PD + 8], 0xFE
    mov dword [PD + 12], -1
    mov eax, PD
    mov cr3, eax""",
    "bit 36": """
    mov dword [PD + 8], 1
    mov dword [PD + 12], 0x10
    mov eax, PD
    mov cr3, eax""",
    "bit 35": """
    mov dword [PD + 8], 1
    mov dword [PD + 12], 8
    mov eax, PD
    mov cr3, eax""",
    "no RAM where they would be": """
    mov eax, 0xF0000000
    mov cr3, eax""",
    "without paging CR3 takes anything": """
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax
    mov eax, 0xF0000000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax""",
    "back to 32-bit paging and again": """
    mov dword [SCRATCH], 0x777
    mov dword [0x300000 - 0x1000], 0x83
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax
    mov eax, 0x10
    mov cr4, eax
    mov eax, 0x300000 - 0x1000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov ebx, [SCRATCH]
    mov ecx, cr3
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax
    mov eax, 0x20
    mov cr4, eax
    mov eax, PD
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov edx, cr3""",
    "EFER": """
    mov ecx, 0xC0000080
    rdmsr
    mov ebx, eax
    mov eax, 0x801
    wrmsr""",
    "NX is reserved without NXE": """
    mov dword [PT + 0x703 * 8 + 4], 1 << 31
    mov ecx, 0xC0000080
    xor eax, eax
    xor edx, edx
    wrmsr
    mov eax, [0x703000]""",
    "and a fetch is no fetch": """
    mov dword [PT + 0x703 * 8], 0
    mov ecx, 0xC0000080
    xor eax, eax
    xor edx, edx
    wrmsr
    mov ecx, 0x703000
    call ecx""",
    "bit 7 of a PTE: there is no PAT": """
    or dword [PT + 0x703 * 8], 0x80
    mov eax, [0x703000]""",
    "bit 36 of a PTE": """
    or dword [PT + 0x703 * 8 + 4], 0x10
    mov eax, [0x703000]""",
    "above RAM ones are read": """
    mov dword [PT + 0x703 * 8 + 4], 8
    mov eax, [0x703000]""",
}
PF, GP = 14, 13
ENDS = {
    "PDPTEs in memory say nothing": (PF, 0, {"cr2": 0x40215000}),
    "until CR3 is written": (0x40, None, {"eax": 0x12345}),
    "INVLPG does not load them": (PF, 0, {"cr2": 0x40215000}),
    "CR4.PGE does": (0x40, None, {}),
    "a CR0.CD that changes does": (0x40, None, {}),
    "a CR0 of which nothing of that changes does not": (PF, 0, {}),
    "a PDPT at a multiple of 32": (0x40, None, {"eax": 0x54321, "ebx": 0x248FFF}),
    "a reserved bit, CR3": (GP, 0, {"cr3": 0x248000}),
    "and CR3 stays": (GP, 0, {"cr4": 0x20}),
    "a reserved bit of one that is not present": (0x40, None, {}),
    "bit 36": (GP, 0, {}),
    "bit 35": (0x40, None, {}),
    "no RAM where they would be": (GP, 0, {}),
    "without paging CR3 takes anything": (GP, 0, {"cr3": 0xF0000000}),
    "back to 32-bit paging and again": (
        0x40, None, {"ebx": 0x777, "ecx": 0x2FF000, "edx": 0x248000},
    ),
    "EFER": (GP, 0, {"ebx": 0x800}),
    "NX is reserved without NXE": (PF, 9, {}),
    "and a fetch is no fetch": (PF, 0, {"cr2": 0x703000}),
    "bit 7 of a PTE: there is no PAT": (PF, 9, {}),
    "bit 36 of a PTE": (PF, 9, {}),
    "above RAM ones are read": (0x40, None, {"eax": 0xFFFFFFFF}),
}  # fmt: skip
# The engine's addresses have 40 bits, and PAT.
NOT_ON_BARE = ("bit 7 of a PTE: there is no PAT", "bit 36 of a PTE")


@pytest.mark.parametrize(
    "technique", ["patch", pytest.param("bare", marks=pytest.mark.slow)]
)
def test_what_loads_pdptes_and_what_is_reserved(technique):
    """Vol. 3A 4.4.1 and 4.4.2; QEMU has no PDPTE registers."""
    cases = tuple(
        Case(name, code)
        for name, code in MOVES.items()
        if technique == "patch" or name not in NOT_ON_BARE
    )
    options = {"cpu": "pentium3-pae", "technique": technique}
    for one, record in zip(
        cases, on_emu86(cases, options=options, **SETUP_OPTIONS), strict=True
    ):
        vector, error, registers = ENDS[one.name]
        told = record["vector"], *(record[name] for name in registers)
        assert told == (vector, *registers.values()), one.name
        if error is not None:
            assert record["error"] == error, one.name
