"""The screen as a boot loader leaves it, for kernels that are told of it."""

import struct
from typing import Final

COLUMNS: Final = 80
ROWS: Final = 25
CELL: Final = 2  # bytes: character and attribute
TEXT: Final = 0xB8000
_MODE: Final = 3
_FONT_LINES: Final = 16
_VGA_256K: Final = 3  # BX of INT 10h, function 12h, BL=10h: colour, 256 KiB


def screen_info(cmdline: str) -> bytes:
    """Return the first bytes of Linux's boot_params (screen_info, zero-page.rst).

    They are zeros, which is no screen, where the command line has the kernel speak on a
    serial line alone: a screen that shows nothing would cost it time.
    """
    if not is_told(cmdline):
        return b""
    info = bytearray(0x12)
    info[6:8] = _MODE, COLUMNS
    struct.pack_into("<H", info, 0x0A, _VGA_256K)
    info[0x0E:0x10] = ROWS, 1  # it is a VGA
    struct.pack_into("<H", info, 0x10, _FONT_LINES)
    return bytes(info)


def is_told(cmdline: str) -> bool:
    """Whether a kernel with this command line is to have screen and mouse."""
    words = (word for word in cmdline.split() if word.startswith("console="))
    consoles = [word.removeprefix("console=") for word in words]
    return not consoles or any(_is_screen(console) for console in consoles)


def _is_screen(console: str) -> bool:
    return console.startswith("tty") and console[3:].isdigit()


def framebuffer() -> bytes:
    """Return Multiboot's words on the framebuffer: address to type, EGA text."""
    address_to_bits = (TEXT, COLUMNS * CELL, COLUMNS, ROWS, 16)
    return struct.pack("<Q3I2B", *address_to_bits, 2)
