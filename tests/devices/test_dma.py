"""The 8237A DMA controller: what its data sheet says of each register."""

import pytest

from emu86.devices.dma import Dma, DmaLine, DmaPages
from support.floppy import Memory


class Guest:
    """A controller of bytes, and a device on channel 2."""

    def __init__(self):
        self.dma, self.pages, self.memory = Dma(), DmaPages(), Memory()
        self.device = DmaLine(self.dma, self.pages, self.memory, 2)

    def __getitem__(self, register):
        return self.dma.read(register, 1, 0)

    def __setitem__(self, register, value):
        self.dma.write(register, 1, value, 0)

    def program(self, mode, address, count, page=0):
        self[12] = 0
        self[11] = mode | 2
        for value in (address & 0xFF, address >> 8):
            self[4] = value
        for value in (count & 0xFF, count >> 8):
            self[5] = value
        self.pages.write(0, 1, page, 0)
        self[10] = 2

    def word(self, register):
        return self[register] | self[register] << 8


@pytest.fixture
def guest():
    return Guest()


def test_after_reset_all_channels_are_masked(guest):
    assert guest[15] == 0xF
    assert guest[8] == 0
    assert not guest.device.ready


def test_addresses_and_counts_are_of_two_bytes_by_one_flip_flop(guest):
    guest.program(0x44, 0x1234, 0xABCD)
    assert (guest.word(4), guest.word(5)) == (0x1234, 0xABCD)
    assert guest[4] == 0x34
    guest[12] = 0xFF
    assert guest[4] == 0x34
    assert guest[5] == 0xAB  # the flip-flop is that of all


def test_masks_of_one_channel_and_of_all(guest):
    guest[14] = 0
    assert guest[15] == 0
    guest[10] = 5
    assert guest[15] == 2
    guest[10] = 1
    assert guest[15] == 0
    guest[15] = 0xFA
    assert guest[15] == 0xA


def test_a_master_clear_masks_all(guest):
    guest.program(0x44, 0x1234, 9)
    guest[8] = 4
    guest[4] = 0
    guest[13] = 0
    assert guest[15] == 0xF
    guest[14] = 0
    assert guest.device.ready
    assert guest[4] == 0  # the low byte comes next, which was written


def test_a_transfer_to_memory_up_to_its_terminal_count(guest):
    guest.program(0x44, 0x1000, 4, page=1)
    assert guest.device.give(b"abc") == (3, False)
    assert (guest.word(4), guest.word(5)) == (0x1003, 1)
    assert guest[8] == 0
    assert guest.device.give(b"defg") == (2, True)
    assert guest.memory.read(0x10FFF, 7) == b"\0abcde\0"
    assert guest[8] == 4
    assert guest[8] == 0  # reading it clears it
    assert guest[15] == 0xF  # the channel masks itself
    assert not guest.device.ready
    assert (guest.word(4), guest.word(5)) == (0x1005, 0xFFFF)


def test_a_transfer_from_memory(guest):
    guest.memory.write(0x1FFE, b"abcdef")
    guest.program(0x48, 0x1FFE, 3)
    assert guest.device.take(512) == (b"abcd", True)


def test_autoinitialization_begins_anew(guest):
    guest.program(0x54, 0x1000, 1)
    for data in (b"ab", b"cd"):
        assert guest.device.give(data) == (2, True)
        assert guest.device.ready
    assert guest.memory.read(0x1000, 3) == b"cd\0"
    assert (guest.word(4), guest.word(5)) == (0x1000, 1)


def test_addresses_that_count_down(guest):
    guest.program(0x64, 0x1003, 3)
    guest.device.give(b"abcd")
    assert guest.memory.read(0x1000, 5) == b"dcba\0"
    assert guest.word(4) == 0x0FFF
    guest.program(0x68, 0x1003, 3)
    assert guest.device.take(4) == (b"abcd", True)


@pytest.mark.parametrize(("mode", "start"), [(0x44, 0xFFFE), (0x64, 0x0001)])
def test_addresses_wrap_at_64_kib(guest, mode, start):
    guest.program(mode, start, 3, page=1)
    guest.device.give(b"abcd")
    up = mode == 0x44
    assert guest.memory.read(0x10000, 2) == (b"cd" if up else b"ba")
    assert guest.memory.read(0x1FFFE, 2) == (b"ab" if up else b"dc")
    assert guest.memory.read(0, 2) == bytes(2)  # no carry into the page
    guest.program(mode ^ 0x0C, start, 3, page=1)
    assert guest.device.take(4) == (b"abcd", True)


@pytest.mark.parametrize("mode", [0x40, 0x48])
def test_a_channel_not_programmed_to_write_changes_no_memory(guest, mode):
    guest.program(mode, 0x1000, 3)
    assert guest.device.give(b"abcd") == (4, True)
    assert guest.memory.read(0x1000, 4) == bytes(4)


def test_a_channel_not_programmed_to_read_gives_ones(guest):
    guest.program(0x44, 0x1000, 3)
    assert guest.device.take(4) == (b"\xff" * 4, True)


def test_who_is_not_served(guest):
    guest.program(0x44, 0, 3)
    assert guest.device.ready
    guest[8] = 4
    assert not guest.device.ready
    guest[8] = 0
    guest[11] = 0xC6
    assert not guest.device.ready


def test_registers_of_the_second_controller_are_two_apart():
    dma = Dma(step=2)
    dma.write(0x1E, 1, 5, 0)
    assert dma.read(0x1E, 1, 0) == 5
    dma.write(8, 1, 0x34, 0)
    dma.write(8, 1, 0x12, 0)
    assert (dma.read(8, 1, 0), dma.read(8, 1, 0)) == (0x34, 0x12)


def test_page_registers_can_be_read():
    pages = DmaPages()
    for offset in range(15):
        pages.write(offset, 1, offset + 0x100, 0)
    assert [pages.read(offset, 1, 0) for offset in range(15)] == list(range(15))
    assert [pages[channel] for channel in range(4)] == [6, 2, 0, 1]


def test_its_state_is_saved_and_restored(guest):
    guest.program(0x44, 0x1234, 2)
    guest.device.give(b"ab")
    guest[4] = 7
    state, pages = guest.dma.save(), guest.pages.save()
    other = Guest()
    other.dma.restore(state)
    other.pages.restore(pages)
    assert other.dma.save() == state
    for one in (guest, other):
        assert one.device.ready
        assert one[4] == guest.dma.save().channels[2][2] >> 8
        assert one.device.give(b"c") == (1, True)
        assert one[8] == 4
