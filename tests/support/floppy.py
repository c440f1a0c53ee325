"""A driver of a floppy controller, and floppies for its drives."""

from emu86.devices.dma import Dma, DmaLine, DmaPages
from emu86.devices.fdc import Fdc
from emu86.devices.floppy_drive import DRIVE_1440K, FORMATS, FloppyDrive
from support.medium import Medium

DOR, TDR, MSR, DATA = 2, 3, 4, 5
READY, TO_PROCESSOR, NON_DMA, BUSY = 0x80, 0x40, 0x20, 0x10
IDLE, ANSWERS = READY, READY | TO_PROCESSOR | BUSY
SECTOR = 512
TO_MEMORY, FROM_MEMORY, VERIFY = 0x46, 0x4A, 0x42  # modes of channel 2
FORMAT_1440K = FORMATS[1440 << 10]


class Floppy(Medium):
    """A medium whose sectors begin with their number."""

    def __init__(self, size=1440 << 10, *, read_only=False):
        numbers = range(size // SECTOR)
        super().__init__(b"".join(map(pattern, numbers)), read_only=read_only)


def pattern(number):
    return number.to_bytes(4, "little") * (SECTOR // 4)


def number_of(cylinder, head, sector, its=FORMAT_1440K):
    return (cylinder * its.heads + head) * its.sectors + sector - 1


class Memory:
    """Memory of 128 KiB for DMA."""

    def __init__(self):
        self.bytes = bytearray(0x20000)

    def read(self, address, size):
        return bytes(self.bytes[address : address + size])

    def write(self, address, data):
        self.bytes[address : address + len(data)] = data


class Guest:
    """A controller as its driver sees it; time passes when the driver waits."""

    def __init__(self, *floppies, kinds=(DRIVE_1440K, DRIVE_1440K)):
        self.floppies = floppies or (Floppy(),)
        self.drives = [
            FloppyDrive(kind, floppy)
            for kind, floppy in zip(kinds, self.floppies, strict=False)
        ]
        self.lines = []
        self.now = 0
        self.memory = Memory()
        self.dma, self.pages = Dma(), DmaPages()
        line = DmaLine(self.dma, self.pages, self.memory, 2)
        self.fdc = Fdc(self.lines.append, line, self.drives)
        self.rate = 0

    def __getitem__(self, offset):
        return self.fdc.read(offset, 1, self.now)

    def __setitem__(self, offset, value):
        self.fdc.write(offset, 1, value, self.now)

    @property
    def line(self):
        return bool(self.lines) and self.lines[-1]

    @property
    def changed(self):
        return bool(self.fdc.rate_register.read(0, 1, self.now) & 0x80)

    @property
    def rate(self):
        raise AttributeError

    @rate.setter
    def rate(self, value):
        self.fdc.rate_register.write(0, 1, value, self.now)

    def wait(self):
        """Let time pass until nothing is due."""
        while (due := self.fdc.deadline()) is not None:
            assert due > self.now
            self.now = due
            self.fdc.advance(due)

    def give(self, *command):
        """Write the bytes of a command, each when it is asked for."""
        for byte in command:
            assert self[MSR] & (READY | TO_PROCESSOR) == READY
            self[DATA] = byte

    def take(self):
        """Read all that the controller answers."""
        answer = b""
        while self[MSR] & (READY | TO_PROCESSOR) == READY | TO_PROCESSOR:
            answer += bytes((self[DATA],))
        return answer

    def command(self, *command):
        """Do a command, with its interrupt if there is one; return the answer."""
        self.give(*command)
        self.wait()
        return self.take()

    def seek(self, cylinder, drive=0):
        self.command(0x0F, drive, cylinder)
        return self.command(0x08)

    def program(self, mode, address, size):
        """Program channel 2 of the DMA controller."""
        dma = self.dma
        for register, value in (
            (10, 6), (12, 0), (11, mode), (4, address & 0xFF), (4, address >> 8 & 0xFF),
            (5, size - 1 & 0xFF), (5, size - 1 >> 8), (10, 2),
        ):  # fmt: skip
            dma.write(register, 1, value, self.now)
        self.pages.write(0, 1, address >> 16, self.now)

    def read(self, cylinder, head, sector, count, opcode=0xE6, last=18, drive=0):
        """Read sectors to 1000h; return the answer and the data."""
        self.program(TO_MEMORY, 0x1000, count * SECTOR)
        answer = self.command(
            opcode, head << 2 | drive, cylinder, head, sector, 2, last, 0x1B, 0xFF
        )
        return answer, self.memory.read(0x1000, count * SECTOR)

    def write(self, cylinder, head, sector, data, opcode=0xC5, last=18, drive=0):
        """Write sectors from 1000h."""
        self.memory.write(0x1000, data)
        self.program(FROM_MEMORY, 0x1000, len(data))
        return self.command(
            opcode, head << 2 | drive, cylinder, head, sector, 2, last, 0x1B, 0xFF
        )
