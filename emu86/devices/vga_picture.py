"""What a VGA shows: the characters of a text mode, and the pixels of any mode.

Source: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem": CRT
controller (addresses, cursor, split screen) and attribute controller.

Cursors and blinking characters are always shown. The border is not, and rows that the
CRT controller repeats are given once.
"""

from typing import Final, NamedTuple, Protocol

from emu86.devices.dispi import Linear
from emu86.devices.vga import Frame, vertical
from emu86.devices.vga_memory import PLANE

_GRAPHICS: Final = 0x01  # attribute controller 10h, and so are the following
_LINE_GRAPHICS: Final = 0x04
_BLINK: Final = 0x08
_COLOUR_SELECT: Final = 0x80
_SHIFT_256: Final = 0x40  # graphics controller 05h
_SHIFT_PAIRS: Final = 0x20
_EIGHT_DOTS: Final = 0x01  # sequencer 01h
_DOUBLE_SCAN: Final = 0x80  # CRT controller 09h
_CURSOR_OFF: Final = 0x20  # CRT controller 0Ah
_WORDS_WRAP_AT_16: Final = 0x20  # CRT controller 17h, and the following
_BYTES: Final = 0x40
_DOUBLEWORDS: Final = 0x40  # CRT controller 14h
_BOX_DRAWING: Final = range(0xC0, 0xE0)  # whose eighth column is the ninth, too

# Of a byte: 8 dots, each 0 or 1; 4 pixels of two bits.
_DOTS: Final = tuple(bytes(byte >> 7 - i & 1 for i in range(8)) for byte in range(256))
_TWOS: Final = tuple(
    bytes(byte >> 6 - 2 * i & 3 for i in range(4)) for byte in range(256)
)


class Text(NamedTuple):
    """A screen of text: characters and attributes, row by row.

    cursor: the index of its character, or -1; lines: the cursor's first and last scan
    line; blinks: bit 7 of an attribute means that, and not a bright background.
    """

    columns: int
    rows: int
    characters: bytes
    attributes: bytes
    cursor: int
    lines: tuple[int, int]
    blinks: bool


class Pixels(NamedTuple):
    """A picture: red, green and blue of each pixel, row by row from the top."""

    width: int
    height: int
    rgb: bytes


def is_text(frame: Frame) -> bool:
    """Tell whether a text mode is shown."""
    return frame.linear is None and not frame.attribute[0x10] & _GRAPHICS


def text(frame: Frame) -> Text:
    """Return the characters of a text mode; none while the screen is off."""
    crtc = frame.crtc
    columns, rows, height = _text_size(frame)
    start, pitch = crtc[0x0C] << 8 | crtc[0x0D], crtc[0x13] * 2
    start += crtc[0x08] >> 5 & 3
    fetch = _fetcher(frame)
    characters = b"".join(fetch(0, start + y * pitch, columns) for y in range(rows))
    attributes = b"".join(fetch(1, start + y * pitch, columns) for y in range(rows))
    if not frame.on:
        characters, attributes = bytes(len(characters)), bytes(len(attributes))
    first, last = crtc[0x0A] & 0x1F, min(crtc[0x0B] & 0x1F, height - 1)
    row, column = divmod((crtc[0x0E] << 8 | crtc[0x0F]) - start, pitch or columns)
    seen = frame.on and not crtc[0x0A] & _CURSOR_OFF and first <= last
    inside = 0 <= row < rows and column < columns
    cursor = row * columns + column if seen and inside else -1
    blinks = bool(frame.attribute[0x10] & _BLINK)
    return Text(columns, rows, characters, attributes, cursor, (first, last), blinks)


def palette(frame: Frame) -> list[tuple[int, int, int]]:
    """Return red, green and blue, 0 to 255, of the 16 colours of an attribute."""
    attribute = frame.attribute
    select = attribute[0x14]
    colours = _colours(frame)
    found = []
    for i in range(16):
        index = attribute[i & attribute[0x12]]
        if attribute[0x10] & _COLOUR_SELECT:
            index = index & 0x0F | (select & 3) << 4
        found.append(colours[index & 0x3F | (select & 0x0C) << 4])
    return found


def pixels(frame: Frame) -> Pixels:
    """Return the picture, of text modes, too; black while the screen is off."""
    if frame.linear is not None:
        return _linear(frame, frame.linear)
    if is_text(frame):
        width, height, indices = _text_pixels(frame)
        colours = palette(frame)
    else:
        width, height, indices = _graphics(frame)
        wide = frame.graphics[5] & _SHIFT_256
        colours = _colours(frame) if wide else palette(frame)
    rgb = bytearray(3 * len(indices))
    if frame.on:
        colours += [(0, 0, 0)] * (256 - len(colours))
        for part in range(3):
            rgb[part::3] = indices.translate(bytes(colour[part] for colour in colours))
    return Pixels(width, height, bytes(rgb))


def _colours(frame: Frame) -> list[tuple[int, int, int]]:
    """Return the 256 colours of the DAC, as the mask lets them through."""
    dac = frame.dac
    if not frame.dac_8bit:
        dac = bytes((level & 63) << 2 | (level & 63) >> 4 for level in dac)
    mask = frame.dac_mask
    places = (3 * (index & mask) for index in range(256))
    return [(dac[at], dac[at + 1], dac[at + 2]) for at in places]


class _Fetch(Protocol):
    """Fetch bytes of a plane, from an address counter on.

    bank: what stands in bits 13 and 14 of the address, those of `banks` there.
    """

    def __call__(
        self, plane: int, counter: int, count: int, banks: int = 0, bank: int = 0
    ) -> bytes | bytearray:
        """Return `count` bytes."""
        ...


def _fetcher(frame: Frame) -> _Fetch:
    """Return what fetches as CRT controller 14h and 17h say."""
    crtc, planes = frame.crtc, frame.planes
    if crtc[0x14] & _DOUBLEWORDS:
        # On the chip bits 0 and 1 are the counter's 12 and 13, and the CPU's 14 and 15
        # where planes are chained. Here they are 0 in both, which shows the same.
        step, low = 4, 16
    elif crtc[0x17] & _BYTES:
        step, low = 1, 0
    else:
        step, low = 2, 15 if crtc[0x17] & _WORDS_WRAP_AT_16 else 13

    def fetch(
        plane: int, counter: int, count: int, banks: int = 0, bank: int = 0
    ) -> bytes | bytearray:
        counter &= 0xFFFF
        at = (counter * step | counter >> low & step - 1) % PLANE
        at = at & ~banks | bank
        data = planes[plane][at : at + count * step : step]
        if len(data) < count:  # it goes on at the start
            return data + planes[plane][at % step :: step][: count - len(data)]
        return data

    return fetch


# -- text ------------------------------------------------------------------------------


def _text_size(frame: Frame) -> tuple[int, int, int]:
    """Return columns, rows and the scan lines of a character."""
    height = (frame.crtc[0x09] & 0x1F) + 1
    lines = vertical(frame.crtc, 0x12, 1, 6) + 1
    if frame.crtc[0x09] & _DOUBLE_SCAN:
        lines //= 2
    return frame.crtc[0x01] + 1, max(lines // height, 1), height


def _text_pixels(frame: Frame) -> tuple[int, int, bytes]:
    shown = text(frame)
    columns, rows, height = _text_size(frame)
    eight = frame.sequencer[1] & _EIGHT_DOTS
    width = 8 if eight else 9
    ninth = frame.attribute[0x10] & _LINE_GRAPHICS
    fonts, map_select = frame.planes[2], frame.sequencer[3]
    usual = _font(map_select & 3 | map_select >> 2 & 4)
    other = _font(map_select >> 2 & 3 | map_select >> 3 & 4)
    underline = frame.crtc[0x14] & 0x1F
    known: dict[tuple[int, int], list[bytes]] = {}

    def drawn(character: int, attribute: int) -> list[bytes]:
        at = (other if attribute & 8 else usual) + 32 * character
        ink, paper = attribute & 15, attribute >> 4
        if shown.blinks:
            paper &= 7
        colours = bytes([paper, ink]).ljust(256, b"\0")
        lines = []
        for line in range(height):
            bits = fonts[at + line]
            if line == underline and attribute & 7 == 1:
                bits = 0xFF
            dots = _DOTS[bits]
            if not eight:
                more = ninth and character in _BOX_DRAWING
                dots += dots[7:] if more else b"\0"
            lines.append(dots.translate(colours))
        return lines

    out = []
    for row in range(rows):
        cells = []
        for i in range(row * columns, row * columns + columns):
            cell = shown.characters[i], shown.attributes[i]
            if cell not in known:
                known[cell] = drawn(*cell)
            lines = known[cell]
            if i == shown.cursor:
                first, last = shown.lines
                ink = bytes([cell[1] & 15]) * width
                between = range(first, last + 1)
                lines = [ink if n in between else one for n, one in enumerate(lines)]
            cells.append(lines)
        out += [b"".join(line) for line in zip(*cells, strict=True)]
    return columns * width, rows * height, b"".join(out)


def _font(select: int) -> int:
    """Return where in plane 2 a font is, by the bits that select it."""
    return (select & 3) << 14 | (select & 4) << 11


# -- graphics --------------------------------------------------------------------------


def _graphics(frame: Frame) -> tuple[int, int, bytes]:
    """Return width, height, and the index of each pixel's colour."""
    crtc, mode = frame.crtc, frame.graphics[5]
    across = crtc[0x01] + 1  # characters, that is counts of the address
    lines = vertical(crtc, 0x12, 1, 6) + 1
    repeats = 2 if crtc[0x09] & _DOUBLE_SCAN else 1
    cell = (crtc[0x09] & 0x1F) + 1
    # Address bits 13 and 14, if they are the scan line's in its cell.
    banks = (~crtc[0x17] & 3) << 13
    if not banks:
        repeats *= cell
        cell = 1
    height = max(lines // repeats, 1)
    pan = frame.attribute[0x13] & 0x0F
    pan = pan >> 1 & 3 if mode & _SHIFT_256 else pan & 7
    fetched = across + 1 if pan else across
    starts = _row_starts(frame, height, repeats, cell)
    fetch = _fetcher(frame)
    rows: list[list[bytes | bytearray]] = [[], [], [], []]
    for y, start in enumerate(starts):
        bank = (y % cell & 3) << 13 & banks
        for plane in range(4):
            rows[plane].append(fetch(plane, start, fetched, banks, bank))
    one, two, three, four = (b"".join(row) for row in rows)
    if mode & _SHIFT_256:
        each = 4
        out = bytearray(4 * len(one))
        out[0::4], out[1::4], out[2::4], out[3::4] = one, two, three, four
        indices = bytes(out)
    elif mode & _SHIFT_PAIRS:
        each = 8
        low, high = _in_pairs(one, two), _in_pairs(three, four)
        indices = _joined((low, high), 2)
    else:
        each = 8
        dots = tuple(
            b"".join([_DOTS[byte] for byte in plane])
            for plane in (one, two, three, four)
        )
        indices = _joined(dots, 1)
    width = each * across
    if pan:
        pitch = each * fetched
        indices = b"".join(
            indices[y * pitch + pan : y * pitch + pan + width] for y in range(height)
        )
    return width, height, indices


def _row_starts(frame: Frame, height: int, repeats: int, cell: int) -> list[int]:
    """Return the address counter at each row; below a split it begins at 0."""
    crtc = frame.crtc
    split = vertical(crtc, 0x18, 4, 9) & 0x1FF | (crtc[0x09] >> 6 & 1) << 9
    start, pitch = crtc[0x0C] << 8 | crtc[0x0D], crtc[0x13] * 2
    start += crtc[0x08] >> 5 & 3
    above = min(height, split // repeats + 1)
    starts = [start + y // cell * pitch for y in range(above)]
    return starts + [y // cell * pitch for y in range(height - above)]


def _in_pairs(even: bytes, odd: bytes) -> bytes:
    """Return the pixels of two planes: four from a byte of one, four of the other."""
    return b"".join(
        [_TWOS[one] + _TWOS[two] for one, two in zip(even, odd, strict=True)]
    )


def _joined(parts: tuple[bytes, ...], bits: int) -> bytes:
    """Return pixels whose bits come from several planes, the first one lowest."""
    whole = 0
    for i, part in enumerate(parts):
        whole |= int.from_bytes(part, "little") << bits * i
    return whole.to_bytes(len(parts[0]), "little")


# -- the DISPI interface's frame buffer ------------------------------------------------


def _linear(frame: Frame, shown: Linear) -> Pixels:
    """Return the picture in a frame buffer."""
    width, height, bits, data = shown
    rgb = bytearray(3 * width * height)
    if not frame.on:
        return Pixels(width, height, bytes(rgb))
    if bits == 8:
        colours = _colours(frame)
        for part in range(3):
            rgb[part::3] = data.translate(bytes(colour[part] for colour in colours))
    elif bits in (15, 16):
        rgb[0::3], rgb[1::3], rgb[2::3] = _in_words(data, bits - 10)
    else:
        step = bits // 8
        rgb[0::3], rgb[1::3], rgb[2::3] = data[2::step], data[1::step], data[0::step]
    return Pixels(width, height, bytes(rgb))


def _in_words(data: bytes, green: int) -> tuple[bytes, bytes, bytes]:
    """Return red, green and blue of pixels in words; green: its bits, others have 5."""
    low, high = data[0::2], data[1::2]
    upper = green - 3  # bits of green that stand in the high byte
    red = bytes(_level(byte >> upper & 31, 5) for byte in range(256))
    blue = bytes(_level(byte & 31, 5) for byte in range(256))
    mask = (1 << upper) - 1
    above = bytes(_level((byte & mask) << 3, green) for byte in range(256))
    below = bytes(_level(byte >> 5, green) for byte in range(256))
    parts = high.translate(above), low.translate(below)
    return high.translate(red), _joined(parts, 0), low.translate(blue)


def _level(value: int, bits: int) -> int:
    """Return a level of 5 or 6 bits as one of 8."""
    return value << 8 - bits | value >> 2 * bits - 8
