"""Progress: what is being waited for, shown on a terminal."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from emu86.cli.terminal import can_move

_PERIOD_S: Final = 0.2
_ERASE: Final = "\r\x1b[K"


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str | None], None]]:
    """Show what is waited for, on a terminal; yield what changes or (None) ends it."""
    if not can_move(2):
        yield lambda _text: None
        return
    shown = [text]
    ended = threading.Event()
    began = time.monotonic()

    def show() -> None:
        turns = 0
        while not ended.wait(_PERIOD_S):
            seconds = int(time.monotonic() - began)
            turns += 1
            wheel = "|/-\\"[turns % 4]
            line = f"{_ERASE}{wheel} {shown[0]} {seconds // 60}:{seconds % 60:02}"
            print(line, end="", file=sys.stderr, flush=True)  # noqa: T201

    thread = threading.Thread(target=show, daemon=True)

    def change(to: str | None) -> None:
        if to is not None:
            shown[0] = to
        elif not ended.is_set():
            ended.set()
            thread.join()
            print(_ERASE, end="", file=sys.stderr, flush=True)  # noqa: T201

    thread.start()
    try:
        yield change
    finally:
        change(None)
