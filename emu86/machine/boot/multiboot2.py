"""Multiboot 2: ELF kernels of 32 or 64 bits, and others by the address tag.

Source: Multiboot2 Specification version 2.0, sections 3.1 "OS image format" to 3.6
"Boot information format". A kernel of 64 bits is entered in 32-bit mode, too.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from emu86.errors import ConfigError
from emu86.machine.boot import elf, foreign, multiboot, video
from emu86.machine.boot.linux import command_line
from emu86.machine.boot.placement import LOW_END, MIB, Entry, Placement, memory_map

_SEARCH: Final = 32768  # the header lies wholly in these first bytes, 8-aligned
_MAGIC: Final = 0xE85250D6
_I386: Final = 0  # the header's architecture; 4 is MIPS
_LOADER_MAGIC: Final = 0x36D76289  # in EAX at the kernel's entry

# Tags of the header, and which of them ask for nothing that a PC without display and
# EFI has to do: console flags, alignment of modules, EFI's, relocation.
_END, _REQUEST, _ADDRESS, _ENTRY, _FRAMEBUFFER = 0, 1, 2, 3, 5
_GRANTED: Final = (4, 6, 7, 8, 9, 10)
_OPTIONAL: Final = 1 << 0  # of a tag's flags
_WHOLE_FILE: Final = 0xFFFFFFFF  # load_addr: of a file that is loaded from its start on
# Tags of the boot information; those up to the last are in the specification.
_CMDLINE, _LOADER_NAME, _MODULE, _MEMORY, _MMAP, _SCREEN = 1, 2, 3, 4, 6, 8
_LAST_INFORMATION: Final = 21


def find_header(image: bytes) -> int | None:
    """The offset of the Multiboot 2 header in `image`, or None."""
    for offset in multiboot.find(image[:_SEARCH], _MAGIC):
        if offset % 8 == 0 and multiboot.sums_up(image[:_SEARCH], offset, 4):
            return offset
    return None


def load(
    ram: memoryview, image: bytes, *, cmdline: str, modules: Sequence[bytes] = ()
) -> Entry:
    """Place Multiboot 2 kernel `image`, its modules and boot information into `ram`.

    `ram` is all of guest-physical memory. Raises ConfigError when the image is no
    Multiboot 2 kernel, asks for what this machine has not, is truncated, or does not
    fit.
    """
    header = find_header(image)
    if header is None:
        raise ConfigError("kernel: no Multiboot 2 header")
    architecture, size = multiboot.words(image, header + 4, 2)
    if architecture != _I386:
        raise ConfigError(f"kernel: is for Multiboot 2's architecture {architecture}")
    tags = dict(_wanted(image[header : header + size]))
    address = tags.get(_ADDRESS)
    entry = None
    if _ENTRY in tags:
        (entry,) = multiboot.words(tags[_ENTRY], 0, 1)
    places = Placement(ram)
    if address is not None:
        if entry is None:
            raise ConfigError("kernel: has Multiboot 2 load addresses, and no entry")
        at, start, load_end, bss_end = multiboot.words(address, 0, 4)
        if start == _WHOLE_FILE:
            start = (at - header) & 0xFFFFFFFF
        eip = multiboot.place_by_addresses(
            places, image, header, (at, start, load_end, bss_end, entry)
        )
    elif elf.is_elf(image):
        foreign.check_machine(elf.headers(image), image)
        eip = elf.place_segments(places, image, entry)
    else:
        raise foreign.refuse(image, multiboot.NO_ADDRESSES)
    info = _place_info(places, cmdline, modules)
    return places.entry(eip, {"eax": _LOADER_MAGIC, "ebx": info})


def _wanted(header: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tags of a header that matter, with their content behind type and size.

    Raises ConfigError for one that the kernel must have and cannot.
    """
    at = 16
    while at + 8 <= len(header):
        kind, flags, size = struct.unpack_from("<2HI", header, at)
        if kind == _END:
            return
        content = header[at + 8 : at + size]
        at += max(size + 7 & -8, 8)
        if kind in (_ADDRESS, _ENTRY):
            least = 16 if kind == _ADDRESS else 4
            if len(content) < least:
                break
            yield kind, content
        elif not flags & _OPTIONAL:
            _check(kind, content)
    raise ConfigError("kernel: truncated in its Multiboot 2 header")


def _check(kind: int, content: bytes) -> None:
    """Raise ConfigError for a tag that asks for what there is not."""
    if kind == _FRAMEBUFFER:
        # A depth of 0 is a text mode, or no preference.
        if len(content) < 12 or multiboot.words(content, 8, 1) != [0]:
            raise ConfigError(multiboot.NO_GRAPHICS)
    elif kind == _REQUEST:
        asked = multiboot.words(content, 0, len(content) // 4)
        unknown = [one for one in asked if one > _LAST_INFORMATION]
        if unknown:
            raise ConfigError(
                f"kernel: asks for unknown Multiboot 2 information {unknown[0]}"
            )
    elif kind not in _GRANTED:
        raise ConfigError(f"kernel: asks for unknown Multiboot 2 feature {kind}")


def _place_info(places: Placement, cmdline: str, modules: Sequence[bytes]) -> int:
    """Place modules and the boot information, a list of tags."""
    tags = [
        _tag(_CMDLINE, command_line(cmdline)),
        _tag(_LOADER_NAME, b"emu86\0"),
        _tag(
            _MEMORY,
            struct.pack("<2I", LOW_END >> 10, max(len(places.ram) - MIB, 0) >> 10),
        ),
    ]
    for module in modules:
        start = places.put_high("initrd", module, len(places.ram))
        tags.append(_tag(_MODULE, struct.pack("<2Ix", start, start + len(module))))
    ranges = b"".join(
        struct.pack("<2Q2I", *one, 0) for one in memory_map(places.memory)
    )
    tags += [
        _tag(_MMAP, struct.pack("<2I", 24, 0) + ranges),
        _tag(_SCREEN, video.framebuffer() + bytes(2)),
        _tag(_END, b""),
    ]
    content = b"".join(tags)
    info = struct.pack("<2I", len(content) + 8, 0) + content
    return places.put_low("Multiboot information", info)


def _tag(kind: int, content: bytes) -> bytes:
    """Return a tag, padded to a multiple of 8 bytes."""
    tag = struct.pack("<2I", kind, len(content) + 8) + content
    return tag + bytes(-len(tag) % 8)
