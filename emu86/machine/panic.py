"""A panic of Linux, told from its console.

Source: `panic()` in Linux's kernel/panic.c. Its last words are the line that is looked
for, and come when it will not reboot. printk puts a time before a line and, with
CONFIG_PRINTK_CALLER, a thread or a CPU.
"""

import re
from collections.abc import Callable
from typing import Final

_LONGEST: Final = 1000  # bytes kept of a line; printk cuts its lines before
_LAST_WORDS: Final = re.compile(
    rb"(?:\[ *\d+\.\d+\] ?(?:\[ *[TC]\d+\] ?)?)?"
    rb"---\[ end Kernel panic(?: - )?(.*?)(?:\]---)? *"
)


class PanicWatch:
    """Reads the console's lines for the one with which Linux ends a panic.

    found: called when such a line is complete.
    """

    def __init__(self, found: Callable[[], None]) -> None:
        self._found = found
        self._line = bytearray()
        self._known = 0  # bytes of the line at the last `settle`
        self._panic = ""

    def take(self, data: bytes) -> None:
        """Take a byte that the guest writes."""
        if data not in b"\r\n":
            if len(self._line) < _LONGEST:
                self._line += data
        elif self._line:
            self._match()
            self._line.clear()
            self._known = 0

    def settle(self, *, ended: bool) -> str:
        """Return what the guest has panicked of since the last call, or "".

        A line without an end counts if nothing has come since the last call, or if the
        guest has `ended`.
        """
        if self._line and (ended or len(self._line) == self._known):
            self._match()
        self._known = len(self._line)
        panic, self._panic = self._panic, ""
        return panic

    def _match(self) -> None:
        words = _LAST_WORDS.fullmatch(self._line)
        if words:
            self._panic = words[1].decode(errors="replace").strip() or "no reason given"
            self._line.clear()
            self._found()
