"""Registers and memory of the VGA.

By the IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem".
"""

import pytest

from emu86.devices.vga import Vga
from emu86.devices.vga_memory import WINDOW

FONT = bytes(range(256)) * 16
TEXT = 0x18000  # of the window: B8000h
SEQUENCER, GRAPHICS, CRTC = 0x14, 0x1E, 0x24
STATUS = 0x2A
MISC = 0x12


class Card:
    """A VGA in a PC, and a CPU that does not ask which of its memory is plain."""

    def __init__(self):
        self.window = memoryview(bytearray(b"\xff" * WINDOW))
        self.plain = range(0)
        self.vga = Vga(self.window, self.show, FONT)

    def show(self, plain):
        self.plain = plain

    def set(self, port, **registers):
        for name, value in registers.items():
            self.vga.write(port, 1, int(name[1:], 16), 0)
            self.vga.write(port + 1, 1, value, 0)

    def get(self, port, index):
        self.vga.write(port, 1, index, 0)
        return self.vga.read(port + 1, 1, 0)

    def peek(self, at):
        return self.window[at] if at in self.plain else self.vga.read_memory(at)

    def poke(self, at, value):
        if at in self.plain:
            self.window[at] = value
        else:
            self.vga.write_memory(at, value)

    def planes(self, at):
        return [plane[at] for plane in self.vga.frame().planes]

    def planar(self):
        """All planes at A0000h, one address after another."""
        self.set(SEQUENCER, _2=15, _4=6)
        self.set(GRAPHICS, _5=0, _6=5)


@pytest.fixture
def card():
    return Card()


def test_it_begins_in_text_mode_with_plain_memory(card):
    assert card.plain == range(TEXT, WINDOW)
    assert bytes(card.window[TEXT : TEXT + 4]) == b" \x07 \x07"
    assert card.get(CRTC, 0x13) == 40
    assert card.vga.read(0x1C, 1, 0) == 0x67


def test_characters_are_in_plane_0_and_attributes_in_plane_1(card):
    card.window[TEXT + 6 : TEXT + 8] = b"A\x1f"
    assert card.planes(6)[:2] == [0x41, 0x1F]


def test_a_font_is_loaded_into_plane_2_as_plain_memory(card):
    """As a BIOS and Linux do; the text is still there behind it."""
    card.window[TEXT : TEXT + 2] = b"A\x1f"
    card.set(SEQUENCER, _2=4, _4=7)
    card.set(GRAPHICS, _4=2, _5=0, _6=0x05)
    assert card.plain == range(0x10000)
    assert card.window[32 + 3] == FONT[16 + 3]
    card.window[32 + 3] = 0x5A
    card.set(SEQUENCER, _2=3, _4=2)
    card.set(GRAPHICS, _4=0, _5=0x10, _6=0x0E)
    assert card.plain == range(TEXT, WINDOW)
    assert bytes(card.window[TEXT : TEXT + 2]) == b"A\x1f"
    assert card.window[0] == 0xFF
    assert card.planes(32 + 3)[2] == 0x5A


@pytest.mark.parametrize(
    ("select", "first", "size"),
    [(1, 0, 0x10000), (2, 0x10000, 0x8000), (3, 0x18000, 0x8000)],
)
def test_where_the_window_is(card, select, first, size):
    card.set(GRAPHICS, _6=select << 2)
    assert card.plain == range(first, first + size)
    card.set(GRAPHICS, _5=0x11)
    assert not card.plain
    outside = first - 1 if first else size
    card.poke(outside, 5)
    assert card.peek(outside) == 0xFF


def test_memory_can_be_switched_off(card):
    card.vga.write(MISC, 1, 0x65, 0)
    assert not card.plain
    assert card.peek(TEXT) == 0xFF
    card.vga.write(MISC, 1, 0x67, 0)
    assert card.peek(TEXT) == 0x20


def test_chain_4_is_plain_and_one_plane_after_another(card):
    card.set(SEQUENCER, _2=15, _4=0x0E)
    card.set(GRAPHICS, _5=0x40, _6=0x05)
    assert card.plain == range(0x10000)
    card.window[8:12] = bytes((1, 2, 3, 4))
    assert card.planes(8) == [1, 2, 3, 4]
    card.set(SEQUENCER, _2=5)  # planes 0 and 2 alone
    for at in range(8, 12):
        card.poke(at, 9)
    assert card.planes(8) == [9, 2, 9, 4]
    assert [card.peek(at) for at in range(8, 12)] == [9, 2, 9, 4]


@pytest.mark.parametrize("plane", range(4))
def test_one_plane_is_plain_where_it_is_read_and_written(card, plane):
    card.planar()
    card.set(SEQUENCER, _2=1 << plane)
    card.set(GRAPHICS, _4=plane)
    assert card.plain
    card.window[0x9077] = 0x5A
    assert card.planes(0x9077) == [0x5A if n == plane else 0 for n in range(4)]


def test_a_write_goes_to_the_planes_of_the_mask(card):
    card.planar()
    card.set(SEQUENCER, _2=0b1010)
    card.poke(0x9001, 0x3C)
    assert card.planes(0x9001) == [0, 0x3C, 0, 0x3C]


def filled(card, *planes):
    """Give the byte at 0x9001 these planes."""
    card.planar()
    for n, value in enumerate(planes):
        card.set(SEQUENCER, _2=1 << n)
        card.poke(0x9001, value)
    card.set(SEQUENCER, _2=15)


@pytest.mark.parametrize(
    ("function", "expected"),
    [(0, 0x0F), (1, 0x0F & 0x33), (2, 0x0F | 0x33), (3, 0x0F ^ 0x33)],
)
def test_write_mode_0_rotates_and_combines_with_the_latches(card, function, expected):
    filled(card, 0x33, 0x33, 0x33, 0x33)
    card.peek(0x9001)
    card.set(GRAPHICS, _3=function << 3 | 4)
    card.poke(0x9001, 0xF0)
    assert card.planes(0x9001) == [expected] * 4


def test_set_reset_and_the_bit_mask(card):
    filled(card, 0, 0xFF, 0, 0xFF)
    card.set(GRAPHICS, _0=0b0011, _1=0b0111, _8=0x0F)
    card.peek(0x9001)
    card.poke(0x9001, 0x55)
    assert card.planes(0x9001) == [0x0F, 0xFF, 0x00, 0xF5]


def test_write_mode_1_copies_the_latches(card):
    filled(card, 1, 2, 3, 4)
    card.set(GRAPHICS, _5=1, _8=0)
    assert card.peek(0x9001) == 1
    card.poke(0x9100, 0xFF)
    assert card.planes(0x9100) == [1, 2, 3, 4]


def test_write_mode_2_writes_a_colour(card):
    filled(card, 0, 0, 0xFF, 0xFF)
    card.set(GRAPHICS, _5=2, _8=0x81)
    card.peek(0x9001)
    card.poke(0x9001, 0b0101)
    assert card.planes(0x9001) == [0x81, 0, 0xFF, 0x7E]


def test_write_mode_3_writes_set_reset_through_the_data(card):
    filled(card, 0, 0, 0xFF, 0xFF)
    card.set(GRAPHICS, _0=0b0101, _5=3, _8=0xF0)
    card.peek(0x9001)
    card.poke(0x9001, 0x3C)
    assert card.planes(0x9001) == [0x30, 0, 0xFF, 0xCF]


def test_read_mode_1_compares_colours(card):
    filled(card, 0b1100, 0b1010, 0xFF, 0)
    card.set(GRAPHICS, _2=0b0101, _5=8, _7=0b0111)
    assert card.peek(0x9001) == 0b1100 & ~0b1010 & 0xFF
    card.set(GRAPHICS, _7=0)
    assert card.peek(0x9001) == 0xFF


def test_odd_and_even_addresses_with_a_plane_masked(card):
    card.set(SEQUENCER, _2=2)
    assert not card.plain
    card.poke(TEXT + 4, 9)
    card.poke(TEXT + 5, 9)
    assert card.planes(4)[:2] == [0x20, 9]
    assert (card.peek(TEXT + 4), card.peek(TEXT + 5)) == (0x20, 9)


def test_the_first_crtc_registers_can_be_protected(card):
    assert card.get(CRTC, 0x11) & 0x80
    card.set(CRTC, _1=0, _7=0x10)
    assert (card.get(CRTC, 1), card.get(CRTC, 7)) == (0x4F, 0x1F)
    card.set(CRTC, _7=0)
    assert card.get(CRTC, 7) == 0x0F
    card.set(CRTC, _11=0, _1=0)
    assert card.get(CRTC, 1) == 0


def test_the_crtc_is_at_one_of_two_places(card):
    assert card.vga.read(0x05, 1, 0) == 0xFF
    card.vga.write(MISC, 1, 0x66, 0)
    assert (card.get(0x04, 0x13), card.vga.read(CRTC + 1, 1, 0)) == (40, 0xFF)


def test_the_attribute_port_takes_an_index_and_then_data(card):
    card.vga.read(STATUS, 1, 0)
    for value in (0x31, 0x15, 0x33, 0x08):
        card.vga.write(0x10, 1, value, 0)
    frame = card.vga.frame()
    assert (frame.attribute[0x11], frame.attribute[0x13]) == (0x15, 8)
    assert card.vga.read(0x10, 1, 0) == 0x33
    assert card.vga.read(0x11, 1, 0) == 8
    card.vga.write(0x10, 1, 0x31, 0)
    card.vga.read(STATUS, 1, 0)
    card.vga.write(0x10, 1, 0x12, 0)  # an index, and the screen goes off
    assert not card.vga.frame().on
    assert card.vga.read(0x11, 1, 0) == 15


def test_the_palette_goes_on_by_itself(card):
    card.vga.write(0x18, 1, 255, 0)
    for value in (0x3F, 0x40, 0xC1, 9):
        card.vga.write(0x19, 1, value, 0)
    dac = card.vga.frame().dac
    assert (dac[765:], dac[0]) == (b"\x3f\x00\x01", 9)
    assert card.vga.read(0x17, 1, 0) == 0
    card.vga.write(0x17, 1, 255, 0)
    assert card.vga.read(0x17, 1, 0) == 3
    assert [card.vga.read(0x19, 1, 0) for _ in range(4)] == [0x3F, 0, 1, 9]


def test_the_beam(card):
    """449 lines of 900 dots at 28.322 MHz: 70 pictures a second, 400 lines seen."""
    line = 900 / 28_322_000 * 1e9

    def status(lines, dots=0):
        return card.vga.read(STATUS, 1, round(line * (lines + dots / 900)) + 20)

    assert status(0) == status(399, 700) == 0
    assert status(10, 730) == 1
    assert status(400) == status(411, 899) == 1
    assert status(412) == status(413) == 9
    assert status(414) == 1
    assert status(449) == 0


def test_what_there_is_of_a_register_is_read_back(card):
    card.set(GRAPHICS, _4=0xFF, _5=0xFF, _9=0xFF)
    assert [card.get(GRAPHICS, n) for n in (4, 5, 9)] == [3, 0x7B, 0]
    card.set(SEQUENCER, _1=0xFF, _7=0xFF)
    assert [card.get(SEQUENCER, n) for n in (1, 7)] == [0x3D, 0]
    assert card.get(CRTC, 0x1F) == 0
    assert (card.vga.read(0x13, 1, 0), card.vga.read(0x20, 1, 0)) == (0xFF, 0xFF)


def test_a_frame_does_not_change_and_no_change_of_layout_disturbs_it(card):
    """Another thread takes it while the guest sets a mode."""
    before = card.vga.frame()
    card.planar()
    assert card.vga.frame().planes is not card.vga._memory.planes
    taken = card.vga.frame()
    card.poke(0x9001, 0x5A)
    assert (before.planes[0][0x9001], taken.planes[0][0x9001]) == (0, 0)

    memory = card.vga._memory
    layout, looks = memory._layout, []

    class Changing(type(memory)):
        """It may have another layout at each look, and so is looked at once."""

        @property
        def _layout(self):
            looks.append(layout)
            return layout

    memory.__class__ = Changing
    memory.now()
    assert len(looks) == 1


def test_save_and_restore(card):
    filled(card, 1, 2, 3, 4)
    card.set(GRAPHICS, _5=0x40, _6=0x05)
    card.set(SEQUENCER, _4=0x0E)
    card.window[0] = 77
    other = Card()
    other.vga.restore(card.vga.save())
    assert other.vga.frame() == card.vga.frame()
    assert (other.plain, other.window) == (card.plain, card.window)
    assert other.vga.save() == card.vga.save()
