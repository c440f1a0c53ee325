"""Paging formats: their walks against one written from the SDM, and what fits them."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.mmu.paging import (
    NO_PAGING,
    PAGING_4_LEVEL,
    PAGING_4_LEVEL_NX,
    PAGING_32,
    PAGING_32_PSE,
    PAGING_PAE,
    PAGING_PAE_NX,
    denied,
    format_of,
    is_canonical,
    read_pdptes,
    touch,
    walk,
)
from emu86.mmu.ram import HOLE, Ram
from emu86.mmu.shadow_tables import LeafTables
from emu86.native import abi
from support import paging

PAGES = 300  # with the hole at A0h-FFh
FRAME = 0xFFFFFF000
# The upper half is lost where entries have 32 bits.
ENTRIES = st.builds(
    lambda page, bits, high: page << 12 | bits | high,
    st.one_of(st.integers(0, PAGES + 3), st.integers(0, (1 << 20) - 1)),
    st.integers(0, 0xFFF),
    st.sampled_from([0, 0, 0, 1 << 63, 1 << 63, 1 << 35, 1 << 36, 1 << 62]),
)
RAM = Ram(PAGES << 12)


def read(gpa):
    page = gpa >> 12
    if page >= PAGES or page in HOLE:
        return 0xFFFFFFFF
    return int.from_bytes(RAM.bytes[gpa : gpa + 4], "little")


@given(
    directory=st.integers(0, PAGES - 1).filter(lambda page: page not in HOLE),
    low=st.integers(0, 0xFFF),
    pde=ENTRIES,
    pte=ENTRIES,
    gva=st.integers(0, 0xFFFFFFFF),
    cr4=st.sampled_from([0, paging.PSE, paging.PGE, paging.PSE | paging.PGE]),
    pae=st.booleans(),
    efer=st.sampled_from([0, paging.NXE]),
    access=st.sampled_from([paging.READ, paging.WRITE, paging.FETCH]),
    user=st.booleans(),
    wp=st.booleans(),
)
def test_walk(directory, low, pde, pte, gva, cr4, pae, efer, access, user, wp):
    cr3 = directory << 12 | low
    pdptes = tuple((directory << 12 | 1) ^ i for i in (0, 1, 0, 0))
    put(directory, pde, gva, pae=pae)
    table = (pde & FRAME) >> 12
    if table < PAGES and table not in HOLE:
        put(table, pte, gva, pae=pae, leaf=True)
    before = bytes(RAM.bytes)
    if pae:
        model, used = paging.walk_pae(read, pdptes, efer, gva)
        cr4 |= paging.PAE
    else:
        model, used = paging.walk(read, cr3, cr4, gva)
    registers = Registers(paging.PG, cr3, cr4, efer, pdptes)
    found = walk(RAM, registers, gva)
    assert bytes(RAM.bytes) == before, "a walk is pure"
    write, nx = access == paging.WRITE, bool(pae and efer)
    fetch = nx and access == paging.FETCH
    cr0 = paging.WP if wp else 0
    code = denied(found, write=write, user=user, wp=wp, fetch=fetch)
    if isinstance(model, int):
        assert not found.mapped
        assert code == paging.error_code(model, access, user, nx=nx)
        return
    assert found.mapped
    assert found.page == model.page
    assert bool(found.rights & paging.RW) == model.writable
    assert bool(found.rights & paging.US) == model.user
    assert (found.rights & paging.NX == 0) == model.executable
    allowed = paging.grants(model, access, user, cr0)
    wanted = None if allowed else paging.error_code(model, access, user, nx=nx)
    assert code == wanted
    assert (found.pde_at, found.pte_at) == (used[0][0], used[-1][0])
    if not allowed:
        return
    # Section 4.8: accessed in every entry used, dirty in the one that maps the page.
    wanted = dict(used)
    for at in wanted:
        wanted[at] |= paging.A
    if write:
        wanted[used[-1][0]] |= paging.D
    touch(RAM, found, write=write)
    for at, value in wanted.items():
        page = at >> 12
        inside = page < PAGES and page not in HOLE
        if used[0][0] != used[-1][0] or len(used) == 1:
            assert read(at) == (value & 0xFFFFFFFF if inside else 0xFFFFFFFF)


UPPER = st.builds(
    lambda page, bits, high: page << 12 | bits | high,
    st.sampled_from([2, 3, 4, 5, 6, 7, 8, PAGES, 0xC0]),
    st.one_of(st.just(0x67), st.integers(0, 0xFFF)),
    st.sampled_from([0] * 8 + [1 << 63, 1 << 35, 1 << 36, 1 << 51, 1 << 52, 1 << 12]),
)


@given(
    entries=st.tuples(UPPER, UPPER, UPPER, ENTRIES),
    low=st.integers(0, 0xFFF),
    gva=st.integers(-(1 << 47), (1 << 47) - 1),
    efer=st.sampled_from([0, paging.NXE]),
    access=st.sampled_from([paging.READ, paging.WRITE, paging.FETCH]),
    user=st.booleans(),
    wp=st.booleans(),
)
def test_walk_of_four_levels(entries, low, gva, efer, access, user, wp):
    """Tables may be each other's, and a table its own."""
    gva %= 1 << 64
    table = 0x2000
    for shift, entry in zip((39, 30, 21, 12), entries, strict=True):
        if table >> 12 < PAGES and table >> 12 not in HOLE:
            write64(table + 8 * (gva >> shift & 511), entry)
        table = entry & FRAME
    before = bytes(RAM.bytes)
    model, used = paging.walk_4_level(read, 0x2000 | low, efer, gva)
    efer |= paging.LMA
    cr0 = paging.PG | (paging.WP if wp else 0)
    registers = Registers(cr0, 0x2000 | low, paging.PAE, efer, ())
    found = walk(RAM, registers, gva)
    assert bytes(RAM.bytes) == before, "a walk is pure"
    write, nx = access == paging.WRITE, bool(efer & paging.NXE)
    fetch = nx and access == paging.FETCH
    code = denied(found, write=write, user=user, wp=wp, fetch=fetch)
    if isinstance(model, int):
        assert not found.mapped
        assert code == paging.error_code(model, access, user, nx=nx)
        return
    rights = bool(found.rights & paging.RW), bool(found.rights & paging.US)
    assert (found.mapped, found.page, found.large) == (True, model.page, model.large)
    assert rights == (model.writable, model.user)
    assert (found.rights & paging.NX == 0) == model.executable
    allowed = paging.grants(model, access, user, cr0)
    assert (code is None) == allowed
    if not allowed:
        assert code == paging.error_code(model, access, user, nx=nx)
        return
    places = [at for at, _entry in found.above] + [found.pde_at]
    if not found.large:
        places.append(found.pte_at)
    assert places == [at for at, _entry in used]
    pde, pte = touch(RAM, found, write=write)
    for i, (at, entry) in enumerate(used):
        page = at >> 12
        after = read(at) | read(at + 4) << 32
        if page >= PAGES or page in HOLE:
            assert after == (1 << 64) - 1
            continue
        assert after & paging.A
        assert (after | paging.A | paging.D) == (entry | paging.A | paging.D)
        is_last = at == used[-1][0]
        if is_last and write:
            assert after & paging.D
        elif not is_last:
            assert after & paging.D == entry & paging.D
        if i == len(used) - 1:
            assert pte == after
        elif i == len(used) - 2 and not found.large:
            assert pde == after


@pytest.mark.parametrize(
    ("gva", "canonical"),
    [
        (0, True), ((1 << 47) - 1, True), (1 << 47, False), ((1 << 48) - 1, False),
        (0xFFFF7FFFFFFFFFFF, False), (0xFFFF800000000000, True), ((1 << 64) - 1, True),
    ],
)  # fmt: skip
def test_canonical_addresses(gva, canonical):
    assert is_canonical(gva) == canonical


class Registers(NamedTuple):
    cr0: int
    cr3: int
    cr4: int
    efer: int
    pdptes: tuple


def put(table, entry, gva, *, pae, leaf=False):
    """Write an entry where the walk for `gva` looks in a table, in 4 or 8 bytes."""
    if pae:
        index = gva >> (12 if leaf else 21) & 511
        RAM.words[(table << 10) + 2 * index] = entry & 0xFFFFFFFF
        RAM.words[(table << 10) + 2 * index + 1] = entry >> 32
    else:
        index = gva >> (12 if leaf else 22) & 1023
        RAM.words[(table << 10) + index] = entry & 0xFFFFFFFF


FORMATS = (NO_PAGING, PAGING_32, PAGING_32_PSE, PAGING_PAE, PAGING_PAE_NX)


def by_fields(layout, top, gva):
    """The page and rights that a format's fields tell, or bits of the error code."""
    table, rights = top[0] & layout.root, paging.RW | paging.US
    for shift in layout.shifts:
        size = layout.entry_size
        if layout.in_registers and shift == layout.shifts[0]:
            if not top[gva >> shift] & paging.P:
                return 0
            table = top[gva >> shift] & layout.frame
            continue
        at = table + (gva >> shift & 4096 // size - 1) * size
        entry = read(at) | (read(at + 4) << 32 if size == 8 else 0)
        if not entry & paging.P:
            return 0
        leaf = shift == layout.shifts[-1]
        large = shift in layout.large_shifts and entry & paging.PS and not leaf
        reserved = layout.reserved_large if large else layout.reserved
        if entry & (layout.reserved_page if leaf else reserved):
            return 1 | 8
        rights = rights & entry | (rights | entry) & paging.NX
        if large:
            first = (entry & layout.frame) >> shift << shift
            return (first | gva & (1 << shift) - 1) >> 12, rights
        table = entry & layout.frame
    return table >> 12 if layout.shifts else gva >> 12, rights


@given(
    layout=st.sampled_from(FORMATS),
    pde=ENTRIES,
    pte=ENTRIES,
    gva=st.integers(0, 0xFFFFFFFF),
)
def test_a_walk_does_what_its_format_says(layout, pde, pte, gva):
    pae = layout.entry_size == 8
    put(1, pde, gva, pae=pae)
    table = (pde & FRAME) >> 12
    if table < PAGES and table not in HOLE:
        put(table, pte, gva, pae=pae, leaf=True)
    top = (0x1001, 0x1001, 0, 0x1001) if pae else (0x1000,)
    told = by_fields(layout, top, gva)
    found = layout.walk(RAM, top, gva)
    if isinstance(told, int):
        assert (found.mapped, found.fault) == (False, told)
    else:
        rights = found.rights & (paging.RW | paging.US | paging.NX)
        assert (found.mapped, found.page, rights) == (True, *told)


def test_what_chooses_the_format():
    chosen = {
        (cr0, cr4, efer): format_of(cr0, cr4, efer)
        for cr0 in (0, paging.PG, paging.PG | paging.WP)
        for cr4 in (0, paging.PGE, paging.PSE, paging.PAE, paging.PAE | paging.PSE)
        for efer in (0, paging.NXE, paging.LMA, paging.LMA | paging.NXE)
    }
    for (cr0, cr4, efer), layout in chosen.items():
        wanted = PAGING_32_PSE if cr4 & paging.PSE else PAGING_32
        if cr4 & paging.PAE:
            wanted = PAGING_PAE_NX if efer & paging.NXE else PAGING_PAE
        if efer & paging.LMA:
            wanted = PAGING_4_LEVEL_NX if efer & paging.NXE else PAGING_4_LEVEL
        assert layout is (wanted if cr0 else NO_PAGING)


RESERVED_IN_PDPTES = [*range(1, 3), *range(5, 9), *range(36, 64)]


def test_pdptes_are_read_and_looked_at():
    """Section 4.4.1 and table 4-8: 32 bytes, at a multiple of that."""
    good = (0x1001, 0x2000 | 0xFFFFFFFF000001E6, 0x3E19, (1 << 36) - 0xFFF)
    for i, pdpte in enumerate(good):
        write64(0x4020 + 8 * i, pdpte)
    assert read_pdptes(RAM, 0x4020 | 0x1F) == (0x1001, 0, *good[2:])
    for i in range(4):
        for bit in RESERVED_IN_PDPTES:
            write64(0x4020 + 8 * i, 1 | 1 << bit)
            assert read_pdptes(RAM, 0x4020) is None
        write64(0x4020 + 8 * i, good[i])
    assert read_pdptes(RAM, PAGES << 12) is None, "ones are no PDPTEs"


def write64(at, value):
    RAM.words[at >> 2], RAM.words[at + 4 >> 2] = value & 0xFFFFFFFF, value >> 32


@pytest.mark.parametrize("layout", FORMATS, ids=lambda layout: layout.name)
def test_a_span_is_whole_leaf_tables(layout):
    tables = LeafTables(64 * 512, layout, -1, 0, 0, abi.Leaf())
    assert tables.size << 12 == 1 << layout.span_shift
    assert tables.size == 512 * len(tables.pages)


def test_a_large_page_of_2_mib_is_one_leaf_table():
    bench = paging.Bench(pages=0x500)
    bits = paging.PS | paging.P | paging.RW | paging.A | paging.D
    bench.write64(0x10000, 0x11000 | paging.P)
    for i in range(3):
        bench.write64(0x11000 + 8 * i, i << 21 | bits)
    bench.configure(paging.PG, 0x10000, paging.PAE)
    for gva in (0x1FF000, 0x200000, 0x400000):
        assert bench.access(gva, paging.WRITE) == ("ok", gva >> 12)
    sizes = [tables.size for tables in bench.mmu.leaves.values()]
    assert sizes == [512, 512, 512]
    assert bench.mmu.stats.fills == 512 + 512 + 256 + 3
    # W^X finds the entry, and flushes the address, by the same tables.
    bench.mmu.use.execute(0x300)
    assert bench.access(0x300000, paging.FETCH) == ("ok", 0x300)
    assert not bench.engine.entry(0x300000) & paging.RW
    assert bench.engine.entry(0x2FF000) & paging.RW
    bench.mmu.use.write(0x300)
    assert bench.engine.entry(0x300000) & paging.NX
    bench.mmu.drop_mappings(0x200)
    assert not bench.engine.entry(0x200000)
    assert (0x200, False) not in bench.engine.tlb
    assert (0x1FF, False) in bench.engine.tlb


@given(data=st.data())
def test_a_page_table_of_512_entries(data):
    """Filled, changed, compared and dropped."""
    changed = data.draw(st.sets(st.integers(0, 511), max_size=5))
    at = data.draw(st.integers(0, 511))
    bench = paging.Bench(pages=64)
    bits = paging.P | paging.RW | paging.US | paging.A | paging.D
    bench.write64(0x10000, 0x12000 | paging.P)
    bench.write64(0x12000, 0x11000 | bits)
    for i in range(512):
        bench.write64(0x11000 + 8 * i, 0x20000 | bits)
    bench.configure(paging.PG, 0x10000, paging.PAE)
    assert bench.access(at << 12) == ("ok", 0x20)
    around = range(at & ~15, (at & ~15) + 16)
    present = [i for i in range(512) if bench.engine.entry(i << 12)]
    assert present == list(around)
    for i in changed:
        bench.write64(0x11000 + 8 * i, 0x21000 | bits)
    bench.mmu.switch(0x10000, paging.pdptes(bench.ram.read32, 0x10000))
    assert bench.mmu.stats.resynced == len(changed)
    present = [i for i in range(512) if bench.engine.entry(i << 12)]
    assert present == [i for i in around if i not in changed]
    assert bench.access(at << 12) == ("ok", 0x21 if at in changed else 0x20)


def test_pdptes_take_effect_when_they_are_loaded():
    """Section 4.4.1: what is written to memory says nothing until MOV to CR3."""
    bench = paging.Bench(pages=64)
    bits = paging.PS | paging.P | paging.RW | paging.A | paging.D
    for directory, frame in ((0x11000, 0), (0x12000, 1 << 21)):
        bench.write64(directory, frame | bits)
    bench.write64(0x10020, 0x11000 | paging.P)
    bench.configure(paging.PG, 0x10020, paging.PAE)
    assert bench.access(0x3000) == ("ok", 3)
    bench.write64(0x10020, 0)
    bench.write64(0x10028, 0x11000 | paging.P)
    bench.mmu.invalidate(0x4000)
    assert bench.access(0x4000) == ("ok", 4)
    assert bench.access(0x40004000) == ("fault", 0)
    bench.mmu.switch(0x10020, paging.pdptes(bench.ram.read32, 0x10020))
    assert bench.access(0x4000) == ("fault", 0)
    assert bench.access(0x3000) == ("fault", 0)
    assert bench.access(0x40004000) == ("ok", 4)


def test_nx_of_either_entry_forbids_execution():
    """Section 4.6; and that the page is code by another mapping changes nothing."""
    bench = paging.Bench(pages=64)
    bits = paging.P | paging.RW | paging.US | paging.A
    bench.write64(0x10000, 0x11000 | paging.P)
    bench.write64(0x11000, 0x12000 | bits)
    bench.write64(0x11008, 0x12000 | bits | paging.NX)
    bench.write64(0x12000, 0x20000 | bits)
    bench.write64(0x12008, 0x20000 | bits | paging.NX)
    bench.configure(paging.PG, 0x10000, paging.PAE, paging.NXE)
    for gva, told in (
        (0, ("ok", 0x20)),
        (0x1000, ("fault", 1 | 16)),
        (0x200000, ("fault", 1 | 16)),
    ):
        assert bench.access(gva) == ("ok", 0x20)
        assert bench.access(gva, paging.FETCH) == told
        assert bench.access(gva) == ("ok", 0x20)
    assert bench.access(0x3000, paging.FETCH, user=True) == ("fault", 4 | 16)
    # Without NXE the bit is reserved, and fetches are reads.
    bench.configure(paging.PG, 0x10000, paging.PAE)
    assert bench.access(0, paging.FETCH) == ("ok", 0x20)
    assert bench.access(0x1000, paging.FETCH) == ("fault", 1 | 8)
    assert bench.access(0x200000) == ("fault", 1 | 8)
