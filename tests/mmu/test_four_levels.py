"""4-level paging: memory as the emulation sees it, of 64-bit addresses."""

import pytest

from emu86.mmu.memory import PageFault
from emu86.mmu.paging import is_canonical
from emu86.mmu.shadow_tables import MOST_STARTS
from emu86.mmu.vmm_memory import VmmMemory
from emu86.spec.x86 import LONG_FRAME
from support.paging import (
    FETCH,
    LMA,
    NX,
    NXE,
    PAE,
    PG,
    PS,
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

PML4, PDPT, PD, PT = 0x10000, 0x11000, 0x12000, 0x13000
ALL = P | RW | US | A | D
USED = P | RW | US
KERNEL = 0xFFFFFFFF80000000  # the last but one PDPTE's, of the last PML4E
TOP = 0xFFFFFFFFFFFFF000


def bench_of(pages=0x40):
    """A guest whose first 2 MiB and last 2 GiB are the same page table's."""
    bench = Bench(pages=pages)
    bench.write64(PML4, PDPT | USED)
    bench.write64(PML4 + 8 * 511, PDPT | USED)
    for index in (0, 510, 511):
        bench.write64(PDPT + 8 * index, PD | USED)
    for index in (0, 511):
        bench.write64(PD + 8 * index, PT | USED)
    for index in (0x20, 0x21, 0x22):
        bench.write64(PT + 8 * index, index << 12 | USED)
    for index in (510, 511):
        bench.write64(PT + 8 * index, index - 486 << 12 | USED)
    bench.configure(PG | WP, PML4, PAE, LMA | NXE)
    return bench


def test_memory_of_up_to_8_bytes():
    bench = bench_of()
    memory = bench.memory
    for size in range(1, 9):
        value = 0x8877665544332211 & (1 << 8 * size) - 1
        memory.write(KERNEL + 0x20FFD, value, size)
        assert memory.read(0x20FFD, size) == value
        split = bench.ram.map[0x20FFD:0x21000] + bench.ram.map[0x21000:0x21008]
        assert split[:size] == value.to_bytes(size, "little")
        assert memory.read(KERNEL + 0x20FFD, size, user=True) == value
    assert memory.read_bytes(KERNEL + 0x20FFE, 5) == bytes.fromhex("2233445566")
    assert memory.read32(KERNEL + 0x21000) == 0x77665544
    assert bench.mmu.lookup(KERNEL + 0x22008) == 0x22008
    for at in (PML4, PML4 + 8 * 511, PDPT, PDPT + 8 * 510, PD):
        assert bench.ram.read32(at) & (A | D) == A
    assert bench.ram.read32(PT + 8 * 0x20) & (A | D) == A | D


def test_an_address_wraps_at_64_bits():
    bench = bench_of()
    bench.write64(PT, 0x22000 | USED)
    bench.ram.map[0x19FFC:0x1A000] = bytes(range(1, 5))
    bench.ram.map[0x22000:0x22004] = bytes(range(5, 9))
    assert bench.memory.read(TOP + 0xFFC, 8) == 0x0807060504030201
    assert bench.memory.read_bytes(TOP + 0xFFE, 4) == bytes(range(3, 7))


def test_a_fault_has_the_whole_address():
    with pytest.raises(PageFault) as raised:
        bench_of().memory.write(KERNEL + 0x23000, 0, 8)
    assert (raised.value.gva, raised.value.error) == (KERNEL + 0x23000, 2)


@pytest.mark.parametrize("level", [PDPT, PD], ids=["1 GiB", "2 MiB"])
def test_invlpg_drops_what_is_kept_of_a_large_page(level):
    """Section 4.10.4.1: whatever address in it is given."""
    bench = bench_of()
    entry = level + (8 * 510 if level == PDPT else 0)
    bench.write64(entry, PS | ALL)
    bench.ram.map[0x22000] = 0x22
    assert bench.memory.read(KERNEL + 0x22000, 1) == 0x22
    bench.write64(entry, (PD if level == PDPT else PT) | USED)
    bench.write64(PT + 8 * 0x22, 0x23000 | ALL)
    bench.ram.map[0x23000] = 0x23
    bench.invalidate(KERNEL + 0x1000)
    assert bench.memory.read(KERNEL + 0x22000, 1) == 0x23


def test_the_engine_walks_what_the_guest_has():
    bench = bench_of()
    for gva, page in ((0x20000, 0x20), (KERNEL + 0x21000, 0x21), (TOP, 0x19)):
        assert bench.access(gva, WRITE) == ("ok", page)
        assert bench.engine.entry(gva) & (RW | US | NX) == RW | US | NX
    assert bench.access(KERNEL + 0x21000, FETCH, user=True) == ("ok", 0x21)
    assert bench.engine.entry(KERNEL + 0x21000) & (RW | NX) == 0
    assert bench.access(KERNEL + 0x24000, WRITE) == ("fault", 2)
    # One page table of the guest's has one of the shadow's, wherever it is linked.
    assert len(bench.mmu.leaves) == 1
    assert len(bench.mmu.uppers) == 2


def test_nothing_of_the_vmms_is_where_the_guest_has_addresses():
    bench = bench_of()
    bench.access(0x20000)
    hidden = VmmMemory.linear(VmmMemory.GDT, ia32e=True)
    assert not is_canonical(hidden)
    entry = bench.engine.entry(hidden)
    assert entry & LONG_FRAME == VmmMemory.hpa(VmmMemory.GDT)
    assert entry & (P | RW | US | NX) == P | NX
    for index in range(256, 512):  # as the lower and as the upper half
        assert not bench.engine.entry(index << 39)
        assert not bench.engine.entry(index << 39 | 0xFFFF << 48)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("bit", [RW, US, NX])
def test_rights_are_those_of_all_entries(index, bit):
    """Section 4.6."""
    bench = bench_of()
    entry = (PML4 + 8 * 511, PDPT + 8 * 510, PD, PT + 8 * 0x20)[index]
    bench.write64(entry, bench.ram.read64(entry) ^ bit)
    error = {RW: 1 | 2 | 4, US: 1 | 4, NX: 1 | 4 | 16}[bit]
    access = {RW: WRITE, US: READ, NX: FETCH}[bit]
    for gva in (0x20000, KERNEL + 0x20000):
        allowed = gva < KERNEL and index < 2
        wanted = ("ok", 0x20) if allowed else ("fault", error)
        assert bench.access(gva, access, user=True) == wanted
        assert bench.access(gva) == ("ok", 0x20)


def test_a_page_of_1_gib_is_runs_of_leaves():
    bench = bench_of(pages=0x600)
    bench.write64(PDPT + 8 * 510, PS | USED)
    gva = KERNEL + 0x400000
    assert bench.access(gva, WRITE) == ("ok", 0x400)
    assert bench.ram.read32(PDPT + 8 * 510) & (A | D) == A | D
    assert bench.access(KERNEL + 0x5FF000) == ("ok", 0x5FF)
    (tables,) = bench.mmu.leaves.values()
    assert (tables.frame, tables.size) == (0x400, 512)
    assert bench.access(KERNEL + 0x1000, FETCH) == ("ok", 1)
    assert len(bench.mmu.leaves) == 2
    # What its pages are used for narrows it, and what it was made from is compared.
    bench.mmu.use.execute(0x400)
    assert (0x400, False) not in bench.engine.tlb
    assert not bench.engine.entry(gva) & RW
    bench.write64(PDPT + 8 * 510, PD | USED)
    bench.invalidate(0x1000)
    assert bench.access(gva) == ("fault", 0)
    assert bench.access(KERNEL + 0x20000) == ("ok", 0x20)


LEVELS = {
    "PML4E": (PML4 + 8 * 511, 0x14000), "PDPTE": (PDPT + 8 * 510, 0x15000),
    "PDE": (PD, 0x16000), "PTE": (PT + 8 * 0x20, 0x21000),
}  # fmt: skip


@pytest.mark.parametrize("word", ["INVLPG", "MOV to CR3"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_change_counts_from_its_word_on(level, word):
    """Each level is compared; the copies lead to page 21h."""
    bench = bench_of()
    for start, table in ((0x11000, 0x14000), (0x12000, 0x15000), (0x13000, 0x16000)):
        bench.ram.map[table : table + 0x1000] = bench.ram.map[start : start + 0x1000]
    bench.write64(0x14000 + 8 * 510, 0x15000 | USED)
    bench.write64(0x15000, 0x16000 | USED)
    bench.write64(0x16000 + 8 * 0x20, 0x21000 | USED)
    gva = KERNEL + 0x20000
    assert bench.access(gva) == ("ok", 0x20)
    at, other = LEVELS[level]
    bench.write64(at, other | USED)
    assert bench.access(gva) == ("ok", 0x20)
    if word == "INVLPG":
        bench.invalidate(gva + 8)
    else:
        bench.switch(PML4)
    assert bench.access(gva) == ("ok", 0x21)


def test_roots_share_what_they_have_in_common():
    """Processes of Linux: the kernel's half is the same PDPTs."""
    bench = bench_of()
    other = 0x17000
    bench.write64(other + 8 * 511, PDPT | USED)
    gva = KERNEL + 0x20000
    assert bench.access(gva) == ("ok", 0x20)
    uppers, leaves, next_ = [*bench.mmu.uppers], [*bench.mmu.leaves], bench.mmu._next
    bench.switch(other)
    assert bench.access(gva + 0x1000) == ("ok", 0x21)
    assert bench.access(gva) == ("ok", 0x20)
    assert bench.access(0x20000) == ("fault", 0)
    assert ([*bench.mmu.uppers], [*bench.mmu.leaves]) == (uppers, leaves)
    assert bench.mmu._next == next_ + 3
    (table,) = bench.mmu.leaves.values()
    assert table.starts == {KERNEL: 1}
    # A change that one root hears of is one for the other, too.
    bench.write64(PD, 0)
    bench.invalidate(0)
    assert bench.access(gva) == ("fault", 0)
    assert table.starts == {}
    bench.switch(PML4)
    assert bench.access(gva) == ("fault", 0)
    assert bench.access(0x20000) == ("fault", 0)


def test_a_new_directory_is_news_for_the_roots_that_lead_to_it():
    """Compiled code goes on switching to the others: those of other processes."""
    bench = bench_of()
    sharing, alone = 0x17000, 0x18000
    bench.write64(sharing + 8 * 511, PDPT | USED)
    bench.write64(alone + 8 * 3, 0x14000 | USED)
    bench.write64(0x14000, 0x15000 | USED)
    bench.write64(0x15000, 0x16000 | USED)
    bench.write64(0x16000, 0x20000 | USED)
    bench.write64(PDPT + 8 * 509, 0x19000 | USED)
    bench.write64(0x19000, PT | USED)
    far = 3 << 39
    assert bench.access(KERNEL + 0x20000) == ("ok", 0x20)
    bench.switch(alone)
    assert bench.access(far) == ("ok", 0x20)
    bench.switch(sharing)
    assert bench.access(KERNEL + 0x20000) == ("ok", 0x20)
    bench.switch(PML4)
    assert bench.access(KERNEL - (1 << 30) + 0x20000) == ("ok", 0x20)
    bench.write64(0x19000, 0)  # of the new directory
    switches = bench.mmu.stats.switches
    bench.switch(alone)
    assert bench.mmu.stats.switches == switches
    assert bench.access(far) == ("ok", 0x20)
    bench.switch(sharing)
    assert bench.mmu.stats.switches == switches + 1
    assert bench.access(KERNEL - (1 << 30) + 0x20000) == ("fault", 0)


def test_a_page_that_becomes_code_is_narrowed_by_all_its_addresses():
    bench = bench_of()
    for gva in (0x20000, KERNEL + 0x20000):
        assert bench.access(gva, WRITE) == ("ok", 0x20)
    assert bench.access(KERNEL + 0x20000, FETCH) == ("ok", 0x20)
    for gva in (0x20000, KERNEL + 0x20000):
        assert not bench.engine.tlb.get((gva >> 12, False), 0) & RW
    assert bench.access(0x20000, WRITE) == ("ok", 0x20)
    assert bench.engine.entry(KERNEL + 0x20000) & NX


def test_the_pool_may_be_full_at_any_table():
    bench = bench_of()
    for room in range(6):
        assert bench.access(0x20000) == ("ok", 0x20)
        bench.mmu._next = VmmMemory.PAGES - room
        assert bench.access(KERNEL + 0x21000) == ("ok", 0x21)
        assert bench.access(0x20000) == ("ok", 0x20)
        bench.mmu._next = VmmMemory.PAGES - room
        bench.switch(0x17000)
        assert bench.access(0x20000) == ("fault", 0)
        bench.switch(PML4)


def test_a_pml4_that_maps_itself():
    """Its entry is PML4E, PDPTE, PDE and PTE at once."""
    bench = bench_of()
    bench.write64(PML4 + 8 * 256, PML4 | USED)
    itself = 0xFFFF800000000000 | 256 << 30 | 256 << 21 | 256 << 12
    assert bench.access(itself, WRITE) == ("ok", PML4 >> 12)
    assert bench.access(itself) == ("ok", PML4 >> 12)
    assert bench.ram.read32(PML4 + 8 * 256) & (A | D) == A | D
    bench.invalidate(itself)
    assert bench.access(itself) == ("ok", PML4 >> 12)
    assert bench.access(itself | 0x1000) == ("fault", 0)


def test_tables_that_lead_to_one_table_cost_little():
    """All entries of each level to one table: 134 million addresses of one page."""
    bench = bench_of()
    for table, below in ((PML4, PDPT), (PDPT, PD), (PD, PT)):
        for index in range(512):
            bench.write64(table + 8 * index, below | USED)
    for shift in (21, 30, 39):
        for index in range(1, 100):
            assert bench.access(index << shift | 0x20000) == ("ok", 0x20)
    (table,) = bench.mmu.leaves.values()
    assert len(table.starts) == MOST_STARTS + 1
    # Each of them is flushed all the same, and each link may go.
    gva = 99 << 39 | 99 << 30 | 99 << 21 | 0x20000
    assert bench.access(gva, WRITE) == ("ok", 0x20)
    assert bench.access(0x20000, FETCH) == ("ok", 0x20)
    assert not bench.engine.tlb.get((gva >> 12, False), 0) & RW
    for table, index in ((PD, 99), (PDPT, 99), (PML4, 99)):
        bench.write64(table + 8 * index, 0)
        bench.mmu.invalidate(0)
        assert bench.access(gva) == ("fault", 0)
        assert bench.access(0x20000) == ("ok", 0x20)
