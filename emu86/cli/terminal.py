"""Whether there is a terminal, and what is said on it in one line."""

import contextlib
import os
import sys


def is_terminal(descriptor: int) -> bool:
    """Whether `descriptor` is open, and a terminal."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def say(text: str) -> None:
    """Tell the user `text`, one line, on standard error if there is still one."""
    with contextlib.suppress(OSError, ValueError):
        print(f"emu86: {text}", file=sys.stderr, flush=True)  # noqa: T201
