"""What is in a drive: bytes that the host keeps."""

from __future__ import annotations

from typing import Protocol


class Medium(Protocol):
    """A disk, a CD or a floppy as its drive sees it.

    size: its bytes; read_only: whether `write` is refused, which a drive asks before.

    The methods raise OSError where the host fails. Whoever made the medium has then
    told the user; the drive tells the guest.
    """

    size: int
    read_only: bool

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes, all of them inside of the medium."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, all of them inside of the medium."""
        ...

    def flush(self) -> None:
        """Have what was written on the host's disk."""
        ...
