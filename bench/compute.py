"""Guest compute: a loop in ring 3, beside the bare engine.

The loop is that of the firmware image `spin` (ten instructions, two loads, two stores),
byte for byte, everywhere.
"""

import mmap
import re
import struct
from math import ceil
from time import process_time
from typing import Final

import unicorn.unicorn_py3.unicorn as binding  # type: ignore[import-untyped, unused-ignore]
from unicorn import unicorn_const as uc_const
from unicorn import x86_const

from bench.tools import IMAGES, BenchError, Benchmark, Contender, Guest, contenders
from emu86.cpu import engine, library, state
from emu86.spec import x86

MILLIONS: Final = 200
SLOWER: Final = 10  # times, the engine where every store looks for code

CODE: Final = 0x40000000  # where the loop was assembled for: USER_TEXT in image.inc
DATA: Final = 0x40010000
SUM: Final = DATA + 0x400
WORDS: Final = DATA + 0x1000
_DATA_SIZE: Final = 0x2000
# From its first instruction to the JNZ that goes back to it.
_LOOP: Final = re.compile(rb"\x8b\x04\x96\x01\xc8.{,40}?\x49\x75.", re.DOTALL)
_INT80: Final = b"\xcd\x80"
_TABLES: Final = 0x10000


def loop() -> bytes:
    """The loop's machine code, out of the firmware image."""
    found = _LOOP.search((IMAGES / "spin.elf").read_bytes())
    if found is None:
        raise BenchError("the firmware image spin has another loop: change _LOOP")
    return found[0]


def plain(code: bytes, count: int) -> tuple[float, int]:
    """CPU seconds and checksum of `count` iterations on Unicorn as anyone uses it."""
    uc = binding.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_32)
    # Pages both writable and executable take the engine's slow path at each store.
    uc.mem_map(CODE, x86.PAGE_SIZE, uc_const.UC_PROT_READ | uc_const.UC_PROT_EXEC)
    uc.mem_map(DATA, _DATA_SIZE, uc_const.UC_PROT_READ | uc_const.UC_PROT_WRITE)
    uc.mem_write(CODE, code)
    uc.reg_write(x86_const.UC_X86_REG_ESI, WORDS)
    uc.reg_write(x86_const.UC_X86_REG_ECX, count)
    begin = process_time()
    uc.emu_start(CODE, CODE + len(code))
    took = process_time() - begin
    return took, struct.unpack("<I", uc.mem_read(SUM, 4))[0]


class Hookless(engine.Engine):
    """An engine that is told of exceptions and software interrupts, nothing else."""

    def hook(self) -> None:
        """Install that one hook."""
        told = library.ON_EXCEPTION(self._exception)
        self._add(uc_const.UC_HOOK_INTR, told)


def bare(code: bytes, count: int) -> tuple[float, int]:
    """CPU seconds and checksum of `count` iterations on the engine, no VMM above."""
    cpu = Hookless()
    memory = memoryview(mmap.mmap(-1, 0x20000))
    cpu.map(0, memory)
    memory[: len(code) + 2] = code + _INT80
    tables = memory.cast("Q")
    read = x86.PTE_P | x86.PTE_US | x86.PTE_A
    write = read | x86.PTE_RW | x86.PTE_D
    pml4, pdpt, pd, pt = (_TABLES + 0x1000 * i for i in range(4))
    for table, index, value in (
        (pml4, 0, pdpt | write),
        (pdpt, CODE >> 30, pd | write),
        (pd, 0, pt | write),
        (pt, 0, read),
        *((pt, 0x10 + i, 0x1000 * (1 + i) | write | x86.PTE_NX) for i in range(2)),
    ):
        tables[table // 8 + index] = value
    cpu.set_control(x86.CR0_PG | x86.CR0_PE | x86.CR0_WP, pml4, x86.CR4_PAE)
    flat = x86.DESC_P | x86.DESC_S | x86.DESC_A | x86.DESC_RW | x86.DESC_DPL
    flat |= x86.DESC_B | x86.DESC_G
    cpu.set_segment(x86.CS, 0x1B, 0, x86.MASK32, flat | x86.DESC_CODE)
    for index in (x86.SS, x86.DS, x86.ES):
        cpu.set_segment(index, 0x23, 0, x86.MASK32, flat)
    cpu.sync_mode(3)
    cpu.set_flags(x86.IF)
    cpu.q[state.RIP] = CODE
    cpu.q[x86.ESI], cpu.q[x86.ECX] = WORDS, count
    vectors: list[int] = []

    def ended(vector: int) -> None:
        vectors.append(vector)
        cpu.stop()

    cpu.on_exception = ended
    cpu.hook()
    begin = process_time()
    cpu.run()
    took = process_time() - begin
    if vectors != [0x80]:
        raise BenchError(f"the bare engine ended with exceptions {vectors}")
    return took, struct.unpack_from("<I", memory, 0x1000 + SUM - DATA)[0]


def spin(contender: Contender, millions: int) -> tuple[float, int]:
    """CPU seconds and checksum of the firmware image."""
    with Guest(contender, IMAGES / "spin.elf", str(millions), memory=16) as guest:
        begin = guest.until(b"ring 3")
        took = guest.until(b"checksum ") - begin
        guest.until(b"\n")
        return took, int(guest.before, 16)


_checksums: dict[int, int] = {}


def measure(contender: Contender, scale: float) -> dict[str, float]:
    """Nanoseconds of one iteration.

    Raises BenchError if two contenders have computed different things.
    """
    millions = ceil(MILLIONS * scale)
    if contender.name == "Unicorn":
        millions = ceil(millions / SLOWER)
    if contender.name == "Unicorn":
        took, checksum = plain(loop(), millions * 1_000_000)
    elif contender.name == "engine":
        took, checksum = bare(loop(), millions * 1_000_000)
    else:
        took, checksum = spin(contender, millions)
    if _checksums.setdefault(millions, checksum) != checksum:
        raise BenchError(f"the checksum is {checksum:X}, not {_checksums[millions]:X}")
    return {"ten instructions in ring 3, ns": took / millions * 1000}


COMPUTE: Final = Benchmark(
    "compute",
    "Computing",
    """\
A loop of ten instructions in ring 3, two loads and two stores among them. No exits are
on its way. `Unicorn` is the engine as its documentation shows it: without paging every
page may be written and run, and each store looks for code that it changes. `engine` is
emu86's engine alone, with pages of its own and no VMM above it. The aim is that emu86
keeps at least 0.9 of the engine's speed.""",
    contenders("QEMU", "Unicorn", "engine", "trap", "patch", "iopl"),
    measure,
)
