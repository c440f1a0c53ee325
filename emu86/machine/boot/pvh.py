"""PVH: ELF kernels with a note that says where a 32-bit entry is.

Source: Xen's "x86/HVM direct boot ABI" (docs/misc/pvh.pandoc) and, for the structures,
its public header arch-x86/hvm/start_info.h. Linux's vmlinux of 64 bits is one.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from emu86.errors import ConfigError
from emu86.machine.boot import elf, foreign
from emu86.machine.boot.linux import command_line
from emu86.machine.boot.placement import Entry, Placement, memory_map

_PHYS32_ENTRY: Final = 18  # a note's type, of the name "Xen"
_NAME: Final = b"Xen\0"
_NOTES_MOST: Final = 1 << 16  # bytes of one segment's notes that are looked at
_MAGIC: Final = 0x336EC578
_VERSION: Final = 1
# Magic number, version, flags, modules; addresses of their list, of the command line,
# of the RSDP (there is no ACPI) and of the memory map; its entries.
_START_INFO: Final = struct.Struct("<4I4Q2I")
_MODULE: Final = struct.Struct("<4Q")
_RANGE: Final = struct.Struct("<2Q2I")


def entry_of(image: bytes) -> int | None:
    """Where ELF file `image` says that it is entered by PVH, or None."""
    found = elf.headers(image)
    if found.order != "<":
        return None
    for segment in found.segments:
        if segment.kind == elf.NOTE:
            size = min(segment.size, _NOTES_MOST)
            notes = image[segment.offset : segment.offset + size]
            for name, kind, content in _notes(notes):
                if name == _NAME and kind == _PHYS32_ENTRY and len(content) >= 4:
                    return int.from_bytes(content[:8], "little")
    return None


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield name, type and content of ELF notes, each padded to a multiple of 4."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<3I", data, at)
        at += 12
        start = at + (name_size + 3 & -4)
        yield data[at : at + name_size], kind, data[start : start + size]
        at = start + (size + 3 & -4)


def load(
    ram: memoryview, image: bytes, *, cmdline: str, modules: Sequence[bytes] = ()
) -> Entry:
    """Place PVH kernel `image`, its modules and the start of day information.

    `ram` is all of guest-physical memory. Raises ConfigError when the image is none, is
    truncated, or does not fit.
    """
    eip = entry_of(image)
    if eip is None:
        raise ConfigError("kernel: no PVH entry")
    foreign.check_machine(elf.headers(image), image)
    places = Placement(ram)
    elf.place_segments(places, image, eip)
    listed = []
    for module in modules:
        at = places.put_high("initrd", module, len(places.ram))
        listed.append(_MODULE.pack(at, len(module), 0, 0))
    ranges = memory_map(places.memory)
    table = b"".join(_RANGE.pack(*one, 0) for one in ranges)
    info = _START_INFO.pack(
        _MAGIC, _VERSION, 0, len(listed),
        places.put_low("module list", b"".join(listed)),
        places.put_low("command line", command_line(cmdline)), 0,
        places.put_low("memory map", table), len(ranges), 0,
    )  # fmt: skip
    return places.entry(eip, {"ebx": places.put_low("start information", info)})
