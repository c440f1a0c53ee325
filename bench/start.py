"""From the start of the program to the guest's first instruction.

`emu86 run` on a Multiboot kernel of 20 bytes that writes one character: the time to
that character. Then the same steps in one process, each by itself, and what importing
costs by `python -X importtime`. Warm: the first run is not counted.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Final

from bench.tools import EMU86, ENVIRONMENT, Child, asked, doing, say, show, watch

RUNS: Final = 7
_ROWS: Final = 3  # runs, of which the least counts
TARGET: Final = 0.7  # seconds

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

_STEPS: Final = """
import time
times = [("", time.perf_counter())]
def done(step): times.append((step, time.perf_counter()))
import emu86.cli; done("import emu86.cli")
import unicorn; done("import unicorn")
import emu86.machine.machine; done("import the rest of emu86.machine")
from emu86.cpu import engine; engine.abilities(); done("probe the engine")
from emu86 import Machine
machine = Machine(); done("build a Machine")
machine.load_kernel(KERNEL); done("load the kernel")
machine.on_console(lambda data: done("first block to first character"))
machine.run()
for (_, before), (step, after) in zip(times, times[1:]):
    print(f"{(after - before) * 1000}\\t{step}")
"""


def kernel() -> bytes:
    """The smallest Multiboot kernel that shows that it runs."""
    size = 32 + len(_CODE)
    addresses = (_LOAD, _LOAD, _LOAD + size, _LOAD + size, _LOAD + 32)
    words = (*_HEADER, *addresses)
    return b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words) + _CODE


def steps(path: str, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each step, in fresh interpreters."""
    found: dict[str, list[float]] = {}
    program = _STEPS.replace("KERNEL", repr(path))
    for _ in range(runs):
        out = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
        ).stdout
        for line in out.splitlines():
            took, step = line.split("\t")
            found.setdefault(step, []).append(float(took))
    return found


def interpreter(runs: int) -> float:
    """Milliseconds of an interpreter that does nothing."""
    command = [sys.executable, "-c", "print('*')"]
    return median(watch(command, [b"*"], 60).wall for _ in range(runs)) * 1000


def imports() -> list[tuple[str, float]]:
    """Milliseconds that importing took by top-level package, the dearest first."""
    modules = (
        "emu86.cli",
        "emu86.machine.machine",
        "emu86.cpu.probe",
        "emu86.native.handlers",
    )
    program = f"import {', '.join(modules)}"
    text = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    ).stderr
    spent: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", text):
        spent[name.partition(".")[0]] += int(own)
    return [(name, own / 1000) for name, own in spent.most_common(8)]


def first_character(path: str) -> Child:
    """Run the kernel at `path` until it shows its character."""
    return watch([*EMU86, "run", "--kernel", path], [b"*"], 60)


def rows() -> dict[str, float]:
    """What two trees are compared by."""
    with tempfile.NamedTemporaryFile(suffix=".elf") as file:
        file.write(kernel())
        file.flush()
        children = [first_character(file.name) for _ in range(_ROWS + 1)][1:]
    return {"start to the first character, CPU s": min(each.cpu for each in children)}


def main(runs: int = RUNS) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "star.elf"
        path.write_bytes(kernel())
        doing(f"start: {runs + 1} runs to the first character")
        children = [first_character(str(path)) for _ in range(runs + 1)][1:]
        doing(f"start: {runs} runs, step by step")
        each = steps(str(path), runs)
    wall = median(child.marks[b"*"].wall for child in children)
    cpu = median(child.cpu for child in children)
    show(
        f"where it goes, median of {runs}",
        ("step", "ms"),
        [
            ("a Python that does nothing", f"{interpreter(runs):.0f}"),
            *((step, f"{median(taken):.1f}") for step, taken in each.items()),
        ],
    )
    show(
        "imports by package (-X importtime, which slows them)",
        ("package", "ms"),
        [(name, f"{own:.0f}") for name, own in imports()],
    )
    say(
        f"start to the guest's first character: {wall:.2f} s, median of {runs} "
        f"(the whole process {cpu:.2f} CPU s); target: {TARGET} s"
    )


if __name__ == "__main__":
    main(**asked(__doc__, runs=RUNS))
