"""4-level paging: memory as the emulation sees it, of 64-bit addresses."""

import pytest

from emu86.mmu.memory import PageFault
from support.paging import LMA, NXE, PAE, PG, PS, RW, US, WP, A, Bench, D, P

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
    bench.memory.forget(KERNEL + 0x1000)
    assert bench.memory.read(KERNEL + 0x22000, 1) == 0x23
