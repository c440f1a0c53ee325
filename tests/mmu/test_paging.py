"""Paging formats: their walks against one written from the SDM, and what fits them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.mmu import shadow
from emu86.mmu.paging import (
    NO_PAGING,
    PAGING_32,
    PAGING_32_PSE,
    Walk,
    denied,
    format_of,
    touch,
    walk,
)
from emu86.mmu.ram import HOLE, Ram
from emu86.mmu.shadow_tables import LeafTables
from emu86.native import abi
from support import paging

PAGES = 300  # with the hole at A0h-FFh
ENTRIES = st.builds(
    lambda page, bits: page << 12 | bits,
    st.one_of(st.integers(0, PAGES + 3), st.integers(0, (1 << 20) - 1)),
    st.integers(0, 0xFFF),
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
    write=st.booleans(),
    user=st.booleans(),
    wp=st.booleans(),
)
def test_walk(directory, low, pde, pte, gva, cr4, write, user, wp):
    cr3 = directory << 12 | low
    RAM.words[(directory << 10) + (gva >> 22)] = pde
    table = pde >> 12
    if table < PAGES and table not in HOLE:
        RAM.words[(table << 10) + (gva >> 12 & 1023)] = pte
    before = bytes(RAM.bytes)
    model, used = paging.walk(read, cr3, cr4, gva)
    found = walk(RAM, paging.PG, cr3, cr4, gva)
    assert bytes(RAM.bytes) == before, "a walk is pure"
    access = paging.WRITE if write else paging.READ
    cr0 = paging.WP if wp else 0
    code = denied(found, write=write, user=user, wp=wp)
    if isinstance(model, int):
        assert not found.mapped
        assert code == paging.error_code(model, access, user)
        return
    assert found.mapped
    assert found.page == model.page
    assert bool(found.rights & paging.RW) == model.writable
    assert bool(found.rights & paging.US) == model.user
    allowed = paging.grants(model, access, user, cr0)
    assert code == (None if allowed else paging.error_code(model, access, user))
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
            assert read(at) == (value if inside else 0xFFFFFFFF)


FORMATS = (NO_PAGING, PAGING_32, PAGING_32_PSE)


def by_fields(layout, read, cr3, gva):
    """The page and rights that a format's fields tell, or bits of the error code."""
    table, rights = cr3 & layout.frame, paging.RW | paging.US
    for shift in layout.shifts:
        size = layout.entry_size
        entry = read(table + (gva >> shift & 4096 // size - 1) * size)
        if not entry & paging.P:
            return 0
        if entry >> 63 and not layout.nx:
            return 1 | 8
        rights &= entry
        if shift in layout.large_shifts and entry & paging.PS:
            if entry & layout.reserved:
                return 1 | 8
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
    RAM.words[(1 << 10) + (gva >> 22)] = pde
    table = pde >> 12
    if table < PAGES and table not in HOLE:
        RAM.words[(table << 10) + (gva >> 12 & 1023)] = pte
    told = by_fields(layout, read, 0x1000, gva)
    found = layout.walk(RAM, 0x1000, gva)
    if isinstance(told, int):
        assert (found.mapped, found.fault) == (False, told)
    else:
        rights = found.rights & (paging.RW | paging.US)
        assert (found.mapped, found.page, rights) == (True, *told)


def test_what_chooses_the_format():
    chosen = {
        (cr0, cr4): format_of(cr0, cr4)
        for cr0 in (0, paging.PG, paging.PG | paging.WP)
        for cr4 in (0, paging.PGE, paging.PSE)
    }
    for (cr0, cr4), layout in chosen.items():
        large = PAGING_32_PSE if cr4 == paging.PSE else PAGING_32
        assert layout is (large if cr0 else NO_PAGING)


@pytest.mark.parametrize("layout", FORMATS, ids=lambda layout: layout.name)
def test_a_span_is_whole_leaf_tables(layout):
    tables = LeafTables(64 * 512, layout, -1, 0, 0, abi.Leaf())
    assert tables.size << 12 == 1 << layout.span_shift
    assert tables.size == 512 * len(tables.pages)


def test_leaf_tables_of_512_entries_need_no_other_shadow(monkeypatch):
    """As PAE and 4-level paging will have them: a large page of 2 MiB is one."""
    small = dataclasses.replace(PAGING_32, shifts=(21, 12))
    identity = dataclasses.replace(small, name="2 MiB", walk=NO_PAGING.walk)
    monkeypatch.setattr(shadow, "format_of", lambda _cr0, _cr4: identity)
    bench = paging.Bench(pages=0x500)
    bench.mmu.configure(0, 0, 0)
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
    """A format of 8-byte entries, two levels: filled, changed, compared and dropped."""
    changed = data.draw(st.sets(st.integers(0, 511), max_size=5))
    at = data.draw(st.integers(0, 511))
    layout = dataclasses.replace(
        PAGING_32, name="wide", shifts=(21, 12), entry_size=8, walk=walk_wide
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadow, "format_of", lambda _cr0, _cr4: layout)
        bench = paging.Bench(pages=64)
        entries = bench.ram.bytes.cast("Q")
        bits = paging.P | paging.RW | paging.US | paging.A | paging.D
        entries[0x10000 // 8] = 0x11000 | bits
        for i in range(512):
            entries[0x11000 // 8 + i] = 0x20000 | bits
        bench.mmu.configure(paging.PG, 0x10000, 0)
        assert bench.access(at << 12) == ("ok", 0x20)
        around = range(at & ~15, (at & ~15) + 16)
        present = [i for i in range(512) if bench.engine.entry(i << 12)]
        assert present == list(around)
        for i in changed:
            entries[0x11000 // 8 + i] = 0x21000 | bits
        bench.mmu.switch(0x10000)
        assert bench.mmu.stats.resynced == len(changed)
        present = [i for i in range(512) if bench.engine.entry(i << 12)]
        assert present == [i for i in around if i not in changed]
        assert bench.access(at << 12) == ("ok", 0x21 if at in changed else 0x20)


def walk_wide(ram, cr3, gva):
    entries = ram.bytes.cast("Q")
    pde_at = (cr3 & ~0xFFF) + 8 * (gva >> 21 & 511)
    pde = entries[pde_at >> 3]
    if not pde & paging.P:
        return Walk(mapped=False, fault=0)
    pte_at = (pde & 0xFFFFF000) + 8 * (gva >> 12 & 511)
    pte = entries[pte_at >> 3]
    return Walk(True, 0, pte >> 12, pde & pte, pde, pte, pde_at, pte_at)
