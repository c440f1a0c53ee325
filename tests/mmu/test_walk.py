"""The walk of the guest's tables against one written from the SDM."""

from hypothesis import given
from hypothesis import strategies as st

from emu86.mmu.ram import HOLE, Ram
from emu86.mmu.walk import denied, touch, walk
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
    found = walk(RAM, cr3, cr4, gva)
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
