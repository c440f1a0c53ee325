"""The start of the program to the guest's first character; and the installed size.

The guest is a Multiboot kernel of a few bytes that writes one character.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.against import tree_of
from bench.tools import ROOT, BenchError, Benchmark, Contender, Guest, contenders

RUNS: Final = 3  # of which the least counts
BEFORE: Final = "60790a1"  # the revision to compare with

_LOAD: Final = 0x100000
# Multiboot 0.6.96 section 3.1.1: magic, flags (16: addresses follow), checksum; header,
# load, load end, BSS end and entry addresses.
_HEADER: Final = (0x1BADB002, 1 << 16, -(0x1BADB002 + (1 << 16)))
_CODE: Final = bytes.fromhex(
    "66baf803"  # mov dx, 3f8h
    "b02a"  # mov al, '*'
    "ee"  # out dx, al
    "fa"  # cli
    "f4"  # hlt
)


def kernel() -> bytes:
    """The smallest Multiboot kernel that shows that it runs."""
    size = 32 + len(_CODE)
    addresses = (_LOAD, _LOAD, _LOAD + size, _LOAD + size, _LOAD + 32)
    words = (*_HEADER, *addresses)
    return b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words) + _CODE


def measure(contender: Contender, _scale: float) -> dict[str, float]:
    """CPU seconds to the character, after a run that is not counted."""
    with tempfile.NamedTemporaryFile(suffix=".elf") as file:
        file.write(kernel())
        file.flush()
        took = []
        for _ in range(RUNS + 1):
            with Guest(contender, Path(file.name), memory=16) as guest:
                took.append(guest.until(b"*"))
    return {"start to the first character, CPU s": min(took[1:])}


def starters() -> Iterator[Contender]:
    """QEMU, this tree, and that revision if there is a history to take it from."""
    yield from contenders("QEMU", "patch")()
    try:
        yield Contender(BEFORE, "patch", tree_of(BEFORE))
    except BenchError as error:
        yield Contender(BEFORE, absent=str(error))


def measure_size(_contender: Contender, _scale: float) -> dict[str, float]:
    """Install this tree as users do, with what it needs, into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            folder,
        ]
        command += ["--disable-pip-version-check", "--no-build-isolation", str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"pip: {done.stderr.strip().rpartition(chr(10))[2]}")
        parts = {
            path.name: sum(
                one.stat().st_blocks * 512
                for one in [path, *path.rglob("*")]
                if one.is_file()
            )
            for path in Path(folder).iterdir()
        }
    largest = sorted(parts, key=lambda name: -parts[name])[:4]
    return {"all, MB": sum(parts.values()) / 1e6} | {
        f"of it {name}, MB": parts[name] / 1e6 for name in largest
    }


START: Final = Benchmark(
    "start",
    "The start",
    f"""\
CPU seconds from the start of the program to the first character that a small kernel
writes. `{BEFORE}` is the revision before the wheel came with machine code. Compiled
modules and files are warm.""",
    starters,
    measure,
    base=BEFORE,
)
SIZE: Final = Benchmark(
    "size",
    "Installed size",
    """\
`pip install emu86` into an empty folder: all that it puts on the disk, compiled
modules and dependencies too, and the largest folders of it. A file takes whole
blocks, and a MB is 1,000,000 bytes.""",
    contenders("patch"),
    measure_size,
    base=None,
    once=True,
)
