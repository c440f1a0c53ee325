"""Guest-physical memory, shared with the engine without copies.

It stands at the same address in the engine's physical space (HPA = GPA); what the VMM
has for itself stands far above it (`mmu.vmm_memory`).
"""

import ctypes
import mmap
from typing import Final

import numpy as np

from emu86.spec import x86

# What a guest page holds, as far as the shadow tables care.
DATA: Final = 0  # writable, never executed
CODE: Final = 1  # executed, so not writable
MIXED: Final = 2  # both, in one mapping only, at the engine's slow path
TABLE: Final = 3  # holds descriptors that the shadow tables copy: not writable
UNBACKED: Final = 4  # no RAM there: reads as ones

# Page numbers of the PC's adapter and ROM space, less the last: RAM that shadows a ROM.
HOLE: Final = range(0xA0, 0xFF)


def address_of(memory: mmap.mmap) -> int:
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
        self.address = address_of(self.map)
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
