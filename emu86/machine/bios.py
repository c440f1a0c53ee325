"""What a BIOS leaves behind: its data area and its ROM in memory, the chips programmed.

No BIOS runs here, but kernels look for what one has done.

Sources: IBM PC/AT Technical Reference (1985), section 5, listings of the BIOS ("ROM
BIOS DATA AREAS" has the addresses, TEST1 to TEST3 program the chips); Ralf Brown's
Interrupt List, MEMORY.LST (segment 40h) and CMOS.LST. Where boards differ, the values
are those that SeaBIOS leaves.
"""

from typing import Final

from emu86 import images
from emu86.machine import layout
from emu86.machine.board import Board
from emu86.machine.boot.placement import LOW_END
from emu86.native.pit import FREQUENCY

_DATA: Final = 0x400  # segment 40h
_EBDA_KIB: Final = 1
_IRET: Final = 0xF000FF53  # F000:FF53, where a PC's ROM has an IRET
_COLOUR_80X25: Final = 2 << 4  # equipment word, bits 5 and 4
_COPROCESSOR: Final = 1 << 1
_SERIAL_PORTS: Final = 9  # first bit of their number
_PRINTERS: Final = 14
_TIMER_COUNT: Final = 0x10000  # what a count of 0 means: 18.2 interrupts a second

# (port, byte) in order. 8259As: ICW1 to ICW4, then the masks. What has an interrupt
# line and a handler in a BIOS is open: timer, keyboard and cascade; clock, coprocessor.
_PORTS: Final = (
    *((0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0xF8)),
    *((0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0xDE)),
    *((0x43, 0x36), (0x40, 0x00), (0x40, 0x00)),  # 8254: channel 0, mode 3, count 0
)


def leave(ram: memoryview, board: Board, now: int) -> None:
    """Put into `ram` (all of it) and the chips what a BIOS leaves there at `now`."""
    ram[layout.ROM : layout.ROM + images.TABLES_SIZE] = images.tables()
    ram[:_DATA] = _IRET.to_bytes(4, "little") * 256
    area = _data_area(
        board.rtc.seconds_of_day(now),
        serial=board.ports.name(layout.COM1.start) is not None,
        printer=board.parallel is not None,
    )
    ram[_DATA : _DATA + len(area)] = area
    ram[LOW_END] = _EBDA_KIB
    for port, value in _PORTS:
        board.port_write(port, 1, value)


def _data_area(seconds: int, *, serial: bool, printer: bool) -> bytes:
    """Return the BIOS data area, `seconds` after midnight."""
    equipment = _COPROCESSOR | _COLOUR_80X25
    equipment |= serial << _SERIAL_PORTS | printer << _PRINTERS
    area = bytearray(256)
    for offset, size, value in (
        (0x00, 2, layout.COM1.start if serial else 0),  # there is no COM2
        (0x08, 2, layout.LPT1.start if printer else 0),
        (0x0E, 2, LOW_END >> 4),  # segment of the extended BIOS data area
        (0x10, 2, equipment),
        (0x13, 2, LOW_END >> 10),  # KiB of memory below the extended data area
        (0x1A, 2, 0x1E),  # keyboard buffer: its head, offset in segment 40h
        (0x1C, 2, 0x1E),  # its tail: it is empty
        (0x49, 1, 3),  # video mode: text, 80 columns, 25 rows, colour
        (0x4A, 2, 80),  # columns
        (0x4C, 2, 0x1000),  # bytes of a screen page
        (0x60, 2, 0x0607),  # first and last line of the cursor
        (0x63, 2, 0x3D4),  # port of the CRT controller
        (0x6C, 4, seconds * FREQUENCY // _TIMER_COUNT),  # ticks since midnight
        (0x80, 2, 0x1E),  # where the keyboard buffer begins
        (0x82, 2, 0x3E),  # where it ends
        (0x84, 1, 24),  # rows less 1
        (0x85, 2, 16),  # lines of a character
        (0x96, 1, 0x10),  # a keyboard of 101 or 102 keys
    ):
        area[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(area)
