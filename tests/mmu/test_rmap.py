"""The reverse map: it finds every entry of a page, and does not grow for ever."""

from emu86.mmu.rmap import MANY
from emu86.native import abi
from support.paging import PG, RW, US, WP, WRITE, A, Bench, D, P

DIRECTORY, TABLE = 0x10000, 0x11000
PAGES = 0x200
ROUNDS = 2 * MANY // abi.ADDED_FULL


def test_entries_that_have_become_others_are_forgotten():
    """A process after the other: the same linear addresses, other pages."""
    bench = Bench(pages=PAGES)
    rmap, control = bench.mmu.rmap, bench.engine.shared
    bench.write32(DIRECTORY, TABLE | P | RW | US | A)
    bench.mmu.configure(PG | WP, DIRECTORY, 0)
    for page in (0x20, 0x21):
        bench.write32(TABLE + 4 * page, page << 12 | P | RW | US | A | D)
        assert bench.access(page << 12, WRITE) == ("ok", page)
    base = next(iter(bench.mmu.leaves.values())).base
    rmap.learn()
    for turn in range(ROUNDS):
        for i in range(abi.ADDED_FULL):
            noted = control.added[i]
            noted.page, noted.index = turn * 10000 + i, base + 0x30 + i % 512
        control.added_count = abi.ADDED_FULL
        rmap.learn()
    assert sum(map(len, rmap._indices.values())) < MANY + abi.ADDED_FULL
    bench.mmu.write_protect(0x20)
    assert not bench.engine.entry(0x20000) & RW
    assert bench.engine.entry(0x21000) & RW
    assert [index for index, _table in rmap.entries(0x21)] == [base + 0x21]
