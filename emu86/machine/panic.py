"""A panic of Linux, told from its console.

Source: `panic()` in Linux's kernel/panic.c. A panic begins with a line that names the
reason. Its last words are another line, and come when Linux will not reboot; with
`panic=N` Linux resets the machine instead. printk puts a time before a line and, with
CONFIG_PRINTK_CALLER, a thread or a CPU.
"""

import re
from collections.abc import Callable
from typing import Final

ENDS: Final = b"\r\n"  # of a line
_LONGEST: Final = 1000  # bytes kept of a line; printk cuts its lines before
_PREFIX: Final = rb"(?:\[ *\d+\.\d+\] ?(?:\[ *[TC]\d+\] ?)?)?"
_FIRST_WORDS: Final = re.compile(_PREFIX + rb"Kernel panic - (not syncing.*)")
_LAST_WORDS: Final = re.compile(
    _PREFIX + rb"---\[ end Kernel panic(?: - )?(.*?)(?:\]---)? *"
)
_RESETS: Final = ("reset", "triple fault")  # ends of a run by which Linux reboots


class PanicWatch:
    """Reads the console's lines for those with which Linux begins and ends a panic.

    found: called when a line that ends one is complete.
    """

    def __init__(self, found: Callable[[], None]) -> None:
        self._found = found
        self._line = bytearray()
        self._known = 0  # bytes of the line at the last `settle`
        self._matched = False  # it was looked at, as long as it is
        self._begun = ""
        self._panic = ""

    def take(self, data: bytes) -> None:
        """Take bytes that the guest writes, of `ENDS` at most the last one."""
        self._matched = False
        if data[-1:] not in ENDS:
            self._line += data[: _LONGEST - len(self._line)]
            return
        self._line += data[:-1][: _LONGEST - len(self._line)]
        if self._line:
            self._match()
            self._line.clear()
            self._known = 0

    def forget(self) -> None:
        """Take what comes for the console of another guest, or of one that restarts."""
        self._line.clear()
        self._known = 0
        self._begun = self._panic = ""

    def settle(self, end: str = "") -> str:
        """Return what the guest has panicked of since the last call, or "".

        end: the reason for which the run has ended, if it has. A panic that has begun
        counts when a reset follows. A line without an end counts if nothing has come
        since the last call, or if the run has ended.
        """
        if not self._matched and (end or len(self._line) == self._known):
            self._match()
            self._matched = True
        self._known = len(self._line)
        if end in _RESETS:
            self._panic, self._begun = self._panic or self._begun, ""
            self._line.clear()
        panic, self._panic = self._panic, ""
        return panic

    def _match(self) -> None:
        if words := _FIRST_WORDS.fullmatch(self._line):
            self._begun = _text(words[1])
        elif words := _LAST_WORDS.fullmatch(self._line):
            self._panic = _text(words[1]) or "no reason given"
            self._begun = ""
            self._line.clear()
            self._found()


def _text(words: bytes) -> str:
    return words.decode(errors="replace").strip()
