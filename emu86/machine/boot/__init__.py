"""Boot protocols: how a guest's file becomes bytes in RAM and registers to start with.

One module per format. `load` looks at the file and takes the right one.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path

from emu86.cpu.models import MODELS
from emu86.errors import ConfigError, expect
from emu86.machine.boot import (
    elf,
    flat,
    foreign,
    linux,
    multiboot,
    multiboot2,
    pvh,
    vmlinux,
)
from emu86.machine.boot.placement import Entry, memory_map
from emu86.spec.features import CMOV, CX8, FPU, INTEL64, PAE

__all__ = [
    "Entry",
    "features_of",
    "flat",
    "load",
    "memory_map",
    "read",
    "reader",
    "sniff",
]

_PIECE = 1 << 20
_FEATURES = {
    FPU: "FPU", PAE: "PAE", CX8: "CX8", CMOV: "CMOV", INTEL64: "64-bit mode",
}  # fmt: skip
_OF_MODULES = {
    "multiboot": multiboot.load, "multiboot2": multiboot2.load, "pvh": pvh.load,
}  # fmt: skip
_LARGEST = 1 << 30  # a device or pipe without an end is not read forever


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
            # By pieces, for Python sets aside at once all that it may read.
            pieces = iter(partial(file.read, _PIECE), b"")
            data = b"".join(islice(pieces, _LARGEST // _PIECE + 1))
    except OSError as error:
        raise ConfigError(f"{role}: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{role}: {path!r}: {error}") from None
    if len(data) > _LARGEST:
        raise ConfigError(f"{role}: {path}: larger than 1 GiB")
    return data


def reader(
    role: str, source: bytes | bytearray | str | PathLike[str] | None, data: bytes
) -> Callable[[], bytes]:
    """What gives `data`, which `read` has read from `source`, once more.

    A file is read again, so that its bytes take no memory until then. If it is another
    one then, ConfigError says so. What is no file is kept: a pipe gives its bytes once.
    """
    if not isinstance(source, str | PathLike) or not Path(source).is_file():
        return lambda: data
    path = Path(source).absolute()
    known = len(data), zlib.crc32(data)

    def again() -> bytes:
        now = read(role, path)
        if (len(now), zlib.crc32(now)) != known:
            raise ConfigError(f"{role}: {path}: has changed since it was loaded")
        return now

    return again


def name(error: ConfigError, **sources: object) -> ConfigError:
    """Return an error of `load` with the name of the file in it, if it has one.

    sources: of what was loaded, by its role, as for `read`.
    """
    role, _, what = str(error).partition(": ")
    source = sources.get(role)
    if not isinstance(source, str | PathLike):
        return error
    return ConfigError(f"{role}: {os.fsdecode(source)}: {what}")


def sniff(image: bytes) -> str:
    """The format of kernel `image`: "linux", "multiboot", "multiboot2", "pvh", "elf".

    Raises ConfigError that says what it is, if it is known, for anything else.
    """
    if linux.is_linux(image):
        return "linux"
    is_elf = elf.is_elf(image)
    if foreign.is_rom(image) and not is_elf:
        raise foreign.refuse(image)
    if multiboot.find_header(image) is not None:
        return "multiboot"
    if multiboot2.find_header(image) is not None:
        return "multiboot2"
    if not image:
        raise ConfigError("kernel: the file is empty")
    if is_elf and pvh.entry_of(image) is not None:
        return "pvh"
    if is_elf:
        foreign.check_kernel(elf.headers(image), image)
    multiboot.check(image)
    if is_elf:
        return "elf"
    raise foreign.refuse(image)


def features_of(image: bytes) -> int:
    """What kernel `image` says that it needs of a CPU, of `spec.features`."""
    if linux.is_linux(image):
        return linux.features_of(image)
    return INTEL64 if elf.is_64_bit(image) else 0


def load(
    ram: memoryview,
    image: bytes,
    *,
    cmdline: str = "",
    initrds: Sequence[bytes] = (),
    features: int = -1,
    bits: int = 64,
) -> Entry:
    """Place kernel `image` of whatever format into `ram` with all it is to be given.

    Linux gets the `initrds` as one, other kernels each as a module. `features` is what
    the CPU has, of `spec.features`; bits: 32 to enter a 64-bit bzImage where a 32-bit
    one is entered. Raises ConfigError, whatever the bytes are.
    """
    if any(not initrd for initrd in initrds):
        raise ConfigError("initrd: the file is empty")
    kind = sniff(image)
    _check_features(features_of(image), features)
    if kind in _OF_MODULES:
        return _OF_MODULES[kind](ram, image, cmdline=cmdline, modules=initrds)
    # cpio archives may follow each other at multiples of 4 (Linux's
    # Documentation/driver-api/early-userspace/buffer-format.rst).
    initrd = b"".join(part + bytes(-len(part) % 4) for part in initrds) or None
    if kind == "linux":
        return linux.load(ram, image, cmdline=cmdline, initrd=initrd, bits=bits)
    return vmlinux.load(ram, image, cmdline=cmdline, initrd=initrd)


def _check_features(needed: int, features: int) -> None:
    """Raise ConfigError if a kernel needs more than `features`.

    Nothing that would find out by itself is run: Linux asks in real mode.
    """
    missing = needed & ~features
    if missing:
        names = " and ".join(name for bit, name in _FEATURES.items() if missing & bit)
        models = (one.name for one in MODELS.values() if not needed & one.lacks)
        raise ConfigError(
            f"kernel: needs {names}, which this CPU model has not: take"
            f" {' or '.join(models)}"
        )
