"""What compiled code does of the data port of an ATA drive: see `devices.ide`."""

from typing import Final

from emu86.native import abi
from emu86.native.abi import Transfer
from emu86.native.records import i32, u16, u32

_MASK: Final = abi.TRANSFER_WORDS - 1
_WORD: Final = 2


def is_inside(transfer: Transfer, width: i32, way: u32) -> bool:
    """Tell whether an access by words leaves more of the block to come.

    way: `abi.TO_HOST` or `abi.TO_DRIVE`.
    """
    if width < _WORD or transfer.way != way or transfer.at & 1:
        return False
    return transfer.at + width < transfer.end


def pull(transfer: Transfer, width: i32) -> u32:
    """Read a word or a doubleword of the block."""
    at = transfer.at >> 1
    transfer.at += width
    low: u32 = transfer.words[at & _MASK]
    if width == _WORD:
        return low
    high: u16 = transfer.words[at + 1 & _MASK]
    return low | high << 16


def push(transfer: Transfer, width: i32, value: u32) -> None:
    """Write a word or a doubleword of the block."""
    at = transfer.at >> 1
    transfer.at += width
    transfer.words[at & _MASK] = value & 0xFFFF
    if width != _WORD:
        transfer.words[at + 1 & _MASK] = value >> 16
