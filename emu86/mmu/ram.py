"""Guest-physical memory, shared with the engine without copies, and the VMM's own.

Guest RAM stands at the same address in the engine's physical space (HPA = GPA). The
VMM's pages (shadow tables, shadow descriptor tables) stand above 4 GiB, where no 32-bit
guest table can point.
"""

import ctypes
import mmap
from typing import Final

import numpy as np

from emu86.cpu.engine import Engine
from emu86.spec import x86

# What a guest page holds, as far as the shadow tables care.
DATA: Final = 0  # writable, never executed
CODE: Final = 1  # executed, so not writable
MIXED: Final = 2  # both, in one mapping only, at the engine's slow path
TABLE: Final = 3  # holds descriptors that the shadow tables copy: not writable
UNBACKED: Final = 4  # no RAM there: reads as ones

# Page numbers of the PC's adapter and ROM space, less the last: RAM that shadows a ROM.
HOLE: Final = range(0xA0, 0xFF)
HIDDEN: Final = 1 << 32  # HPA of the VMM's own memory


def _address(memory: mmap.mmap) -> int:
    """Return where in this process the memory is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Ram:
    """`size` bytes of guest RAM from GPA 0 (whole pages) without the PC's hole."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pages = size >> x86.PAGE_SHIFT
        self.map = mmap.mmap(-1, size)
        self.bytes = memoryview(self.map)
        self.words = self.bytes.cast("I")
        self.address = _address(self.map)
        self.state = bytearray(self.pages)
        for page in HOLE:
            if page < self.pages:
                self.state[page] = UNBACKED
                start = page << x86.PAGE_SHIFT
                self.bytes[start : start + x86.PAGE_SIZE] = b"\xff" * x86.PAGE_SIZE
        self.state_np = np.frombuffer(self.state, np.uint8)

    def backed(self, page: int) -> bool:
        """Tell whether there is RAM at this guest page number."""
        return page < self.pages and self.state[page] != UNBACKED

    def read32(self, gpa: int) -> int:
        """Read an aligned 32-bit word; all ones where there is no RAM."""
        return self.words[gpa >> 2] if gpa < self.size else x86.MASK32

    def write32(self, gpa: int, value: int) -> None:
        """Write an aligned 32-bit word; lost where there is no RAM."""
        if self.backed(gpa >> x86.PAGE_SHIFT):
            self.words[gpa >> 2] = value


class Hidden:
    """The VMM's own physical memory: fixed pages, then a pool of shadow pages."""

    ONES: Final = 0  # page numbers from HIDDEN
    SCRATCH: Final = 8  # and the three after it: memory-mapped I/O, one step at a time
    SCRATCHES: Final = 4
    PDPT: Final = 2
    PD: Final = 3
    PT: Final = 4
    GDT: Final = 16
    LDT: Final = 32
    POOL: Final = 64
    PAGES: Final = 16384  # 64 MiB of address space; the host backs what is touched

    # The linear addresses at which the engine itself reads the shadow GDT and LDT.
    LINEAR: Final = 0xFFFF800000000000
    PML4_SLOT: Final = 256

    def __init__(self, engine: Engine) -> None:
        self.map = mmap.mmap(-1, self.PAGES << x86.PAGE_SHIFT)
        self.bytes = memoryview(self.map)
        self.q = self.bytes.cast("Q")
        self.address = _address(self.map)
        self.np = np.frombuffer(self.map, np.uint64)
        engine.map(HIDDEN, self.bytes)
        start = self.ONES << x86.PAGE_SHIFT
        self.bytes[start : start + x86.PAGE_SIZE] = b"\xff" * x86.PAGE_SIZE
        present = x86.PTE_P | x86.PTE_RW | x86.PTE_A
        self.q[self.PDPT * 512] = self.hpa(self.PD) | present
        self.q[self.PD * 512] = self.hpa(self.PT) | present
        for page in range(self.GDT, self.LDT + 16):
            entry = self.hpa(page) | present | x86.PTE_D | x86.PTE_NX
            self.q[self.PT * 512 + page] = entry

    @staticmethod
    def hpa(page: int) -> int:
        """Return the host-physical address of one of these pages."""
        return HIDDEN + (page << x86.PAGE_SHIFT)

    @classmethod
    def linear(cls, page: int) -> int:
        """Return the linear address of a shadow descriptor table's page."""
        return cls.LINEAR + (page << x86.PAGE_SHIFT)
