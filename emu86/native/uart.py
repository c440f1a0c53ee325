"""What compiled code does of a 16550A: see `devices.uart`."""

from typing import Final

from emu86.native import abi
from emu86.native.abi import Control, Uart
from emu86.native.records import u32

THR: Final = 0  # registers: where what is sent is written, and the line status
LSR: Final = 5
IER_EMPTY: Final = 0x02
LCR_DLAB: Final = 0x80
MCR_LOOP: Final = 0x10
LSR_READY: Final = 0x01
LSR_EMPTY: Final = 0x60
"""Transmitter holding register empty, and transmitter empty."""


def line_status(uart: Uart) -> u32:
    """Return the LSR: what is sent has left at once."""
    return LSR_EMPTY | uart.errors & 0x1E | (LSR_READY if uart.count else 0)


def send(control: Control, value: u32) -> bool:
    """Send a byte, of which those who watch the line are told later.

    Python's is one that they are waiting for, and one that moves the interrupt line.
    """
    uart = control.uart
    if uart.lcr & LCR_DLAB or uart.mcr & MCR_LOOP or uart.ier & IER_EMPTY:
        return False
    count = uart.sent_count
    if uart.urgent[value >> 6 & 3] >> (value & 63) & 1 or count >= abi.SENT_MOST:
        return False
    uart.sent[min(count, abi.SENT_MOST - 1)] = value
    uart.sent_count = count + 1
    uart.empty_pending = 1
    control.behind |= abi.SENT
    return True
