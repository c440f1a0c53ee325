"""What can be asked of a machine: names, limits, defaults.

The command line and the library take them from here. Nothing heavy is imported, so that
help and mistakes answer at once.
"""

from typing import Final

from emu86.errors import ConfigError

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

CPUS: Final = ("pentium", "pentium2", "pentium3", "pentium4")
"""The CPU models: what each is, `emu86.cpu.models` has."""
CPU: Final = "pentium3"

UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# Bytes of guest memory, at least and at most: a number of whole pages.
SMALLEST: Final = 1 << 20
LARGEST: Final = 3 << 30
PAGE: Final = 4096
MEMORY: Final = 128 << 20


def size(number: int) -> str:
    """Write a number of bytes with the largest unit that leaves no rest: 128M."""
    unit = max((one for one in UNITS if not number % UNITS[one]), key=UNITS.__getitem__)
    return f"{number // UNITS[unit]}{unit}"


def check_memory(memory: int) -> None:
    """Raise ConfigError if no guest can have that many bytes of memory."""
    if memory % PAGE or not SMALLEST <= memory <= LARGEST:
        wanted = f"a multiple of 4 KiB from {size(SMALLEST)} to {size(LARGEST)}"
        raise ConfigError(f"memory: {memory} bytes is not {wanted}")


def check_cpu(name: str) -> None:
    """Raise ConfigError if there is no CPU model of that name."""
    if name not in CPUS:
        raise ConfigError(f"cpu: no model {name!r} (there are {', '.join(CPUS)})")


def check_technique(name: str) -> None:
    """Raise ConfigError if there is no technique of that name."""
    if name not in TECHNIQUES:
        known = ", ".join(TECHNIQUES)
        raise ConfigError(f"technique: no {name!r} (there are {known})")
