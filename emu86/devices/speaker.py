"""Port 61h: the gate and output of timer channel 2, and the refresh toggle.

Source: Intel 82371SB PIIX3 data sheet (order 290550), NMI status and control register
(port 61h), which keeps what the IBM PC/AT had there (system control port B).

There is no sound. Parity and channel check never fail: bits 7 and 6 read 0.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from typing import Final, NamedTuple

from emu86.devices.pit import Pit
from emu86.native.abi import Latch
from emu86.native.pit import ticks
from emu86.native.ports import REFRESH_TICKS

GATE_2: Final = 0x01
SPEAKER: Final = 0x02
WRITABLE: Final = 0x0F
REFRESH: Final = 0x10
OUT_2: Final = 0x20


class SpeakerState(NamedTuple):
    """Bits 1 to 3; bit 0 is the timer's."""

    control: int


class Speaker:
    """The register at port 61h."""

    def __init__(self, pit: Pit, latch: Latch | None = None) -> None:
        """Make the register that drives the gate of channel 2 of ``pit``.

        Args:
            pit: the timer.
            latch: where bits 1 to 3 are kept; compiled code may read them.

        """
        self.drives = pit
        self._latch = Latch() if latch is None else latch

    def read(self, offset: int, width: int, now: int) -> int:
        """Read what was written, the refresh toggle and OUT of channel 2."""
        value = self._latch.value
        if self.drives.gate(2):
            value |= GATE_2
        if ticks(now) // REFRESH_TICKS & 1:
            value |= REFRESH
        if self.drives.out(2, now):
            value |= OUT_2
        return value

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Set the gate of channel 2, the speaker data bit and the check enables."""
        self._latch.value = value & WRITABLE & ~GATE_2
        self.drives.set_gate(2, bool(value & GATE_2), now)

    def save(self) -> SpeakerState:
        """Return the bits that the timer does not hold."""
        return SpeakerState(self._latch.value)

    def restore(self, state: SpeakerState) -> None:
        """Become the register that was saved."""
        self._latch.value = state.control
