"""Multiboot 1: ELF kernels, and others by the address fields ("a.out kludge").

Source: Multiboot Specification version 0.6.96, sections 3.1 "OS image format" to 3.3
"Boot information format".
"""

from collections.abc import Iterator, Sequence
from typing import Final

from emu86.errors import ConfigError
from emu86.machine.boot import elf, foreign, video
from emu86.machine.boot.linux import command_line
from emu86.machine.boot.placement import LOW_END, MIB, Entry, Placement, memory_map

_SEARCH: Final = 8192  # the header lies wholly in these first bytes, 4-aligned
_SEARCH_FURTHER: Final = 1 << 20  # how far one that is out of place is looked for
_MAGIC: Final = 0x1BADB002
_LOADER_MAGIC: Final = 0x2BADB002  # in EAX at the kernel's entry

# Header flags; those of bits 0 to 15 must be understood or the kernel not be loaded.
_PAGE_ALIGN: Final = 1 << 0
_MEMORY_INFO: Final = 1 << 1
_VIDEO_MODE: Final = 1 << 2
_ADDRESSES: Final = 1 << 16

# Information flags
_INFO_MEMORY: Final = 1 << 0
_INFO_CMDLINE: Final = 1 << 2
_INFO_MODULES: Final = 1 << 3
_INFO_MMAP: Final = 1 << 6
_INFO_LOADER_NAME: Final = 1 << 9
_INFO_FRAMEBUFFER: Final = 1 << 12
_INFORMATION: Final = (
    _INFO_MEMORY
    | _INFO_CMDLINE
    | _INFO_MODULES
    | _INFO_MMAP
    | _INFO_LOADER_NAME
    | _INFO_FRAMEBUFFER
)
_INFO_SIZE: Final = 116

_TEXT_MODE: Final = 1  # mode_type, at 32 in the header

NO_GRAPHICS: Final = (
    "kernel: asks Multiboot for a graphics mode, there are text modes alone"
)

NO_ADDRESSES: Final = (
    "a Multiboot kernel, but neither ELF nor with load addresses",
    "link it as ELF, or give its header the address fields (bit 16 of its flags)",
)


def find_header(image: bytes) -> int | None:
    """The offset of the Multiboot header in `image`, or None."""
    for offset in find(image[:_SEARCH], _MAGIC):
        if offset % 4 == 0 and sums_up(image[:_SEARCH], offset, 3):
            return offset
    return None


def check(image: bytes) -> None:
    """Raise ConfigError if a Multiboot header is there, but not as it must be."""
    start = image[:_SEARCH_FURTHER]
    for offset in find(start, _MAGIC):
        if sums_up(start, offset, 3):
            raise ConfigError(
                f"kernel: its Multiboot header is at {offset:#x} in the file: it must"
                " be in the first 8192 bytes, at a multiple of 4"
            )
        if offset % 4 == 0 and offset + 12 <= _SEARCH:
            raise ConfigError(
                f"kernel: the checksum of its Multiboot header, at {offset:#x}, is"
                " wrong: magic number, flags and checksum must give 0"
            )


def find(image: bytes, magic: int) -> Iterator[int]:
    """Yield the offsets of a magic number."""
    word = magic.to_bytes(4, "little")
    offset = image.find(word)
    while offset >= 0:
        yield offset
        offset = image.find(word, offset + 1)


def sums_up(image: bytes, offset: int, count: int) -> bool:
    """Whether so many words are there, and give 0: the last one is their checksum."""
    whole = offset + 4 * count <= len(image)
    return whole and sum(words(image, offset, count)) & 0xFFFFFFFF == 0


def load(
    ram: memoryview, image: bytes, *, cmdline: str, modules: Sequence[bytes] = ()
) -> Entry:
    """Place Multiboot kernel `image`, its modules and boot information into `ram`.

    `ram` is all of guest-physical memory. Raises ConfigError when the image is no
    Multiboot kernel, asks for what this machine has not, is truncated, or does not fit.
    """
    header = find_header(image)
    if header is None:
        raise ConfigError("kernel: no Multiboot header")
    (flags,) = words(image, header + 4, 1)
    if flags & _VIDEO_MODE and words(image, header + 32, 1) != [_TEXT_MODE]:
        raise ConfigError(NO_GRAPHICS)
    unknown = flags & 0xFFFF & ~(_PAGE_ALIGN | _MEMORY_INFO | _VIDEO_MODE)
    if unknown:
        raise ConfigError(f"kernel: asks for unknown Multiboot features {unknown:#x}")

    places = Placement(ram)
    if flags & _ADDRESSES:
        if len(image) < header + 32:
            raise ConfigError("kernel: truncated in its Multiboot header")
        fields = words(image, header + 12, 5)
        eip = place_by_addresses(places, image, header, fields)
    elif elf.is_elf(image):
        foreign.check_machine(elf.headers(image), image)
        eip = elf.place_segments(places, image)
    else:
        # A disk with GRUB has the header of GRUB's own image.
        raise foreign.refuse(image, NO_ADDRESSES)
    info = _place_info(places, cmdline, modules)
    return places.entry(eip, {"eax": _LOADER_MAGIC, "ebx": info})


def place_by_addresses(
    places: Placement, image: bytes, header: int, fields: Sequence[int]
) -> int:
    """Place an image by the addresses that its header has; return the entry's.

    header: its offset in the file; fields: header_addr, load_addr, load_end_addr,
    bss_end_addr and entry_addr.
    """
    header_addr, start, load_end, bss_end, entry = fields
    first = header - (header_addr - start)
    if first < 0 or start > header_addr:
        raise ConfigError("kernel: Multiboot load addresses do not match its file")
    if load_end and load_end < start:
        raise ConfigError("kernel: Multiboot load addresses end before they start")
    size = load_end - start if load_end else len(image) - first
    data = image[first : first + size]
    if len(data) < size:
        raise ConfigError(f"kernel: truncated: {len(image)} bytes of {first + size}")
    places.put("kernel", start, data)
    places.put_zeros("kernel", start + size, max(bss_end - start - size, 0))
    if not start <= entry < max(start + size, bss_end):
        raise ConfigError(f"kernel: its Multiboot entry {entry:#x} is outside of it")
    return entry


def _place_info(places: Placement, cmdline: str, modules: Sequence[bytes]) -> int:
    """Place modules, strings, memory map and the structure that points to them."""
    empty = places.put_low("module name", b"\0")
    listed = []
    for module in modules:
        start = places.put_high("initrd", module, len(places.ram))
        listed.append(_pack(start, start + len(module), empty, 0))
    table = b"".join(
        _pack(20)
        + base.to_bytes(8, "little")
        + size.to_bytes(8, "little")
        + _pack(kind)
        for base, size, kind in memory_map(places.memory)
    )
    info = bytearray(_INFO_SIZE)
    info[0:12] = _pack(
        _INFORMATION,
        LOW_END >> 10,
        max(len(places.ram) - MIB, 0) >> 10,
    )
    info[16:28] = _pack(
        places.put_low("command line", command_line(cmdline)),
        len(listed),
        places.put_low("module list", b"".join(listed)),
    )
    info[44:52] = _pack(len(table), places.put_low("memory map", table))
    info[64:68] = _pack(places.put_low("loader name", b"emu86\0"))
    info[88:110] = video.framebuffer()
    return places.put_low("Multiboot information", bytes(info))


def words(image: bytes, offset: int, count: int) -> list[int]:
    """`count` doublewords at an offset."""
    return [
        int.from_bytes(image[at : at + 4], "little")
        for at in range(offset, offset + 4 * count, 4)
    ]


def _pack(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)
