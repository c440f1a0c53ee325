"""Floppy drives, and what floppies there are.

Source: ECMA-99, -100 and -125 (formats of floppies); IBM PC/AT Technical Reference,
"Diskette Drive"; Ralf Brown's Interrupt List, CMOS.LST, 10h (types of drives).

An image holds the sectors of a floppy, of 512 bytes, track by track and side by side;
its size tells the format. The motor always runs at full speed.
"""

from __future__ import annotations

import contextlib
from typing import Final, NamedTuple

from emu86.devices.medium import Medium

SECTOR: Final = 512
# Data rates, as registers have them.
RATE_500, RATE_300, RATE_250, RATE_1000 = range(4)

# Types of drives, as CMOS RAM has them.
NO_DRIVE: Final = 0
DRIVE_360K, DRIVE_1200K, DRIVE_720K, DRIVE_1440K, DRIVE_2880K = range(1, 6)

_BEYOND: Final = 3  # tracks that a head reaches behind those that are used


class Format(NamedTuple):
    """How a floppy is laid out, and the types of drives that take it, best first."""

    tracks: int
    heads: int
    sectors: int
    rate: int
    drives: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its image."""
        return self.tracks * self.heads * self.sectors * SECTOR


_HIGH: Final = (DRIVE_1440K, DRIVE_2880K)
FORMATS: Final = {
    one.size: one
    for one in (
        Format(40, 1, 8, RATE_250, (DRIVE_360K,)),
        Format(40, 1, 9, RATE_250, (DRIVE_360K,)),
        Format(40, 2, 8, RATE_250, (DRIVE_360K,)),
        Format(40, 2, 9, RATE_250, (DRIVE_360K,)),
        Format(80, 2, 9, RATE_250, _HIGH),
        Format(80, 2, 15, RATE_500, (DRIVE_1200K,)),
        Format(80, 2, 18, RATE_500, _HIGH),
        Format(80, 2, 21, RATE_500, _HIGH),
        Format(80, 2, 36, RATE_1000, (DRIVE_2880K,)),
    )
}
"""The formats of floppies, by the size of their images."""


class DriveState(NamedTuple):
    """Its type, where the head is, and the line that tells of a change."""

    kind: int
    track: int
    changed: bool


class FloppyDrive:
    """A drive, with a floppy or without."""

    def __init__(self, kind: int, medium: Medium | None) -> None:
        """Make a drive of a type, with the head at track 0.

        medium: of a format in `FORMATS` that drives of this type take.
        """
        self.kind = kind
        self._medium = medium
        self._written = False
        self.track = 0
        self.changed = True
        """DSKCHG: set when a floppy is taken out, and until a step with one in."""

    @property
    def format(self) -> Format | None:
        """How the floppy that is in is laid out, or None."""
        return None if self._medium is None else FORMATS[self._medium.size]

    @property
    def protected(self) -> bool:
        """Whether what is in cannot be written."""
        return self._medium is not None and self._medium.read_only

    def insert(self, medium: Medium | None) -> None:
        """Put another floppy in, or none."""
        self._medium = medium
        self._written = False
        self.changed = True

    def step(self, steps: int) -> None:
        """Move the head by tracks, inwards or (below 0) outwards, as far as it can."""
        end = (40 if self.kind == DRIVE_360K else 80) + _BEYOND - 1
        self.track = min(max(self.track + steps, 0), end)
        if steps and self._medium is not None:
            self.changed = False

    def _at(self, head: int, sector: int) -> tuple[Medium, int]:
        """Return the floppy, and where on it a sector of this track is: it is there."""
        medium = self._medium
        if medium is None:
            raise OSError
        its = FORMATS[medium.size]
        number = (self.track * its.heads + head) * its.sectors + sector - 1
        return medium, number * SECTOR

    def read(self, head: int, sector: int) -> bytes:
        """Read a sector of this track that is there; OSError if the host fails."""
        medium, at = self._at(head, sector)
        return medium.read(at, SECTOR)

    def write(self, head: int, sector: int, data: bytes) -> None:
        """Write a sector of this track that is there; OSError if the host fails."""
        medium, at = self._at(head, sector)
        self._written = True
        medium.write(at, data)

    def rest(self) -> None:
        """Stop the motor: what was written is on the host's disk then."""
        if self._written and self._medium is not None:
            self._written = False
            # The user has been told; a drive has no way to tell the guest now.
            with contextlib.suppress(OSError):
                self._medium.flush()

    def save(self) -> DriveState:
        """Return what the drive knows; the floppy is the host's."""
        return DriveState(self.kind, self.track, self.changed)

    def restore(self, state: DriveState) -> None:
        """Become the drive that was saved."""
        self.kind, self.track, self.changed = state
