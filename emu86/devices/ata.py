"""What ATA drives have in common: their registers, and blocks of data.

Source: ATA/ATAPI-6 (T13 1410D revision 3b): 7, register definitions; 9, protocols.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final, NamedTuple

from emu86.devices.saving import capture, reinstate
from emu86.native import abi
from emu86.native.ide import is_inside, pull, push

# Status and error registers.
BSY: Final = 0x80
DRDY: Final = 0x40
DF: Final = 0x20
DSC: Final = 0x10  # of ATA-3: seek complete, which old drivers wait for
DRQ: Final = 0x08
ERR: Final = 0x01
ABRT: Final = 0x04

# Virtual ns that a drive is busy: at a command, between two blocks, after a reset.
COMMAND_TIME: Final = 50_000
BLOCK_TIME: Final = 5_000
RESET_TIME: Final = 2_000_000

BLOCK_MOST: Final = 2 * abi.TRANSFER_WORDS  # bytes
_PASSED: Final = 0x01  # what a drive's own test leaves in the error register

# Offsets of registers; that of errors is read where features are written.
DATA, _FEATURES, _COUNT, _LOW, _MID, _HIGH, DEVICE, COMMAND = range(8)

_POWER_ACTIVE: Final = 0xFF
_SET_TRANSFER_MODE: Final = 0x03
_PIO_MODES: Final = (0, 1, *range(8, 13))  # the default, and PIO 0 to 4


class RegistersState(NamedTuple):
    """The registers of a drive, its block of data, and what it does at `due`."""

    features: int
    sector_count: int
    lba_low: int
    lba_mid: int
    lba_high: int
    device: int
    status: int
    error: int
    interrupt: bool
    due: int | None
    step: str
    way: int
    at: int
    block: bytes


class Drive:
    """The registers of a drive, and the blocks that pass through its data port.

    features, sector_count, lba_low, lba_mid, lba_high: what was written last in bits 7
    to 0, and what before that in bits 15 to 8, as commands of 48 bits have it;
    interrupt: it asks for one; due: when it does `step`, a method's name. Commands are
    the subclasses'.
    """

    signature = 0  # LBA mid and high after a reset
    at_rest = DRDY | DSC  # the status then

    def __init__(self) -> None:
        """Make a drive after power-on."""
        self.features = 0
        self.sector_count = self.lba_low = self.lba_mid = self.lba_high = 0
        self._transfer = abi.Transfer()
        first = ctypes.sizeof(self._transfer) - BLOCK_MOST
        self._bytes = memoryview(self._transfer).cast("B")[first:]
        self.interrupt = False
        self.due: int | None = None
        self.step = ""
        self._sign()

    @property
    def address(self) -> int:
        """Where compiled code finds the block that is on its way."""
        return ctypes.addressof(self._transfer)

    # -- registers ---------------------------------------------------------------------

    def read(self, offset: int, width: int, now: int, *, hob: int) -> int:
        """Read a register (offset 0..7); hob: shift of those that hold two bytes."""
        if offset == DATA:
            return self._read_data(width, now)
        if offset == COMMAND:
            self.interrupt = False
            return self.status
        if offset == _FEATURES:
            return self.error
        if offset == DEVICE:
            return self.device
        address = self.lba_low, self.lba_mid, self.lba_high
        register = self.sector_count if offset == _COUNT else address[offset - _LOW]
        return register >> hob & 0xFF

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register (offset 0..6); a busy drive has no time for it."""
        if offset == DATA:
            self._write_data(width, value, now)
        elif self.status & BSY:
            return
        elif offset == _FEATURES:
            self.features = (self.features << 8 | value) & 0xFFFF
        elif offset == _COUNT:
            self.sector_count = (self.sector_count << 8 | value) & 0xFFFF
        elif offset == _LOW:
            self.lba_low = (self.lba_low << 8 | value) & 0xFFFF
        elif offset == _MID:
            self.lba_mid = (self.lba_mid << 8 | value) & 0xFFFF
        elif offset == _HIGH:
            self.lba_high = (self.lba_high << 8 | value) & 0xFFFF
        else:
            self.device = value

    def reset(self, now: int | None) -> None:
        """Stop what is under way; `now`: end the reset a while later, None: hold it."""
        self._end_block()
        self.interrupt = False
        self.status = BSY
        self.due = None if now is None else now + RESET_TIME
        self.step = "end_reset"

    def end_reset(self, now: int) -> None:
        """Show that the drive's own test has passed, and what kind of drive it is."""
        self._sign()

    def diagnose(self, now: int) -> None:
        """EXECUTE DEVICE DIAGNOSTIC, which both drives take at once."""
        self._busy(now, RESET_TIME, "end_diagnostic")

    def end_diagnostic(self, now: int) -> None:
        """Do as after a reset, and ask for an interrupt."""
        self.end_reset(now)
        self.interrupt = True

    def command(self, opcode: int, now: int) -> None:
        """Begin a command; the drive is neither busy nor moving data."""
        raise NotImplementedError

    def proceed(self, now: int) -> None:
        """Do what was due."""
        self.due = None
        getattr(self, self.step)(now)

    def _sign(self) -> None:
        self.features = 0
        self.sector_count = self.lba_low = 1
        self.lba_mid, self.lba_high = self.signature & 0xFF, self.signature >> 8
        self.device = 0
        self.error, self.status = _PASSED, self.at_rest

    # -- what commands are made of -----------------------------------------------------

    def _busy(self, now: int, time: int, step: str) -> None:
        """Be busy for a time in ns, and then do a step."""
        self.status = self.status & ~(DRQ | ERR | DF) | BSY
        self.due, self.step = now + time, step

    def _finish(self) -> None:
        """End a command that went well."""
        self.status, self.interrupt = DRDY | DSC, True

    def _fail(self, error: int, *, fault: bool = False) -> None:
        """End a command with bits of the error register; fault: the drive's own."""
        self._end_block()
        self.error = error
        self.status = DRDY | DSC | ERR | (DF if fault else 0)
        self.interrupt = True

    def _nothing(self, now: int) -> None:
        """Do what takes no more than its time, such as modes of power."""
        self._busy(now, COMMAND_TIME, "finish")

    def finish(self, now: int) -> None:
        """End a command that went well."""
        self._finish()

    def _check_power(self, now: int) -> None:
        self.sector_count = _POWER_ACTIVE
        self._nothing(now)

    @property
    def _is_pio_mode(self) -> bool:
        """Whether SET FEATURES asks for a transfer mode that there is."""
        mode = self.sector_count & 0xFF
        return self.features & 0xFF == _SET_TRANSFER_MODE and mode in _PIO_MODES

    def _identify(self, now: int) -> None:
        self._busy(now, COMMAND_TIME, "identify")

    def identify(self, now: int) -> None:
        """Offer what the drive tells of itself."""
        self._send(self._identity(), "identified")
        self.interrupt = True

    def identified(self, now: int) -> None:
        """Be done: the host has taken it."""

    def _identity(self) -> bytes:
        """Return the 512 bytes of IDENTIFY data."""
        raise NotImplementedError

    def _send(self, block: bytes, step: str) -> None:
        """Offer a block to the host, and do a step once it has taken that."""
        self._bytes[: len(block)] = block
        self._begin_block(abi.TO_HOST, len(block), step)

    def _begin_block(self, way: int, size: int, step: str) -> None:
        transfer = self._transfer
        transfer.way, transfer.at, transfer.end = way, 0, size
        self.step = step
        self.status = DRDY | DSC | DRQ

    def _end_block(self) -> None:
        self._transfer.way = 0

    @property
    def _block(self) -> bytes:
        """What the host has sent."""
        return bytes(self._bytes[: self._transfer.end])

    def _read_data(self, width: int, now: int) -> int:
        transfer = self._transfer
        if is_inside(transfer, width, abi.TO_HOST):
            return pull(transfer, width)
        if transfer.way != abi.TO_HOST:
            return (1 << 8 * width) - 1
        at = transfer.at
        value = int.from_bytes(
            self._bytes[at : min(at + width, transfer.end)], "little"
        )
        self._pass(width, now)
        return value

    def _write_data(self, width: int, value: int, now: int) -> None:
        transfer = self._transfer
        if is_inside(transfer, width, abi.TO_DRIVE):
            push(transfer, width, value)
        elif transfer.way == abi.TO_DRIVE:
            data = value.to_bytes(width, "little")[: transfer.end - transfer.at]
            self._bytes[transfer.at : transfer.at + len(data)] = data
            self._pass(width, now)

    def _pass(self, width: int, now: int) -> None:
        """Count what has passed; the last of a block has the drive do its step."""
        transfer = self._transfer
        transfer.at = min(transfer.at + width, transfer.end)
        if transfer.at == transfer.end:
            transfer.way = 0
            self.status &= ~DRQ
            getattr(self, self.step)(now)

    # -- state -------------------------------------------------------------------------

    @property
    def status(self) -> int:
        """The status register."""
        return self._transfer.status

    @status.setter
    def status(self, value: int) -> None:
        self._transfer.status = value

    @property
    def interrupt(self) -> bool:
        """Whether the drive asks for an interrupt."""
        return bool(self._transfer.asks)

    @interrupt.setter
    def interrupt(self, asks: bool) -> None:
        self._transfer.asks = asks

    @property
    def way(self) -> int:
        """Where the block goes, as `abi.Transfer` has it."""
        return self._transfer.way

    @way.setter
    def way(self, way: int) -> None:
        self._transfer.way = way

    @property
    def at(self) -> int:
        """How many bytes of the block have passed."""
        return self._transfer.at

    @at.setter
    def at(self, at: int) -> None:
        self._transfer.at = at

    @property
    def block(self) -> bytes:
        """The block that is on its way, or that a busy drive has taken."""
        return self._block if self.way or self.due is not None else b""

    @block.setter
    def block(self, block: bytes) -> None:
        self._transfer.end = len(block)
        self._bytes[: len(block)] = block

    def save(self) -> tuple[Any, ...]:
        """Return the registers and the block; subclasses add what else they know."""
        state = capture(RegistersState, self)
        return state if self.way else state._replace(at=0)

    def restore(self, state: Any) -> None:  # noqa: ANN401 (each subclass's own)
        """Become the drive that was saved."""
        reinstate(self, state)


def sealed(words: dict[int, int], model: str, number: int) -> bytes:
    """Return IDENTIFY data of these words, with names; its bytes add up to 0."""
    texts = (10, 20, f"EMU86-{number}"), (23, 8, "1.0"), (27, 40, model)
    for first, size, text in texts:  # of two letters the first is in the upper byte
        letters = struct.unpack(f">{size // 2}H", text.ljust(size).encode())
        words |= {first + i: pair for i, pair in enumerate(letters)}
    data = struct.pack("<255HB", *(words.get(i, 0) for i in range(255)), 0xA5)
    return data + bytes([-sum(data) & 0xFF])
