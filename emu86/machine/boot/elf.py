"""ELF executables, loaded by physical address; and a Linux `vmlinux` among them.

Sources: Tool Interface Standard ELF Specification 1.2, "Program Loading"; for the
registers and boot_params of a `vmlinux` the kernel's Documentation/arch/x86/boot.rst.
"""

import io
from typing import Final

from emu86.errors import ConfigError
from emu86.machine.boot import linux
from emu86.machine.boot.placement import Entry, Placement

_EHDR_SIZE: Final = 52
_CLASS32: Final = 1  # EI_CLASS
_LITTLE_ENDIAN: Final = 1  # EI_DATA
_SECTION_FIELDS: Final = (
    (0x20, 4),  # e_shoff
    (0x30, 2),  # e_shnum
    (0x32, 2),  # e_shstrndx
)

# What a vmlinux, whose setup header is not in the file, is told of itself.
_PROTOCOL: Final = 0x020F
_VMLINUX_CMDLINE_MAX: Final = 2047


def is_elf(image: bytes) -> bool:
    """Whether `image` starts like an ELF file, of whatever machine."""
    return image[:4] == b"\x7fELF"


def load(ram: memoryview, image: bytes, *, cmdline: str, initrd: bytes | None) -> Entry:
    """Place `vmlinux` `image`, its command line and `initrd` into `ram`.

    `ram` is all of guest-physical memory. Raises ConfigError when the image is no
    32-bit i386 executable, is truncated, or does not fit.
    """
    places = Placement(ram)
    entry = place_segments(places, image)
    params = bytearray(4096)
    params[0x1FE:0x200] = b"\x55\xaa"
    params[0x202:0x206] = b"HdrS"
    params[0x206:0x208] = _PROTOCOL.to_bytes(2, "little")
    params[0x211] = 0x01  # LOADED_HIGH
    boot_params = linux.place_params(
        places, params, cmdline, _VMLINUX_CMDLINE_MAX, initrd, linux.INITRD_ADDR_MAX
    )
    return places.entry(entry, {"esi": boot_params})


def place_segments(places: Placement, image: bytes) -> int:
    """Place the loadable segments at their physical addresses; return the entry's."""
    # Late: pyelftools costs 60 ms that other formats need not pay.
    from elftools.common.exceptions import ELFError  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    if len(image) < _EHDR_SIZE:
        raise ConfigError("kernel: truncated in its ELF header")
    if image[4] != _CLASS32:
        raise ConfigError("kernel: is a 64-bit ELF file, this machine is 32-bit")
    if image[5] != _LITTLE_ENDIAN:
        raise ConfigError("kernel: is a big-endian ELF file, this machine is an i386")
    # Sections mean nothing to a loader: with them hidden, a kernel stripped of them
    # loads, however its section header is.
    header = bytearray(image)
    for offset, size in _SECTION_FIELDS:
        header[offset : offset + size] = bytes(size)
    try:
        file = ELFFile(io.BytesIO(header))
        machine, kind = file["e_machine"], file["e_type"]
        start = file["e_entry"]
        segments = [segment.header for segment in file.iter_segments(type="PT_LOAD")]
    except ELFError as error:
        raise ConfigError(f"kernel: damaged ELF headers: {error}") from None
    if machine != "EM_386":
        name = str(machine).removeprefix("EM_")
        raise ConfigError(f"kernel: is an ELF file for {name}, this machine is an i386")
    if kind != "ET_EXEC":
        raise ConfigError("kernel: is an ELF file, but no executable")

    entry = None
    for segment in segments:
        address, size = segment.p_paddr, segment.p_filesz
        data = image[segment.p_offset : segment.p_offset + size]
        if len(data) < size:
            raise ConfigError(
                f"kernel: truncated: {len(image)} bytes of {segment.p_offset + size}"
            )
        places.put("kernel", address, data)
        places.put_zeros("kernel", address + size, max(segment.p_memsz - size, 0))
        # e_entry is physical in Linux and virtual in others.
        for base in (address, segment.p_vaddr):
            if entry is None and base <= start < base + segment.p_memsz:
                entry = start - base + address
    if entry is None:
        raise ConfigError(f"kernel: its ELF entry {start:#x} is in no segment")
    return int(entry)
