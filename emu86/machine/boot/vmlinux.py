"""Linux's `vmlinux`, and what is started as it is: an ELF kernel without a header.

Source for the registers and boot_params: the kernel's Documentation/arch/x86/boot.rst.
"""

from typing import Final

from emu86.machine.boot import elf, linux
from emu86.machine.boot.placement import Entry, Placement

# What a vmlinux, whose setup header is not in the file, is told of itself.
_PROTOCOL: Final = 0x020F
_CMDLINE_MAX: Final = 2047


def load(ram: memoryview, image: bytes, *, cmdline: str, initrd: bytes | None) -> Entry:
    """Place `image`, its command line and `initrd` into `ram`.

    `ram` is all of guest-physical memory. Raises ConfigError when the image is
    truncated, or does not fit.
    """
    places = Placement(ram)
    entry = elf.place_segments(places, image)
    params = bytearray(4096)
    params[0x1FE:0x200] = b"\x55\xaa"
    params[0x202:0x206] = b"HdrS"
    params[0x206:0x208] = _PROTOCOL.to_bytes(2, "little")
    params[0x211] = 0x01  # LOADED_HIGH
    boot_params = linux.place_params(
        places, params, cmdline, _CMDLINE_MAX, initrd, linux.INITRD_ADDR_MAX
    )
    if elf.is_64_bit(image):
        return places.entry64(entry, {"esi": boot_params})
    return places.entry(entry, {"esi": boot_params})
