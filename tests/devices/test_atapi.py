"""An ATAPI CD-ROM drive: packets, and what the SCSI commands in them answer."""

import errno
import struct

import pytest

from emu86.devices.atapi import CdRom
from support.ata import (
    ABRT,
    BSY,
    COUNT,
    DEVICE,
    DRQ,
    ERR,
    ERROR,
    HIGH,
    LOW,
    MID,
    READY,
    STATUS,
    Guest,
    Ram,
    text,
)  # fmt: skip

SECTOR = 2048
SECTORS = 300
CHECKED = READY | ERR
NO_DISC, NO_COMMAND, RANGE = (2, 0x3A00), (5, 0x2000), (5, 0x2100)
FIELD, UNREADABLE, LOCKED, NEW = (5, 0x2400), (3, 0x1100), (5, 0x5302), (6, 0x2800)


class Player(Guest):
    """A driver of a CD-ROM drive."""

    def __init__(self, disc):
        self.cd = CdRom(disc, 2)
        super().__init__(disc, drives=[self.cd])

    def packet(self, *data, limit=0xFFFE):
        """Send a packet; what it answers, or the status that it is checked with."""
        self[MID], self[HIGH] = limit & 0xFF, limit >> 8
        self.command(0xA0, device=0xA0, count=0)
        assert (self.control, self[COUNT]) == (READY | DRQ, 1)
        assert not self.line
        self.give(bytes(data).ljust(12, b"\0"))
        answer = b""
        self.parts = []
        assert self.control & BSY
        while self.wait() & DRQ:
            assert self.line
            assert (self[STATUS], self[COUNT]) == (READY | DRQ, 2)
            size = self[MID] | self[HIGH] << 8
            self.parts.append(size)
            answer += self.take(size + size % 2)[:size]
        assert self.line
        assert self[COUNT] == 3
        assert self[STATUS] in (READY, CHECKED)
        assert not self.line
        return answer if self.control == READY else self[ERROR]

    def sense(self):
        data = self.packet(0x03, 0, 0, 0, 18)
        assert (data[0], data[7], len(data)) == (0x70, 10, 18)
        return data[2], int.from_bytes(data[12:14], "big")

    def checked(self, sense, *data):
        assert self.packet(*data) == sense[0] << 4 | ABRT
        assert self.control == CHECKED
        assert self.sense() == sense
        assert self.sense() == (0, 0)


def disc(sectors=SECTORS):
    ram = Ram(4 * sectors, read_only=True)
    ram.data = bytearray(b"".join(struct.pack("<Q", n) * 256 for n in range(sectors)))
    return ram


@pytest.fixture
def cd():
    return Player(disc())


@pytest.fixture
def empty():
    return Player(None)


def be(value, size):
    return value.to_bytes(size, "big")


# -- as an ATA drive -------------------------------------------------------------------


def signature(cd):
    return cd[COUNT], cd[LOW], cd[MID], cd[HIGH]


def test_it_has_the_signature_of_packet_devices(cd):
    assert (cd.control, cd[ERROR], *signature(cd)) == (0, 1, 1, 1, 0x14, 0xEB)
    assert cd.packet(0) == b""
    for reset in (4, 0):
        cd.control = reset
    assert cd.wait() == 0
    assert (*signature(cd), cd[DEVICE]) == (1, 1, 0x14, 0xEB, 0)


@pytest.mark.parametrize("opcode", [0xEC, 0x20, 0x30, 0xC4, 0xE7, 0x91])
def test_commands_of_disks_end_with_it(cd, opcode):
    cd.command(opcode, device=0xA0)
    cd.failed(ABRT)
    assert (cd[MID], cd[HIGH]) == (0x14, 0xEB)


def test_device_reset_ends_what_is_under_way_without_an_interrupt(cd):
    cd.command(0xA0, device=0xA0)
    cd[STATUS] = 0x08
    assert cd.control == BSY
    assert cd.wait() == 0
    assert not cd.line
    assert signature(cd) == (1, 1, 0x14, 0xEB)
    assert cd.packet(0) == b""


def test_identify_packet_device(cd):
    cd.command(0xA1, device=0xA0)
    assert cd.wait() == READY | DRQ
    assert cd.line
    words = struct.unpack("<256H", cd.take(512))
    assert words[0] == 0x85C0
    assert text(words[27:47]) == "EMU86 CD-ROM"
    assert text(words[10:20]) == "EMU86-2"
    assert words[49] & 0x0F00 == 0x0A00
    assert sum(struct.pack("<256H", *words)) & 0xFF == 0
    assert cd.wait() == READY


def test_no_packets_by_dma(cd):
    cd.command(0xA0, features=1, device=0xA0)
    cd.failed(ABRT)


def test_transfer_modes_and_power(cd):
    for count, status in ((8, READY), (12, READY), (0x22, CHECKED)):
        cd.command(0xEF, features=3, count=count, device=0xA0)
        assert cd.wait() == status
    for opcode in (0xE0, 0xE1, 0xE6):
        cd.command(opcode, device=0xA0)
        assert cd.wait() == READY
    cd.command(0xE5, device=0xA0)
    cd.wait()
    assert cd[COUNT] == 0xFF


# -- packets ---------------------------------------------------------------------------


def test_what_it_does_not_know(cd):
    cd.checked(NO_COMMAND, 0x2A)
    cd.checked(NO_COMMAND, 0xFF)


def test_inquiry(cd):
    data = cd.packet(0x12, 0, 0, 0, 36)
    assert data[:5] == bytes((5, 0x80, 0, 0x21, 31))
    assert data[8:] == b"EMU86   CD-ROM          1.0 "
    assert cd.packet(0x12, 0, 0, 0, 5) == data[:5]
    assert cd.packet(0x12, 0, 0, 0, 0) == b""
    cd.checked(FIELD, 0x12, 1, 0, 0, 36)


@pytest.mark.parametrize("opcode", [0x28, 0xA8])
def test_reading(cd, opcode):
    def read(lba, count, **more):
        size = be(count, 4) + b"\0" if opcode == 0xA8 else b"\0" + be(count, 2)
        return cd.packet(opcode, 0, *be(lba, 4), *size, **more)

    data = bytes(cd.media[0].data)
    assert read(0, 1) == data[:SECTOR]
    assert read(SECTORS - 20, 20) == data[-20 * SECTOR :]
    assert cd.parts == [8192] * 5
    assert read(7, 0) == b""
    assert read(7, 3, limit=2048) == data[7 * SECTOR : 10 * SECTOR]
    assert cd.parts == [2048] * 3
    assert read(7, 1, limit=1001) == data[7 * SECTOR : 8 * SECTOR]
    assert cd.parts == [1000, 1000, 48]
    assert read(SECTORS - 1, 2) == RANGE[0] << 4 | ABRT
    assert cd.sense() == RANGE
    cd.media[0].fails = errno.EIO
    assert read(0, 1) == UNREADABLE[0] << 4 | ABRT
    assert cd.sense() == UNREADABLE


def test_capacity_and_seek(cd):
    assert cd.packet(0x25) == be(SECTORS - 1, 4) + be(SECTOR, 4)
    assert cd.packet(0x2B, 0, *be(SECTORS - 1, 4)) == b""
    cd.checked(RANGE, 0x2B, 0, *be(SECTORS, 4))


def toc(cd, kind=0, first=0, size=100, time=0, old=0):
    return cd.packet(0x43, time, kind, 0, 0, 0, first, *be(size, 2), old)


def test_table_of_contents(cd):
    one = bytes((0, 0x14, 1, 0)) + be(0, 4)
    end = bytes((0, 0x14, 0xAA, 0)) + be(SECTORS, 4)
    assert toc(cd) == toc(cd, first=1) == be(18, 2) + b"\1\1" + one + end
    assert toc(cd, first=0xAA) == be(10, 2) + b"\1\1" + end
    assert toc(cd, size=4) == be(18, 2) + b"\1\1"
    # 150 frames lie before the first: 2 seconds; 300 more are 4.
    in_time = bytes((0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xAA, 0, 0, 0, 6, 0))
    assert toc(cd, time=2)[4:] == in_time
    assert toc(cd, kind=1) == toc(cd, old=0x40) == be(10, 2) + b"\1\1" + one
    for wrong in ({"first": 2}, {"kind": 2}):
        assert toc(cd, **wrong) == FIELD[0] << 4 | ABRT


def test_mode_pages(cd):
    page = cd.packet(0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 100)
    assert page[:8] == be(len(page) - 2, 2) + bytes((1, 0, 0, 0, 0, 0))
    assert page[8:10] == bytes((0x2A, 18))
    assert len(page) == 8 + 20
    assert page[14] == 0x29
    cd.packet(0x1E, 0, 0, 0, 1)
    assert cd.packet(0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 100)[14] == 0x2B
    both = cd.packet(0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 100)
    assert len(both) == 8 + 8 + 20
    cd.checked(FIELD, 0x5A, 0, 0x0E, 0, 0, 0, 0, 0, 100)
    cd.checked(FIELD, 0x5A, 0, 0xEA, 0, 0, 0, 0, 0, 100)


# -- discs that come and go ------------------------------------------------------------


@pytest.mark.parametrize(
    "packet", [[0x00], [0x25], [0x28, 0, 0, 0, 0, 0, 0, 0, 1], [0x2B], [0x43]]
)
def test_without_a_disc(empty, packet):
    empty.checked(NO_DISC, *packet)
    assert empty.packet(0x12, 0, 0, 0, 36)


def event(cd, classes=0x10, polled=1):
    return cd.packet(0x4A, polled, 0, 0, classes, 0, 0, 0, 8)


def test_a_new_disc_is_told_once(empty):
    assert event(empty) == bytes((0, 6, 4, 0x10, 0, 0, 0, 0))
    empty.cd.insert(disc(50))
    assert event(empty) == bytes((0, 6, 4, 0x10, 2, 2, 0, 0))
    assert event(empty) == bytes((0, 6, 4, 0x10, 0, 2, 0, 0))
    assert empty.packet(0x12, 0, 0, 0, 36)
    empty.checked(NEW, 0x25)
    assert empty.packet(0x25) == be(49, 4) + be(SECTOR, 4)
    empty.cd.insert(disc(60))
    assert empty.sense() == NEW
    assert empty.packet(0x25) == be(59, 4) + be(SECTOR, 4)
    empty.cd.insert(None)
    assert event(empty) == bytes((0, 6, 4, 0x10, 3, 0, 0, 0))
    empty.checked(NO_DISC, 0)
    assert event(empty, classes=2) == bytes((0, 2, 0x80, 0x10))
    empty.checked(FIELD, 0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8)


def test_the_door(cd):
    cd.packet(0x1E, 0, 0, 0, 1)
    cd.checked(LOCKED, 0x1B, 0, 0, 0, 2)
    assert cd.cd.locked
    cd.packet(0x1E, 0, 0, 0, 0)
    assert cd.packet(0x1B, 0, 0, 0, 2) == b""
    cd.checked(NO_DISC, 0)
    assert event(cd) == bytes((0, 6, 4, 0x10, 3, 1, 0, 0))
    assert cd.packet(0x1B, 0, 0, 0, 3) == b""
    cd.checked(NEW, 0)
    assert event(cd) == bytes((0, 6, 4, 0x10, 2, 2, 0, 0))
    assert cd.packet(0x1B, 0, 0, 0, 1) == b""  # it only starts


def test_a_disc_that_is_taken_out_of_a_read(cd):
    cd[MID], cd[HIGH] = 0, 8
    cd.command(0xA0, device=0xA0)
    cd.give(bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0)))
    assert cd.wait() & DRQ
    cd.cd.insert(disc(1))
    cd.take(SECTOR)
    assert cd.wait() == CHECKED


def test_a_state_is_whole_between_packet_and_answer(cd):
    cd.command(0xA0, device=0xA0)
    cd.give(bytes((0x25,)).ljust(12, b"\0"))
    other = Player(cd.media[0])
    other.channel.restore(cd.channel.save())
    other.now = cd.now
    assert other.wait() & DRQ
    assert other.take(8) == be(SECTORS - 1, 4) + be(SECTOR, 4)
