"""A driver of an IDE channel, and media for its drives."""

import struct

from emu86.devices.ata_disk import AtaDisk
from emu86.devices.ide import Channel

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(8)
FEATURES, COMMAND = ERROR, STATUS
BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
ABRT, IDNF, UNC = 0x04, 0x10, 0x40
READY = DRDY | DSC
SECTOR = 512
TOTAL = 16 * 63 * 5 + 7  # sectors: five cylinders and some more
WRITES = (0x30, 0x31, 0x34, 0x39, 0xC5)


def pattern(lba):
    return struct.pack("<Q", lba) * 64


class Ram:
    """A medium of bytes that remembers what was done to it, and may fail."""

    def __init__(self, total=TOTAL, *, read_only=False):
        self.size = total * SECTOR
        self.data = bytearray(b"".join(map(pattern, range(min(total, TOTAL)))))
        self.read_only = read_only
        self.flushed = 0
        self.fails = None

    def fail(self):
        if self.fails:
            raise OSError(self.fails, "it fails")

    def read(self, offset, size):
        self.fail()
        return bytes(self.data[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset, data):
        self.fail()
        self.data[offset : offset + len(data)] = data

    def flush(self):
        self.fail()
        self.flushed += 1


class Guest:
    """A channel as its driver sees it; time passes when the driver waits."""

    def __init__(self, *media, drives=()):
        self.media = media or (Ram(),)
        self.lines = []
        self.windows = []
        self.now = 0
        self.channel = Channel(
            self.lines.append,
            drives or [AtaDisk(medium, n) for n, medium in enumerate(self.media)],
            window=self.windows.append,
        )

    def __getitem__(self, offset):
        return self.channel.read(offset, 1, self.now)

    def __setitem__(self, offset, value):
        self.channel.write(offset, 1, value, self.now)

    @property
    def control(self):
        return self.channel.control_register.read(0, 1, self.now)

    @control.setter
    def control(self, value):
        self.channel.control_register.write(0, 1, value, self.now)

    @property
    def line(self):
        return bool(self.lines) and self.lines[-1]

    def wait(self):
        """Let time pass until the drives are not busy; the alternate status."""
        while (due := self.channel.deadline()) is not None:
            assert due > self.now
            self.now = due
            self.channel.advance(due)
        return self.control

    def command(self, opcode, *, lba=None, count=1, ext=False, features=0, device=0xE0):
        """Give a command by LBA, or with the registers as they are."""
        if ext:
            for register, value in (
                (COUNT, count >> 8), (LOW, lba >> 24), (MID, lba >> 32),
                (HIGH, lba >> 40),
            ):  # fmt: skip
                self[register] = value & 0xFF
        if lba is not None:
            self[LOW], self[MID], self[HIGH] = (
                lba & 0xFF,
                lba >> 8 & 255,
                lba >> 16 & 255,
            )
            device |= 0 if ext else lba >> 24 & 15
        self[FEATURES], self[COUNT], self[DEVICE] = features, count & 0xFF, device
        self[COMMAND] = opcode

    def take(self, size=SECTOR, width=2):
        """Read a block by words."""
        read = self.channel.read
        words = (read(DATA, width, self.now) for _ in range(size // width))
        return b"".join(word.to_bytes(width, "little") for word in words)

    def give(self, data, width=2):
        for at in range(0, len(data), width):
            word = int.from_bytes(data[at : at + width], "little")
            self.channel.write(DATA, width, word, self.now)

    def read(self, opcode, lba, count, *, ext=False, block=1, **more):
        """Do a command that reads, an interrupt and a status for each block."""
        self.command(opcode, lba=lba, count=count, ext=ext, **more)
        assert self.control == BSY | READY
        data = b""
        while len(data) < count * SECTOR:
            assert self.wait() == READY | DRQ
            assert self.line
            assert self[STATUS] == READY | DRQ
            assert not self.line
            here = min(block * SECTOR, count * SECTOR - len(data))
            data += self.take(here)
        assert self.wait() == READY
        assert not self.line
        return data

    def write(self, opcode, lba, data, *, ext=False, block=1, **more):
        """Do a command that writes."""
        count = len(data) // SECTOR
        self.command(opcode, lba=lba, count=count, ext=ext, **more)
        assert self.wait() == READY | DRQ
        assert not self.line  # the first block is not asked for
        for at in range(0, len(data), block * SECTOR):
            self.give(data[at : at + block * SECTOR])
            assert self.control & BSY
            last = at + block * SECTOR >= len(data)
            assert self.wait() == READY | (0 if last else DRQ)
            assert self.line
            assert self[STATUS] & ~DRQ == READY
            assert not self.line

    def failed(self, error, *, status=READY | ERR):
        assert self.wait() == status
        assert self.line
        assert self[STATUS] == status
        assert self[ERROR] == error

    def identity(self):
        self.command(0xEC)
        assert self.wait() == READY | DRQ
        assert self[STATUS] & DRQ
        data = self.take()
        assert self.wait() == READY
        return struct.unpack("<256H", data)


def text(words):
    return struct.pack(f">{len(words)}H", *words).decode().rstrip()
