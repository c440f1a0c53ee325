"""Whether there is a terminal, what it can show, and what is said on it in one line."""

import codecs
import contextlib
import os
import sys
from io import TextIOWrapper
from typing import Final

_PLAIN: Final = str.maketrans(
    {
        "→": "->", "←": "<-", "µ": "u", "\N{MULTIPLICATION SIGN}": "x",
        "\N{EM DASH}": "-", "\N{EN DASH}": "-",
    }
)  # fmt: skip


def is_terminal(descriptor: int) -> bool:
    """Whether `descriptor` is open, and a terminal."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def is_coloured(descriptor: int) -> bool:
    """Whether it is a terminal that shows colours, and they are wanted."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and is_terminal(descriptor)


def speak_plainly() -> None:
    """Have standard output and error say in ASCII what they cannot show otherwise.

    In the locale C nothing but ASCII is shown. (Python takes that locale for UTF-8.)
    """
    codecs.register_error("emu86", _plain)
    chosen = os.environ.get("LC_ALL") or os.environ.get("LANG")
    told = {"PYTHONIOENCODING", "PYTHONUTF8"} & os.environ.keys()
    encoding = "ascii" if chosen in {"C", "POSIX"} and not told else None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="emu86")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def say(text: str) -> None:
    """Tell the user `text`, one line, on standard error if there is still one."""
    show(f"emu86: {text}")


def show(text: str) -> None:
    """Show lines on standard error if there is still one."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201
