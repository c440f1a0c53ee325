"""An IDE channel: the registers and the interrupt line of two ATA drives.

Source: ATA/ATAPI-6 (T13 1410D revision 3b): 7, register definitions; 9.12 to 9.16,
resets and absent drives. The addresses are an ISA PC's, so there is PIO and no DMA.

The registers of both drives take what is written, those of the selected one are read.
A drive that is not there reads 0, as a channel does whose drive 0 answers for it.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from emu86.devices.ata import BSY, COMMAND, DATA, DEVICE, DRQ, Drive

# The device control register.
HOB: Final = 0x80
SRST: Final = 0x04
NIEN: Final = 0x02

_DEV: Final = 0x10  # of the device register: drive 1
_DIAGNOSTIC: Final = 0x90  # commands that a channel knows
_DEVICE_RESET: Final = 0x08


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
        if offset == COMMAND:
            self._command(value & 0xFF, now)
        elif offset == DATA:
            if self._drive is not None:
                self._drive.write(offset, width, value & (1 << 8 * width) - 1, now)
        else:
            self.control &= ~HOB
            for drive in self._drives:
                drive.write(offset, width, value & 0xFF, now)
            if offset == DEVICE and bool(value & _DEV) != self.selected:
                self._select(1 if value & _DEV else 0)
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
