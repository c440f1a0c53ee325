"""Intel 82077AA floppy disk controller, wired as in a PC/AT.

Source: Intel 82077AA data sheet (290166): 2.1 registers, 3 and 4 phases of commands and
the data they take, 5 commands, 6 status bytes; IBM PC/AT Technical Reference,
"Diskette Adapter" (registers, the DMA gate of the digital output register).

Data goes by DMA, or by port 3F5h, a sector to an interrupt, where SPECIFY says so. A
DMA channel has a command's data all at once. Not done: SCAN, which nothing uses. An
image has no place for marks of deleted data: they are written as others, and none is
found. A drive without a floppy finds no address mark; a real one would say nothing.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from emu86.devices.dma import DmaLine
from emu86.devices.floppy_drive import RATE_250, SECTOR, DriveState, FloppyDrive
from emu86.devices.saving import capture, reinstate

# Offsets; the digital input and the configuration control register are at 7.
DOR: Final = 2
TDR: Final = 3
MSR: Final = 4
DATA: Final = 5

# The digital output register.
RESET: Final = 0x04  # active low
DMA_GATE: Final = 0x08
# The main status register.
RQM: Final = 0x80
DIO: Final = 0x40  # to the processor
NON_DMA: Final = 0x20
BUSY: Final = 0x10
SOFTWARE_RESET: Final = 0x80  # of the data rate select register
CHANGED: Final = 0x80  # of the digital input register; the other lines float

# Status register 0: how it ended, seek end, equipment check.
ABNORMAL: Final = 0x40
INVALID: Final = 0x80
POLLED: Final = 0xC0
SEEK_END: Final = 0x20
EQUIPMENT_CHECK: Final = 0x10
# Status register 1: end of cylinder, data error, overrun, no data, not writable, and
# missing address mark.
EN: Final = 0x80
DE: Final = 0x20
OR: Final = 0x10
ND: Final = 0x04
NW: Final = 0x02
MA: Final = 0x01
# Status register 2: control mark, data error in the data, wrong cylinder.
CM: Final = 0x40
DD: Final = 0x20
WC: Final = 0x10
# Status register 3: write protected, track 0; the others are always ones.
WP: Final = 0x40
T0: Final = 0x10
_ST3: Final = 0x28

# Bits of opcodes: multi-track, MFM, skip; the rest is the command.
MT: Final = 0x80
MFM: Final = 0x40
SK: Final = 0x20

# Commands: the low five bits of an opcode.
READ_TRACK: Final = 0x02
SPECIFY: Final = 0x03
SENSE_DRIVE: Final = 0x04
WRITE: Final = 0x05
READ: Final = 0x06
RECALIBRATE: Final = 0x07
SENSE_INTERRUPT: Final = 0x08
WRITE_DELETED: Final = 0x09
READ_ID: Final = 0x0A
READ_DELETED: Final = 0x0C
FORMAT: Final = 0x0D
DUMPREG: Final = 0x0E
SEEK: Final = 0x0F
VERSION: Final = 0x10
PERPENDICULAR: Final = 0x12
CONFIGURE: Final = 0x13
LOCK: Final = 0x14
VERIFY: Final = 0x16

# How many bytes each takes, and the bits of the opcode that may be set beside it.
_COMMANDS: Final = {
    READ_TRACK: (9, MFM),
    SPECIFY: (3, 0),
    SENSE_DRIVE: (2, 0),
    WRITE: (9, MT | MFM),
    READ: (9, MT | MFM | SK),
    RECALIBRATE: (2, 0),
    SENSE_INTERRUPT: (1, 0),
    WRITE_DELETED: (9, MT | MFM),
    READ_ID: (2, MFM),
    READ_DELETED: (9, MT | MFM | SK),
    FORMAT: (6, MFM),
    DUMPREG: (1, 0),
    SEEK: (3, MT | MFM),
    VERSION: (1, 0),
    PERPENDICULAR: (2, 0),
    CONFIGURE: (4, 0),
    LOCK: (1, MT),
    VERIFY: (9, MT | MFM | SK),
}
_WRITES: Final = (WRITE, WRITE_DELETED, FORMAT)
_ENHANCED: Final = 0x90  # what VERSION answers
_STEPS: Final = 79  # that RECALIBRATE makes at most
_IMPLIED_SEEK: Final = 0x40  # of CONFIGURE's second byte
_KEPT: Final = 0x2F  # of it: EFIFO and the threshold, which LOCK keeps
_DEFAULT: Final = 0x20  # of it after a reset: EFIFO, and polling
_GAP: Final = 0x03  # of PERPENDICULAR MODE
_OVERWRITE: Final = 0x80

_SIZE: Final = 2  # N of 512 bytes
_DRIVES: Final = 4  # that it can name

# What is done when: a drive is far faster here than a floppy turns.
_RESET_NS: Final = 50_000
_COMMAND_NS: Final = 100_000
_SECTOR_NS: Final = 20_000
_REVOLUTION_NS: Final = 200_000_000
# A DMA channel that is not open yet is tried again, for a revolution.
_PATIENCE_NS: Final = 1_000_000
_PATIENCE: Final = _REVOLUTION_NS // _PATIENCE_NS

# Phases.
_RESETTING, _COMMANDED, _EXECUTING, _PIO, _ANSWERING = range(5)


class FdcState(NamedTuple):
    """Registers, the command that is under way, and the drives."""

    dor: int
    tdr: int
    rate: int
    specified: bytes
    configured: bytes
    locked: bool
    perpendicular: int
    cylinders: tuple[int, ...]
    sectors: int
    phase: int
    command: bytes
    answer: bytes
    block: bytes
    place: tuple[int, int, int]
    head: int
    due: int | None
    patience: int
    seeks: tuple[tuple[int, int], ...]
    sought: tuple[int, ...]
    polled: int
    interrupt: bool
    line: bool
    drives: tuple[DriveState, ...]


class Fdc:
    """The controller: offsets 2 to 5; `rate_register` has port 3F7h."""

    def __init__(
        self,
        irq: Callable[[bool], None],
        dma: DmaLine,
        drives: Sequence[FloppyDrive],
    ) -> None:
        """Make a controller as a BIOS leaves it: out of reset, its gate open.

        irq: told the level of the interrupt line when it changes.
        """
        self._irq = irq
        self._dma = dma
        self._drives = tuple(drives)
        self.rate_register = RateRegister(self)
        self.dor = RESET | DMA_GATE
        self.tdr = 0
        self.rate = RATE_250
        self.specified = bytes(2)
        self.configured = bytes((0, _DEFAULT, 0))
        self.locked = False
        self.perpendicular = 0
        self.cylinders: tuple[int, ...] = (0,) * _DRIVES
        self.sectors = 0  # the last EOT, or count of sectors of FORMAT
        self.line = False
        self._forget()

    def _forget(self) -> None:
        """Be idle, with nothing under way."""
        self.phase = _COMMANDED
        self.command = self.answer = self.block = b""
        self.place = 0, 0, 0
        self.head = 0
        self.due: int | None = None
        self.patience = 0
        # Seeks under way: when each ends, and what it says then; what others said.
        self.seeks: tuple[tuple[int, int], ...] = ()
        self.sought: tuple[int, ...] = ()
        self.polled = 0  # drives that have not told yet that they were polled
        self.interrupt = False

    # -- registers ---------------------------------------------------------------------

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a register; those that are a PS/2's float."""
        if offset == DOR:
            return self.dor
        if offset == TDR:
            return self.tdr
        if offset == MSR:
            return self._status()
        return self._read_data(now) if offset == DATA else 0xFF

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register."""
        value &= 0xFF
        if offset == DOR:
            self._write_dor(value, now)
        elif offset == TDR:
            self.tdr = value & 3
        elif offset == MSR:
            self.rate = value & 3
            if value & SOFTWARE_RESET:
                self._reset(now)
        elif offset == DATA:
            self._write_data(value, now)
        self._update()

    def select_rate(self, value: int) -> None:
        """Take the data rate from the configuration control register."""
        self.rate = value & 3

    def changed(self) -> bool:
        """Whether DSKCHG of the selected drive is set; it is where there is none."""
        drive = self._drive(self.dor)
        return drive is None or drive.changed

    def _drive(self, number: int) -> FloppyDrive | None:
        number &= 3
        return self._drives[number] if number < len(self._drives) else None

    def _write_dor(self, value: int, now: int) -> None:
        before, self.dor = self.dor, value
        for number, drive in enumerate(self._drives):
            if before & ~value & 0x10 << number:
                drive.rest()
        if not value & RESET:
            self._forget()
        elif not before & RESET:
            self._reset(now)

    def _reset(self, now: int) -> None:
        """Come out of reset: soon an interrupt tells that the drives were polled."""
        self._forget()
        kept = self.configured[1] & _KEPT if self.locked else _DEFAULT
        track = self.configured[2] if self.locked else 0
        self.configured = bytes((0, kept, track))
        self.perpendicular &= ~_GAP
        self.cylinders = (0,) * _DRIVES
        self.phase = _RESETTING
        self.due = now + _RESET_NS

    def _status(self) -> int:
        """Compute the main status register."""
        if not self.dor & RESET or self.phase == _RESETTING:
            return 0
        seeking = [st0 for _, st0 in self.seeks] + list(self.sought)
        status = 0
        for st0 in seeking:
            status |= 1 << (st0 & 3)
        if self.phase == _COMMANDED:
            return status | RQM | (BUSY if self.command else 0)
        if self.phase == _ANSWERING:
            return status | RQM | DIO | BUSY
        status |= BUSY
        if not self._by_dma:
            status |= NON_DMA
        if self.phase == _PIO:
            reads = self._kind not in _WRITES
            status |= RQM | (DIO if reads else 0)
        return status

    @property
    def _by_dma(self) -> bool:
        return not self.specified[1] & 1

    @property
    def _kind(self) -> int:
        """The command that is under way."""
        return self.command[0] & 0x1F

    def _update(self) -> None:
        """Move the interrupt line."""
        line = self.interrupt and bool(self.dor & DMA_GATE)
        if line != self.line:
            self.line = line
            self._irq(line)

    # -- the data register -------------------------------------------------------------

    def _read_data(self, now: int) -> int:
        if self.phase == _ANSWERING:
            value, self.answer = self.answer[0], self.answer[1:]
            # Behind the last byte a seek that has ended may tell of itself.
            self.interrupt = not self.answer and bool(self.sought)
            if not self.answer:
                self.phase, self.command = _COMMANDED, b""
        elif self.phase == _PIO and self._kind not in _WRITES:
            self.interrupt = False
            value, self.block = self.block[0], self.block[1:]
            if not self.block:
                self._block_done(now)
        else:
            return 0xFF
        self._update()
        return value

    def _write_data(self, value: int, now: int) -> None:
        if not self.dor & RESET:
            return
        if self.phase == _PIO and self._kind in _WRITES:
            self.interrupt = False
            self.block += bytes((value,))
            if len(self.block) == self._block_size:
                self._block_done(now)
        elif self.phase == _COMMANDED:
            self.command += bytes((value,))
            opcode = self.command[0]
            length, bits = _COMMANDS.get(opcode & 0x1F, (0, 0))
            if opcode & ~(0x1F | bits) or not length:
                self._answer(bytes((INVALID,)))
            elif len(self.command) == length:
                self._start(opcode & 0x1F, now)

    def _answer(self, answer: bytes) -> None:
        """Go on to the result phase, or if there is no answer to the next command."""
        self.answer = answer
        self.phase = _ANSWERING if answer else _COMMANDED
        if not answer:
            self.command = b""

    # -- commands ----------------------------------------------------------------------

    def _start(self, kind: int, now: int) -> None:
        """Do a command that is at once done, or begin with another."""
        command = self.command
        answer = b""
        if kind == SPECIFY:
            self.specified = command[1:]
        elif kind == SENSE_DRIVE:
            answer = bytes((self._drive_status(),))
        elif kind == SENSE_INTERRUPT:
            answer = self._sense_interrupt()
        elif kind == DUMPREG:
            locked = 0x80 if self.locked else 0
            answer = bytes((
                *self.cylinders, *self.specified, self.sectors,
                locked | self.perpendicular, self.configured[1] & 0x7F,
                self.configured[2],
            ))  # fmt: skip
        elif kind == VERSION:
            answer = bytes((_ENHANCED,))
        elif kind == PERPENDICULAR:
            value = command[1]
            drives = value if value & _OVERWRITE else self.perpendicular
            self.perpendicular = drives & 0x3C | value & _GAP
        elif kind == CONFIGURE:
            self.configured = command[1:]
        elif kind == LOCK:
            self.locked = bool(command[0] & MT)
            answer = bytes((self.locked << 4,))
        elif kind == RECALIBRATE:
            self._recalibrate(now)
        elif kind == SEEK:
            self._seek(now)
        else:
            self._begin(kind, now)
            return
        self._answer(answer)

    def _drive_status(self) -> int:
        """Compute status register 3."""
        status = _ST3 | self.command[1] & 7
        drive = self._drive(self.command[1])
        if drive is not None:
            status |= (T0 if drive.track == 0 else 0) | (WP if drive.protected else 0)
        return status

    def _sense_interrupt(self) -> bytes:
        self.interrupt = False
        if self.sought:
            st0, self.sought = self.sought[0], self.sought[1:]
        elif self.polled:
            st0 = POLLED | _DRIVES - self.polled
            self.polled -= 1
        else:
            return bytes((INVALID,))
        return bytes((st0, self.cylinders[st0 & 3]))

    def _move(self, cylinder: int, steps: int) -> None:
        """Move a drive's head, which is at `cylinder` then, as far as is known."""
        number = self.command[1] & 3
        drive = self._drive(number)
        if drive is not None:
            drive.step(steps)
        known = list(self.cylinders)
        known[number] = cylinder & 0xFF
        self.cylinders = tuple(known)

    def _recalibrate(self, now: int) -> None:
        number = self.command[1] & 3
        self._move(0, -_STEPS)
        drive = self._drive(number)
        failed = drive is None or drive.track > 0
        self._end_seek(now, ABNORMAL | EQUIPMENT_CHECK if failed else 0)

    def _seek(self, now: int) -> None:
        """Move to a cylinder; a relative seek moves by as much as told."""
        opcode, drive, value = self.command
        known = self.cylinders[drive & 3]
        steps = value - known
        if opcode & MT:
            steps = value if opcode & MFM else -value
        self._move(known + steps, steps)
        self._end_seek(now, 0)

    def _end_seek(self, now: int, how: int) -> None:
        """Tell of the end of a seek later."""
        number = self.command[1] & 3
        others = tuple(seek for seek in self.seeks if seek[1] & 3 != number)
        self.sought = tuple(st0 for st0 in self.sought if st0 & 3 != number)
        st0 = how | SEEK_END | number
        self.seeks = (*others, (now + _COMMAND_NS, st0))

    def _begin(self, kind: int, now: int) -> None:
        """Begin with a command that looks for sectors."""
        self.phase = _EXECUTING
        self.due = now + _COMMAND_NS
        self.patience = _PATIENCE
        self.head = self.command[1] >> 2 & 1
        if kind == FORMAT:
            self.sectors = self.command[3]
        elif kind != READ_ID:
            cylinder, head, sector = self.command[2:5]
            self.place = cylinder, head, 1 if kind == READ_TRACK else sector
            self.sectors = self.command[6]
            if self.configured[1] & _IMPLIED_SEEK:
                self._move(cylinder, cylinder - self.cylinders[self.command[1] & 3])

    # -- execution ---------------------------------------------------------------------

    def deadline(self) -> int | None:
        """Return when a seek, a command or a reset goes on."""
        due = [due for due, _ in self.seeks]
        if self.due is not None:
            due.append(self.due)
        return min(due, default=None)

    def advance(self, now: int) -> None:
        """Go on with what is due."""
        ended = tuple(st0 for due, st0 in self.seeks if due <= now)
        if ended:
            self.seeks = tuple(seek for seek in self.seeks if seek[0] > now)
            self.sought += ended
            self.interrupt = True
        if self.due is not None and self.due <= now:
            self.due = None
            if self.phase == _RESETTING:
                self.phase = _COMMANDED
                self.polled = _DRIVES
                self.interrupt = True
            else:
                self._execute(now)
        self._update()

    def _execute(self, now: int) -> None:
        """Look for the sector, and transfer what there is."""
        kind = self._kind
        drive = self._drive(self.command[1])
        if kind == READ_ID:
            self._identify(now)
            return
        if kind in _WRITES and drive is not None and drive.protected:
            self._finish(NW)
            return
        st1, st2 = self._find()
        if drive is None or st1:
            self._finish(st1, st2)
        elif kind == VERIFY:
            self._verify(drive)
        elif not self._by_dma:
            self._open(drive)
        elif self.dor & DMA_GATE and self._dma.ready:
            self._transfer(drive)
        elif self.patience:
            self.patience -= 1
            self.due = now + _PATIENCE_NS
        else:
            self._finish(OR)

    def _find(self) -> tuple[int, int]:
        """Look for `place`; returns status registers 1 and 2: zeros, it is there."""
        drive = self._drive(self.command[1])
        its = None if drive is None else drive.format
        if drive is None or its is None:
            return MA, 0
        readable = self.command[0] & MFM and self.rate == its.rate
        if not readable or drive.track >= its.tracks or self.head >= its.heads:
            return MA, 0
        if self._kind in (READ_ID, FORMAT):
            return 0, 0
        cylinder, head, sector = self.place
        if cylinder != drive.track:
            return ND, WC
        there = head == self.head and 1 <= sector <= its.sectors
        if not there or self.command[5] != _SIZE:
            return ND, 0
        skipped = self._kind == READ_DELETED and self.command[0] & SK
        return (ND, 0) if skipped else (0, 0)

    def _identify(self, now: int) -> None:
        """READ ID: the first sector that comes by."""
        st1, _ = self._find()
        drive = self._drive(self.command[1])
        if not st1 and drive is not None and drive.format is not None:
            turned = now % _REVOLUTION_NS * drive.format.sectors // _REVOLUTION_NS
            self.place = drive.track, self.head, turned + 1
        self._finish(st1)

    def _verify(self, drive: FloppyDrive) -> None:
        """Read sectors for nobody: as many as are told, or to the end of the track."""
        count = self.command[8] if self.command[1] & 0x80 else 0
        while True:
            st1, st2 = self._find()
            if not st1:
                st1, st2, _ = self._read(drive)
            if st1:
                self._finish(st1, st2)
                return
            count -= 1
            if self._next() or not count:
                self._finish(0)
                return

    def _transfer(self, drive: FloppyDrive) -> None:
        """Transfer sectors by DMA until its terminal count, or the track's end."""
        ended, at_end = False, False
        st1 = st2 = 0
        while not (ended or st1 or st2):
            if at_end:
                st1 = EN
                break
            st1, st2 = self._find()
            if st1:
                break
            if self._kind in _WRITES:
                block, ended = self._dma.take(self._block_size)
                st1, st2 = self._put(drive, block)
                if self._kind == FORMAT:
                    break
            else:
                st1, st2, block = self._read(drive)
                if not st1:
                    _, ended = self._dma.give(block)
            if not st1:
                at_end = self._next()
        self._finish(st1, st2)

    def _read(self, drive: FloppyDrive) -> tuple[int, int, bytes]:
        """Read the sector at `place`; returns status registers, too."""
        try:
            block = drive.read(self.head, self.place[2])
        except OSError:
            return DE, DD, b""
        return 0, CM if self._kind == READ_DELETED else 0, block

    def _put(self, drive: FloppyDrive, block: bytes) -> tuple[int, int]:
        """Write a block to the sector, or format the track by it."""
        places = [(self.place[2], block.ljust(SECTOR, b"\0"))]
        if self._kind == FORMAT:
            names = [block[at : at + 4] for at in range(0, len(block) & ~3, 4)]
            filler = bytes((self.command[5],)) * SECTOR
            places = [(name[2], filler) for name in names]
            ours = drive.track, self.head, _SIZE
            count = drive.format.sectors if drive.format is not None else 0
            for name in names:
                # The image has a place for these alone.
                if (name[0], name[1], name[3]) != ours or not 1 <= name[2] <= count:
                    return ND, 0
        try:
            for sector, data in places:
                drive.write(self.head, sector, data)
        except OSError:
            return DE, DD
        return 0, 0

    @property
    def _block_size(self) -> int:
        """Bytes that are transferred at once: a sector, or a track's identities."""
        return 4 * self.sectors if self._kind == FORMAT else SECTOR

    def _open(self, drive: FloppyDrive) -> None:
        """Have the processor transfer the next block by the data register."""
        self.block = b""
        st1 = st2 = 0
        if self._kind not in _WRITES:
            st1, st2, self.block = self._read(drive)
        if st1 or not self._block_size:
            self._finish(st1, st2)
            return
        self.phase = _PIO
        self.interrupt = True

    def _block_done(self, now: int) -> None:
        """Go on behind a block that the processor has transferred."""
        drive = self._drive(self.command[1])
        st1, st2 = self._find()  # the floppy may have been changed
        if drive is not None and not st1 and self._kind in _WRITES:
            st1, st2 = self._put(drive, self.block)
        if st1 or self._kind == FORMAT:
            self._finish(st1, st2)
        elif self._kind == READ_DELETED:
            self._next()
            self._finish(0, CM)
        elif self._next():
            self._finish(EN)
        else:
            self.phase = _EXECUTING
            self.due = now + _SECTOR_NS

    def _next(self) -> bool:
        """Go on to the next sector; tell whether the track, or both sides, have ended.

        The data sheet's table of what the result phase has follows from it.
        """
        cylinder, head, sector = self.place
        if sector != self.sectors:
            self.place = cylinder, head, sector + 1 & 0xFF
            return False
        both = self.command[0] & MT
        if both and not self.head:
            self.head = 1
            self.place = cylinder, head ^ 1, 1
            return False
        self.place = cylinder + 1 & 0xFF, head ^ 1 if both else head, 1
        return True

    def _finish(self, st1: int, st2: int = 0) -> None:
        """Answer how the command has ended, and where it would go on."""
        st0 = self.head << 2 | self.command[1] & 3
        if st1 or st2 & ~CM:
            st0 |= ABNORMAL
        size = _SIZE if self._kind in (READ_ID, FORMAT) else self.command[5]
        self.block = b""
        self._answer(bytes((st0, st1, st2, *self.place, size)))
        self.interrupt = True

    # -- state -------------------------------------------------------------------------

    @property
    def drives(self) -> tuple[DriveState, ...]:
        """What the drives know."""
        return tuple(drive.save() for drive in self._drives)

    @drives.setter
    def drives(self, states: tuple[DriveState, ...]) -> None:
        for drive, state in zip(self._drives, states, strict=True):
            drive.restore(state)

    def save(self) -> FdcState:
        """Return registers, the command that is under way, and the drives."""
        return capture(FdcState, self)

    def restore(self, state: FdcState) -> None:
        """Become the controller that was saved."""
        reinstate(self, state)


class RateRegister:
    """Port 3F7h: read it is the digital input register, written the data rate."""

    def __init__(self, fdc: Fdc) -> None:
        """Make the register of a controller."""
        self._fdc = fdc

    def read(self, offset: int, width: int, now: int) -> int:
        """Return whether the selected drive's floppy was changed."""
        return (CHANGED if self._fdc.changed() else 0) | ~CHANGED & 0xFF

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Set the data rate."""
        self._fdc.select_rate(value)
