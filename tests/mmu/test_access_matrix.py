"""Every combination of rights, and what an access by it comes to.

By the shadow MMU on hardware of the test's own, against the SDM (all of them), and by
guests under emu86 and QEMU (a sample).
"""

from itertools import product

import pytest

from support import paging
from support.cases import TO_USER, Case, check
from support.paging import (
    FETCH,
    NX,
    NXE,
    PAE,
    PG,
    PS,
    PSE,
    READ,
    RW,
    US,
    WP,
    WRITE,
    A,
    Bench,
    D,
    P,
)

GVA = 0x00403000  # PDE 1, PTE 3
DIRECTORY, TABLE, FRAME = 0x10000, 0x11000, 0x14000
PDES = [
    p | rw | us | a for p in (0, P) for rw in (0, RW) for us in (0, US) for a in (0, A)
]
PTES = [pde | d for pde in PDES for d in (0, D)]
ACCESSES = [(kind, user) for kind in (READ, WRITE, FETCH) for user in (False, True)]


def expect(bench, cr0, cr4, access, user):
    """The SDM's outcome, and both entries afterwards."""
    read = bench.ram.read32
    found, used = paging.walk(read, DIRECTORY, cr4, GVA)
    entries = dict(used)
    if isinstance(found, int) or not paging.grants(found, access, user, cr0):
        return ("fault", paging.error_code(found, access, user)), entries
    for at in entries:
        entries[at] |= A
    if access == WRITE:
        entries[used[-1][0]] |= D
    return ("ok", found.page), entries


@pytest.mark.parametrize("cr0", [PG, PG | WP], ids=["WP 0", "WP 1"])
@pytest.mark.parametrize("cr4", [0, PSE], ids=["PSE 0", "PSE 1"])
def test_every_combination(cr0, cr4):
    bench = Bench()
    combinations = [
        *product(PDES, PTES),
        *((pde | PS, pte) for pde, pte in product(PTES, PTES if not cr4 else [0])),
        *((pde | PS | 0x3000, 0) for pde in PTES if cr4),
    ]
    for pde, pte in combinations:
        frame = 0 if pde & PS and cr4 else TABLE
        for access, user in ACCESSES:
            bench.write32(DIRECTORY + 4, pde if pde & ~0xFFF else frame | pde)
            bench.write32(TABLE + 12, FRAME | pte)
            bench.ram.state[FRAME >> 12] = 0
            bench.mmu.configure(cr0, DIRECTORY, cr4)
            wanted, entries = expect(bench, cr0, cr4, access, user)
            got = bench.access(GVA, access, user=user)
            what = f"PDE {pde:#x} PTE {pte:#x} {access} user {user}"
            assert got == wanted, what
            for at, value in entries.items():
                assert bench.ram.read32(at) == value, what


@pytest.mark.parametrize("cr0", [PG, PG | WP], ids=["WP 0", "WP 1"])
def test_every_combination_with_pae(cr0):
    bench = Bench()
    pdpt, efer = 0x18000, NXE
    bench.write64(pdpt, DIRECTORY | P)
    rights = [P | rw | us | nx for rw in (0, RW) for us in (0, US) for nx in (0, NX)]
    ptes = [0, *(bits | used for bits in rights for used in (0, A, A | D))]
    large = [PS | bits | used for bits in rights for used in (0, A, A | D)]
    gva = 0x00203000
    for pde, pte in (*product([0, *rights], ptes), *product(large, [0])):
        for access, user in ACCESSES:
            bench.write64(DIRECTORY + 8, pde if pde & PS else TABLE | pde)
            bench.write64(TABLE + 24, FRAME | pte)
            for page in (3, FRAME >> 12):
                bench.ram.state[page] = 0
            bench.configure(cr0, pdpt, PAE, efer)
            read = bench.ram.read32
            found, used = paging.walk_pae(read, paging.pdptes(read, pdpt), efer, gva)
            after = dict(used)
            got = bench.access(gva, access, user=user)
            what = f"PDE {pde:#x} PTE {pte:#x} {access} user {user}"
            if isinstance(found, int) or not paging.grants(found, access, user, cr0):
                code = paging.error_code(found, access, user, nx=True)
                assert got == ("fault", code), what
            else:
                assert got == ("ok", found.page), what
                after = {at: entry | A for at, entry in used}
                after[used[-1][0]] |= D if access == WRITE else 0
            for at, value in after.items():
                assert read(at) == value & 0xFFFFFFFF, what
                assert read(at + 4) == value >> 32, what


@pytest.mark.parametrize("cr0", [PG, PG | WP], ids=["WP 0", "WP 1"])
def test_one_access_after_another(cr0):
    """What the first access has put in the shadow must not change the second."""
    bench = Bench()
    for pde, pte in product((P, P | RW, P | US, P | RW | US), PTES[16:]):
        for (first, user1), (second, user2) in product(ACCESSES, ACCESSES):
            bench.write32(DIRECTORY + 4, TABLE | pde)
            bench.write32(TABLE + 12, FRAME | pte)
            bench.mmu.configure(cr0, DIRECTORY, 0)
            bench.access(GVA, first, user=user1)
            wanted, entries = expect(bench, cr0, 0, second, user2)
            what = f"PDE {pde:#x} PTE {pte:#x} {first} {user1} {second} {user2}"
            assert bench.access(GVA, second, user=user2) == wanted, what
            for at, value in entries.items():
                assert bench.ram.read32(at) == value, what


TOUCH = {
    READ: "mov eax, [0x703004]",
    WRITE: "mov [0x703004], eax",
    FETCH: "mov ecx, 0x703000\ncall ecx",
}
SETUP = """
    mov byte [0x703000], 0xC3
    mov eax, cr0
    or eax, {cr0}
    mov cr0, eax
    mov dword [PT + 0x703 * 4], 0x250000 | {pte}
    mov byte [0x250000], 0xC3
    mov dword [PD + 4], PT + 0x1000 + {pde}
    mov eax, cr3
    mov cr3, eax
"""
SHOW = """
.done: mov esi, [PT + 0x703 * 4]
    mov edi, [PD + 4]
"""
GUESTS = tuple(
    Case(
        f"PDE {pde:#x} PTE {pte:#x} WP {cr0:#x} {access} user {user}",
        SETUP.format(cr0=cr0, pde=pde, pte=pte) + (TO_USER if user else "")
        + TOUCH[access] + SHOW,
    )
    for i, (pde, pte, cr0, (access, user)) in enumerate(
        product(
            [P | rw | us for rw in (0, RW) for us in (0, US)], PTES[16:], (0, WP),
            ACCESSES,
        )
    )
    if i % 5 == 0
)  # fmt: skip
LARGE = tuple(
    Case(
        f"PDE {pde:#x} WP {cr0:#x} {access} user {user}",
        f"mov eax, 0x10\nmov cr4, eax\nmov eax, cr0\nor eax, {cr0}\nmov cr0, eax\n"
        f"mov byte [0x703000], 0xC3\nmov dword [PD + 4], 0x400080 | {pde}\n"
        "mov eax, cr3\nmov cr3, eax\n" + (TO_USER if user else "") + TOUCH[access]
        + "\nmov edi, [PD + 4]",
    )
    for pde, cr0, (access, user) in product(PTES[16:], (0, WP), ACCESSES)
)  # fmt: skip


@pytest.mark.not_quick
def test_guests():
    check(GUESTS, "patch", paging=True)


@pytest.mark.not_quick
def test_guests_with_large_pages():
    check(LARGE, "patch", paging=True)
