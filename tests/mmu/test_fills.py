"""Misses where there is no RAM: filled by compiled code, but for devices."""

import pytest

from support.paging import FETCH, PG, READ, RW, US, WP, WRITE, A, Bench, D, P

DIRECTORY, TABLE = 0x10000, 0x11000
HOLE = 0xC0  # pages of a PC that have no RAM
ONES = 1 << 27  # the VMM's page of ones


@pytest.fixture
def bench():
    """A guest that has used the page before the hole, and maps what is in it."""
    bench = Bench(pages=0x100)
    bench.write32(DIRECTORY, TABLE | P | RW | US | A)
    for page in (0x20, HOLE, HOLE + 0x10):
        bench.write32(TABLE + 4 * page, page << 12 | P | RW | US)
    bench.mmu.configure(PG | WP, DIRECTORY, 0)
    assert bench.access(0x20000) == ("ok", 0x20)
    return bench


@pytest.mark.parametrize("access", [READ, FETCH])
def test_ones_are_mapped_by_compiled_code(bench, access):
    filled = bench.engine.shared.count_filled
    assert bench.access(HOLE << 12, access, user=True) == ("ok", ONES)
    assert bench.engine.shared.count_filled == filled + 1
    pte = bench.ram.read32(TABLE + 4 * HOLE)
    assert pte & (A | D) == A
    assert bench.access(HOLE << 12, WRITE) == ("bus", None)


def test_a_device_is_asked(bench):
    bench.mmu.mmio_pages = frozenset({HOLE})
    assert bench.access(HOLE << 12) == ("bus", None)
    filled = bench.engine.shared.count_filled
    assert bench.access(HOLE + 0x10 << 12) == ("ok", ONES)
    assert bench.engine.shared.count_filled == filled + 1
