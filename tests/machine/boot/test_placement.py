"""The memory map and the choice of places."""

import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86 import Machine
from emu86.errors import ConfigError
from emu86.machine import boot
from emu86.machine.boot.placement import LOW_END, MIB, Placement, human
from emu86.mmu.ram import Ram


@pytest.mark.parametrize("size", [1 << 20, 4 << 20, 3 << 30])
def test_the_memory_map_tells_all_ram_and_nothing_more(size):
    entries = boot.memory_map(size)
    ends = [base + length for base, length, _ in entries]
    assert [base for base, _, _ in entries] == [0, *ends[:-1]]
    assert ends[-1] == size
    assert [kind for _, _, kind in entries] == [1, 2, 1][: len(entries)]
    assert entries[0][1] == 0x9FC00


def test_the_entry_has_flat_segments():
    ram = memoryview(bytearray(MIB))
    entry = Placement(ram).entry(0x1234, {"eax": 1})
    gdt = ram[entry.gdt_base : entry.gdt_base + entry.gdt_limit + 1]
    assert (entry.eip, entry.registers) == (0x1234, {"eax": 1})
    code = int.from_bytes(gdt[entry.cs : entry.cs + 8], "little")
    data = int.from_bytes(gdt[entry.ds : entry.ds + 8], "little")
    assert (entry.cs, entry.ds) == (0x10, 0x18)
    assert code == 0x00CF9B000000FFFF
    assert data == 0x00CF93000000FFFF


def test_a_part_is_not_put_over_another():
    places = Placement(memoryview(bytearray(2 * MIB)))
    places.put("kernel", MIB, bytes(100))
    with pytest.raises(ConfigError, match="^initrd: .* taken already"):
        places.put("initrd", MIB + 99, b"x")
    places.put("initrd", MIB + 100, b"x")


def test_a_part_is_not_put_where_a_pc_has_no_memory():
    places = Placement(memoryview(bytearray(2 * MIB)))
    with pytest.raises(ConfigError, match="^kernel: .* no memory"):
        places.put("kernel", 0xA0000 - 1, b"xx")
    places.put("kernel", LOW_END, b"xx")  # over a BIOS's data: as QEMU does
    with pytest.raises(ConfigError, match="^kernel: does not fit: needs 3 MiB"):
        places.put("kernel", 2 * MIB, b"x")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1025, "2 KiB"),
        (MIB, "1 MiB"),
        (129 * MIB - 1, "129 MiB"),
        (3 << 30, "3 GiB"),
        ((4 << 30) + 1, "4097 MiB"),
    ],
)
def test_sizes_are_for_people_and_never_rounded_down(size, text):
    assert human(size) == text


def test_zeros_clear_what_was_there():
    ram = memoryview(bytearray(b"\xff" * 4 * MIB))
    Placement(ram).put_zeros("kernel", MIB + 1, 2 * MIB)
    assert ram[MIB] == ram[3 * MIB + 1] == 0xFF
    assert not any(ram[MIB + 1 : 3 * MIB + 1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_zeros_over_what_nobody_has_written_take_no_memory():
    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * mmap.PAGESIZE

    ram = Ram(256 * MIB)
    before = resident()
    Placement(ram.bytes).put_zeros("kernel", MIB, 200 * MIB)
    assert resident() - before < 50 * MIB


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.binary(min_size=1, max_size=3), st.integers(1, 20000)
        ),
        max_size=20,
    )
)
def test_chosen_places_never_overlap(parts):
    ram = memoryview(bytearray(2 * MIB))
    places = Placement(ram)
    placed = []
    for low, pattern, size in parts:
        data = (pattern * size)[:size]
        address = (
            places.put_low("x", data) if low else places.put_high("x", data, 2 * MIB)
        )
        assert address < LOW_END if low else address % 4096 == 0
        placed.append((address, data))
    for address, data in placed:
        assert ram[address : address + len(data)] == data


def test_low_memory_runs_out():
    places = Placement(memoryview(bytearray(2 * MIB)))
    places.put_low("x", bytes(0x9E000))
    with pytest.raises(ConfigError, match="^y: no room"):
        places.put_low("y", bytes(0x1000))


def test_what_is_put_somewhere_is_below_4_gib():
    machine = Machine("4G")
    told = "needs 3073 MiB of memory, the machine has 3 GiB below 4 GiB$"
    with pytest.raises(ConfigError, match=told):
        machine.load_flat(b"\xf4", 3 << 30)
