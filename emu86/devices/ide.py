"""An IDE channel: the registers and the interrupt line of two ATA drives.

Source: ATA/ATAPI-6 (T13 1410D revision 3b): 7, register definitions; 9, protocols;
9.12 to 9.16, resets and absent drives. The addresses are an ISA PC's, so there is PIO
and no DMA.

The registers of both drives take what is written, those of the selected one are read.
A drive that is not there reads 0, as a channel does whose drive 0 answers for it.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from emu86.devices.saving import capture, reinstate
from emu86.native import abi
from emu86.native.ide import is_inside, pull, push

# Status and error registers, and the device control register.
BSY: Final = 0x80
DRDY: Final = 0x40
DF: Final = 0x20
DSC: Final = 0x10  # of ATA-3: seek complete, which old drivers wait for
DRQ: Final = 0x08
ERR: Final = 0x01
ABRT: Final = 0x04
HOB: Final = 0x80
SRST: Final = 0x04
NIEN: Final = 0x02

DEV: Final = 0x10  # of the device register: drive 1
LBA: Final = 0x40

# Virtual ns that a drive is busy: at a command, between two blocks, after a reset.
COMMAND_TIME: Final = 50_000
BLOCK_TIME: Final = 5_000
RESET_TIME: Final = 2_000_000

BLOCK_MOST: Final = 2 * abi.TRANSFER_WORDS  # bytes
_PASSED: Final = 0x01  # what a drive's own test leaves in the error register

# Offsets of registers; that of errors is read where features are written.
_DATA, _FEATURES, _COUNT, _LOW, _MID, _HIGH, _DEVICE, _COMMAND = range(8)
_DIAGNOSTIC: Final = 0x90
_DEVICE_RESET: Final = 0x08


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
        self._sign(DRDY | DSC)

    @property
    def address(self) -> int:
        """Where compiled code finds the block that is on its way."""
        return ctypes.addressof(self._transfer)

    # -- registers ---------------------------------------------------------------------

    def read(self, offset: int, width: int, now: int, *, hob: int) -> int:
        """Read a register (offset 0..7); hob: shift of those that hold two bytes."""
        if offset == _DATA:
            return self._read_data(width, now)
        if offset == _COMMAND:
            self.interrupt = False
            return self.status
        if offset == _FEATURES:
            return self.error
        if offset == _DEVICE:
            return self.device
        address = self.lba_low, self.lba_mid, self.lba_high
        register = self.sector_count if offset == _COUNT else address[offset - _LOW]
        return register >> hob & 0xFF

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register (offset 0..6); a busy drive has no time for it."""
        if offset == _DATA:
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
        self._sign(DRDY | DSC)

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

    def _sign(self, status: int) -> None:
        self.features = 0
        self.sector_count = self.lba_low = 1
        self.lba_mid, self.lba_high = self.signature & 0xFF, self.signature >> 8
        self.device = 0
        self.error, self.status = _PASSED, status

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
        """The block that is on its way."""
        return self._block if self.way else b""

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


class ChannelState(NamedTuple):
    """The registers that two drives share, and the drives."""

    selected: int
    control: int
    line: bool
    drives: tuple[tuple[Any, ...], ...]


class Channel:
    """The command block of a channel: eight registers; `control` has the ninth."""

    widths = frozenset({1, 2, 4})

    def __init__(
        self,
        irq: Callable[[bool], None],
        drives: Sequence[Drive],
        *,
        window: Callable[[int], None] = lambda _address: None,
    ) -> None:
        """Make a channel of one or two drives after power-on.

        Args:
            irq: told the level of the interrupt line when it changes.
            drives: drive 0, and drive 1 if there is one.
            window: told the address of the `abi.Transfer` of the drive that is
                selected, 0: of none, whenever another one is.

        """
        self._irq = irq
        self._drives = tuple(drives)
        self._window = window
        self.control_register = DeviceControl(self)
        self.selected = 0
        self.control = 0
        self.line = False
        self._select(0)

    def _select(self, number: int) -> None:
        self.selected = number
        drive = self._drive
        self._window(0 if drive is None else drive.address)

    @property
    def _drive(self) -> Drive | None:
        """The selected drive, if it is there."""
        return (
            self._drives[self.selected] if self.selected < len(self._drives) else None
        )

    # -- registers ---------------------------------------------------------------------

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a register; the data port alone is wider than a byte."""
        if offset and width > 1:
            return self._by_bytes(offset, width, now)
        drive = self._drive
        hob = 8 if self.control & HOB else 0
        value = 0 if drive is None else drive.read(offset, width, now, hob=hob)
        self._update()
        return value

    def _by_bytes(self, offset: int, width: int, now: int) -> int:
        reads = (self.read(offset + i, 1, now) << 8 * i for i in range(width))
        return sum(reads)

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register of both drives, or the selected one's data or command."""
        if offset and width > 1:
            for i in range(width):
                self.write(offset + i, 1, value >> 8 * i & 0xFF, now)
            return
        if offset == _COMMAND:
            self._command(value & 0xFF, now)
        elif offset == _DATA:
            if self._drive is not None:
                self._drive.write(offset, width, value & (1 << 8 * width) - 1, now)
        else:
            self.control &= ~HOB
            for drive in self._drives:
                drive.write(offset, width, value & 0xFF, now)
            if offset == _DEVICE and bool(value & DEV) != self.selected:
                self._select(1 if value & DEV else 0)
        self._update()

    def _command(self, opcode: int, now: int) -> None:
        """Give the command to the selected drive, or to both."""
        self.control &= ~HOB
        if self.control & SRST:
            return
        if opcode == _DIAGNOSTIC:
            for each in self._drives:
                each.reset(None)
                each.diagnose(now)
            self._select(0)
            return
        drive = self._drive
        if drive is None:
            return
        drive.interrupt = False
        if opcode == _DEVICE_RESET or not drive.status & (BSY | DRQ):
            drive.command(opcode, now)

    def read_alternate(self) -> int:
        """Read the status, and leave the interrupt as it is."""
        return 0 if self._drive is None else self._drive.status

    def write_control(self, value: int, now: int) -> None:
        """Write the device control register: HOB, SRST and nIEN."""
        before, self.control = self.control, value & (HOB | SRST | NIEN)
        if value & SRST:
            if not before & SRST:
                for drive in self._drives:
                    drive.reset(None)
                self._select(0)
        elif before & SRST:
            for drive in self._drives:
                drive.reset(now)
        self._update()

    def _update(self) -> None:
        drive = self._drive
        asks = drive is not None and drive.interrupt
        line = asks and not self.control & NIEN
        if line != self.line:
            self.line = line
            self._irq(line)

    # -- time --------------------------------------------------------------------------

    def deadline(self) -> int | None:
        """Return when a drive that is busy will no longer be."""
        return min(
            (drive.due for drive in self._drives if drive.due is not None), default=None
        )

    def advance(self, now: int) -> None:
        """Have the drives do what is due."""
        for drive in self._drives:
            if drive.due is not None and now >= drive.due:
                drive.proceed(now)
        self._update()

    # -- state -------------------------------------------------------------------------

    def save(self) -> ChannelState:
        """Return the registers and the drives; what the media hold is not among it."""
        drives = tuple(drive.save() for drive in self._drives)
        return ChannelState(self.selected, self.control, self.line, drives)

    def restore(self, state: ChannelState) -> None:
        """Become the channel that was saved, of drives of the same kinds."""
        self.control, self.line = state.control, state.line
        for drive, its in zip(self._drives, state.drives, strict=True):
            drive.restore(its)
        self._select(state.selected)


class DeviceControl:
    """The control block of a channel: alternate status, and device control."""

    def __init__(self, channel: Channel) -> None:
        """Make the register of a channel."""
        self.drives = channel  # whose deadline a write moves

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the alternate status."""
        return self.drives.read_alternate()

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write the device control register."""
        self.drives.write_control(value & 0xFF, now)
