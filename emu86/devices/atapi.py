"""An ATAPI CD-ROM drive: SCSI commands in packets, over the registers of an ATA drive.

Sources: ATA/ATAPI-6 (T13 1410D revision 3b): 8.23 to 8.28, PACKET; 9.8, its protocol.
MMC-2 (T10 1228D): READ TOC, MODE SENSE page 2Ah, events; SPC-2 (T10 1236D): INQUIRY,
REQUEST SENSE.

A disc has one data track in one session. After power-on there is no unit attention, as
if a BIOS had taken it; a new disc has one.
"""

# The step of a packet takes the packet, whether it reads it or not.
# ruff: noqa: ARG002

from __future__ import annotations

from typing import Any, Final, NamedTuple

from emu86.devices.ata import (
    ABRT,
    BLOCK_MOST,
    BLOCK_TIME,
    COMMAND_TIME,
    DRDY,
    DSC,
    ERR,
    Drive,
    sealed,
)
from emu86.devices.medium import Medium
from emu86.native import abi

SECTOR: Final = 2048
PACKET: Final = 12

# The interrupt reason, in the sector count register.
COD: Final = 1
IO: Final = 2

# Sense key, and code and qualifier.
NO_SENSE: Final = (0, 0x0000)
NOT_READY: Final = (2, 0x3A00)  # there is no disc
UNREADABLE: Final = (3, 0x1100)
NO_COMMAND: Final = (5, 0x2000)
OUT_OF_RANGE: Final = (5, 0x2100)
NO_FIELD: Final = (5, 0x2400)
PREVENTED: Final = (5, 0x5302)
NEW_DISC: Final = (6, 0x2800)

_LEAD_OUT: Final = 0xAA
_DATA_TRACK: Final = 0x14  # ADR and CONTROL
_EVENT_MEDIA: Final = 4
_SPEED: Final = 706  # kB/s, four times an audio CD's


class CdState(NamedTuple):
    """The registers of the drive, its door, and the packet command under way."""

    registers: tuple[Any, ...]
    sense: tuple[int, int]
    attention: bool
    locked: bool
    is_open: bool
    event: int
    response: bytes
    offset: int
    left: int
    limit: int


class CdRom(Drive):
    """A CD-ROM drive with a disc of whole sectors, or without one."""

    signature = 0xEB14
    at_rest = 0

    def __init__(self, medium: Medium | None, number: int) -> None:
        """Make a drive after power-on; number: for its serial number."""
        self._medium = medium
        self._number = number
        self.sense = NO_SENSE
        self.attention = False  # there is a new disc, and the host has not been told
        self.locked = False  # the door, by the host
        self.is_open = False
        self.event = 0  # of the medium, by its code in GET EVENT STATUS
        # What is left to send: bytes, or if there are none, of the disc from `offset`.
        self.response = b""
        self.offset = self.left = 0
        self.limit = 0  # bytes that the host takes at once
        super().__init__()

    def insert(self, medium: Medium | None) -> None:
        """Put another disc in, or take it out; the door is closed then."""
        self._medium = medium
        self.is_open = False
        self.attention = medium is not None
        self.event = 3 if medium is None else 2

    def save(self) -> CdState:
        """Return all but the disc."""
        own = (getattr(self, name) for name in CdState._fields[1:])
        return CdState(super().save(), *own)

    def restore(self, state: CdState) -> None:
        """Become the drive that was saved."""
        super().restore(state.registers)
        for name, value in zip(state._fields[1:], state[1:], strict=True):
            setattr(self, name, value)

    # -- ATA commands ------------------------------------------------------------------

    def command(self, opcode: int, now: int) -> None:
        """Begin a command; one of a disk ends with the signature of a packet device."""
        self.error = 0
        name = _COMMANDS.get(opcode)
        if name is not None:
            getattr(self, name)(now)
            return
        self.lba_mid, self.lba_high = self.signature & 0xFF, self.signature >> 8
        self._fail(ABRT)

    def _set_features(self, now: int) -> None:
        if self._is_pio_mode:
            self._nothing(now)
        else:
            self._fail(ABRT)

    def _packet(self, now: int) -> None:
        if self.features & 1:  # by DMA
            self._fail(ABRT)
            return
        self.limit = (self.lba_mid & 0xFF | self.lba_high << 8 & 0xFF00) or 0xFFFE
        self.sector_count = COD
        self._begin_block(abi.TO_DRIVE, PACKET, "packet_sent")

    def packet_sent(self, now: int) -> None:
        """Be busy with a packet."""
        self._busy(now, COMMAND_TIME, "do_packet")

    def do_packet(self, now: int) -> None:
        """Do what a packet asks for."""
        packet = self._block
        name = _PACKETS.get(packet[0])
        if self.attention and packet[0] not in _UNATTENDED:
            self.attention = False
            self._check(NEW_DISC)
        elif name is None:
            self._check(NO_COMMAND)
        else:
            if name != "_request_sense":
                self.sense = NO_SENSE
            getattr(self, name)(packet)

    def _identity(self) -> bytes:
        words = {
            0: 0x85C0,  # a removable CD-ROM, packets of 12 bytes, DRQ in 50 us
            49: 0x0A00,  # LBA and IORDY, no DMA
            50: 0x4000,
            51: 0x0200,
            53: 0x0002,  # words 64 to 70 are valid
            64: 0x0003,  # PIO 3 and 4
            67: 120, 68: 120,  # ns of a cycle
            80: 0x007E,  # ATA-1 to ATA/ATAPI-6
            82: 0x0210,  # PACKET, DEVICE RESET
            83: 0x4000, 84: 0x4000,
            85: 0x0210,
            87: 0x4000,
            93: 0x4B00 if self._number & 1 else 0x400B,
        }  # fmt: skip
        return sealed(words, "EMU86 CD-ROM", self._number)

    # -- how a packet ends -------------------------------------------------------------

    def _check(self, sense: tuple[int, int]) -> None:
        """End with CHECK CONDITION."""
        self.sense = sense
        self.sector_count = COD | IO
        self._fail(sense[0] << 4 | ABRT)
        self.status = DRDY | DSC | ERR

    def _good(self) -> None:
        self.sector_count = COD | IO
        self._finish()

    def _answer(self, response: bytes, most: int) -> None:
        """Send bytes, not more than the packet allows, and end well."""
        self.response, self.left = response[:most], min(len(response), most)
        self.send_part(0)

    def send_part(self, _now: int) -> None:
        """Offer as much as the host takes at once, or end."""
        if not self.left:
            self._good()
            return
        size = min(self.left, max(self.limit & ~1, 2), BLOCK_MOST)
        if self.response:
            part, self.response = self.response[:size], self.response[size:]
        else:
            if self._disc is None or self.offset + size > self._disc.size:
                self._check(NOT_READY)  # there was another disc
                return
            try:
                part = self._disc.read(self.offset, size)
            except OSError:
                self._check(UNREADABLE)
                return
        self.offset, self.left = self.offset + size, self.left - size
        self.lba_mid, self.lba_high = size & 0xFF, size >> 8
        self.sector_count = IO
        self._send(part, "part_taken")
        self.interrupt = True

    def part_taken(self, now: int) -> None:
        """Be busy with the next part."""
        self._busy(now, BLOCK_TIME, "send_part")

    # -- packets -----------------------------------------------------------------------

    @property
    def _disc(self) -> Medium | None:
        return None if self.is_open else self._medium

    def _test_unit_ready(self, packet: bytes) -> None:
        if self._disc is None:
            self._check(NOT_READY)
        else:
            self._good()

    def _request_sense(self, packet: bytes) -> None:
        if self.attention:
            self.attention, self.sense = False, NEW_DISC
        key, code = self.sense
        self.sense = NO_SENSE
        data = bytearray(18)
        data[0], data[2], data[7] = 0x70, key, 10
        data[12:14] = code.to_bytes(2, "big")
        self._answer(bytes(data), packet[4])

    def _inquiry(self, packet: bytes) -> None:
        if packet[1] & 3:
            self._check(NO_FIELD)
            return
        head = bytes((0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0))
        self._answer(head + b"EMU86   CD-ROM          1.0 ", packet[4])

    def _read_capacity(self, packet: bytes) -> None:
        if self._disc is None:
            self._check(NOT_READY)
            return
        last = self._disc.size // SECTOR - 1
        self._answer(last.to_bytes(4, "big") + SECTOR.to_bytes(4, "big"), 8)

    def _read(self, packet: bytes) -> None:
        """READ(10) and READ(12)."""
        lba = int.from_bytes(packet[2:6], "big")
        at = slice(6, 10) if packet[0] == _READ_12 else slice(7, 9)
        count = int.from_bytes(packet[at], "big")
        if self._disc is None:
            self._check(NOT_READY)
        elif lba + count > self._disc.size // SECTOR:
            self._check(OUT_OF_RANGE)
        else:
            self.response = b""
            self.offset, self.left = lba * SECTOR, count * SECTOR
            self.send_part(0)

    def _seek(self, packet: bytes) -> None:
        if self._disc is None:
            self._check(NOT_READY)
        elif int.from_bytes(packet[2:6], "big") >= self._disc.size // SECTOR:
            self._check(OUT_OF_RANGE)
        else:
            self._good()

    def _read_toc(self, packet: bytes) -> None:
        """READ TOC: the tracks, or the sessions."""
        if self._disc is None:
            self._check(NOT_READY)
            return
        kind = packet[2] & 15 or packet[9] >> 6
        first, in_time = packet[6], packet[1] & 2
        end = self._disc.size // SECTOR

        def track(number: int, lba: int) -> bytes:
            place = _in_time(lba) if in_time else lba.to_bytes(4, "big")
            return bytes((0, _DATA_TRACK, number, 0)) + place

        if kind == 0 and (first <= 1 or first == _LEAD_OUT):
            tracks = track(_LEAD_OUT, end)
            if first != _LEAD_OUT:
                tracks = track(1, 0) + tracks
        elif kind == 1:
            tracks = track(1, 0)
        else:
            self._check(NO_FIELD)
            return
        size = (len(tracks) + 2).to_bytes(2, "big")
        self._answer(size + b"\1\1" + tracks, int.from_bytes(packet[7:9], "big"))

    def _mode_sense(self, packet: bytes) -> None:
        """MODE SENSE(10): error recovery, and what the drive can."""
        asked = packet[2] & 0x3F
        lock = 0x29 | self.locked << 1  # a tray that can be locked, and ejects
        speed = _SPEED.to_bytes(2, "big")
        pages = {
            0x01: bytes((0x01, 6, 0, 5, 0, 0, 0, 0)),
            0x2A: bytes((0x2A, 18, 0, 0, 0x70, 0, lock, 0))
            + speed + bytes(2) + b"\0\x40" + speed + bytes(4),
        }  # fmt: skip
        wanted = pages.values() if asked == 0x3F else [pages.get(asked, b"")]
        data = b"".join(wanted)
        if not data or packet[2] >> 6 == 3:
            self._check(NO_FIELD)
            return
        medium = 0x71 if self.is_open else 0x70 if self._medium is None else 0x01
        head = (len(data) + 6).to_bytes(2, "big") + bytes((medium, 0, 0, 0, 0, 0))
        self._answer(head + data, int.from_bytes(packet[7:9], "big"))

    def _start_stop(self, packet: bytes) -> None:
        """START STOP UNIT: open the door, or close it."""
        moves, closes = packet[4] & 2, packet[4] & 1
        if moves and not closes and self.locked:
            self._check(PREVENTED)
            return
        if moves and bool(closes) == self.is_open:
            self.is_open = not closes
            self.attention = bool(closes) and self._medium is not None
            if self._medium is not None:
                self.event = 2 if closes else 3
        self._good()

    def _prevent(self, packet: bytes) -> None:
        self.locked = bool(packet[4] & 1)
        self._good()

    def _event(self, packet: bytes) -> None:
        """GET EVENT STATUS NOTIFICATION, polled: the medium's alone."""
        if not packet[1] & 1:
            self._check(NO_FIELD)
            return
        supported = 1 << _EVENT_MEDIA
        if packet[4] & supported:
            present = self._disc is not None
            state = self.is_open | present << 1
            data = bytes((0, 6, _EVENT_MEDIA, supported, self.event, state, 0, 0))
            self.event = 0
        else:
            data = bytes((0, 2, 0x80, supported))
        self._answer(data, int.from_bytes(packet[7:9], "big"))


def _in_time(lba: int) -> bytes:
    """Return an address as minutes, seconds and frames, of which a second has 75."""
    seconds, frame = divmod(lba + 150, 75)
    return bytes((0, seconds // 60 & 0xFF, seconds % 60, frame))


_COMMANDS: Final = {
    0xA0: "_packet", 0xA1: "_identify", 0xEF: "_set_features", 0xE5: "_check_power",
    0x08: "reset",
    **dict.fromkeys((0xE0, 0xE1, 0xE2, 0xE3, 0xE6), "_nothing"),
}  # fmt: skip
_READ_12: Final = 0xA8
_PACKETS: Final = {
    0x00: "_test_unit_ready", 0x03: "_request_sense", 0x12: "_inquiry",
    0x1B: "_start_stop", 0x1E: "_prevent", 0x25: "_read_capacity", 0x28: "_read",
    0x2B: "_seek", 0x43: "_read_toc", 0x4A: "_event", 0x5A: "_mode_sense",
    _READ_12: "_read",
}  # fmt: skip
_UNATTENDED: Final = (0x03, 0x12, 0x4A)  # what does not tell of a new disc
