"""Guest compute: a loop in ring 3 under emu86 beside the bare engine.

The loop is that of the firmware image `spin` (ten instructions, two loads, two stores),
byte for byte, everywhere. What differs is what stands around it:

  plain    Unicorn by its public API: 32-bit mode, no paging, no hooks
  engine   emu86's engine alone: long mode, a 32-bit ring-3 segment, 4 KiB pages, stops
           between blocks; only the hook that ends the loop, no VMM
  clock    the same with all of the engine's hooks: virtual time is counted each block
  emu86    the whole Machine, the guest's own page tables shadowed

Each round runs all of them in turn; a ratio is taken within its round.
"""

import mmap
import re
import struct
from statistics import median
from time import process_time
from typing import Final

import unicorn.unicorn_py3.unicorn as binding  # type: ignore[import-untyped, unused-ignore]
from unicorn import unicorn_const as uc_const
from unicorn import x86_const

from bench.spin import emulated
from bench.tools import IMAGES, BenchError, asked, doing, say, show
from emu86.cpu import engine, library, state
from emu86.spec import x86

MILLIONS: Final = 50
ROUNDS: Final = 7
TARGET: Final = 0.9  # of the bare engine's speed

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


def bare(cpu: engine.Engine, code: bytes, count: int) -> tuple[float, int]:
    """CPU seconds and checksum of `count` iterations on `cpu`, no VMM above."""
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


def main(millions: int = MILLIONS, rounds: int = ROUNDS) -> None:
    """Measure and print."""
    code, count = loop(), millions * 1_000_000
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        doing(f"compute: round {number + 1} of {rounds}")
        sums = set()
        for name, (took, checksum) in (
            ("plain", plain(code, count)),
            ("engine", bare(Hookless(), code, count)),
            ("clock", bare(engine.Engine(), code, count)),
            ("emu86", emulated(millions)),
        ):
            times.setdefault(name, []).append(took)
            sums.add(checksum)
        if len(sums) != 1:
            raise BenchError(f"the checksums differ: {sums}")

    def speed(name: str, of: str) -> str:
        pairs = zip(times[of], times[name], strict=True)
        return f"{median(theirs / ours for theirs, ours in pairs):.2f}"

    show(
        f"{millions} million iterations in ring 3, median of {rounds} rounds",
        ("", "ns/iteration", "speed of plain", "speed of engine"),
        [
            (
                name,
                f"{median(taken) / count * 1e9:.2f}",
                speed(name, "plain"),
                speed(name, "engine"),
            )
            for name, taken in times.items()
        ],
    )
    say(f"target: emu86 at least {TARGET} of the bare engine's speed")


if __name__ == "__main__":
    main(**asked(__doc__, millions=MILLIONS, rounds=ROUNDS))
