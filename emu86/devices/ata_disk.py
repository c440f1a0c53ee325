"""An ATA hard disk: sectors by CHS, and by LBA of 28 and of 48 bits.

Source: ATA/ATAPI-6 (T13 1410D revision 3b): 8, command descriptions; table 26, IDENTIFY
DEVICE data. The default of CHS is by its annex on translation: 16 heads, 63 sectors.

As after a BIOS, READ and WRITE MULTIPLE work from the start, by 16 sectors.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from emu86.devices.ata import ABRT, BLOCK_TIME, COMMAND_TIME, Drive, sealed
from emu86.devices.medium import Medium
from emu86.native import abi

SECTOR: Final = 512
MULTIPLE_MOST: Final = 16  # sectors
HEADS, SECTORS = 16, 63
CYLINDERS_MOST: Final = 16_383
LBA28_MOST: Final = (1 << 28) - 1
SECTORS_MOST: Final = 1 << 48

LBA: Final = 0x40  # of the device register

UNC: Final = 0x40
IDNF: Final = 0x10

_WRITE_CACHE: Final = 0x20  # of IDENTIFY's words 82 and 85
_LOOK_AHEAD: Final = 0x40
_POWER_MANAGEMENT: Final = 0x08
_SETTINGS: Final = {  # features by their subcommand: the bit that it sets or clears
    0x02: (_WRITE_CACHE, True), 0x82: (_WRITE_CACHE, False),
    0xAA: (_LOOK_AHEAD, True), 0x55: (_LOOK_AHEAD, False),
}  # fmt: skip


class DiskState(NamedTuple):
    """The registers of the drive, its settings, and the command under way."""

    registers: tuple[Any, ...]
    heads: int
    sectors: int
    multiple: int
    enabled: int
    lba: int
    left: int
    per_block: int
    extended: bool


class AtaDisk(Drive):
    """A hard disk of what a medium holds, of one sector at least."""

    def __init__(self, medium: Medium, number: int) -> None:
        """Make a drive after power-on; number: for its serial number."""
        self._medium = medium
        self._total = medium.size // SECTOR
        self._number = number
        self.heads, self.sectors = HEADS, SECTORS
        self.multiple = MULTIPLE_MOST
        self.enabled = _WRITE_CACHE | _LOOK_AHEAD | _POWER_MANAGEMENT
        # The command under way: its next sector, how many are left, how many pass with
        # one interrupt, and whether its registers are of 48 bits.
        self.lba = self.left = 0
        self.per_block = 1
        self.extended = False
        super().__init__()

    def save(self) -> DiskState:
        """Return all but what the medium holds."""
        own = (getattr(self, name) for name in DiskState._fields[1:])
        return DiskState(super().save(), *own)

    def restore(self, state: DiskState) -> None:
        """Become the drive that was saved."""
        super().restore(state.registers)
        for name, value in zip(state._fields[1:], state[1:], strict=True):
            setattr(self, name, value)

    def command(self, opcode: int, now: int) -> None:
        """Begin a command."""
        self.error = 0
        if opcode not in _COMMANDS:
            self._fail(ABRT)
            return
        begin, told = _COMMANDS[opcode]
        getattr(self, begin)(now, **told)

    # -- addresses ---------------------------------------------------------------------

    def _locate(self, *, extended: bool) -> bool:
        """Read the address and the count of sectors; tell whether they are inside."""
        self.extended = extended
        low, mid, high = self.lba_low & 0xFF, self.lba_mid & 0xFF, self.lba_high & 0xFF
        if extended:
            previous = (
                self.lba_low >> 8 | self.lba_mid & 0xFF00 | self.lba_high >> 8 << 16
            )
            self.lba = low | mid << 8 | high << 16 | previous << 24
            self.left = self.sector_count or 0x10000
        elif self.device & LBA:
            self.lba = low | mid << 8 | high << 16 | (self.device & 15) << 24
        else:
            head, cylinder = self.device & 15, mid | high << 8
            if not 1 <= low <= self.sectors or head >= self.heads:
                return False
            self.lba = (cylinder * self.heads + head) * self.sectors + low - 1
        if not extended:
            self.left = self.sector_count & 0xFF or 0x100
        return self.lba + self.left <= self._total

    def _show(self, lba: int) -> None:
        """Leave the address of a sector in the registers, as commands end with."""
        if self.extended:
            low, mid, high = ((lba >> shift & 0xFF) for shift in (0, 8, 16))
            self.lba_low = low | lba >> 24 << 8 & 0xFF00
            self.lba_mid = mid | lba >> 32 << 8 & 0xFF00
            self.lba_high = high | lba >> 40 << 8 & 0xFF00
        elif self.device & LBA:
            self.lba_low, self.lba_mid, self.lba_high = (
                (lba >> n & 0xFF) for n in (0, 8, 16)
            )
            self.device = self.device & ~15 | lba >> 24 & 15
        else:
            track, sector = divmod(lba, self.sectors)
            cylinder, head = divmod(track, self.heads)
            self.lba_low = sector + 1
            self.lba_mid, self.lba_high = cylinder & 0xFF, cylinder >> 8 & 0xFF
            self.device = self.device & ~15 | head

    def _begin(self, *, extended: bool, multiple: bool) -> bool:
        """Begin to read or write sectors, if they are there."""
        if multiple and not self.multiple:
            self._fail(ABRT)
        elif not self._locate(extended=extended):
            self._fail(IDNF)
        else:
            self.per_block = self.multiple if multiple else 1
            return True
        return False

    @property
    def _here(self) -> int:
        """Sectors of the next block."""
        return min(self.left, self.per_block)

    # -- reading -----------------------------------------------------------------------

    def _read(
        self, now: int, *, extended: bool = False, multiple: bool = False
    ) -> None:
        if self._begin(extended=extended, multiple=multiple):
            self._busy(now, COMMAND_TIME, "read_block")

    def read_block(self, _now: int) -> None:
        """Offer the next block."""
        try:
            data = self._medium.read(self.lba * SECTOR, self._here * SECTOR)
        except OSError:
            self._show(self.lba)
            self._fail(UNC)
            return
        self._send(data, "block_read")
        self.interrupt = True

    def block_read(self, now: int) -> None:
        """Go on to the next block, if there is one."""
        if self._advance():
            self._busy(now, BLOCK_TIME, "read_block")

    def _advance(self) -> bool:
        """Go behind a block; tell whether there is another one."""
        done = self._here
        self.lba, self.left = self.lba + done, self.left - done
        self.sector_count = self.left
        self._show(self.lba - 1)
        return bool(self.left)

    def _verify(self, now: int, *, extended: bool = False) -> None:
        if self._begin(extended=extended, multiple=False):
            self._busy(now, COMMAND_TIME, "verify_block")

    def verify_block(self, now: int) -> None:
        """Read sectors for themselves, as many as a block has at most."""
        self.per_block = MULTIPLE_MOST
        try:
            self._medium.read(self.lba * SECTOR, self._here * SECTOR)
        except OSError:
            self._show(self.lba)
            self._fail(UNC)
            return
        if self._advance():
            self._busy(now, BLOCK_TIME, "verify_block")
        else:
            self._finish()

    # -- writing -----------------------------------------------------------------------

    def _write(
        self, _now: int, *, extended: bool = False, multiple: bool = False
    ) -> None:
        if self._medium.read_only:
            self._fail(ABRT)
        elif self._begin(extended=extended, multiple=multiple):
            self._receive()

    def _receive(self) -> None:
        self._begin_block(abi.TO_DRIVE, self._here * SECTOR, "block_sent")

    def block_sent(self, now: int) -> None:
        """Be busy with a block that the host has sent."""
        self._busy(now, BLOCK_TIME, "write_block")

    def write_block(self, _now: int) -> None:
        """Write the block, and ask for the next one."""
        try:
            self._medium.write(self.lba * SECTOR, self._block)
            if not self.enabled & _WRITE_CACHE:
                self._medium.flush()
        except OSError:
            self._show(self.lba)
            self._fail(ABRT, fault=True)
            return
        if self._advance():
            self._receive()
            self.interrupt = True
        else:
            self._finish()

    def _flush(self, now: int) -> None:
        self._busy(now, COMMAND_TIME, "flush")

    def flush(self, _now: int) -> None:
        """Have all that was written on the host's disk."""
        try:
            self._medium.flush()
        except OSError:
            self._fail(ABRT, fault=True)
        else:
            self._finish()

    # -- all else ----------------------------------------------------------------------

    def _set_geometry(self, now: int) -> None:
        """INITIALIZE DEVICE PARAMETERS."""
        if self.sector_count & 0xFF:
            self.heads, self.sectors = (self.device & 15) + 1, self.sector_count & 0xFF
            self._nothing(now)
        else:
            self._fail(ABRT)

    def _set_multiple(self, now: int) -> None:
        count = self.sector_count & 0xFF
        if count > MULTIPLE_MOST or count & (count - 1):
            self._fail(ABRT)
        else:
            self.multiple = count
            self._nothing(now)

    def _set_features(self, now: int) -> None:
        feature = self.features & 0xFF
        if feature in _SETTINGS:
            bit, on = _SETTINGS[feature]
            self.enabled = self.enabled | bit if on else self.enabled & ~bit
            self._busy(now, COMMAND_TIME, "finish" if on else "flush")
        elif self._is_pio_mode:
            self._nothing(now)
        else:
            self._fail(ABRT)

    def _identity(self) -> bytes:
        total = self._total
        per_cylinder = HEADS * SECTORS
        # A disk that is smaller than a cylinder has one, for BIOSes to read it at all.
        cylinders = min(max(total // per_cylinder, 1), CYLINDERS_MOST)
        now = min(total // (self.heads * self.sectors), 0xFFFF)
        capacity = now * self.heads * self.sectors
        lba28 = min(total, LBA28_MOST)
        words = {
            0: 0x0040,  # an ATA drive, not removable
            1: cylinders, 3: HEADS, 6: SECTORS,
            47: 0x8000 | MULTIPLE_MOST,
            49: 0x0A00,  # LBA and IORDY, no DMA
            50: 0x4000,
            51: 0x0200,
            53: 0x0003,  # words 54 to 58 and 64 to 70 are valid
            54: now, 55: self.heads, 56: self.sectors,
            57: capacity & 0xFFFF, 58: capacity >> 16,
            59: (0x0100 | self.multiple) if self.multiple else 0,
            60: lba28 & 0xFFFF, 61: lba28 >> 16,
            64: 0x0003,  # PIO 3 and 4
            67: 120, 68: 120,  # ns of a cycle
            80: 0x007E,  # ATA-1 to ATA/ATAPI-6
            82: _WRITE_CACHE | _LOOK_AHEAD | _POWER_MANAGEMENT,
            83: 0x7400,  # FLUSH CACHE (EXT), 48 bits
            84: 0x4000,
            85: self.enabled,
            86: 0x3400,
            87: 0x4000,
            93: 0x4B00 if self._number & 1 else 0x400B,
            **{100 + i: total >> 16 * i & 0xFFFF for i in range(3)},
        }  # fmt: skip
        return sealed(words, "EMU86 DISK", self._number)


_EXT: Final = {"extended": True}
_MULTIPLE: Final = {"multiple": True}
# Commands by their opcode: the method that begins it, and what it is told.
_COMMANDS: Final[dict[int, tuple[str, dict[str, bool]]]] = {
    0x20: ("_read", {}), 0x21: ("_read", {}), 0x24: ("_read", _EXT),
    0x29: ("_read", _EXT | _MULTIPLE), 0xC4: ("_read", _MULTIPLE),
    0x30: ("_write", {}), 0x31: ("_write", {}), 0x34: ("_write", _EXT),
    0x39: ("_write", _EXT | _MULTIPLE), 0xC5: ("_write", _MULTIPLE),
    0x40: ("_verify", {}), 0x41: ("_verify", {}), 0x42: ("_verify", _EXT),
    **dict.fromkeys(range(0x10, 0x20), ("_nothing", {})),  # RECALIBRATE
    **dict.fromkeys(range(0x70, 0x80), ("_nothing", {})),  # SEEK
    # STANDBY, IDLE, SLEEP
    **dict.fromkeys((0xE0, 0xE1, 0xE2, 0xE3, 0xE6), ("_nothing", {})),
    0xE5: ("_check_power", {}),
    0xE7: ("_flush", {}), 0xEA: ("_flush", {}),
    0x91: ("_set_geometry", {}), 0xC6: ("_set_multiple", {}),
    0xEC: ("_identify", {}), 0xEF: ("_set_features", {}),
}  # fmt: skip
