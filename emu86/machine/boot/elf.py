"""ELF files: their headers, and segments loaded by physical address.

Source: Tool Interface Standard ELF Specification 1.2, "ELF Header" and "Program
Loading"; for the 64-bit class the System V ABI, "Object Files". Sections mean nothing
to a loader, so a kernel stripped of them loads, however its section header is.
"""

import struct
from typing import Final, NamedTuple

from emu86.errors import ConfigError
from emu86.machine.boot.placement import ADAPTERS, MIB, Placement

# e_type
RELOCATABLE: Final = 1
EXECUTABLE: Final = 2
SHARED: Final = 3
CORE: Final = 4

I386: Final = 3  # e_machine
X86_64: Final = 62

# p_type
LOAD: Final = 1
INTERPRETER: Final = 3
NOTE: Final = 4
THREAD_LOCAL: Final = 7

# By class: e_type to e_phnum, and a program header; after the 16 bytes of e_ident.
_EHDR: Final = {32: "HHIIIIIHHH", 64: "HHIQQQIHHH"}
_PHDR: Final = {32: "8I", 64: "2I6Q"}


class Segment(NamedTuple):
    """A program header: `size` bytes at `offset` in the file, `memory` bytes in RAM."""

    kind: int
    offset: int
    virtual: int
    physical: int
    size: int
    memory: int


class Headers(NamedTuple):
    """An ELF file's headers: of 32 or 64 `bits`, in byte order "<" or ">".

    end: where the program headers end in the file.
    """

    bits: int
    order: str
    abi: int
    kind: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]
    end: int


def is_elf(image: bytes) -> bool:
    """Whether `image` starts like an ELF file, of whatever machine."""
    return image[:4] == b"\x7fELF"


def is_64_bit(image: bytes) -> bool:
    """Whether `image` starts like an ELF file for x86-64."""
    machine = int.from_bytes(image[18:20], "little")
    return image[:5] == b"\x7fELF\2" and machine == X86_64


def headers(image: bytes) -> Headers:
    """Read the headers; ConfigError if the file ends within them, or they are none."""
    bits, order = 32, "<"
    if image[4:5] == b"\2":
        bits = 64
    if image[5:6] == b"\2":
        order = ">"
    ehdr = struct.Struct(order + _EHDR[bits])
    phdr = struct.Struct(order + _PHDR[bits])
    if len(image) < 16 + ehdr.size:
        raise ConfigError("kernel: truncated in its ELF header")
    fields = ehdr.unpack_from(image, 16)
    kind, machine, _, entry, start = fields[:5]
    size, count = fields[8:10]
    end = start + size * count
    if count and size != phdr.size:
        raise ConfigError(f"kernel: damaged: its program headers have {size} bytes")
    if len(image) < end:
        raise ConfigError("kernel: truncated in its program headers")
    where = 2 if bits == 64 else 1  # of 64 bits, the flags come second
    segments = tuple(
        Segment(row[0], *row[where : where + 5])
        for row in phdr.iter_unpack(image[start:end] if count else b"")
    )
    return Headers(bits, order, image[7], kind, machine, entry, segments, end)


def place_segments(
    places: Placement, image: bytes, physical_entry: int | None = None
) -> int:
    """Place the loadable segments at their physical addresses; return the entry's.

    physical_entry: in place of the header's. Raises ConfigError if the file is
    truncated or does not fit, or the entry is not in it.
    """
    found = headers(image)
    entry = None
    start = found.entry if physical_entry is None else physical_entry
    for segment in found.segments:
        if segment.kind != LOAD:
            continue
        address, end = segment.physical, segment.offset + segment.size
        if len(image) < end:
            raise ConfigError(f"kernel: truncated: {len(image)} bytes of {end}")
        lost = _lost(image, found, segment)
        places.lose("kernel", address, lost)
        data = memoryview(image)[segment.offset + lost : end]
        places.put("kernel", address + lost, data)
        bss = max(segment.memory - segment.size, 0)
        places.put_zeros("kernel", address + segment.size, bss)
        # e_entry is physical in Linux and virtual in others.
        virtual = segment.virtual if physical_entry is None else address
        for base in (address, virtual):
            if entry is None and base <= start < base + segment.memory:
                entry = start - base + address
    if entry is None:
        name = "ELF entry" if physical_entry is None else "entry"
        raise ConfigError(f"kernel: its {name} {start:#x} is in no segment")
    return entry


def _lost(image: bytes, found: Headers, segment: Segment) -> int:
    """Return how many of a segment's first bytes have no memory, and need none.

    `ld -Ttext 0x100000` puts the file's own headers before the code, into a segment
    that begins below 1 MiB. On a PC they are written to the ROM there, and are lost;
    as are zeros that fill the segment up.
    """
    if not ADAPTERS <= segment.physical < MIB:
        return 0
    size = min(MIB - segment.physical, segment.size)
    first = max(segment.offset, found.end)
    return 0 if image[first : segment.offset + size].strip(b"\0") else size
