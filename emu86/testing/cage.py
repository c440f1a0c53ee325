"""A process with the stage's pages and nothing else: programs on the host's CPU.

The code is in `cage.asm`: a program of a few hundred bytes that unmaps whatever Linux
gave it, forbids itself all system calls but reading and writing (seccomp, where no
other filter is in the way), and then runs what it is asked to, again and again. So a
program may compute, fault or loop as it likes: there is nothing to wreck, and its
registers are known at the end of it.
"""

import atexit
import mmap
import os
import select
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from emu86.spec import x86
from emu86.testing import stage

STACK: Final = stage.STACK3 - x86.PAGE_SIZE
PAGES: Final = {STACK: 0, stage.CODE: 0x2000, stage.DATA: 0x3000}  # to the file's
_WORDS: Final = 0x1000
_KEPT: Final = _WORDS + 0x100
_TIMEOUT: Final = 30  # seconds until a cage that does not answer is given up
# The order of a sigcontext's registers, as indices of ours: R8 to R15, RDI and so on.
_ORDER: Final = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4)
_RIP, _EFLAGS, _VECTOR, _CR2 = 16, 17, 20, 22
_SIGPROF: Final = 27


@dataclass(frozen=True)
class Kept:
    """How a run ended: by an exception, or "endless", or "killed" by Linux.

    vector: of the exception, or None; registers: 16 general ones, as the SDM numbers
    them; rip, rflags, cr2: as the exception found them, CR2 for a page fault alone.
    """

    end: str
    vector: int | None
    registers: tuple[int, ...]
    rip: int
    rflags: int
    cr2: int


class Cage:
    """One such process. Raises OSError where there can be none."""

    def __init__(self) -> None:
        shared = os.memfd_create("emu86-stage")
        code = os.memfd_create("emu86-cage")
        try:
            os.ftruncate(shared, 4 * x86.PAGE_SIZE)
            self.memory = mmap.mmap(shared, 4 * x86.PAGE_SIZE)
            os.write(
                code, resources.files("emu86.testing").joinpath("cage.bin").read_bytes()
            )
            self._process = subprocess.Popen(  # noqa: S603 (our own code)
                [f"/proc/self/fd/{code}"], pass_fds=(code,), env={},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=shared, bufsize=0,
            )  # fmt: skip
        finally:
            os.close(shared)
            os.close(code)

    def run(self, registers: tuple[int, ...], flags: int, bits: int) -> Kept:
        """Run what stands at the stage's code, as code of 32 or 64 bits.

        registers: all 16; flags: RFLAGS. The pages are read and written in `memory`, at
        the offsets in `PAGES`. A run of a fifth of a second of CPU time, or two, is
        "endless"; after "killed" this cage is of no more use.
        """
        struct.pack_into("<18Q", self.memory, _WORDS, *registers, flags, bits)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(b"\0")
            answers, _, _ = select.select([stdout], [], [], _TIMEOUT)
            answered = bool(answers) and stdout.read(1)
        except BrokenPipeError:
            answered = b""
        if not answered:
            self.close()
            return Kept("killed", None, (0,) * 16, 0, 0, 0)
        signal, *words = struct.unpack_from("<24Q", self.memory, _KEPT)
        ordered = dict(zip(_ORDER, words, strict=False))
        endless = signal == _SIGPROF
        return Kept(
            end="endless" if endless else "exception",
            vector=None if endless else words[_VECTOR],
            registers=tuple(ordered[i] for i in range(16)),
            rip=words[_RIP],
            rflags=words[_EFLAGS],
            cr2=words[_CR2] if words[_VECTOR] == x86.VEC_PF else 0,
        )

    @property
    def alive(self) -> bool:
        """Whether it can still run anything."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _close(cages: list[Cage]) -> None:
    for held in cages:
        held.close()


@cache
def _cages() -> list[Cage]:
    cages: list[Cage] = []
    atexit.register(_close, cages)
    return cages


def cage() -> Cage:
    """Return this process's cage, a new one if the last was killed."""
    cages = _cages()
    if not cages or not cages[-1].alive:
        cages[:] = [Cage()]
    return cages[-1]
