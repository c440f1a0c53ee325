"""Which option of `emu86 run` a file without one is for."""

import os
import re
from pathlib import Path
from typing import Final

from emu86.devices.floppy_drive import FORMATS
from emu86.machine.boot import elf, foreign, linux, multiboot, multiboot2

# A floppy of before DOS 3 has no mark: a jump, a name, and 512 bytes to a sector.
_BPB: Final = re.compile(rb"(?:\xeb.\x90|\xe9..).{8}\x00\x02", re.DOTALL)
_HEAD: Final = 0x8800  # with the first descriptor of an ISO 9660 image


def option_of(path: str | os.PathLike[str]) -> str:
    """The option that the file is for: --disk, --floppy, --cdrom, --bios or --kernel.

    A bzImage is known first, for it has a boot sector's mark, too; then a CD, for so
    has a hybrid one. What begins as a floppy does and has the size of one is a floppy.
    What cannot be read is --kernel's, which says why.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - foreign.RESET_BYTES, 0))
            end = file.read()
    except (OSError, ValueError):
        return "--kernel"
    if linux.is_linux(head) or elf.is_elf(head):
        return "--kernel"
    if _has(head, foreign.ISO):
        return "--cdrom"
    # Behind its first sector GRUB has a Multiboot header.
    floppy = size in FORMATS
    if _has(head, foreign.BOOT_SECTOR):
        return "--floppy" if floppy else "--disk"
    if floppy and _BPB.match(head):
        return "--floppy"
    headers = multiboot.find_header(head), multiboot2.find_header(head)
    if headers != (None, None):
        return "--kernel"
    return "--bios" if foreign.is_rom_of(size, end) else "--kernel"


def _has(head: bytes, place: tuple[int, bytes]) -> bool:
    """Tell whether a file has a magic number at its offset."""
    offset, magic = place
    return head.startswith(magic, offset)
