"""The parameters of a machine: names, limits, defaults.

The command line and the library take them from here. Nothing heavy is imported, so that
help and mistakes answer at once.
"""

import mmap
import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import Final

from emu86.errors import ConfigError, as_int, expect, unknown

TECHNIQUES: Final = {
    "patch": "find sensitive instructions and patch them before they first run",
    "trap": "trap and emulate only; what does not trap goes wrong",
    "iopl": "as patch, with IOPL raised, which the guest can see",
    "bare": "run at ring 0 of the engine, slowly, to compare with",
}
"""The techniques: what each does about the guest's kernel, in a line."""
TECHNIQUE: Final = "patch"
# Those that keep the guest's kernel from the hardware.
DEPRIVILEGED: Final = ("trap", "patch", "iopl")

CPUS: Final = {
    "pentium": "without CMOV, MMX and SSE",
    "pentium2": "with CMOV, MMX and FXSAVE",
    "pentium3": "with SSE, too",
    "pentium3-pae": "with SSE, PAE and NX",
    "pentium4": "with SSE2, too",
    "atom": "64-bit, with CMPXCHG16B; needs no mitigations",
    "skylake": "as atom, and has the flaws of servers, which systems mitigate",
}
"""The CPU models: what each has, in a line. All of it, `emu86.cpu.models` has."""
CPU: Final = "pentium3"
# With a BIOS nobody knows what it boots: what all kernels of 32 and 64 bits run on.
CPU_OF_MEDIA: Final = "atom"
# Those that a kernel gets when nobody names one: the first that has what it needs.
CHOSEN: Final = (CPU, "pentium3-pae", "atom")

# The date at virtual time 0, in seconds since 1970, always the same so that runs
# repeat: 2026-01-01 00:00:00; and what a date has to be below: that of the year 10000.
RTC: Final = 1_767_225_600
RTC_END: Final = 253_402_300_800

UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# Bytes of guest memory, at least and at most: a number of whole pages.
SMALLEST: Final = 1 << 20
LARGEST: Final = 63 << 30  # with the hole below 4 GiB all that 36 bits name
PAGE: Final = 4096
# A BIOS lies below 1 MiB, from E0000h on at most: whole pages of it.
ROM_MOST: Final = 128 << 10
# RAM beyond LOW_MOST bytes is from HIGH on: what is between is for devices, and empty.
LOW_MOST: Final = 3 << 30
HIGH: Final = 4 << 30
MEMORY: Final = 128 << 20

WRITES: Final = {
    "keep": "the guest's writes go into the images, which are locked",
    "discard": "they are kept in memory and thrown away at the end",
    "refuse": "the guest cannot write",
}
"""What becomes of writes to disks, in a line."""
WRITE: Final = "keep"
DISKS_MOST: Final = 4
FLOPPIES_MOST: Final = 2
SECTOR: Final = 512  # bytes, of a disk or a floppy
# What `boot` names, and the numbers that CMOS RAM has for them.
BOOT: Final = {"a": 1, "c": 2, "d": 3}
_BOOT_NAMES: Final = {"a": "floppy drive", "c": "disk", "d": "CD-ROM drive"}

# Bytes that an engine has for translated code, where Unicorn would take up to 1 GiB.
# All that Debian's kernel runs on its way to a prompt takes 42 MiB. When there is no
# more room all is dropped, and what runs next is translated again.
CODE_SPACE: Final = 48 << 20
# Addresses, not memory, that an engine takes with that: without them Unicorn ends the
# process. A machine takes more, beside the guest's memory, with the libraries.
ENGINE_SPACE: Final = CODE_SPACE + (64 << 20)
MACHINE_SPACE: Final = 7 << 26


def size(count: int) -> str:
    """Write a number of bytes with the largest unit that leaves no rest: 128M."""
    unit = max((one for one in UNITS if not count % UNITS[one]), key=UNITS.__getitem__)
    return f"{count // UNITS[unit]}{unit}"


def memory(asked: int | str) -> int:
    """Return bytes of guest memory, asked for as their number or as text like "128M".

    Raises ConfigError if no guest can have so many, TypeError for another type.
    """
    if isinstance(asked, str):
        match = re.fullmatch(r"([0-9]{1,12})([KMG]?)(?:i?B)?", asked, re.IGNORECASE)
        if not match:
            raise ConfigError(f"memory: {asked!r} is no size like 128M or 1G")
        count = int(match[1]) * UNITS[match[2].upper()]
    else:
        count = as_int("memory", asked)
    if count % PAGE or not SMALLEST <= count <= LARGEST:
        ends = f"from {size(SMALLEST)} to {size(LARGEST)}"
        raise ConfigError(f"memory: {asked} is not a multiple of 4 KiB {ends}")
    return count


def check_rom(count: int) -> None:
    """Raise ConfigError if no BIOS can have so many bytes."""
    if not count:
        raise ConfigError("bios: is empty")
    if count > ROM_MOST:
        raise ConfigError(
            f"bios: its {count} bytes are more than the {size(ROM_MOST)} that there is"
            " room for (SeaBIOS is bios.bin, not bios-256k.bin)"
        )
    if count % PAGE:
        raise ConfigError(f"bios: its {count} bytes are not a multiple of 4 KiB")


def ram_end(count: int) -> int:
    """Return the guest-physical address behind `count` bytes of memory."""
    return count if count <= LOW_MOST else count - LOW_MOST + HIGH


def check_address_space(count: int) -> None:
    """Raise ConfigError if the host gives this process no `count` bytes of addresses.

    `ulimit -v` sets the limit. Where the host cannot be asked, it is not.
    """
    if sys.platform == "win32":
        return
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        mmap.mmap(-1, count, flags=flags, prot=0).close()
    except OSError:
        mib = -(-count >> 20)
        raise ConfigError(
            f"memory: the host refuses this process {mib} MiB of address space: raise"
            " its limit (ulimit -v unlimited)"
        ) from None


def check_cpu(name: str) -> None:
    """Raise ConfigError if there is no CPU model of that name."""
    _check("cpu", name, CPUS)


def _paths(what: str, paths: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"{what}: {paths!r:.60} is one file, not a sequence of files")
    return tuple(medium(what, path) for path in paths)


def medium(what: str, path: str | os.PathLike[str]) -> str:
    """Return the file of a medium as text."""
    expect(what, path, str, os.PathLike)
    return os.fspath(path)


def disks(
    paths: Sequence[str | os.PathLike[str]], *, beside: str | None = None
) -> tuple[str, ...]:
    """Return the files of disks as text; raises ConfigError if they are too many.

    beside: that of a CD-ROM, which takes the place of one, or None.
    """
    files = _paths("disks", paths)
    most, where = DISKS_MOST, ""
    if beside is not None:
        most, where = DISKS_MOST - 1, " beside a CD-ROM"
    if len(files) > most:
        raise ConfigError(
            f"disks: {len(files)} are too many; there can be {most}{where}"
        )
    return files


def floppies(paths: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return the files of floppies as text, "": an empty drive; as `disks`."""
    files = _paths("floppies", paths)
    if len(files) > FLOPPIES_MOST:
        many = f"{len(files)} are too many; there can be {FLOPPIES_MOST}"
        raise ConfigError(f"floppies: {many}")
    return files


def boot(letters: str, present: Collection[str]) -> tuple[int, ...]:
    """Return what CMOS RAM has for an order such as "ac"; "": the BIOS's own.

    present: the letters of the drives that there are. Raises ConfigError for a letter
    that stands for nothing, is there twice, or has no drive.
    """
    expect("boot", letters, str)
    for at, letter in enumerate(letters):
        if letter not in BOOT or letter in letters[:at]:
            known = ", ".join(f"{one}: {name}" for one, name in _BOOT_NAMES.items())
            raise ConfigError(
                f"boot: {letters!r} is no order of drives, each of them once ({known})"
            )
        if letter not in present:
            raise ConfigError(f"boot: {letter!r}: there is no {_BOOT_NAMES[letter]}")
    return tuple(BOOT[letter] for letter in letters)


def cdrom(path: str | os.PathLike[str] | None) -> str | None:
    """Return the file of a CD as text, "": an empty drive, None: no drive."""
    if path is None:
        return None
    return medium("cdrom", path)


def check_writes(name: str) -> None:
    """Raise ConfigError if there is no such way to write to disks."""
    _check("writes", name, WRITES)


def check_technique(name: str) -> None:
    """Raise ConfigError if there is no technique of that name."""
    __tracebackhide__ = True
    _check("technique", name, TECHNIQUES)


def _check(what: str, name: object, names: Collection[str]) -> None:
    __tracebackhide__ = True
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"{what}: {unknown(name, names)}")


def check_rtc(seconds: float) -> None:
    """Raise ConfigError for a date that the real-time clock cannot show."""
    if isinstance(seconds, bool):  # an int to Python, no date to anybody
        raise TypeError(f"rtc: {seconds} is of type bool, not int or float")
    expect("rtc", seconds, int, float)
    if not 0 <= seconds < RTC_END:
        raise ConfigError(f"rtc: {seconds} s after 1970 is no date from 1970 to 9999")
