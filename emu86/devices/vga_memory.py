"""The memory of a VGA: four planes of 64 KiB, and the CPU's window on them.

Source: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem": memory
modes, read and write modes of the graphics controller.

In most states each byte of the window is one byte of one plane. Then the window is
plain memory, which the guest reads and writes without an exit: characters and
attributes of text modes, the font, the pixels of mode 13h, one plane at a time. Only
where a write goes to several planes or through the latches each access is looked at.
When the state changes, what is in the window goes to the planes.

Known difference: a read of plain memory does not load the latches.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

WINDOW: Final = 128 << 10
"""Bytes at A0000h that a VGA can answer at."""
PLANE: Final = 64 << 10

MAP_MASK: Final = 2
"""Sequencer: the planes that are written."""
MEMORY_MODE: Final = 4
SEQUENTIAL: Final = 0x04
CHAIN_4: Final = 0x08

SET_RESET: Final = 0
"""Graphics controller, and so are the following."""
ENABLE_SET_RESET: Final = 1
COLOUR_COMPARE: Final = 2
ROTATE: Final = 3
READ_MAP: Final = 4
MODE: Final = 5
READ_COMPARES: Final = 0x08
MISCELLANEOUS: Final = 6
COLOUR_CARE: Final = 7
BIT_MASK: Final = 8

# Where the window is, by bits 3 and 2 of the miscellaneous register: offset, bytes.
_PLACES: Final = ((0, WINDOW), (0, PLANE), (0x10000, 0x8000), (0x18000, 0x8000))
# Four bits, one for each plane, as a byte of ones or zeros in each.
_SPREAD: Final = tuple(
    sum(0xFF << 8 * plane for plane in range(4) if bits >> plane & 1)
    for bits in range(16)
)
_ALL: Final = 0x01010101

TRAPPED: Final = 0
PAIRS: Final = 1
CHAINED: Final = 2
SINGLE: Final = 3


class Layout(NamedTuple):
    """What the window shows: `size` bytes from `base` on; plane: of SINGLE.

    kind: PAIRS of planes 0 and 1, all four CHAINED, a SINGLE one, or TRAPPED accesses.
    """

    kind: int
    base: int
    size: int
    plane: int = 0

    @property
    def plain(self) -> range:
        """The offsets in the window that are plain memory."""
        return range(self.base, self.base + self.size if self.kind else self.base)


_NOWHERE: Final = Layout(TRAPPED, 0, 0)


def layout_of(sequencer: bytearray, graphics: bytearray, *, on: bool) -> Layout:
    """Return what the window shows; on: the CPU has access at all."""
    if not on:
        return _NOWHERE
    base, size = _PLACES[graphics[MISCELLANEOUS] >> 2 & 3]
    mask, mode = sequencer[MAP_MASK] & 15, sequencer[MEMORY_MODE]
    as_they_are = (
        not graphics[MODE] & (READ_COMPARES | 3)
        and not graphics[ROTATE] & 0x1F
        and not graphics[ENABLE_SET_RESET] & mask
        and graphics[BIT_MASK] == 0xFF
        and size <= PLANE
    )
    if as_they_are:
        plane = graphics[READ_MAP] & 3
        if mode & CHAIN_4:
            if mask == 15:
                return Layout(CHAINED, base, size)
        elif not mode & SEQUENTIAL:
            if mask == 3 and not plane & 2:
                return Layout(PAIRS, base, size)
        elif mask == 1 << plane:
            return Layout(SINGLE, base, size, plane)
    return Layout(TRAPPED, base, size)


class MemoryState(NamedTuple):
    """The planes, without zeros at their ends, and the latches, a byte of each."""

    planes: tuple[bytes, ...]
    latches: int


class VideoMemory:
    """The planes, and the window that stands for them where it is plain memory.

    window: the `WINDOW` bytes that the guest has at A0000h; show: told which of them
    are plain memory from now on, before they change. Accesses to the others are `read`
    and `write`.
    """

    def __init__(
        self,
        window: memoryview,
        show: Callable[[range], None],
        sequencer: bytearray,
        graphics: bytearray,
    ) -> None:
        self._window = window
        self._show = show
        self._sequencer = sequencer
        self._graphics = graphics
        self.planes = tuple(bytearray(PLANE) for _ in range(4))
        self.latches = 0
        self._layout = _NOWHERE

    def arrange(self, *, on: bool) -> None:
        """Let the window show what the registers say now."""
        layout = layout_of(self._sequencer, self._graphics, on=on)
        if layout != self._layout:
            self._close()
            self._open(layout)

    def _open(self, layout: Layout) -> None:
        self._layout = layout
        plain = layout.plain
        self._show(plain)
        if layout.kind:
            self._window[plain.start : plain.stop] = self._shown(layout)

    def _close(self) -> None:
        """Have all in the planes, and nothing in the window."""
        if self._layout.kind:
            plain = self._layout.plain
            _keep(self.planes, self._layout, self.plain())
            self._window[plain[0] : plain.stop] = b"\xff" * len(plain)

    def _shown(self, layout: Layout) -> bytes | bytearray:
        """Return what a plain window shows of the planes."""
        planes, size = self.planes, layout.size
        if layout.kind == SINGLE:
            return planes[layout.plane][:size]
        step = 2 if layout.kind == PAIRS else 4
        data = bytearray(size)
        for first in range(step):
            data[first::step] = planes[first][0:size:step]
        return data

    def plain(self) -> bytes:
        """Return what is in a plain window."""
        plain = self._layout.plain
        return bytes(self._window[plain.start : plain.stop])

    def now(self) -> Sequence[bytes | bytearray]:
        """Return what the planes hold, with what is in the window; touch nothing.

        Any thread may ask, and the guest's may change the layout meanwhile.
        """
        layout = self._layout
        planes = tuple(map(bytearray, self.planes))
        if layout.kind:
            plain = layout.plain
            _keep(planes, layout, bytes(self._window[plain.start : plain.stop]))
        return planes

    # -- accesses that are looked at ---------------------------------------------------

    def read(self, offset: int) -> int:
        """Read the byte at an offset in the window, and load the latches."""
        at = offset - self._layout.base
        if not 0 <= at < self._layout.size:
            return 0xFF
        graphics, mode = self._graphics, self._sequencer[MEMORY_MODE]
        plane = graphics[READ_MAP] & 3
        if mode & CHAIN_4:
            plane, at = at & 3, at & ~3
        elif not mode & SEQUENTIAL:
            plane, at = plane & 2 | at & 1, at & ~1
        at &= PLANE - 1
        one, two, three, four = self.planes
        latches = one[at] | two[at] << 8 | three[at] << 16 | four[at] << 24
        self.latches = latches
        if not graphics[MODE] & READ_COMPARES:
            return latches >> 8 * plane & 0xFF
        differ = latches ^ _SPREAD[graphics[COLOUR_COMPARE] & 15]
        differ &= _SPREAD[graphics[COLOUR_CARE] & 15]
        return ~(differ | differ >> 8 | differ >> 16 | differ >> 24) & 0xFF

    def write(self, offset: int, value: int) -> None:
        """Write a byte at an offset in the window, by the write mode."""
        at = offset - self._layout.base
        if not 0 <= at < self._layout.size:
            return
        mode, mask = self._sequencer[MEMORY_MODE], self._sequencer[MAP_MASK] & 15
        if mode & CHAIN_4:
            mask, at = mask & 1 << (at & 3), at & ~3
        elif not mode & SEQUENTIAL:
            mask, at = mask & (0b1010 if at & 1 else 0b0101), at & ~1
        at &= PLANE - 1
        written = self._written(value & 0xFF)
        for number, plane in enumerate(self.planes):
            if mask >> number & 1:
                plane[at] = written >> 8 * number & 0xFF

    def _written(self, value: int) -> int:
        """Return the byte for each plane that a write of `value` gives."""
        graphics, latches = self._graphics, self.latches
        mode, mask = graphics[MODE] & 3, graphics[BIT_MASK]
        if mode == 1:
            return latches
        by = graphics[ROTATE] & 7
        turned = (value >> by | value << 8 - by) & 0xFF
        fixed = _SPREAD[graphics[SET_RESET] & 15]
        if mode == 0:
            set_ = _SPREAD[graphics[ENABLE_SET_RESET] & 15]
            bits = turned * _ALL & ~set_ | fixed & set_
        elif mode == 2:
            bits = _SPREAD[value & 15]
        else:
            bits, mask = fixed, mask & turned
        function = graphics[ROTATE] >> 3 & 3
        if function == 1:
            bits &= latches
        elif function == 2:
            bits |= latches
        elif function == 3:
            bits ^= latches
        return bits & mask * _ALL | latches & ~(mask * _ALL)

    # -- state -------------------------------------------------------------------------

    def save(self) -> MemoryState:
        """Return what the planes and the latches hold."""
        planes = tuple(bytes(plane).rstrip(b"\0") for plane in self.now())
        return MemoryState(planes, self.latches)

    def restore(self, state: MemoryState, *, on: bool) -> None:
        """Hold what was saved, and show it by the registers."""
        self._close()
        for plane, data in zip(self.planes, state.planes, strict=True):
            plane[:] = data.ljust(PLANE, b"\0")
        self.latches = state.latches
        self._open(layout_of(self._sequencer, self._graphics, on=on))


def _keep(planes: Sequence[bytearray], layout: Layout, data: bytes) -> None:
    """Put what a plain window holds into the planes."""
    size = layout.size
    if layout.kind == SINGLE:
        planes[layout.plane][:size] = data
        return
    step = 2 if layout.kind == PAIRS else 4
    for first in range(step):
        planes[first][0:size:step] = data[first::step]
