"""Guest-physical memory, shared with the engine without copies.

It stands at the same address in the engine's physical space (HPA = GPA); what the VMM
has for itself stands far above it (`mmu.vmm_memory`).
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import Final

from emu86 import config
from emu86.errors import ConfigError
from emu86.native import abi
from emu86.spec import x86

# What a guest page holds: `native.abi` says what each means.
DATA: Final = abi.DATA
CODE: Final = abi.CODE
MIXED: Final = abi.MIXED
TABLE: Final = abi.TABLE
UNBACKED: Final = abi.UNBACKED

# Page numbers of the adapter and ROM space, less the last, which is RAM with a ROM.
HOLE: Final = range(0xA0, 0xFF)
_A20: Final = 1 << 20 - x86.PAGE_SHIFT
_MEBI: Final = 1 << 20 - x86.PAGE_SHIFT  # pages
_ALL: Final = (1 << 52) - 1

# Those of them that are a display's memory, if they are any. Where a BIOS runs, there
# is RAM at all others.
VIDEO: Final = range(0xA0, 0xC0)

_ZEROS: Final = bytes(64 << 10)  # what is looked at together
_ZERO_PAGE: Final = bytes(x86.PAGE_SIZE)


def allocate(size: int, amount: int = 0) -> mmap.mmap:
    """Return zeroed memory, taken from the host as it is touched.

    It is private: a process that is forked off gets a copy of its own. amount: bytes of
    it that are to be used, if not all are. Raises ConfigError if the host refuses.
    """
    try:
        if hasattr(os, "fork"):
            return mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
        return mmap.mmap(-1, size)  # Windows: it can copy a file's memory alone
    except OSError as error:
        mib = (amount or size) >> 20
        raise ConfigError(
            f"memory: the host has no {mib} MiB for a machine: {error.strerror}"
        ) from None


def address_of(memory: mmap.mmap) -> int:
    """Return where in this process the memory is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Ram:
    """`amount` bytes of guest RAM (whole pages) from GPA 0, without the PC's holes.

    low: where the RAM below 4 GiB ends; size: where all of it ends; pages: as many are
    before that. What is between, of the large hole, costs addresses and no memory.
    rom: bytes of a BIOS that ends at 1 MiB, and is seen below 4 GiB, too. lines: the
    bits of a page number that address lines are for: gate A20 takes one away.
    rom_window: the first page below 4 GiB where the ROM is seen, or beyond all;
    rom_shift: how far above its RAM that is, in pages.
    """

    def __init__(self, amount: int, rom: int = 0) -> None:
        self.hole = VIDEO if rom else HOLE
        self.lines = _ALL
        self.rom_shift = (1 << 32 - x86.PAGE_SHIFT) - _MEBI
        rom_pages = rom >> x86.PAGE_SHIFT
        self.rom_window = self.rom_shift + _MEBI - rom_pages if rom else _ALL
        self.low = min(amount, config.LOW_MOST)
        self.size = size = config.ram_end(amount)
        self.pages = size >> x86.PAGE_SHIFT
        self.map = allocate(size, amount)
        self.bytes = memoryview(self.map)
        self.words = self.bytes.cast("I")
        self._quads = self.bytes.cast("Q")
        self.address = address_of(self.map)
        self.state = bytearray(self.pages)
        for page in self.hole:
            if page < self.pages:
                self.state[page] = UNBACKED
        end = min(config.HIGH, size)
        beyond = range(self.low >> x86.PAGE_SHIFT, end >> x86.PAGE_SHIFT)
        self.state[beyond.start : beyond.stop] = bytes([UNBACKED]) * len(beyond)
        state = (ctypes.c_char * self.pages).from_buffer(self.state)
        self.state_address = ctypes.addressof(state)
        self._fill_hole()

    @property
    def parts(self) -> tuple[range, ...]:
        """The guest-physical addresses that RAM is at, ones of the PC's hole included.

        Where there is none in that hole, ones stand.
        """
        low, high = range(self.low), range(config.HIGH, self.size)
        return (low, high) if high else (low,)

    def gate_a20(self, *, is_open: bool) -> None:
        """Have address line 20 be what it is, or 0 where nothing translates."""
        self.lines = _ALL if is_open else _ALL & ~_A20

    @property
    def is_gated(self) -> bool:
        """Whether address line 20 is 0, whatever the address."""
        return self.lines != _ALL

    def _fill_hole(self) -> None:
        for page in self.hole:
            if page < self.pages:
                start = page << x86.PAGE_SHIFT
                self.bytes[start : start + x86.PAGE_SIZE] = b"\xff" * x86.PAGE_SIZE

    def _used(self) -> Iterator[int]:
        """Give the numbers of the pages that hold anything but zeros."""
        for part in self.parts:
            for start in part[:: len(_ZEROS)]:
                data = self.map[start : min(start + len(_ZEROS), part.stop)]
                if data != _ZEROS[: len(data)]:
                    for at in range(0, len(data), x86.PAGE_SIZE):
                        if data[at : at + x86.PAGE_SIZE] != _ZERO_PAGE:
                            yield start + at >> x86.PAGE_SHIFT

    def save(self) -> tuple[tuple[int, bytes], ...]:
        """Return what it holds, as (GPA, bytes) of whole pages; others hold zeros.

        What a display has there is the display's to save.
        """
        spans: list[list[int]] = []  # first page, end
        for page in self._used():
            if self.state[page] == UNBACKED or page in VIDEO:
                continue
            if spans and spans[-1][1] == page:
                spans[-1][1] = page + 1
            else:
                spans.append([page, page + 1])
        edges = (
            (first << x86.PAGE_SHIFT, end << x86.PAGE_SHIFT) for first, end in spans
        )
        return tuple((start, self.map[start:end]) for start, end in edges)

    def restore(self, state: tuple[tuple[int, bytes], ...]) -> None:
        """Hold what was saved."""
        for page in self._used():
            start = page << x86.PAGE_SHIFT
            self.bytes[start : start + x86.PAGE_SIZE] = _ZERO_PAGE
        self._fill_hole()
        for start, data in state:
            self.bytes[start : start + len(data)] = data

    def backed(self, page: int) -> bool:
        """Tell whether there is RAM at this guest page number."""
        return page < self.pages and self.state[page] != UNBACKED

    def holds(self, gpa: int) -> bool:
        """Tell whether there is RAM at an address, or ones that stand for it."""
        return gpa < self.low or config.HIGH <= gpa < self.size

    def read(self, gpa: int, size: int) -> bytes:
        """Read bytes; FFh where there is no RAM."""
        end = gpa + size
        if end <= self.low:
            return self.map[gpa:end]
        out = b""
        for part in self.parts:
            first, last = max(gpa, part.start), min(end, part.stop)
            if first < last:
                out = out.ljust(first - gpa, b"\xff") + self.map[first:last]
        return out.ljust(size, b"\xff")

    def read32(self, gpa: int) -> int:
        """Read an aligned 32-bit word; all ones where there is no RAM."""
        return self.words[gpa >> 2] if self.holds(gpa) else x86.MASK32

    def read64(self, gpa: int) -> int:
        """Read an aligned 64-bit word; all ones where there is no RAM."""
        return self._quads[gpa >> 3] if self.holds(gpa) else x86.MASK64

    def write32(self, gpa: int, value: int) -> None:
        """Write an aligned 32-bit word; lost where there is no RAM."""
        if self.backed(gpa >> x86.PAGE_SHIFT):
            self.words[gpa >> 2] = value
