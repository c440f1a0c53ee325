"""The guest images that come with emu86: kernels of our own, to learn from and measure.

Their sources are in `firmware/` at the top of the project; `firmware/build.sh` makes
these files from them, byte for byte the same each time. All are Multiboot 1 kernels
(ELF, 32 bits) that talk on COM1 and power off by writing 2000h to port 604h:

- `teach`: shows what rings, traps and page tables do. With the word `script` on its
  command line it runs all its checks and powers off, without it there is a prompt.
- `spin`: a loop in ring 3, ten instructions with two loads and two stores. Command
  line: millions of iterations (default 40).
- `exits`: one privileged or sensitive operation at a time, each many times. Command
  line: how many (default 10000). Writes `section NAME COUNT` before each series.

Two images are ROMs: `bios` is what a PC runs from reset; `tables` is what lies in its
place where a kernel is given directly and no BIOS runs.

`font8x16.hex` is the display's font: a line for each code of code page 437, the code
and the 16 rows of its character. They are GNU Unifont's, version 15.0.01, which is
free software under the GPL, version 2 or later, as emu86 is.
"""

from pathlib import Path
from typing import Final

IMAGES: Final = ("teach", "spin", "exits")
TABLES_SIZE: Final = 4096


def bios() -> bytes:
    """The BIOS: 64 KiB that end at 1 MiB, and begin to run 16 bytes before."""
    return Path(__file__).with_name("bios.bin").read_bytes()


def tables() -> bytes:
    """The ROM where no BIOS runs: `TABLES_SIZE` bytes that end at 1 MiB."""
    return Path(__file__).with_name("tables.bin").read_bytes()


def font() -> bytes:
    """The display's font: the 16 rows of each of 256 characters."""
    text = Path(__file__).with_name("font8x16.hex").read_text(encoding="ascii")
    return bytes.fromhex("".join(line[3:] for line in text.splitlines()))


def path(name: str) -> Path:
    """Where the image of that name is; ValueError if there is none.

    The names are those in `IMAGES`.
    """
    if name not in IMAGES:
        raise ValueError(f"no image {name!r}: there are {', '.join(IMAGES)}")
    return Path(__file__).with_name(f"{name}.elf")
