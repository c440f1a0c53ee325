"""Guest RAM of more than 3 GiB, which is in two parts."""

from emu86 import config
from emu86.config import HIGH, LOW_MOST
from emu86.machine import boot
from emu86.mmu.paging import PAGING_32, PAGING_32_PSE
from emu86.mmu.ram import UNBACKED, Ram

GIB = 1 << 30


def test_where_it_is():
    ram = Ram(5 * GIB)
    assert (ram.low, ram.size) == (LOW_MOST, HIGH + 2 * GIB)
    assert ram.parts == (range(3 * GIB), range(4 * GIB, 6 * GIB))
    edges = {3 * GIB: True, 4 * GIB: False, 6 * GIB: True}
    for end, is_end in edges.items():
        for gpa, there in ((end - 8, is_end), (end, not is_end)):
            assert ram.holds(gpa) == there, hex(gpa)
            assert ram.backed(gpa >> 12) == there
            assert ram.read64(gpa) == (0 if there else (1 << 64) - 1)
            assert ram.read32(gpa) == (0 if there else (1 << 32) - 1)
            ram.write32(gpa, 0x1234)
            assert ram.read32(gpa) == (0x1234 if there else 0xFFFFFFFF)
    assert ram.state[3 * GIB >> 12] == UNBACKED


def test_ones_are_read_where_there_is_none():
    ram = Ram(4 * GIB)
    assert ram.read(3 * GIB - 2, 4) == b"\0\0\xff\xff"
    assert ram.read(4 * GIB - 2, 4) == b"\xff\xff\0\0"
    assert ram.read(5 * GIB - 2, 4) == b"\0\0\xff\xff"
    assert ram.read(6 * GIB, 2) == b"\xff\xff"


def test_small_guests_have_one_part():
    for size in (1 << 20, 3 * GIB):
        ram = Ram(size)
        assert ram.parts == (range(size),)
        assert ram.low == ram.size == size


def test_no_page_table_is_in_the_hole():
    """There ones are read, of which the lowest says that the entry is present."""
    ram = Ram(4 * GIB)
    for layout in (PAGING_32, PAGING_32_PSE):
        found = layout.walk(ram, (0xC0000000,), 0)
        assert (found.mapped, found.fault) != (False, 0)


def test_it_is_saved_and_restored(monkeypatch):
    monkeypatch.setattr(config, "LOW_MOST", 3 << 20)
    monkeypatch.setattr(config, "HIGH", 4 << 20)
    mib = 1 << 20
    ram = Ram(4 * mib)
    for at in (0x5000, 3 * mib - 4, 4 * mib, 5 * mib - 4):
        ram.write32(at, at | 1)
    saved = ram.save()
    pages = [start for start, data in saved for _ in range(len(data) >> 12)]
    assert pages == [0x5000, 3 * mib - 4096, 4 * mib, 5 * mib - 4096]
    other = Ram(4 * mib)
    other.write32(4 * mib + 0x8000, 1)
    other.restore(saved)
    assert other.save() == saved


def test_the_memory_map():
    low = boot.memory_map(3 * GIB)
    assert low[-1] == (1 << 20, 3 * GIB - (1 << 20), 1)
    assert boot.memory_map(8 * GIB) == [*low, (4 * GIB, 5 * GIB, 1)]
