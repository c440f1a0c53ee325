"""What a VGA shows in the modes that a BIOS sets, and in those that games set.

Registers of the modes: IBM PS/2 Hardware Interface Technical Reference; Ralf Brown's
Interrupt List, table 00010 (INT 10h, AH=00h) for the sizes.
"""

import pytest

from devices.test_vga import CRTC, GRAPHICS, SEQUENCER, STATUS, TEXT, Card
from emu86.devices import vga_picture as picture

# By mode: miscellaneous, sequencer 1 to 4, CRTC but for its cursor and start address,
# graphics 5 and 6, attribute 10h.
MODES = {
    "13h": (0x63, "010f000e", "5f4f50825480bf1f0041 9c8e8f284096b9a3ff", 0x40, 5, 0x41),
    "12h": (0xE3, "010f0006", "5f4f508254800b3e0040 ea8cdf2800e704e3ff", 0, 5, 1),
    "0Dh": (0x63, "090f0006", "2d2728902b80bf1f00c0 9c8e8f140096b9e3ff", 0, 5, 1),
    "04h": (0x63, "09030002", "2d2728902b80bf1f00c1 9c8e8f140096b9a2ff", 0x30, 15, 1),
    "06h": (0x63, "01010006", "5f4f50825480bf1f00c1 9c8e8f280096b9c2ff", 0, 13, 1),
}  # fmt: skip


def attribute(card, index, value):
    card.vga.read(STATUS, 1, 0)
    card.vga.write(0x10, 1, index, 0)
    card.vga.write(0x10, 1, value, 0)
    card.vga.write(0x10, 1, 0x20, 0)


def set_mode(mode):
    """A card in a mode, its memory 0."""
    card = Card()
    misc, sequencer, crtc, five, six, control = MODES[mode]
    card.vga.write(0x12, 1, misc, 0)
    card.set(SEQUENCER, _2=15, _4=6)
    for index, value in enumerate(bytes.fromhex(sequencer), 1):
        card.vga.write(SEQUENCER, 1, index, 0)
        card.vga.write(SEQUENCER + 1, 1, value, 0)
    card.set(CRTC, _11=0)
    registers = bytes.fromhex(crtc.replace(" ", "00" * 6))
    for index, value in enumerate(registers):
        card.vga.write(CRTC, 1, index, 0)
        card.vga.write(CRTC + 1, 1, value, 0)
    card.set(GRAPHICS, _5=five, _6=six)
    attribute(card, 0x10, control)
    for plane in card.vga._memory.planes:
        plane[:] = bytes(len(plane))
    card.window[:] = bytes(len(card.window))
    return card


def indices(card):
    """Width, height and, by a palette of numbers, the colour of each pixel."""
    for i in range(16):
        attribute(card, i, i)
    card.vga.write(0x18, 1, 0, 0)
    for i in range(256):
        for value in (i >> 2, (i & 3) << 4, 0):
            card.vga.write(0x19, 1, value, 0)
    width, height, rgb = picture.pixels(card.vga.frame())
    pixels = [
        (red >> 2) << 2 | green >> 6
        for red, green in zip(rgb[::3], rgb[1::3], strict=True)
    ]
    return width, height, pixels


@pytest.mark.parametrize(
    ("mode", "width", "height"),
    [("13h", 320, 200), ("12h", 640, 480), ("0Dh", 320, 200), ("04h", 320, 200),
     ("06h", 640, 200)],
)  # fmt: skip
def test_sizes(mode, width, height):
    shown = picture.pixels(set_mode(mode).vga.frame())
    assert shown[:2] == (width, height)
    assert shown.rgb == bytes(3 * width * height)


def test_mode_13h_has_a_byte_for_each_pixel():
    card = set_mode("13h")
    assert card.plain == range(0x10000)
    card.window[0:5] = bytes((1, 2, 3, 4, 255))
    card.window[320 * 199 + 319] = 77
    _, _, pixels = indices(card)
    assert pixels[:6] == [1, 2, 3, 4, 255, 0]
    assert pixels[-1] == 77


def test_mode_12h_has_a_bit_in_each_plane():
    card = set_mode("12h")
    for plane, byte in enumerate((0b10101010, 0b11001100, 0b11110000, 0b1)):
        card.set(SEQUENCER, _2=1 << plane)
        card.poke(80 + 1, byte)
    _, _, pixels = indices(card)
    assert pixels[640 + 8 : 640 + 16] == [7, 6, 5, 4, 3, 2, 1, 8]


def test_mode_4_has_two_banks_of_lines():
    card = set_mode("04h")
    assert card.plain == range(TEXT, TEXT + 0x8000)
    card.window[TEXT : TEXT + 2] = bytes((0b00011011, 0b11000000))
    card.window[TEXT + 0x2000] = 0b01010101
    card.window[TEXT + 80] = 0b10101010
    _, _, pixels = indices(card)
    assert pixels[:9] == [0, 1, 2, 3, 3, 0, 0, 0, 0]
    assert pixels[320:325] == [1, 1, 1, 1, 0]
    assert pixels[640:645] == [2, 2, 2, 2, 0]


def test_mode_6_has_a_bit_for_each_pixel():
    card = set_mode("06h")
    card.set(GRAPHICS, _4=0)
    card.poke(TEXT, 0b01000001)
    card.poke(TEXT + 0x2000, 0b10000000)
    _, _, pixels = indices(card)
    assert pixels[:8] == [0, 1, 0, 0, 0, 0, 0, 1]
    assert pixels[640:642] == [1, 0]


def mode_x():
    """Mode 13h with its planes unchained: 320 by 200, four pixels at an address."""
    card = set_mode("13h")
    card.set(SEQUENCER, _4=6)
    card.set(CRTC, _14=0, _17=0xE3)
    return card


def test_the_unchained_mode_has_four_pixels_at_an_address():
    card = mode_x()
    for plane in range(4):
        card.set(SEQUENCER, _2=1 << plane)
        card.poke(80, 10 + plane)
    card.set(SEQUENCER, _2=15)
    card.poke(81, 9)
    _, _, pixels = indices(card)
    assert pixels[320:329] == [10, 11, 12, 13, 9, 9, 9, 9, 0]


def test_start_address_panning_and_split_screen():
    card = mode_x()
    card.set(SEQUENCER, _2=1)
    card.poke(0, 5)
    card.poke(1000, 6)
    card.set(CRTC, _C=1000 >> 8, _D=1000 & 255)
    _, _, pixels = indices(card)
    assert pixels[:2] == [6, 0]
    card.set(CRTC, _18=99, _7=0x0F, _9=0x01)  # below scan line 99
    _, _, pixels = indices(card)
    assert (pixels[0], pixels[50 * 320], pixels.count(5)) == (6, 5, 1)
    card.poke(1001, 7)
    attribute(card, 0x13, 4)
    _, _, pixels = indices(card)
    assert pixels[:4] == [0, 0, 7, 0]


def cells(text, attributes):
    card = Card()
    data = bytes(part for cell in zip(text, attributes, strict=True) for part in cell)
    card.window[TEXT : TEXT + len(data)] = data
    return card


def test_text():
    card = cells(b"AB", b"\x07\x9e")
    card.set(CRTC, _E=0, _F=81)
    shown = picture.text(card.vga.frame())
    assert (shown.columns, shown.rows) == (80, 25)
    assert shown.characters[:3] == b"AB "
    assert shown.attributes[:3] == b"\x07\x9e\x07"
    assert (shown.cursor, shown.lines, shown.blinks) == (81, (13, 14), True)


def test_a_page_of_text_that_begins_later():
    card = Card()
    card.window[TEXT + 160 * 3] = 0x58
    card.set(CRTC, _C=0, _D=240, _E=0, _F=241)
    shown = picture.text(card.vga.frame())
    assert (shown.characters[0], shown.cursor) == (0x58, 1)


@pytest.mark.parametrize("hidden", [{"_A": 0x2D}, {"_A": 15, "_B": 14}, {"_E": 9}])
def test_no_cursor(hidden):
    card = Card()
    card.set(CRTC, **hidden)
    assert picture.text(card.vga.frame()).cursor == -1


def test_the_picture_of_text():
    """Row 3 of a character of this font is its last number, modulo 16 and so on."""
    card = cells(b"\x55\xc3", b"\x1e\x47")
    card.set(CRTC, _A=0x20)
    width, height, rgb = picture.pixels(card.vga.frame())
    assert (width, height) == (720, 400)
    row = [tuple(rgb[3 * x : 3 * x + 3]) for x in range(18)]
    yellow, blue, red, grey = (255, 255, 85), (0, 0, 170), (170, 0, 0), (170,) * 3
    # Row 0 of 55h is 50h, of C3h 30h, whose eighth column is 0.
    assert row[:9] == [yellow if 0x50 << 1 >> 8 - x & 1 else blue for x in range(9)]
    assert row[9:] == [grey if 0x30 << 1 >> 8 - x & 1 else red for x in range(9)]
    line_1 = 720
    assert tuple(rgb[3 * (line_1 + 8) :][:3]) == blue  # 51h: its eighth is set
    assert tuple(rgb[3 * (line_1 + 17) :][:3]) == grey  # of C0h to DFh, so is the ninth


def test_the_cursor_is_drawn_in_the_colour_of_its_character():
    card = cells(b"\x00", b"\x12")
    _, _, rgb = picture.pixels(card.vga.frame())
    at = 3 * 720 * 13
    assert rgb[at : at + 27] == b"\x00\xaa\x00" * 9


def test_nothing_is_seen_while_the_screen_is_off():
    card = cells(b"A", b"\x1e")
    card.set(SEQUENCER, _1=0x20)
    assert not any(picture.pixels(card.vga.frame()).rgb)
    assert not any(picture.text(card.vga.frame()).characters)
