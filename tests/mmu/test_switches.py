"""MOV to CR3 between two roots: what the TLB keeps, and what it must not.

The compiled handler drops what the roots do not share; Python flushes all.
"""

import pytest

from emu86.cpu.state import CR
from support.paging import PG, RW, US, WP, WRITE, A, Bench, D, P

ONE, OTHER = 0x10000, 0x11000  # directories
TABLE, OWN, OWN_TOO = 0x12000, 0x13000, 0x14000
ALL = P | RW | US | A
PRIVATE = 0x400000  # of which each directory has a page table of its own


@pytest.fixture(params=[True, False], ids=["compiled", "Python"])
def bench(request):
    """A guest whose directories share their first 4 MiB; both have been used."""
    bench = Bench(fills=request.param)
    for directory, own in ((ONE, OWN), (OTHER, OWN_TOO)):
        bench.write32(directory, TABLE | ALL)
        bench.write32(directory + 4, own | ALL)
    for page in range(0x20, 0x24):
        bench.write32(TABLE + 4 * page, page << 12 | ALL | D)
    bench.write32(OWN, 0x24000 | ALL)
    bench.write32(OWN_TOO, 0x25000 | ALL)
    bench.mmu.configure(PG | WP, ONE, 0)
    for directory in (ONE, OTHER, ONE, OTHER, ONE):
        bench.switch(directory)
        for gva in (0x20000, PRIVATE):
            bench.access(gva)
    return bench


def test_what_roots_do_not_share_is_dropped(bench):
    for directory, page in ((OTHER, 0x25), (ONE, 0x24), (OTHER, 0x25)):
        bench.switch(directory)
        assert bench.access(PRIVATE) == ("ok", page)


def test_compiled_code_keeps_what_they_share(bench):
    before = bench.engine.q[CR + 3]
    bench.switch(OTHER)
    assert bench.engine.q[CR + 3] != before
    assert ((0x20, False) in bench.engine.tlb) == bench.fills
    assert (PRIVATE >> 12, False) not in bench.engine.tlb


@pytest.mark.parametrize(
    ("changed", "expected"),
    [(0x22000 | ALL | D, ("ok", 0x22)), (0x21000 | P | RW | A | D, ("fault", 5))],
    ids=["another page", "no user's"],
)
def test_a_change_that_a_miss_has_taken_up_reaches_users_at_a_switch(
    bench, changed, expected
):
    """Vol. 3A 4.10.4.1: the TLB for users may have had the old entry until then."""
    entry = TABLE + 4 * 0x21
    bench.write32(entry, 0x21000 | P | US | A)
    bench.switch(OTHER)
    bench.switch(ONE)
    assert bench.access(0x21000, user=True) == ("ok", 0x21)
    bench.write32(entry, changed)
    assert bench.access(0x21000, WRITE) == ("ok", changed >> 12)
    bench.switch(OTHER)
    assert bench.access(0x21000, user=True) == expected
