"""QEMU's firmware configuration device: docs/specs/fw_cfg.rst."""

import struct

from emu86.devices.bus import Bus
from emu86.devices.fw_cfg import FwCfg

SELECTOR, DATA = 0x510, 0x511
FILES = {"vgaroms/vgabios.bin": b"\x55\xaa\x01", "etc/other": b"xyz"}


class Guest:
    """What reads items, as a BIOS does."""

    def __init__(self):
        self.bus = Bus()
        self.chip = FwCfg(0x1_2345_6000, FILES)
        self.bus.attach(range(SELECTOR, DATA + 1), self.chip, "fw_cfg")

    def select(self, key):
        self.bus.write(SELECTOR, 2, key, 0)

    def read(self, size):
        return bytes(self.bus.read(DATA, 1, 0) for _ in range(size))

    def item(self, key, size):
        self.select(key)
        return self.read(size)


def test_the_signature_and_the_interface():
    guest = Guest()
    assert guest.item(0x00, 4) == b"QEMU"
    assert guest.item(0x01, 4) == b"\1\0\0\0"  # traditional, no DMA


def test_the_size_of_ram_and_the_cpu():
    guest = Guest()
    assert struct.unpack("<Q", guest.item(0x03, 8)) == (0x1_2345_6000,)
    assert struct.unpack("<H", guest.item(0x05, 2)) == (1,)


def test_files_are_found_by_the_directory():
    guest = Guest()
    (count,) = struct.unpack(">I", guest.item(0x19, 4))
    found = {}
    for _ in range(count):
        size, key, _, name = struct.unpack(">IHH56s", guest.read(64))
        found[name.rstrip(b"\0").decode()] = size, key
    assert list(found) == list(FILES)
    for name, (size, key) in found.items():
        assert guest.item(key, size) == FILES[name]


def test_zeros_are_behind_an_item_and_where_there_is_none():
    guest = Guest()
    assert guest.item(0x00, 6) == b"QEMU\0\0"
    assert guest.item(0x8003, 4) == bytes(4)
    assert guest.item(0x21, 4) == b"xyz\0"


def test_selecting_begins_anew_and_bytes_select_nothing():
    guest = Guest()
    assert guest.item(0x00, 2) == b"QE"
    guest.bus.write(SELECTOR, 1, 0x01, 0)
    guest.bus.write(DATA, 1, 0x01, 0)
    assert guest.read(2) == b"MU"
    assert guest.bus.read(SELECTOR, 1, 0) == 0xFF
    assert guest.item(0x00, 2) == b"QE"


def test_a_restored_one_reads_on():
    guest, other = Guest(), Guest()
    guest.item(0x00, 2)
    other.chip.restore(guest.chip.save())
    assert other.read(2) == b"MU"
