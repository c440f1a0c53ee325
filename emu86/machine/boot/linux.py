"""Linux: a bzImage, entered by the 32-bit or the 64-bit boot protocol.

Source for all offsets and rules: the kernel's Documentation/arch/x86/boot.rst ("The
Linux/x86 Boot Protocol") and zero-page.rst.
"""

from typing import Final

from emu86.errors import ConfigError
from emu86.machine.boot import video
from emu86.machine.boot.placement import MIB, Entry, Placement, memory_map
from emu86.spec.features import CMOV, CX8, FPU, INTEL64, PAE

INITRD_ADDR_MAX: Final = 0x37FFFFFF
"""Highest address of an initrd's last byte where the kernel does not say one."""

_HEADER: Final = 0x1F1  # first byte of the setup header, in the file and in boot_params
_SECTOR: Final = 512
_LOADED_HIGH: Final = 0x01  # loadflags: the kernel proper goes to 1 MiB
_XLF_KERNEL_64: Final = 0x01  # xloadflags: a 64-bit kernel, with an entry at ENTRY64
_ENTRY64: Final = 0x200
_UNDEFINED_LOADER: Final = 0xFF  # type_of_loader of a boot loader without a number

_OLDEST: Final = 0x0202  # the first with cmd_line_ptr
_NEWEST: Final = 0x020F

# boot_params outside the setup header (zero-page.rst)
_BOOT_PARAMS_SIZE: Final = 4096
_E820_ENTRIES: Final = 0x1E8
_E820_TABLE: Final = 0x2D0


# Of CPUID.1:EDX, what a 32-bit Linux can ask for (arch/x86/include/asm/
# required-features.h); one that runs on a 486 does not ask for CX8.
_FEATURES: Final = FPU | PAE | CX8 | CMOV


def is_linux(image: bytes) -> bool:
    """Whether `image` has the boot sector flag and setup header of a Linux kernel."""
    return image[0x1FE:0x200] == b"\x55\xaa" and image[0x202:0x206] == b"HdrS"


def load(
    ram: memoryview,
    image: bytes,
    *,
    cmdline: str,
    initrd: bytes | None,
    bits: int = 64,
) -> Entry:
    """Place bzImage `image`, its command line and `initrd` into `ram`.

    `ram` is all of guest-physical memory; bits: 32 for the 32-bit entry of a kernel
    that has both. Raises ConfigError when the image is no bzImage of protocol 2.02 or
    later, is truncated, or does not fit.
    """
    if not is_linux(image):
        raise ConfigError("kernel: no Linux setup header")
    # The jump over the header tells where it ends.
    header_end = 0x202 + image[0x201]
    offset = _setup_end(image)
    if len(image) < max(header_end, offset, 0x230):
        raise ConfigError("kernel: truncated in its setup code")
    version = _u16(image, 0x206)
    if version < _OLDEST:
        raise ConfigError(
            f"kernel: speaks boot protocol {version >> 8}.{version & 255:02},"
            " 2.02 or later is needed"
        )
    header = image[_HEADER:header_end].ljust(0x268 - _HEADER, b"\0")
    params = bytearray(_BOOT_PARAMS_SIZE)
    params[_HEADER : _HEADER + len(header)] = header
    if not params[0x211] & _LOADED_HIGH:
        raise ConfigError("kernel: a zImage, which loads low; a bzImage is needed")
    kernel = image[offset:]
    size = _u32(params, 0x1F4) * 16 if version >= 0x0204 else len(kernel)
    # syssize counts paragraphs: the last need not be full.
    if len(kernel) <= size - 16 or not kernel:
        raise ConfigError(f"kernel: truncated: {len(image)} bytes of {offset + size}")
    kernel = kernel[:size]
    enters_64 = bits == 64 and is_64_bit(image)
    if enters_64 and len(kernel) <= _ENTRY64:
        raise ConfigError("kernel: its 64-bit entry is beyond its end")

    places = Placement(ram)
    entry = _u32(params, 0x214)
    if entry < MIB:
        raise ConfigError(
            f"kernel: its entry {entry:#x} is below 1 MiB: it starts in real mode (as"
            " iPXE and memory tests do): boot it from a disk or a CD"
        )
    # First all that it needs, so that what is told to be missing is all of it.
    needed = max(_memory_needed(params, version, entry), len(kernel))
    places.reserve("kernel", entry, needed)
    places.ram[entry : entry + len(kernel)] = kernel

    initrd_max = _u32(params, 0x22C) if version >= 0x0203 else INITRD_ADDR_MAX
    cmdline_max = _u32(params, 0x238) if version >= 0x0206 else 255
    boot_params = place_params(places, params, cmdline, cmdline_max, initrd, initrd_max)
    if enters_64:
        return places.entry64(entry + _ENTRY64, {"esi": boot_params})
    return places.entry(entry, {"esi": boot_params})


def place_params(
    places: Placement,
    params: bytearray,
    cmdline: str,
    cmdline_max: int,
    initrd: bytes | None,
    initrd_max: int,
) -> int:
    """Fill in `params` (a boot_params) and place it, the command line and the initrd.

    `cmdline_max` is the longest command line in bytes, its NUL not counted,
    `initrd_max` the highest address of the initrd's last byte. Returns the
    guest-physical address of boot_params.
    """
    screen = video.screen_info(cmdline)
    params[: len(screen)] = screen
    params[0x210] = _UNDEFINED_LOADER
    if initrd:
        address = places.put_high("initrd", initrd, initrd_max + 1)
        params[0x218:0x21C] = address.to_bytes(4, "little")
        params[0x21C:0x220] = len(initrd).to_bytes(4, "little")
    text = command_line(cmdline)
    if len(text) - 1 > cmdline_max:
        raise ConfigError(
            f"command line: {len(text) - 1} bytes, the kernel takes {cmdline_max}"
        )
    params[0x228:0x22C] = places.put_low("command line", text).to_bytes(4, "little")
    table = memory_map(places.memory)
    params[_E820_ENTRIES] = len(table)
    params[_E820_TABLE : _E820_TABLE + 20 * len(table)] = b"".join(
        base.to_bytes(8, "little")
        + size.to_bytes(8, "little")
        + kind.to_bytes(4, "little")
        for base, size, kind in table
    )
    return places.put_low("boot parameters", bytes(params))


def command_line(cmdline: str) -> bytes:
    """`cmdline` as a NUL-terminated string, as every boot protocol wants it."""
    try:
        text = cmdline.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError("command line: not encodable as UTF-8") from None
    if b"\0" in text:
        raise ConfigError("command line: holds a NUL character")
    return text + b"\0"


def features_of(image: bytes) -> int:
    """What a Linux kernel asks of a CPU, of `spec.features`; 0 if it is not seen."""
    needed = _required_features(image[: _setup_end(image)])
    return needed | (INTEL64 if is_64_bit(image) else 0)


def is_64_bit(image: bytes) -> bool:
    """Whether a Linux kernel is one of 64 bits; before protocol 2.12 none says so."""
    return _u16(image, 0x206) >= 0x020C and bool(_u16(image, 0x236) & _XLF_KERNEL_64)


def _setup_end(image: bytes) -> int:
    """Where the kernel proper begins in the file."""
    return (image[_HEADER] or 4) * _SECTOR + _SECTOR


def _required_features(setup: bytes) -> int:
    """Return the bits of CPUID.1:EDX that the setup code asks for, 0 if it is not seen.

    They are the first doubleword of `req_flags` (arch/x86/boot/cpucheck.c), which is
    found by what it can hold: bits of _FEATURES, then features that a 32-bit kernel
    never needs (but for doubleword 3, NOPL).
    """
    if b"features not present on the CPU" not in setup:
        return 0
    for at in range(0, len(setup) - 32, 4):
        first = _u32(setup, at)
        if first & ~_FEATURES or not first & CX8:
            continue
        if not any(setup[at + 4 : at + 12]) and not any(setup[at + 16 : at + 32]):
            return first
    return 0


def _memory_needed(params: bytearray, version: int, entry: int) -> int:
    """Bytes from `entry` that the kernel uses before it reads the memory map."""
    if version < 0x020A:
        return 0
    alignment = max(_u32(params, 0x230), 1)
    preferred = int.from_bytes(params[0x258:0x260], "little")
    # The decompressor moves itself up to the preferred address, or if relocatable and
    # loaded above it to the next aligned one.
    start = preferred
    if params[0x234]:
        start = max(start, -(-entry // alignment) * alignment)
    return max(start - entry, 0) + _u32(params, 0x260)


def _u16(data: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")
