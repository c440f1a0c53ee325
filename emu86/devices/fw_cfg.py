"""QEMU's firmware configuration device: what SeaBIOS asks the board for.

Source: QEMU's docs/specs/fw_cfg.rst, the traditional interface: a selector of 16 bits
and a data port of 8, which gives the bytes of the item that was selected. There is no
DMA interface, and nothing can be written. An item that is not there reads as zeros.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

# Keys of items that have one of their own; files have those from FILES on.
SIGNATURE: Final = 0x00
ID: Final = 0x01
RAM_SIZE: Final = 0x03
CPUS: Final = 0x05
BOOT_MENU: Final = 0x0E
DIRECTORY: Final = 0x19
FILES: Final = 0x20

_TRADITIONAL: Final = 1  # the interface that ID tells of
_NAME: Final = 56  # bytes of a file's name, the last a zero


class FwCfgState(NamedTuple):
    """Which item is selected, and how many of its bytes were read."""

    key: int
    offset: int


class FwCfg:
    """The selector (offset 0) and the data port (1)."""

    widths = frozenset({1, 2})

    def __init__(self, ram: int, files: Mapping[str, bytes]) -> None:
        """Make the device of a board with one CPU.

        Args:
            ram: bytes of RAM.
            files: the named items, whose names have at most 55 characters.

        """
        self.key = 0
        self.offset = 0
        entries = [len(files).to_bytes(4, "big")]
        for key, (name, data) in enumerate(files.items(), FILES):
            entries.append(len(data).to_bytes(4, "big") + key.to_bytes(2, "big"))
            entries.append(bytes(2) + name.encode().ljust(_NAME, b"\0"))
        self._items: dict[int, bytes] = {
            SIGNATURE: b"QEMU",
            ID: _TRADITIONAL.to_bytes(4, "little"),
            RAM_SIZE: ram.to_bytes(8, "little"),
            CPUS: (1).to_bytes(2, "little"),
            BOOT_MENU: (1).to_bytes(2, "little"),
            DIRECTORY: b"".join(entries),
            **dict(enumerate(files.values(), FILES)),
        }

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the next byte of the item; the selector cannot be read."""
        if not offset:
            return (1 << 8 * width) - 1
        data, at = self._items.get(self.key, b""), self.offset
        if at >= len(data):
            return 0
        self.offset = at + 1
        return data[at]

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Select an item (width 2); nothing else can be written."""
        if not offset and width > 1:
            self.key, self.offset = value & 0xFFFF, 0

    def save(self) -> FwCfgState:
        """Return what is selected; the items are the board's."""
        return capture(FwCfgState, self)

    def restore(self, state: FwCfgState) -> None:
        """Become the device that was saved."""
        reinstate(self, state)
