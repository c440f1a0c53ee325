"""Whether there is a terminal, what it can show, and what is said on it in one line."""

import codecs
import contextlib
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

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


def can_move(descriptor: int) -> bool:
    """Whether it is a terminal that does more than to show line after line."""
    return is_terminal(descriptor) and os.environ.get("TERM") != "dumb"


def is_coloured(descriptor: int) -> bool:
    """Whether it is a terminal that shows colours, and they are wanted."""
    return can_move(descriptor) and not os.environ.get("NO_COLOR")


def is_unbounded(descriptor: int) -> bool:
    """Whether lines may be of any length: no terminal, and no width asked for."""
    return not is_terminal(descriptor) and "COLUMNS" not in os.environ


class OutputError(OSError):
    """Standard output cannot be written, though who reads it is there."""


class _Output(FileIO):
    """Standard output, whose errors are known to be its own."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from None


def mark_output() -> None:
    """Have what cannot be written to standard output raise an OutputError."""
    found = sys.stdout
    if not isinstance(found, TextIOWrapper) or found is not sys.__stdout__:
        return  # closed by who started us, or a test's
    output = BufferedWriter(_Output(found.fileno(), "w", closefd=False))
    sys.stdout = TextIOWrapper(output, found.encoding, line_buffering=is_terminal(1))


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


def put(text: str) -> None:
    """Put lines on standard output, by its own encoding; click has one of its own."""
    print(text)  # noqa: T201


def say(text: str) -> None:
    """Tell the user `text`, one line, on standard error if there is still one."""
    show(f"emu86: {text}")


def show(text: str) -> None:
    """Show lines on standard error if there is still one."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201
