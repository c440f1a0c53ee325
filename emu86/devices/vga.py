"""IBM Video Graphics Array: its registers, and how they are found behind ports.

Source: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem".

`vga_memory` has the memory, `dispi` a frame buffer that is seen in the place of both
while a guest says so, and `vga_picture` what is seen. The beam runs by the
time that the board tells, so that who waits for the retrace sees it come and go. There
is no vertical interrupt, and no monitor that a guest could look for.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from emu86.devices.dispi import Dispi, Linear
from emu86.devices.saving import capture, reinstate
from emu86.devices.vga_memory import MemoryState, VideoMemory

# Ports, as offsets from 3B0h. The CRT controller and input status 1 are where the
# miscellaneous output says: at 3Bxh for monochrome, at 3Dxh for colour.
CRTC_INDEX: Final = 0x04
CRTC_DATA: Final = 0x05
STATUS_1: Final = 0x0A
ATTRIBUTE: Final = 0x10
ATTRIBUTE_DATA: Final = 0x11
MISC_WRITE: Final = 0x12
SEQUENCER_INDEX: Final = 0x14
SEQUENCER_DATA: Final = 0x15
DAC_MASK: Final = 0x16
DAC_READ: Final = 0x17
DAC_WRITE: Final = 0x18
DAC_DATA: Final = 0x19
FEATURE_READ: Final = 0x1A
MISC_READ: Final = 0x1C
GRAPHICS_INDEX: Final = 0x1E
GRAPHICS_DATA: Final = 0x1F
COLOUR_PORTS: Final = 0x20

MISC_COLOUR: Final = 0x01
MISC_MEMORY: Final = 0x02

STATUS_BLANK: Final = 0x01
STATUS_RETRACE: Final = 0x08

_PALETTE_ON: Final = 0x20
_PROTECT: Final = 0x80  # CRT controller 11h: the first eight are not written
_LINE_COMPARE: Final = 0x10  # but for this bit of 07h
_CLOCKS: Final = (25_175_000, 28_322_000)  # dots a second
_SECOND: Final = 1_000_000_000  # ns

# What can be written of each register.
_SEQUENCER: Final = bytes.fromhex("033d0f3f0e")
_GRAPHICS: Final = bytes.fromhex("0f0f0f1f037b0f0fff")
_ATTRIBUTE: Final = bytes([0x3F] * 16) + bytes.fromhex("ffff3f0f0f")
_CRTC: Final = bytes.fromhex("ffffffffffffffff 7fff3f7fffffffff ffffffff7fff7fefff")

# The text mode of 80 columns and 25 rows, "mode 3", as a BIOS sets it.
_MODE_3: Final = (
    0x67,
    bytes.fromhex("0300030002"),
    bytes.fromhex("5f4f5082 5581bf1f 004f0d0e 00000000 9c8e8f28 1f96b9a3 ff"),
    bytes.fromhex("0000000000100e00ff"),
    bytes.fromhex("0001020304051407 38393a3b3c3d3e3f 0c000f0800"),
)
_BLANK: Final = b"\x20\x07"  # a space, grey on black


def _ega_colours() -> bytes:
    """Return the 64 colours of an EGA, as a BIOS loads them for text modes."""
    levels = (0x00, 0x15, 0x2A, 0x3F)
    return bytes(
        levels[(code >> bit & 1) << 1 | code >> bit + 3 & 1]
        for code in range(64)
        for bit in (2, 1, 0)
    )


class VgaState(NamedTuple):
    """The registers by their names; the rest is what their ports remember."""

    misc: int
    feature: int
    sequencer_index: int
    sequencer: bytes
    crtc_index: int
    crtc: bytes
    graphics_index: int
    graphics: bytes
    attribute_index: int
    attribute: bytes
    attribute_data: bool
    dac: bytes
    dac_mask: int
    dac_index: int
    dac_part: int
    dac_reads: bool
    memory: MemoryState


class Frame(NamedTuple):
    """What the screen shows at a moment: registers and planes, which do not change.

    dac_8bit: the colours of `dac` have eight bits; linear: the picture of the DISPI
    interface, None while that is off.
    """

    sequencer: bytes
    crtc: bytes
    graphics: bytes
    attribute: bytes
    on: bool
    dac: bytes
    dac_mask: int
    planes: Sequence[bytes | bytearray]
    dac_8bit: bool
    linear: Linear | None


class Vga:
    """The chip: ports 3B0h to 3DFh at offsets from 0, and the memory at A0000h."""

    def __init__(
        self, window: memoryview, show: Callable[[range], None], font: bytes
    ) -> None:
        """Make a VGA as a BIOS leaves it: text mode 3, a blank screen.

        Args:
            window: the bytes at A0000h.
            show: told which of them are plain memory from now on.
            font: 256 characters, 16 bytes each.

        """
        misc, sequencer, crtc, graphics, attribute = _MODE_3
        self.misc = misc
        self.feature = 0
        self.sequencer_index = self.crtc_index = self.graphics_index = 0
        self.attribute_index = _PALETTE_ON
        self.attribute_data = False
        """The next write to port 3C0h is data."""
        self._sequencer = bytearray(sequencer)
        self._crtc = bytearray(crtc)
        self._graphics = bytearray(graphics)
        self._attribute = bytearray(attribute)
        self._dac = bytearray(_ega_colours().ljust(768, b"\0"))
        self.dac_mask = 0xFF
        self.dac_index = self.dac_part = 0
        self.dac_reads = False
        self.dispi = Dispi(self._arrange)
        self._memory = VideoMemory(window, show, self._sequencer, self._graphics)
        characters, attributes, fonts, _ = self._memory.planes
        characters[:0x8000:2] = _BLANK[:1] * 0x4000
        attributes[:0x8000:2] = _BLANK[1:] * 0x4000
        for line in range(16):
            fonts[line : 256 * 32 : 32] = font[line::16]
        self._arrange()

    def _arrange(self) -> None:
        self._memory.arrange(on=self._has_planes)

    @property
    def _has_planes(self) -> bool:
        """Whether the CPU has access to the planes."""
        return bool(self.misc & MISC_MEMORY) and not self.dispi.enabled

    # -- ports -------------------------------------------------------------------------

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a register, the index of one, or where the beam is."""
        if not ATTRIBUTE <= offset < COLOUR_PORTS:
            return self._read_crtc(offset, now)
        if offset == ATTRIBUTE:
            return self.attribute_index
        if offset == ATTRIBUTE_DATA:
            return _at(self._attribute, self.attribute_index & 0x1F)
        if offset == MISC_WRITE:  # input status 0: no interrupt, no monitor
            return 0
        if offset == SEQUENCER_INDEX:
            return self.sequencer_index
        if offset == SEQUENCER_DATA:
            return _at(self._sequencer, self.sequencer_index)
        if offset == GRAPHICS_INDEX:
            return self.graphics_index
        if offset == GRAPHICS_DATA:
            return _at(self._graphics, self.graphics_index)
        if offset == DAC_MASK:
            return self.dac_mask
        if offset == DAC_READ:  # its state: 3 while it is read
            return 3 if self.dac_reads else 0
        if offset == DAC_WRITE:
            return self.dac_index
        if offset == DAC_DATA:
            value = self._dac[3 * self.dac_index + self.dac_part]
            self._next_part()
            return value
        if offset == FEATURE_READ:
            return self.feature
        if offset == MISC_READ:
            return self.misc
        return 0xFF

    def _read_crtc(self, offset: int, now: int) -> int:
        if (offset >= COLOUR_PORTS) != bool(self.misc & MISC_COLOUR):
            return 0xFF
        offset &= 0x0F
        if offset == CRTC_INDEX:
            return self.crtc_index
        if offset == CRTC_DATA:
            return _at(self._crtc, self.crtc_index)
        if offset == STATUS_1:
            self.attribute_data = False
            return self._status(now)
        return 0xFF

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register, or the index of one."""
        value &= 0xFF
        if not ATTRIBUTE <= offset < COLOUR_PORTS:
            self._write_crtc(offset, value)
        elif offset == ATTRIBUTE:
            if self.attribute_data:
                _put(self._attribute, self.attribute_index & 0x1F, value, _ATTRIBUTE)
            else:
                self.attribute_index = value & 0x3F
            self.attribute_data = not self.attribute_data
        elif offset == MISC_WRITE:
            self.misc = value
            self._arrange()
        elif offset == SEQUENCER_INDEX:
            self.sequencer_index = value & 0x07
        elif offset == SEQUENCER_DATA:
            _put(self._sequencer, self.sequencer_index, value, _SEQUENCER)
            self._arrange()
        elif offset == GRAPHICS_INDEX:
            self.graphics_index = value & 0x0F
        elif offset == GRAPHICS_DATA:
            _put(self._graphics, self.graphics_index, value, _GRAPHICS)
            self._arrange()
        elif offset == DAC_MASK:
            self.dac_mask = value
        elif offset in (DAC_READ, DAC_WRITE):
            self.dac_index, self.dac_part = value, 0
            self.dac_reads = offset == DAC_READ
        elif offset == DAC_DATA:
            most = 0xFF if self.dispi.dac_8bit else 0x3F
            self._dac[3 * self.dac_index + self.dac_part] = value & most
            self._next_part()

    def _write_crtc(self, offset: int, value: int) -> None:
        if (offset >= COLOUR_PORTS) != bool(self.misc & MISC_COLOUR):
            return
        offset &= 0x0F
        index = self.crtc_index
        if offset == CRTC_INDEX:
            self.crtc_index = value & 0x1F
        elif offset == STATUS_1:
            self.feature = value & 0x0B
        elif offset == CRTC_DATA:
            if index < 8 and self._crtc[0x11] & _PROTECT:
                if index != 7:
                    return
                value = self._crtc[7] & ~_LINE_COMPARE | value & _LINE_COMPARE
            _put(self._crtc, index, value, _CRTC)

    def _next_part(self) -> None:
        """Go on to the next colour of the palette, or its next part."""
        self.dac_part += 1
        if self.dac_part == 3:
            self.dac_part = 0
            self.dac_index = self.dac_index + 1 & 0xFF

    def _status(self, now: int) -> int:
        """Return input status 1: where the beam is."""
        crtc = self._crtc
        dots = 8 if self._sequencer[1] & 0x01 else 9
        if self._sequencer[1] & 0x08:
            dots *= 2
        line = (crtc[0x00] + 5) * dots
        lines = vertical(crtc, 0x06, 0, 5) + 2
        at = now * _CLOCKS[self.misc >> 2 & 1] // _SECOND % (line * lines)
        y, x = divmod(at, line)
        status = 0
        if x >= (crtc[0x01] + 1) * dots or y > vertical(crtc, 0x12, 1, 6):
            status |= STATUS_BLANK
        start = vertical(crtc, 0x10, 2, 7)
        if 0 <= y - start < (crtc[0x11] - start & 15 or 16):
            status |= STATUS_RETRACE
        return status

    # -- memory ------------------------------------------------------------------------

    def read_memory(self, offset: int) -> int:
        """Read a byte at an offset from A0000h where memory is not plain."""
        if self.dispi.enabled:
            return self.dispi.read_bank(offset)
        return self._memory.read(offset)

    def write_memory(self, offset: int, value: int) -> None:
        """Write a byte at an offset from A0000h where memory is not plain."""
        if self.dispi.enabled:
            self.dispi.write_bank(offset, value)
        else:
            self._memory.write(offset, value)

    # -- what is seen ------------------------------------------------------------------

    def glance(self) -> tuple[bytes, bytes]:
        """Return what a text on the screen depends on, sooner than `frame` does."""
        return self._memory.plain(), bytes(self._crtc)

    def frame(self) -> Frame:
        """Return all that `vga_picture` needs, from any thread; nothing changes."""
        return Frame(
            bytes(self._sequencer),
            bytes(self._crtc),
            bytes(self._graphics),
            bytes(self._attribute),
            bool(self.attribute_index & _PALETTE_ON) and not self._sequencer[1] & 0x20,
            bytes(self._dac),
            self.dac_mask,
            self._memory.now(),
            self.dispi.dac_8bit,
            self.dispi.seen(),
        )

    # -- state -------------------------------------------------------------------------

    def save(self) -> VgaState:
        """Return the registers and the memory."""
        return capture(VgaState, self)

    def restore(self, state: VgaState) -> None:
        """Become the VGA that was saved; the window shows what it showed."""
        reinstate(self, state)

    @property
    def sequencer(self) -> bytes:
        """The sequencer's registers."""
        return bytes(self._sequencer)

    @sequencer.setter
    def sequencer(self, data: bytes) -> None:
        self._sequencer[:] = data

    @property
    def crtc(self) -> bytes:
        """The CRT controller's registers."""
        return bytes(self._crtc)

    @crtc.setter
    def crtc(self, data: bytes) -> None:
        self._crtc[:] = data

    @property
    def graphics(self) -> bytes:
        """The graphics controller's registers."""
        return bytes(self._graphics)

    @graphics.setter
    def graphics(self, data: bytes) -> None:
        self._graphics[:] = data

    @property
    def attribute(self) -> bytes:
        """The attribute controller's registers."""
        return bytes(self._attribute)

    @attribute.setter
    def attribute(self, data: bytes) -> None:
        self._attribute[:] = data

    @property
    def dac(self) -> bytes:
        """The 256 colours: red, green and blue of each, six bits or eight."""
        return bytes(self._dac)

    @dac.setter
    def dac(self, data: bytes) -> None:
        self._dac[:] = data

    @property
    def memory(self) -> MemoryState:
        """The planes and the latches."""
        return self._memory.save()

    @memory.setter
    def memory(self, state: MemoryState) -> None:
        self._memory.restore(state, on=self._has_planes)


def vertical(crtc: bytes | bytearray, index: int, bit_8: int, bit_9: int) -> int:
    """Return a line's number: register `index`, and two bits in the overflow's."""
    overflow = crtc[0x07]
    return crtc[index] | (overflow >> bit_8 & 1) << 8 | (overflow >> bit_9 & 1) << 9


def _at(registers: bytearray, index: int) -> int:
    """Return a register; 0 where there is none."""
    return registers[index] if index < len(registers) else 0


def _put(registers: bytearray, index: int, value: int, masks: bytes) -> None:
    """Write what there is of a register, if there is one."""
    if index < len(registers):
        registers[index] = value & masks[index]
