"""Files that options name: what is written into them, and mistakes in their names."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from emu86.errors import ConfigError

if TYPE_CHECKING:
    from emu86 import Machine


def write(option: str, path: str, data: str | bytes) -> None:
    """Write to the file of an option or, for -, to standard output."""
    if not path:
        raise ConfigError(f"{option}: the name of its file is empty")
    try:
        if path == "-":
            click.echo(data, nl=False)
        else:
            raw = data if isinstance(data, bytes) else data.encode("utf-8")
            Path(path).write_bytes(raw)
    except BrokenPipeError:
        raise  # a reader that has left is told nothing
    except OSError as error:
        raise ConfigError(f"{option}: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{option}: {path!r}: {error}") from None


def try_to_write(option: str, path: str) -> None:
    """Raise ConfigError if the file of an option cannot be written; change nothing."""
    if not path:
        raise ConfigError(f"{option}: the name of its file is empty")
    if path == "-":
        return
    try:
        with Path(path).open("a"):
            pass
    except OSError as error:
        raise ConfigError(f"{option}: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{option}: {path!r}: {error}") from None


class Log:
    """A new file with what a guest sends, as it sends it.

    option: the name of the file is that one's; tell: takes a line for the user, once,
    if the host cannot write it, and the file then gets nothing more. Raises ConfigError
    if there can be no such file. It is open while a `with` block lasts.
    """

    def __init__(self, option: str, path: str, tell: Callable[[str], None]) -> None:
        try_to_write(option, path)
        self._option = option
        self._tell = tell
        self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115 (__exit__ closes it)
        self._path = path

    def take(self, data: bytes) -> None:
        """Write bytes."""
        if self._file.closed:
            return
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.close()
            self._tell(f"{self._option}: {self._path}: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Printer:
    """What a printer on the parallel port gets, at the end of a file; -: of our output.

    tell: takes a line for the user, once, if the host cannot write it. The guest's
    printer then has a fault.
    """

    def __init__(
        self, path: str, machine: "Machine", tell: Callable[[str], None]
    ) -> None:
        self._path = path
        self._machine = machine
        self._tell = tell

    def take(self, data: bytes) -> None:
        """Print bytes."""
        try:
            if self._path == "-":
                click.echo(data, nl=False)
                return
            with Path(self._path).open("ab") as file:
                file.write(data)
        except OSError as error:
            self._tell(f"--parallel: {self._path}: {error.strerror}")
            self._machine.stop_printer()


def write_pages(machine: "Machine", path: str) -> None:
    """Write page tables and descriptor tables: as text, .html, or .svg a picture."""
    pages = machine.pages()
    if path.lower().endswith(".svg"):
        write("--pages", path, pages.svg())
    elif path.lower().endswith(".html"):
        write("--pages", path, pages.html() + machine.tables()._repr_html_())
    else:
        write("--pages", path, f"{pages}\n\n{machine.tables()}\n")


def write_screenshot(machine: "Machine", path: str) -> str:
    """Write what the screen shows: a PNG, or its text where that is not its name.

    Return a line that says why there is none, or nothing: graphics have no text.
    """
    screen = machine.screen
    if path.lower().endswith(".png"):
        write("--screenshot", path, screen.image.png())
    elif screen.is_text:
        rows = (row.rstrip() + "\n" for row in screen.lines)
        write("--screenshot", path, "".join(rows))
    else:
        return "the screen shows graphics, which --screenshot has as FILE.png alone"
    return ""
