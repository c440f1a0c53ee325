"""The guest's screen on the user's terminal, and the terminal's keys for its keyboard.

Sources: ECMA-48 for what is written; xterm's "Control Sequences" for what keys send.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from emu86.devices import vga_picture
from emu86.machine.screen import CHARACTERS

if TYPE_CHECKING:
    from emu86 import Machine
    from emu86.machine.screen import Screen

_PERIOD: Final = 0.04  # seconds from one look at the screen to the next
_ENTER: Final = b"\x1b[?1049h\x1b[0m\x1b[2J"  # the terminal's other screen, cleared
LEAVE: Final = b"\x1b[0m\x1b[?25h\x1b[?1049l"
_BRIGHT: Final = 8
_ANSI: Final = (0, 4, 2, 6, 1, 5, 3, 7)  # of a colour: there blue and red change places

# What keys send, by the name of the key.
_KEYS: Final = {
    b"A": "up", b"B": "down", b"C": "right", b"D": "left", b"H": "home", b"F": "end",
    b"P": "f1", b"Q": "f2", b"R": "f3", b"S": "f4", b"M": "kp_enter",
    b"1~": "home", b"2~": "insert", b"3~": "delete", b"4~": "end", b"5~": "pgup",
    b"6~": "pgdn", b"7~": "home", b"8~": "end", b"11~": "f1", b"12~": "f2",
    b"13~": "f3", b"14~": "f4", b"15~": "f5", b"17~": "f6", b"18~": "f7",
    b"19~": "f8", b"20~": "f9", b"21~": "f10", b"23~": "f11", b"24~": "f12",
    b"[A": "f1", b"[B": "f2", b"[C": "f3", b"[D": "f4", b"[E": "f5",  # Linux's console
}  # fmt: skip
_SEQUENCE: Final = re.compile(
    rb"\x1b[\[O](\[[A-E]|[0-9;]*[A-Za-z~])|\x1b([\x20-\x7e])|(\x1b|[\x01-\x7f])"
)
_MODIFIED: Final = re.compile(rb"(?:1|(\d+));(\d)([A-Za-z~])")


def keys_of(data: bytes) -> Iterator[tuple[bool, str]]:
    """Give the keys that a terminal sent: whether named, and the name or text.

    What is on no US keyboard is left out. Escape is a key of its own where nothing
    follows that it could begin.
    """
    for sequence, alt, plain in _SEQUENCE.findall(data):
        if sequence:
            modifiers = ""
            if match := _MODIFIED.fullmatch(sequence):
                bits = int(match[2]) - 1
                named = ("shift", 1), ("alt", 2), ("ctrl", 4)
                modifiers = "".join(f"{name}-" for name, bit in named if bits & bit)
                sequence = (match[1] or b"") + match[3]  # noqa: PLW2901 (the key's own)
            if sequence in _KEYS:
                yield True, modifiers + _KEYS[sequence]
        elif alt:
            letter = alt.decode("ascii")
            shift = "shift-" if letter.isupper() else ""
            name = {" ": "spc", "-": ""}.get(letter, letter.lower())
            if name.isalnum():
                yield True, f"alt-{shift}{name}"
        elif b"\x1b" < plain < b"\x20":
            continue  # Ctrl and a sign, which a keyboard has otherwise
        else:
            yield False, plain.decode("ascii")


class Painter:
    """Turns screens into what a terminal is sent: only the rows that have changed."""

    def __init__(self) -> None:
        self._rows: dict[int, object] = {}  # what is in each row of the terminal
        self._size = (0, 0)
        self._picture: object = None

    def forget(self) -> None:
        """Draw all of it the next time."""
        self._rows.clear()
        self._picture = None

    def paint(self, screen: "Screen", columns: int, rows: int) -> bytes:
        """Return what shows a screen on a terminal of this size."""
        out = []
        if (columns, rows) != self._size:
            self._size = columns, rows
            self.forget()
            out.append(b"\x1b[0m\x1b[2J")
        if screen.is_text:
            out.append(self._text(screen, columns, rows))
        else:
            out.append(self._graphics(screen, columns, rows))
        return b"".join(out)

    def _text(self, screen: "Screen", columns: int, rows: int) -> bytes:
        shown = vga_picture.text(screen.frame)
        self._picture = None
        width, height = min(shown.columns, columns), min(shown.rows, rows)
        row, column = divmod(max(shown.cursor, 0), shown.columns)
        first = max(0, row - height + 1)  # what has the cursor, if not all fits
        out = []
        for y in range(rows):
            at = (first + y) * shown.columns
            end = at + width if y < height else at
            cells = shown.characters[at:end], shown.attributes[at:end], shown.blinks
            if self._rows.get(y) != cells:
                self._rows[y] = cells
                out.append(f"\x1b[{y + 1};1H{_cells(*cells)}\x1b[0m\x1b[K")
        if out or self._rows.get(-1) != shown.cursor:
            self._rows[-1] = shown.cursor
            seen = shown.cursor >= 0 and column < width
            at_cursor = f"\x1b[{row - first + 1};{column + 1}H\x1b[?25h"
            out.append(at_cursor if seen else "\x1b[?25l")
        return "".join(out).encode()

    def _graphics(self, screen: "Screen", columns: int, rows: int) -> bytes:
        """Two pixels to a character: the upper and the lower half of a block."""
        if screen.frame == self._picture:
            return b""
        if self._picture is None:
            self._rows.clear()
        self._picture = screen.frame
        image = screen.image
        scale = max(image.width / columns, image.height / (2 * rows))
        width = max(int(image.width / scale), 1)
        height = max(int(image.height / scale) // 2, 1)
        across = [3 * int(x * image.width / width) for x in range(width)]
        line = 3 * image.width

        def pixels(y: int) -> list[bytes]:
            start = int(y * image.height / (2 * height)) * line
            return [image.rgb[start + x : start + x + 3] for x in across]

        out = ["\x1b[?25l"]
        for y in range(rows):
            cells = (pixels(2 * y), pixels(2 * y + 1)) if y < height else ([], [])
            if self._rows.get(y) != cells:
                self._rows[y] = cells
                out.append(f"\x1b[{y + 1};1H{_blocks(*cells)}\x1b[0m\x1b[K")
        return "".join(out).encode() if len(out) > 1 else b""


def _cells(characters: bytes, attributes: bytes, blinks: object) -> str:
    """Return a row of characters with their colours."""
    out, last = [], -1
    for code, attribute in zip(characters, attributes, strict=True):
        if attribute != last:
            last = attribute
            ink, paper = attribute & 15, attribute >> 4
            blink = ""
            if blinks:
                blink, paper = ";5" if paper & _BRIGHT else "", paper & 7
            out.append(f"\x1b[0{blink};{_sgr(ink, 30)};{_sgr(paper, 40)}m")
        out.append(CHARACTERS[code])
    return "".join(out)


def _sgr(colour: int, base: int) -> int:
    """Return the parameter that selects one of 16 colours."""
    return base + _ANSI[colour & 7] + (60 if colour & _BRIGHT else 0)


def _blocks(upper: list[bytes], lower: list[bytes]) -> str:
    out, last = [], None
    for pair in zip(upper, lower, strict=True):
        if pair != last:
            last = pair
            (r, g, b), (r2, g2, b2) = pair
            out.append(f"\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m")
        out.append("▀")
    return "".join(out)


class Display:
    """Shows the screen of `machine` on the terminal, by a thread of its own.

    write: sends to the terminal. `enter` and `leave` begin and end it.
    """

    def __init__(self, machine: "Machine", write: Callable[[bytes], None]) -> None:
        self._machine = machine
        self._write = write
        self._painter = Painter()
        self._lock = threading.RLock()  # a signal's handler uncovers, too
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._covered = False  # by what emu86 says

    @property
    def active(self) -> bool:
        """Whether the terminal shows the screen now."""
        return self._thread is not None

    def enter(self) -> None:
        """Show the screen from now on."""
        self._write(_ENTER)
        self._painter.forget()
        self._covered = False
        self._done.clear()
        self._thread = threading.Thread(target=self._draw, name="display", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Give the terminal back, with what it showed before."""
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self._thread = None
            self._write(LEAVE)

    def say(self, text: str) -> None:
        """Show lines of emu86's own over the screen, until a key is pressed."""
        with self._lock:
            self._covered = True
            rows = "".join(
                f"\x1b[{y};1H\x1b[0;7m {line} \x1b[0m\x1b[K"
                for y, line in enumerate(text.splitlines(), 1)
            )
            self._write(rows.encode())

    def uncover(self) -> None:
        """Show the screen again where lines of emu86's own are."""
        with self._lock:
            self._covered = False
            self._painter.forget()

    def _draw(self) -> None:
        while not self._done.wait(_PERIOD):
            with self._lock:
                if not self._covered:
                    try:
                        columns, rows = os.get_terminal_size(1)
                    except OSError:
                        return  # it is gone, which whoever reads its keys tells of
                    screen = self._machine.screen
                    out = self._painter.paint(screen, columns or 80, rows or 25)
                    if out:
                        self._write(out)
