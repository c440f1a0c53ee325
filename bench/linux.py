"""Debian's kernel: its boot, a fixed workload, and what users do, part by part.

tools/initramfs/workload is what the guest runs, and what each part is.
"""

import time
from functools import partial
from pathlib import Path
from typing import Final

from bench.tools import GUESTS, Benchmark, Contender, Guest, contenders

KERNEL: Final = GUESTS / "vmlinuz"
KERNEL_PAE: Final = GUESTS / "vmlinuz-pae"
KERNEL_AMD64: Final = GUESTS / "vmlinuz-amd64"
SHELL: Final = GUESTS / "initrd.cpio"
WORKLOAD: Final = GUESTS / "workload.cpio"
WORKLOAD_AMD64: Final = GUESTS / "workload-amd64.cpio"
CONSOLE: Final = "console=ttyS0"
_DONE: Final = b"GUEST-DONE"

# Sizes by which QEMU needs a second or more.
PARTS: Final[dict[str, tuple[int, str]]] = {
    "calls": (800_000, "{:,} system calls by dd bs=1"),
    "tail": (250_000, "seq 1 {} | tail -n 1"),
    "sort-rn": (45_000, "seq 1 {} | sort -rn"),
    "pipe": (45_000, "{:,} KiB through a pipe"),
    "fork": (300, "{} times fork and exec"),
    "switches": (12_000, "{:,} context switches with sha256"),
    "faults": (25, "{} times 4,096 page faults"),
    "sha256": (4, "{} times sha256 of 8 MiB"),
    "gzip": (180_000, "gzip of {:,} lines"),
    "sort": (120_000, "sort of {:,} lines"),
    "awk": (60_000, "awk over {:,} lines"),
}
SIZES: Final = (64, 2048)  # MiB of guest memory
IDLE: Final = 10  # seconds
_SETTLED: Final = 2  # seconds after the prompt


def measure(
    contender: Contender,
    scale: float,
    kernel: Path = KERNEL,
    initrd: Path = WORKLOAD,
    cpu: str = "pentium3",
) -> dict[str, float]:
    """CPU seconds to the marks of the boot and of each part; and the memory taken."""
    sizes = {name: max(1, int(size * scale)) for name, (size, _) in PARTS.items()}
    parts = " ".join(f"{name}:{size}" for name, size in sizes.items())
    append = f'{CONSOLE} parts="{parts}"'
    rows = {}
    with Guest(contender, kernel, append, initrd=initrd, cpu=cpu) as guest:
        rows["boot to the first line, CPU s"] = guest.until(b"Linux version")
        rows["boot to init, CPU s"] = guest.until(b"GUEST-READY")
        rows["boot and workload, CPU s"] = guest.until(_DONE)
        begin = guest.until(b"PART ")
        for name, size in sizes.items():
            end = guest.until(b"PART")  # of the next, or of the end
            rows[f"{PARTS[name][1].format(size)}, CPU s"] = end - begin
            begin = end
        peak, touched = guest.memory()
    rows["peak memory beyond the RAM that the guest touched, MiB"] = peak - touched
    return rows


def measure_pae(contender: Contender, _scale: float) -> dict[str, float]:
    """The boot and workload of the kernel for PAE, on the CPU of the 64-bit one."""
    guest = Guest(contender, KERNEL_PAE, CONSOLE, initrd=WORKLOAD, cpu="atom")
    with guest:
        return {"boot and workload, CPU s": guest.until(_DONE)}


def measure_memory(contender: Contender, _scale: float) -> dict[str, float]:
    """The boot and workload with little and with much guest memory."""
    rows = {}
    for size in SIZES:
        with Guest(contender, KERNEL, CONSOLE, initrd=WORKLOAD, memory=size) as guest:
            rows[f"boot and workload, {size:,} MiB, CPU s"] = guest.until(_DONE)
            peak, touched = guest.memory()
        rows[f"guest RAM that is resident, of {size:,} MiB, MiB"] = touched
        rows[f"peak memory beyond it, {size:,} MiB, MiB"] = peak - touched
    return rows


def measure_idle(contender: Contender, scale: float) -> dict[str, float]:
    """What a shell on a terminal takes while nobody types."""
    seconds = IDLE * scale
    with Guest(contender, KERNEL, CONSOLE, initrd=SHELL, on_terminal=True) as guest:
        guest.until(b"emu86# ")
        time.sleep(_SETTLED * scale)
        before = guest.clock()
        time.sleep(seconds)
        return {f"idle for {seconds:g} s, CPU s": guest.clock() - before}


LINUX: Final = Benchmark(
    "linux",
    "Debian's kernel",
    """\
One boot with 256 MiB of guest memory and without a terminal: CPU seconds from the
start of the program to the first line, to init, and to the end of the fixed workload.
Then what users do, part by part; `tools/initramfs/workload` has the commands. The
last row is what the program takes, at its peak, besides the RAM that the guest has
touched.""",
    contenders("QEMU", "patch", "iopl"),
    measure,
)
AMD64: Final = Benchmark(
    "amd64",
    "Debian's 64-bit kernel",
    """\
The same with the kernel and the busybox of Debian's amd64, on the CPU model `atom`
and QEMU's `n270,+lm,+syscall,+nx,+cx16`. Linux needs no mitigations on either.""",
    contenders("QEMU", "patch", "iopl"),
    partial(measure, kernel=KERNEL_AMD64, initrd=WORKLOAD_AMD64, cpu="atom"),
)
PAE: Final = Benchmark(
    "pae",
    "Debian's kernel for PAE",
    """\
One boot and workload of linux-image-686-pae, with 256 MiB of guest memory, on the
CPUs of the 64-bit kernel.""",
    contenders("QEMU", "patch", "iopl"),
    measure_pae,
)
MEMORY: Final = Benchmark(
    "memory",
    "Little and much memory",
    """\
The same boot and workload with other sizes of guest memory. RAM that the guest has
never touched should not be resident, and a large guest should not be slower.""",
    contenders("QEMU", "patch"),
    measure_memory,
)
IDLE_SHELL: Final = Benchmark(
    "idle",
    "An idle guest on a terminal",
    """\
A shell at its prompt while nobody types. The kernel's timer ticks, and the program
waits for it.""",
    contenders("QEMU", "patch", "iopl"),
    measure_idle,
)
