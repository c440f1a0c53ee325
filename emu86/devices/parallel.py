"""The parallel port of a PC/AT, with a printer that takes each byte at once.

Source: IBM PC/AT Technical Reference, "Printer Adapter"; IEEE 1284-1994, compatibility
mode; IBM PS/2 Hardware Interface Technical Reference, "Parallel Port Controller", whose
latch keeps an interrupt until the status is read.

The printer is on line, has paper and is never busy: it acknowledges each byte at once.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

# The control register: its lines, by the names that they have when they are active.
STROBE: Final = 0x01
INITIALIZE: Final = 0x04  # active low
SELECT_IN: Final = 0x08
IRQ_ENABLE: Final = 0x10
_FIXED: Final = 0xC0  # bits that read as ones; there is no direction bit

# The status register of a printer that is ready: not busy, no ACK pulse, selected, no
# error; bit 2 is low while an interrupt is pending, bits 1 and 0 read as ones.
READY: Final = 0xDF
PENDING: Final = 0x04
NOT_BUSY: Final = 0x80
NO_ERROR: Final = 0x08

_DATA, _STATUS, _CONTROL = range(3)


class ParallelState(NamedTuple):
    """The data and control registers, the interrupt line, and the printer's fault."""

    data: int
    control: int
    line: bool
    fault: bool


class Parallel:
    """Three registers, and the cable to a printer."""

    def __init__(
        self, irq: Callable[[bool], None], printed: Callable[[bytes], None]
    ) -> None:
        """Make a port after reset.

        Args:
            irq: told the level of the interrupt line when it changes.
            printed: takes each byte that the guest strobes.

        """
        self._irq = irq
        self._printed = printed
        self.data = 0
        self.control = INITIALIZE | SELECT_IN
        self.line = False
        self.fault = False
        """Whether the printer takes nothing any more; whoever has its file sets it."""

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a register (offset 0..2); the data register reads what was written."""
        if offset == _DATA:
            return self.data
        if offset == _CONTROL:
            return self.control | _FIXED
        status = READY & ~(NOT_BUSY | NO_ERROR) if self.fault else READY
        if self.line:
            status &= ~PENDING
            self._set(False)
        return status

    def _set(self, line: bool) -> None:
        if line != self.line:
            self.line = line
            self._irq(line)

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register; the status is read only."""
        if offset == _DATA:
            self.data = value & 0xFF
        elif offset == _CONTROL:
            before, self.control = self.control, value & ~_FIXED & 0x1F
            # The byte is taken as the strobe begins, by a printer that is not in reset.
            if not self.control & IRQ_ENABLE:
                self._set(False)
            strobes = self.control & ~before & STROBE
            if strobes and self.control & INITIALIZE and not self.fault:
                self._printed(bytes((self.data,)))
                if self.control & IRQ_ENABLE and not self.fault:
                    self._set(False)  # each byte is an edge
                    self._set(True)

    def save(self) -> ParallelState:
        """Return the registers; what was printed is the host's."""
        return capture(ParallelState, self)

    def restore(self, state: ParallelState) -> None:
        """Become the port that was saved."""
        reinstate(self, state)
