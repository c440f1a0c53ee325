"""Intel 8237A DMA controller, and the page registers of a PC/AT.

Source: Intel 8237A data sheet, "Register Description" and "Programming"; IBM PC/AT
Technical Reference, "Direct Memory Access", "Page Registers".

A device that transfers by a channel has it all at once: it holds what a guest can see
of a transfer, the registers, as they are behind it. Memory-to-memory transfers, and
requests by software, for which no device waits, are not done. The registers of the
second controller, of words, are there; no device is wired to it.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

CHANNELS: Final = 4

# Offsets behind the channels' addresses and counts.
STATUS: Final = 8
COMMAND: Final = STATUS
MASK_ONE: Final = 10
MODE: Final = 11
FLIP_FLOP: Final = 12
MASTER_CLEAR: Final = 13
CLEAR_MASK: Final = 14
MASK_ALL: Final = 15

DISABLED: Final = 0x04  # of the command register

# The mode register of a channel, behind its number.
DECREMENT: Final = 0x20
AUTOINITIALIZE: Final = 0x10
TRANSFER: Final = 0x0C
WRITES: Final = 0x04  # to memory
READS: Final = 0x08
CASCADE: Final = 0xC0

# Where a PC/AT has the page registers of channels 0 to 3, from port 81h on.
_PAGES: Final = (6, 2, 0, 1)
PAGE_PORTS: Final = 15


class DmaMemory(Protocol):
    """The memory that a transfer reads and writes, whoever has to be told."""

    def read(self, address: int, size: int) -> bytes:
        """Read bytes from a physical address on."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write bytes from a physical address on."""
        ...


@dataclass(slots=True)
class _Channel:
    """The registers of a channel; its count is that of bytes left, less 1."""

    base_address: int = 0
    base_count: int = 0
    address: int = 0
    count: int = 0
    mode: int = 0


class DmaState(NamedTuple):
    """The registers of a controller."""

    channels: tuple[tuple[int, ...], ...]
    command: int
    mask: int
    reached: int
    high: bool


class Dma:
    """A controller of four channels: 16 registers."""

    def __init__(self, *, step: int = 1) -> None:
        """Make a controller after reset; its registers are `step` addresses apart."""
        self._step = step
        self._channels: list[_Channel]
        self._command = self._mask = self._reached = 0
        self._high = False  # which byte comes next of an address or a count
        self._channels = [_Channel() for _ in range(CHANNELS)]
        self._clear()

    def _clear(self) -> None:
        self._command = self._reached = 0
        self._mask = 0xF
        self._high = False

    # -- registers ---------------------------------------------------------------------

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a register; reading the status forgets which counts have ended."""
        register = offset // self._step
        if register < STATUS:
            channel = self._channels[register >> 1]
            value = channel.count if register & 1 else channel.address
            self._high = not self._high
            return value & 0xFF if self._high else value >> 8
        if register == STATUS:
            value, self._reached = self._reached, 0
            return value
        return self._mask if register == MASK_ALL else 0

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register, or give a command by writing anything to its address."""
        register = offset // self._step
        value &= 0xFF
        bit = 1 << (value & 3)
        if register < STATUS:
            self._write_half(register, value)
        elif register == COMMAND:
            self._command = value
        elif register == MASK_ONE:
            self._mask = self._mask | bit if value & 4 else self._mask & ~bit
        elif register == MODE:
            self._channels[value & 3].mode = value
        elif register == FLIP_FLOP:
            self._high = False
        elif register == MASTER_CLEAR:
            self._clear()
        elif register == CLEAR_MASK:
            self._mask = 0
        elif register == MASK_ALL:
            self._mask = value & 0xF

    def _write_half(self, register: int, value: int) -> None:
        """Write a byte of an address or a count, of the base and the current one."""
        channel = self._channels[register >> 1]
        old = channel.base_count if register & 1 else channel.base_address
        new = old & 0xFF | value << 8 if self._high else old & 0xFF00 | value
        self._high = not self._high
        if register & 1:
            channel.base_count = channel.count = new
        else:
            channel.base_address = channel.address = new

    # -- transfers ---------------------------------------------------------------------

    def acknowledges(self, number: int) -> bool:
        """Whether a request on a channel is served now."""
        served = not (self._command & DISABLED or self._mask & 1 << number)
        return served and self._channels[number].mode & CASCADE != CASCADE

    def run(self, number: int, size: int) -> tuple[range, int, bool]:
        """Count up to `size` bytes of a channel; returns what of memory they are.

        That is offsets in 64 KiB, not wrapped yet; then which way they go (`WRITES`,
        `READS`, or 0, none); and whether the count has ended.
        """
        channel = self._channels[number]
        left = channel.count + 1
        size = min(size, left)
        step = -1 if channel.mode & DECREMENT else 1
        first = channel.address
        channel.address = (first + step * size) & 0xFFFF
        channel.count = (channel.count - size) & 0xFFFF
        ended = size == left
        if ended:
            self._reached |= 1 << number
            if channel.mode & AUTOINITIALIZE:
                channel.address, channel.count = (
                    channel.base_address,
                    channel.base_count,
                )
            else:
                self._mask |= 1 << number
        return range(first, first + step * size, step), channel.mode & TRANSFER, ended

    # -- state -------------------------------------------------------------------------

    def save(self) -> DmaState:
        """Return the registers."""
        channels = tuple(astuple(channel) for channel in self._channels)
        return DmaState(channels, self._command, self._mask, self._reached, self._high)

    def restore(self, state: DmaState) -> None:
        """Become the controller that was saved."""
        self._channels = [_Channel(*channel) for channel in state.channels]
        _, self._command, self._mask, self._reached, self._high = state


class DmaPages:
    """The page registers: bits 23 to 16 of addresses; those of no channel are RAM."""

    def __init__(self) -> None:
        """Make registers of zeros."""
        self._bytes = bytearray(PAGE_PORTS)

    def __getitem__(self, channel: int) -> int:
        """Return the page of a channel, 0 to 3."""
        return self._bytes[_PAGES[channel]]

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a register."""
        return self._bytes[offset]

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register."""
        self._bytes[offset] = value & 0xFF

    def save(self) -> bytes:
        """Return the registers."""
        return bytes(self._bytes)

    def restore(self, state: bytes) -> None:
        """Become what was saved."""
        self._bytes[:] = state


class DmaLine:
    """A channel of bytes, wired to a device: what it asks to be transferred."""

    def __init__(
        self, dma: Dma, pages: DmaPages, memory: DmaMemory, number: int
    ) -> None:
        """Wire channel `number` of `dma`."""
        self._dma = dma
        self._pages = pages
        self._memory = memory
        self._number = number

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return self._dma.acknowledges(self._number)

    def give(self, data: bytes) -> tuple[int, bool]:
        """Put the device's bytes into memory; how many went, and terminal count (TC).

        A channel that is not programmed to write counts, and changes no memory.
        """
        run, way, ended = self._dma.run(self._number, len(data))
        if way == WRITES:
            for at, part in self._parts(run):
                piece = data[part][:: run.step]
                self._memory.write(at, piece)
        return len(run), ended

    def take(self, size: int) -> tuple[bytes, bool]:
        """Get bytes from memory for the device, `size` at most; and terminal count.

        A channel that is not programmed to read gives ones: nothing drives the bus.
        """
        run, way, ended = self._dma.run(self._number, size)
        data = bytearray(b"\xff" * len(run))
        if way == READS:
            for at, part in self._parts(run):
                length = part.stop - part.start
                data[part] = self._memory.read(at, length)[:: run.step]
        return bytes(data), ended

    def _parts(self, run: range) -> list[tuple[int, slice]]:
        """Return the lowest address of each piece of memory, and its part of the data.

        Addresses wrap at 64 KiB: no carry reaches the page register.
        """
        page = self._pages[self._number] << 16
        wrap = 0x10000 - run.start if run.step > 0 else run.start + 1
        cuts = [0, min(wrap, len(run)), len(run)]
        parts = []
        for begin, end in pairwise(cuts):
            if begin < end:
                lowest = min(run[begin], run[end - 1]) & 0xFFFF
                parts.append((page | lowest, slice(begin, end)))
        return parts
