"""One operation of a guest's kernel, all in all: the way out, the VMM, the way back.

The guest is the firmware image `exits`. Each operation is a process of its own, and how
often it is done is found out for each contender, so that it takes long enough.
"""

from functools import cache
from math import ceil
from typing import Final

from bench.tools import IMAGES, BenchError, Benchmark, Contender, Guest, contenders

# Series of the image. The first seven are the nanobenchmarks.
NANO: Final = {
    "int80_ring3": "syscall: INT 80h of ring 3, and IRET",
    "in": "in: IN of port 80h",
    "mov_to_cr3": "cr3wr: MOV to CR3",
    "callret": "callret: CALL and RET",
    "pgfault": "pgfault: #PF of ring 3, and IRET",
    "divzero": "divzero: #DE of ring 3, and IRET",
    "ptemod": "ptemod: a PTE in use is changed",
}
MORE: Final = {
    "cli_sti": "CLI and STI",
    "mov_from_cr0": "MOV from CR0",
    "invlpg": "INVLPG",
    "out": "OUT to port 80h",
    "pushf_popf": "PUSHF and POPF",
    "int80_ring0": "INT 80h of ring 0, and IRET",
    "sgdt": "SGDT",
    "cpuid": "CPUID",
    "rdtsc": "RDTSC",
    "page_fill": "a PTE is made present, and its page read",
}
# CPU seconds of one measurement: of a nanobenchmark on QEMU, and of all else.
LONG: Final = 1.3
SHORT: Final = 0.4
_MOST: Final = 0xFFFFFFFF  # the loop counter has 32 bits


def run(contender: Contender, series: str, count: int) -> float:
    """CPU seconds of `count` times the operation, with the loop around it."""
    append = f"only={series} {count}"
    with Guest(contender, IMAGES / "exits.elf", append, memory=16) as guest:
        begin = guest.until(f"section {series} ".encode())
        return guest.until(b"section end") - begin


@cache
def how_often(contender: Contender, series: str, seconds: float) -> int:
    """How often an operation is done in about this time."""
    count = 1000
    # What translating the loop costs must not spoil the estimate.
    while (took := run(contender, series, count)) < seconds / 10:
        if count > _MOST:
            raise BenchError(f"{series} takes no time")
        count = ceil(count * min(seconds / 5 / max(took, 1e-6), 100))
    return min(ceil(count * seconds / took), _MOST)


def costs(
    names: dict[str, str], contender: Contender, seconds: float
) -> dict[str, float]:
    """Nanoseconds of CPU time of each operation."""
    rows = {}
    for series, text in names.items():
        count = how_often(contender, series, seconds)
        rows[f"{text}, ns"] = run(contender, series, count) / count * 1e9
    return rows


def nano(contender: Contender, scale: float) -> dict[str, float]:
    """The nanobenchmarks."""
    seconds = LONG if contender.name == "QEMU" else SHORT
    return costs(NANO, contender, seconds * scale)


def exits(contender: Contender, scale: float) -> dict[str, float]:
    """The other operations."""
    return costs(MORE, contender, SHORT * scale)


NANOBENCHMARKS: Final = Benchmark(
    "nano",
    "The nanobenchmarks of Adams and Agesen",
    """\
Seven operations that showed in 2006 what software and hardware do well in a VMM ("A
Comparison of Software and Hardware Techniques for x86 Virtualization", ASPLOS 2006):
nanoseconds of CPU time, with the loop of two instructions around each. `bare` is the
engine as a bare machine, an instruction at a time.""",
    contenders("QEMU", "bare", "trap", "patch", "iopl"),
    nano,
)
EXITS: Final = Benchmark(
    "exits",
    "Other exits",
    """\
More of what the VMM handles, measured alike. Under `iopl` CLI, STI and POPF are no
exits.""",
    contenders("QEMU", "patch", "iopl"),
    exits,
)
