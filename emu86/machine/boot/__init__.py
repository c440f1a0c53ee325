"""Boot protocols: how a guest's file becomes bytes in RAM and registers to start with.

One module per format. `load` looks at the file and takes the right one.
"""

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from emu86.errors import ConfigError, expect
from emu86.machine.boot import elf, flat, linux, multiboot
from emu86.machine.boot.placement import Entry, memory_map

__all__ = ["Entry", "flat", "load", "memory_map", "read", "sniff"]

_LARGEST = 1 << 30  # a device or pipe without an end is not read forever

_FOREIGN = (
    (0, b"\x1f\x8b", "is compressed with gzip"),
    (0, b"\xfd7zXZ\0", "is compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd"),
    (0, b"MZ", "is an EFI or DOS program"),
    (0, b"!<arch>\n", "is an archive (a Debian package?)"),
    (0, b"070701", "is a cpio archive (an initrd?)"),
    (56, b"ARM\x64", "is an arm64 kernel"),
    (36, b"\x18\x28\x6f\x01", "is an ARM kernel"),
)


def read(role: str, source: bytes | bytearray | str | PathLike[str]) -> bytes:
    """The bytes of `source`, a file's path unless it is bytes already.

    Raises ConfigError that begins with `role` ("kernel") when it cannot be read,
    TypeError when it is neither.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    expect(role, source, bytes, str, PathLike)
    path = os.fsdecode(source)
    if not path:
        raise ConfigError(f"{role}: the name of its file is empty")
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{role}: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{role}: {path!r}: {error}") from None
    if len(data) > _LARGEST:
        raise ConfigError(f"{role}: {path}: larger than 1 GiB")
    return data


def sniff(image: bytes) -> str:
    """The format of kernel `image`: "linux", "multiboot" or "elf".

    Raises ConfigError, with a guess at what it is, for anything else.
    """
    if linux.is_linux(image):
        return "linux"
    if multiboot.find_header(image) is not None:
        return "multiboot"
    if elf.is_elf(image):
        return "elf"
    if not image:
        raise ConfigError("kernel: the file is empty")
    for offset, magic, guess in _FOREIGN:
        if image.startswith(magic, offset):
            raise ConfigError(
                f"kernel: {guess}, not a bzImage, ELF or Multiboot kernel"
            )
    raise ConfigError("kernel: is no bzImage, ELF or Multiboot kernel")


def load(
    ram: memoryview, image: bytes, *, cmdline: str = "", initrds: Sequence[bytes] = ()
) -> Entry:
    """Place kernel `image` of whatever format into `ram` with all it is to be given.

    Linux gets the `initrds` as one, a Multiboot kernel each as a module. Raises
    ConfigError, whatever the bytes are.
    """
    if any(not initrd for initrd in initrds):
        raise ConfigError("initrd: the file is empty")
    kind = sniff(image)
    if kind == "multiboot":
        return multiboot.load(ram, image, cmdline=cmdline, modules=initrds)
    # cpio archives may follow each other at multiples of 4 (Linux's
    # Documentation/driver-api/early-userspace/buffer-format.rst).
    initrd = b"".join(part + bytes(-len(part) % 4) for part in initrds) or None
    if kind == "linux":
        return linux.load(ram, image, cmdline=cmdline, initrd=initrd)
    return elf.load(ram, image, cmdline=cmdline, initrd=initrd)
