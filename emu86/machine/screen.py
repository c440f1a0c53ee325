"""What the guest shows on its screen: as text, as a picture, for notebooks."""

import base64
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from emu86.devices import vga_picture
from emu86.devices.vga import Frame, Vga

# What code page 437 has where ASCII has control characters; Python's codec has those.
_SYMBOLS: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
CHARACTERS: Final = (
    _SYMBOLS
    + bytes(range(32, 127)).decode("ascii")
    + "⌂"
    + bytes(range(128, 255)).decode("cp437")
    + " "
)
"""The character of each code of code page 437."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of `width` by `height` pixels; rgb: three bytes of each, by rows."""

    width: int
    height: int
    rgb: bytes = field(repr=False)

    def png(self) -> bytes:
        """Return it as a PNG file (ISO/IEC 15948)."""
        line = 3 * self.width
        rows = range(0, len(self.rgb), line)
        raw = b"".join(b"\0" + self.rgb[at : at + line] for at in rows)
        header = struct.pack(">2I5B", self.width, self.height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            len(data).to_bytes(4, "big")
            + kind
            + data
            + zlib.crc32(kind + data).to_bytes(4, "big")
            for kind, data in (
                (b"IHDR", header),
                (b"IDAT", zlib.compress(raw, 6)),
                (b"IEND", b""),
            )
        )

    def _repr_png_(self) -> bytes:
        """Show it in a notebook."""
        return self.png()


_PERIOD: Final = 4_000_000  # virtual ns between two looks at the screen


class ScreenWatch:
    """Waits for a text to appear on the screen.

    A text that was there does not count: there have to be more of it than at a look
    before. expected: the text; empty while nothing is waited for.
    """

    def __init__(self, vga: Vga) -> None:
        self._vga = vga
        self.expected = ""
        self._seen: tuple[bytes, bytes] | None = None
        self._least = 0
        self._next = 0

    def expect(self, text: str) -> None:
        """Wait for `text` from now on; what is waited for already is so still."""
        if text != self.expected:
            self.expected = text
            self._seen = None
            self._next = 0
            self._least = self._count() if text else 0

    def look(self, now: int, *, last: object) -> bool:
        """Tell, once, that the text has come; `last`: look though it is not time yet.

        now: virtual ns. A text that comes and goes between two looks is not seen.
        """
        if now < self._next and not last:
            return False
        self._next = now + _PERIOD
        seen = self._vga.glance()
        if seen == self._seen:
            return False
        self._seen = seen
        count = self._count()
        if count > self._least:
            self.expected = ""
            return True
        self._least = count
        return False

    def _count(self) -> int:
        lines = Screen(self._vga).lines
        return "\n".join(line.rstrip() for line in lines).count(self.expected)


class Screen:
    """What the screen showed at one moment: `Machine.screen` returns it anew each time.

    Cursors and blinking characters are taken at a moment when they are seen.
    """

    def __init__(self, vga: Vga) -> None:
        self.frame: Frame = vga.frame()

    @property
    def is_text(self) -> bool:
        """Whether the screen is in a text mode."""
        return vga_picture.is_text(self.frame)

    @property
    def text(self) -> str:
        """The characters, row by row, each as wide as the screen; empty for graphics.

        There is a new line between two rows and none at the end: 80 columns and 25 rows
        are 2,024 characters.
        """
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """The rows of text, each as wide as the screen; none for graphics."""
        if not self.is_text:
            return []
        shown = vga_picture.text(self.frame)
        characters = [CHARACTERS[code] for code in shown.characters]
        starts = range(0, len(characters), shown.columns)
        return ["".join(characters[at : at + shown.columns]) for at in starts]

    @property
    def shows_anything(self) -> bool:
        """Whether there is more to see than an empty screen of text."""
        return not self.is_text or bool(self.text.strip())

    @property
    def image(self) -> Picture:
        """The picture in pixels, of a text mode, too."""
        return Picture(*vga_picture.pixels(self.frame))

    def __repr__(self) -> str:
        """Say which mode it is in, and what is written on it."""
        if not self.is_text:
            shown = vga_picture.pixels(self.frame)
            return f"<Screen: graphics, {shown.width} by {shown.height}>"
        lines = self.lines
        written = "\n".join(line.rstrip() for line in lines).rstrip()
        size = f"<Screen: text, {len(lines[0])} by {len(lines)}>"
        return f"{size}\n{written}" if written else size

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        data = base64.b64encode(self.image.png()).decode("ascii")
        from html import escape  # noqa: PLC0415 (few are in a notebook)

        words = escape("\n".join(line.rstrip() for line in self.lines).rstrip())
        return f'<img alt="{words}" src="data:image/png;base64,{data}">'
