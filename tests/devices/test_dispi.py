"""The DISPI interface: registers as QEMU's `-vga std` has them, memory, pictures."""

import pytest

from devices.test_vga import MISC, SEQUENCER, Card
from emu86.devices import dispi as d
from emu86.devices import vga_picture as picture


class Screen(Card):
    """A VGA and its DISPI interface."""

    def put(self, index, value):
        self.vga.dispi.write(0, 2, index, 0)
        self.vga.dispi.write(1, 2, value, 0)

    def at(self, index):
        self.vga.dispi.write(0, 2, index, 0)
        return self.vga.dispi.read(1, 2, 0)

    def mode(self, width, height, bits, enable=0x41):
        self.put(d.ENABLE, 0)
        self.put(d.XRES, width)
        self.put(d.YRES, height)
        self.put(d.BPP, bits)
        self.put(d.ENABLE, enable)

    def fill(self, at, data):
        self.vga.dispi.write_memory(at, bytes(data))

    def seen(self):
        return picture.pixels(self.vga.frame())


@pytest.fixture
def card():
    return Screen()


def test_registers(card):
    assert card.at(d.ID) == 0xB0C5
    card.put(d.ID, 0xB0C2)
    card.put(d.ID, 0xB0C6)  # is none
    assert card.at(d.ID) == 0xB0C2
    assert card.at(d.VIDEO_MEMORY_64K) == 128
    assert card.at(11) == card.at(0xFFFF) == 0
    card.put(0xFFFF, 1)
    card.put(d.ENABLE, d.GETCAPS)
    assert [card.at(i) for i in (d.XRES, d.YRES, d.BPP)] == [16000, 12000, 32]
    card.put(d.ENABLE, 0)
    assert card.at(d.XRES) == 0
    assert card.vga.dispi.read(1, 1, 0) == 0xFF
    card.vga.dispi.write(0, 1, d.BPP, 0)
    assert card.vga.dispi.read(0, 2, 0) == d.XRES


def test_what_does_not_fit_is_made_to(card):
    card.mode(643, 0, 7)
    registers = card.vga.dispi.registers
    assert registers[d.XRES : d.ENABLE] == (640, 1, 8)
    assert registers[d.VIRT_WIDTH] == 640
    assert registers[d.VIRT_HEIGHT] == d.SIZE // 640
    card.put(d.BPP, 32)
    card.put(d.YRES, 0xFFFF)
    assert card.at(d.YRES) == card.at(d.VIRT_HEIGHT) == d.SIZE // 2560
    card.put(d.YRES, 480)
    card.put(d.Y_OFFSET, 480)
    assert card.at(d.Y_OFFSET) == 480
    card.put(d.Y_OFFSET, d.SIZE // 2560 - 479)
    assert card.at(d.Y_OFFSET) == 0
    card.put(d.VIRT_WIDTH, 1)
    assert card.at(d.VIRT_WIDTH) == 640
    for index in range(12):
        card.put(index, 0xFFFF)
        card.seen()


@pytest.mark.parametrize(
    ("bits", "data"),
    [
        (15, "007c e003 1f00 ff7f"),
        (16, "00f8 e007 1f00 ffff"),
        (24, "0000ff 00ff00 ff0000 ffffff"),
        (32, "0000ff00 00ff0011 ff000022 ffffff33"),
    ],
)
def test_pictures(card, bits, data):
    card.mode(8, 1, bits)
    card.fill(0, bytes.fromhex(data))
    shown = card.seen()
    assert shown[:2] == (8, 1)
    assert shown.rgb == bytes.fromhex("ff0000 00ff00 0000ff ffffff").ljust(24, b"\0")


def test_levels_between(card):
    card.mode(8, 1, 16)
    card.fill(0, [0x30, 0x8C])  # 17, 33, 16
    assert card.seen().rgb[:3] == bytes([0x8C, 0x86, 0x84])
    card.mode(8, 1, 15)
    card.fill(0, [0x30, 0x46])  # 17, 17, 16
    assert card.seen().rgb[:3] == bytes([0x8C, 0x8C, 0x84])


def test_colours_of_the_dac(card):
    card.mode(8, 1, 8, 0x61)
    for port, value in ((0x18, 5), (0x19, 0xFE), (0x19, 0x80), (0x19, 1)):
        card.vga.write(port, 1, value, 0)
    card.fill(0, [5])
    assert card.seen().rgb[:3] == bytes([0xFE, 0x80, 1])
    card.put(d.ENABLE, 0x41)
    assert card.seen().rgb[:3] == bytes([0xFB, 0, 4])
    card.set(SEQUENCER, _1=0x21)  # the screen is off
    assert not any(card.seen().rgb)


def test_part_of_a_larger_picture(card):
    card.mode(8, 2, 8)
    card.put(d.VIRT_WIDTH, 16)
    card.put(d.X_OFFSET, 3)
    card.put(d.Y_OFFSET, 1)
    card.fill(0, range(64))
    assert card.vga.frame().linear.data == bytes([*range(19, 27), *range(35, 43)])


def test_memory_is_cleared_or_kept(card):
    card.fill(0, [1] * 17)
    card.mode(8, 2, 8, 0xC1)
    assert card.vga.dispi.read_memory(0, 17) == bytes([1] * 17)
    card.mode(8, 2, 8)
    assert card.vga.dispi.read_memory(0, 17) == bytes(16) + b"\1"
    card.fill(d.SIZE - 1, [7, 8])
    assert card.vga.dispi.read_memory(d.SIZE - 1, 2) == b"\7\xff"


def test_banks_in_place_of_the_planes(card):
    card.poke(0x18000, 65)
    card.mode(640, 480, 8)
    assert not card.plain
    card.put(d.BANK, 128 + 3)
    assert card.at(d.BANK) == 3
    card.poke(5, 0x55)
    card.poke(0x10000, 1)
    assert card.vga.dispi.read_memory(0x30005, 1) == b"\x55"
    assert (card.peek(5), card.peek(0x10000)) == (0x55, 0xFF)
    card.put(d.ENABLE, 0)
    assert card.at(d.BANK) == 0
    assert card.peek(0x18000) == 65
    assert picture.is_text(card.vga.frame())
    card.vga.write(MISC, 1, 1, 0)  # nor are the planes there
    card.mode(640, 480, 8)
    assert not card.plain


def test_save_and_restore(card):
    card.poke(0x18000, 65)
    card.mode(640, 480, 16)
    card.fill(1000, b"picture")
    other = Screen()
    other.vga.restore(card.vga.save())
    other.vga.dispi.restore(card.vga.dispi.save())
    assert other.vga.frame() == card.vga.frame()
    assert other.plain == card.plain
    assert other.vga.dispi.save() == card.vga.dispi.save()
    other.put(d.ENABLE, 0)
    assert other.peek(0x18000) == 65
    text = Screen()
    other.mode(640, 480, 16)
    other.vga.restore(text.vga.save())
    other.vga.dispi.restore(text.vga.dispi.save())
    assert other.vga.frame() == text.vga.frame()
    assert other.plain == text.plain
