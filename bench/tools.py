"""What the benchmarks share: a child process watched, and tables."""

import argparse
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parent.parent
GUESTS: Final = ROOT / "build" / "guests"
# This tree's, whichever emu86 is imported.
IMAGES: Final = ROOT / "emu86" / "images"
# The program by the interpreter and the path that also give us its library.
EMU86: Final = (sys.executable, "-m", "emu86")
# Warm means that compiled modules are kept, as they are wherever emu86 is installed.
ENVIRONMENT: Final = {
    name: value
    for name, value in os.environ.items()
    if name != "PYTHONDONTWRITEBYTECODE"
}
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")

terminal: Final = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def asked(about: str | None, **defaults: int) -> dict[str, int]:
    """Return the numbers that the command line gives, in this order; it may ask."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(
            name, nargs="?", type=positive, default=default, help=f"default: {default}"
        )
    return vars(parser.parse_args())


def positive(text: str) -> int:
    """Return the number that `text` is; raises ValueError unless it is above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "number above 0"  # what argparse calls it


def doing(text: str) -> None:
    """Tell on standard error what is measured: in one place on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)  # noqa: T201
    else:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def say(text: str) -> None:
    """Print a line, with rich's markup."""
    if sys.stderr.isatty():
        doing("")
    terminal.print(text, soft_wrap=True)


def show(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: text in the first column, figures in the others."""
    say(f"\n{title}")
    table = Table()
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    terminal.print(table)


class BenchError(SystemExit):
    """A benchmark cannot go on; its text says why."""


@dataclass(frozen=True, slots=True)
class Seen:
    """When a child's output showed a mark: seconds since its start, wall and CPU."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Child:
    """What a finished child took: CPU seconds (user and system), peak RSS in bytes."""

    cpu: float
    wall: float
    peak: int
    marks: dict[bytes, Seen]


def watch(command: Sequence[str], marks: Sequence[bytes], timeout: float) -> Child:
    """Run `command` until its output has shown all `marks`, in order; then end it.

    A child that ends by itself at the last mark is waited for. Raises BenchError if a
    mark is not shown.
    """
    begin = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        output = process.stdout.fileno()
        seen: dict[bytes, Seen] = {}
        text = b""
        waiting = list(marks)
        while waiting:
            left = begin + timeout - time.perf_counter()
            ready, _, _ = select.select([output], [], [], max(left, 0))
            data = os.read(output, 65536) if ready else b""
            if not data:
                process.kill()
                what = "ended" if ready else f"has had {timeout:.0f} seconds"
                raise BenchError(
                    f"{shlex.join(command)} {what} without {waiting[0].decode()!r}"
                )
            text += data
            while waiting and (at := text.find(waiting[0])) >= 0:
                now = time.perf_counter() - begin
                seen[waiting[0]] = Seen(now, _cpu(process.pid))
                text = text[at + len(waiting.pop(0)) :]
        wall = time.perf_counter() - begin
        if "--until" not in command:
            os.kill(process.pid, signal.SIGTERM)  # send_signal would reap it
        while os.read(output, 65536):
            pass
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return Child(cpu, wall, usage.ru_maxrss << 10, seen)


def _cpu(pid: int) -> float:
    """CPU seconds of a running process, user and system: proc_pid_stat(5)."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK
