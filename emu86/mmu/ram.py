"""Guest-physical memory, shared with the engine without copies.

It stands at the same address in the engine's physical space (HPA = GPA); what the VMM
has for itself stands far above it (`mmu.vmm_memory`).
"""

import ctypes
import mmap
import os
from typing import Final

import numpy as np
import numpy.typing as npt

from emu86.errors import ConfigError
from emu86.native import abi
from emu86.spec import x86

# What a guest page holds: `native.abi` says what each means.
DATA: Final = abi.DATA
CODE: Final = abi.CODE
MIXED: Final = abi.MIXED
TABLE: Final = abi.TABLE
UNBACKED: Final = abi.UNBACKED

# Page numbers of the PC's adapter and ROM space, less the last: RAM that shadows a ROM.
HOLE: Final = range(0xA0, 0xFF)


def allocate(size: int) -> mmap.mmap:
    """Return zeroed memory, taken from the host as it is touched.

    It is private: a process that is forked off gets a copy of its own. Raises
    ConfigError if the host refuses.
    """
    try:
        if hasattr(os, "fork"):
            return mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
        return mmap.mmap(-1, size)  # Windows: it can copy a file's memory alone
    except OSError as error:
        raise ConfigError(
            f"memory: the host has no {size >> 20} MiB for a machine: {error.strerror}"
        ) from None


def address_of(memory: mmap.mmap) -> int:
    """Return where in this process the memory is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Ram:
    """`size` bytes of guest RAM from GPA 0 (whole pages) without the PC's hole."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pages = size >> x86.PAGE_SHIFT
        self.map = allocate(size)
        self.bytes = memoryview(self.map)
        self.words = self.bytes.cast("I")
        self.address = address_of(self.map)
        self.state = bytearray(self.pages)
        for page in HOLE:
            if page < self.pages:
                self.state[page] = UNBACKED
        state = (ctypes.c_char * self.pages).from_buffer(self.state)
        self.state_address = ctypes.addressof(state)
        self.state_np = np.frombuffer(self.state, np.uint8)
        self._fill_hole()

    def _fill_hole(self) -> None:
        for page in np.flatnonzero(self.state_np == UNBACKED).tolist():
            start = page << x86.PAGE_SHIFT
            self.bytes[start : start + x86.PAGE_SIZE] = b"\xff" * x86.PAGE_SIZE

    def _used(self) -> npt.NDArray[np.bool_]:
        """Tell of each page whether it holds anything but zeros."""
        pages = np.frombuffer(self.map, np.uint64).reshape(self.pages, -1)
        used: npt.NDArray[np.bool_] = np.any(pages, axis=1)
        return used

    def save(self) -> tuple[tuple[int, bytes], ...]:
        """Return what it holds, as (GPA, bytes) of whole pages; others hold zeros."""
        used = self._used() & (self.state_np != UNBACKED)
        edges = np.flatnonzero(np.diff(used, prepend=False, append=False)).tolist()
        spans = (
            (first << x86.PAGE_SHIFT, end << x86.PAGE_SHIFT)
            for first, end in zip(edges[::2], edges[1::2], strict=True)
        )
        return tuple((start, self.map[start:end]) for start, end in spans)

    def restore(self, state: tuple[tuple[int, bytes], ...]) -> None:
        """Hold what was saved."""
        for page in np.flatnonzero(self._used()).tolist():
            start = page << x86.PAGE_SHIFT
            self.bytes[start : start + x86.PAGE_SIZE] = bytes(x86.PAGE_SIZE)
        self._fill_hole()
        for start, data in state:
            self.bytes[start : start + len(data)] = data

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
