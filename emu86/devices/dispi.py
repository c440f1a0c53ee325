"""The DISPI interface of Bochs: pictures of any size, in memory that is all linear.

Source: Bochs' and QEMU's "VBE display" interface, version B0C5h, as QEMU's `-vga std`
has it: a register's index is written to the first port, its value to the second one.
All values are words; accesses to single bytes find nothing.

Known differences: the frame buffer is not the memory of the VGA's planes, and there are
no modes of 4 bits.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

SIZE: Final = 8 << 20
"""Bytes of the frame buffer."""
BANK_SIZE: Final = 64 << 10
"""Bytes of it that are seen at A0000h."""

# Indices of registers.
ID: Final = 0
XRES: Final = 1
YRES: Final = 2
BPP: Final = 3
ENABLE: Final = 4
BANK: Final = 5
VIRT_WIDTH: Final = 6
VIRT_HEIGHT: Final = 7
X_OFFSET: Final = 8
Y_OFFSET: Final = 9
VIDEO_MEMORY_64K: Final = 10

ENABLED: Final = 0x01
GETCAPS: Final = 0x02
DAC_8BIT: Final = 0x20
NOCLEARMEM: Final = 0x80

_IDS: Final = range(0xB0C0, 0xB0C6)
_MOST: Final = {XRES: 16000, YRES: 12000, BPP: 32}
_BYTES: Final = {8: 1, 15: 2, 16: 2, 24: 3, 32: 4}  # of a pixel


class DispiState(NamedTuple):
    """The registers, and the frame buffer without zeros at its end."""

    selected: int
    registers: tuple[int, ...]
    memory: bytes


class Linear(NamedTuple):
    """The picture that is seen: its rows, one after another; bits: of a pixel."""

    width: int
    height: int
    bits: int
    data: bytes


class Dispi:
    """The registers, at offsets 0 (index) and 1 (data), and the frame buffer.

    changed: told that the interface is on, or no longer on.
    """

    widths: Final = frozenset({2})

    def __init__(self, changed: Callable[[], None]) -> None:
        """Have it off, as after a reset."""
        self._changed = changed
        self.selected = 0
        self.registers: tuple[int, ...] = (_IDS[-1], *[0] * 9)
        # What never was written is not there, so that it costs those nothing who have
        # text alone; the rest is zeros.
        self._memory = bytearray()

    @property
    def enabled(self) -> bool:
        """Whether the screen shows the frame buffer, and A0000h a bank of it."""
        return bool(self.registers[ENABLE] & ENABLED)

    @property
    def dac_8bit(self) -> bool:
        """Whether the colours of the DAC have eight bits each, not six."""
        return bool(self.registers[ENABLE] & DAC_8BIT)

    # -- ports -------------------------------------------------------------------------

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the index, or the register that it names."""
        if width != 2:
            return 0xFF
        if not offset:
            return self.selected
        if self.selected == VIDEO_MEMORY_64K:
            return SIZE // BANK_SIZE
        if self.selected > VIDEO_MEMORY_64K:
            return 0
        if self.registers[ENABLE] & GETCAPS and self.selected in _MOST:
            return _MOST[self.selected]
        return self.registers[self.selected]

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write the index, or what can be written of the register that it names."""
        if width != 2:
            return
        value &= 0xFFFF
        index = self.selected
        if not offset:
            self.selected = value
        elif index == ENABLE:
            self._enable(value)
        elif index == BANK:
            self._set({BANK: value % (SIZE // BANK_SIZE)})
        elif index in (XRES, YRES, BPP, VIRT_WIDTH, X_OFFSET, Y_OFFSET) or (
            index == ID and value in _IDS
        ):
            self._set({index: value})

    def _enable(self, value: int) -> None:
        was = self.enabled
        if value & ENABLED and not was:
            self._set({ENABLE: value, VIRT_WIDTH: 0, X_OFFSET: 0, Y_OFFSET: 0, BANK: 0})
            if not value & NOCLEARMEM:
                size = self.registers[YRES] * _line(self.registers)
                self._memory[:size] = bytes(min(size, len(self._memory)))
        else:
            self._set({ENABLE: value, BANK: 0})
        if self.enabled != was:
            self._changed()

    def _set(self, values: dict[int, int]) -> None:
        """Set registers, all at once: another thread may look at the picture."""
        registers = list(self.registers)
        for index, value in values.items():
            registers[index] = value
        if registers[ENABLE] & ENABLED:
            _fit(registers)
        self.registers = tuple(registers)

    # -- memory ------------------------------------------------------------------------

    def read_memory(self, at: int, size: int) -> bytes:
        """Read bytes at an offset in the frame buffer; FFh beyond its end."""
        there = min(size, SIZE - at)
        return (
            bytes(self._memory[at : at + there])
            .ljust(there, b"\0")
            .ljust(size, b"\xff")
        )

    def write_memory(self, at: int, data: bytes) -> None:
        """Write bytes at an offset in the frame buffer; lost beyond its end."""
        memory = self._memory
        data = data[: SIZE - at]
        end = at + len(data)
        if len(memory) < end:  # more at a time, since most is written in order
            memory.extend(bytes(min(end + BANK_SIZE, SIZE) - len(memory)))
        memory[at:end] = data

    def read_bank(self, offset: int) -> int:
        """Read a byte at an offset from A0000h."""
        if offset >= BANK_SIZE:
            return 0xFF
        return self.read_memory(self.registers[BANK] * BANK_SIZE + offset, 1)[0]

    def write_bank(self, offset: int, value: int) -> None:
        """Write a byte at an offset from A0000h."""
        if offset < BANK_SIZE:
            at = self.registers[BANK] * BANK_SIZE + offset
            self.write_memory(at, bytes([value & 0xFF]))

    # -- what is seen ------------------------------------------------------------------

    def seen(self) -> Linear | None:
        """Return the picture, or None while the interface is off."""
        registers = self.registers
        if not registers[ENABLE] & ENABLED:
            return None
        width, height, bits = registers[XRES], registers[YRES], registers[BPP]
        line, row = _line(registers), width * _BYTES[bits]
        start = registers[Y_OFFSET] * line + registers[X_OFFSET] * _BYTES[bits]
        rows = (self.read_memory(start + y * line, row) for y in range(height))
        return Linear(width, height, bits, b"".join(rows))

    # -- state -------------------------------------------------------------------------

    def save(self) -> DispiState:
        """Return the registers and the memory."""
        return capture(DispiState, self)

    def restore(self, state: DispiState) -> None:
        """Become the interface that was saved."""
        reinstate(self, state)
        self._changed()

    @property
    def memory(self) -> bytes:
        """The frame buffer, without zeros at its end."""
        return bytes(self._memory.rstrip(b"\0"))

    @memory.setter
    def memory(self, data: bytes) -> None:
        self._memory[:] = data


def _line(registers: tuple[int, ...] | list[int]) -> int:
    """Return the bytes from one row to the next."""
    return registers[VIRT_WIDTH] * _BYTES[registers[BPP]]


def _fit(registers: list[int]) -> None:
    """Make of what was asked for a picture that there is room for."""
    if registers[BPP] not in _BYTES:
        registers[BPP] = 8
    most = _MOST[XRES]
    registers[XRES] = min(registers[XRES] & ~7, most) or 8
    virtual = min(registers[VIRT_WIDTH] & ~7, most)
    registers[VIRT_WIDTH] = max(virtual, registers[XRES])
    line = _line(registers)
    rows = SIZE // line
    registers[VIRT_HEIGHT] = rows
    registers[YRES] = min(registers[YRES] or 1, _MOST[YRES], rows)
    room = SIZE - registers[YRES] * line
    across = min(registers[X_OFFSET], most) * _BYTES[registers[BPP]]
    down = min(registers[Y_OFFSET], _MOST[YRES])
    if across + down * line > room:
        down = 0
    if across > room:
        across = 0
    registers[X_OFFSET], registers[Y_OFFSET] = across // _BYTES[registers[BPP]], down
