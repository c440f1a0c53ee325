"""What the benchmarks share: contenders, a guest in a child process, and tables."""

import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from emu86.cli.report import table

ROOT: Final = Path(__file__).resolve().parent.parent
GUESTS: Final = ROOT / "build" / "guests"
# This tree's, whichever emu86 runs them.
IMAGES: Final = ROOT / "emu86" / "images"
TIMEOUT: Final = 900  # seconds to a mark
QEMU: Final = "qemu-system-i386"
# QEMU's program and CPU beside a CPU model of emu86's.
CPUS: Final = {
    "pentium3": (QEMU, "pentium3,-apic"),
    "atom": ("qemu-system-x86_64", "n270,+lm,+syscall,+nx,+cx16,-apic"),
}


class BenchError(Exception):
    """A contender cannot be measured; its text says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who runs a guest: QEMU, or emu86 by a technique; or a name of compute.py's."""

    name: str
    technique: str | None = None  # None: not emu86
    tree: Path = ROOT  # the folder that has the package emu86
    absent: str = ""  # why there is no such tree

    def command(
        self,
        kernel: Path,
        append: str,
        initrd: Path | None,
        memory: int,
        cpu: str = "pentium3",
    ) -> list[str]:
        """The command that boots `kernel` with `memory` MiB, the console on stdout.

        cpu: a name of `CPUS`.
        """
        qemu, model = CPUS[cpu]
        if self.technique:
            command = [sys.executable, "-m", "emu86", "run", "--memory", f"{memory}M"]
            command += ["--technique", self.technique, "--cpu", cpu]
            options = "--kernel", "--append", "--initrd"
        else:
            command = [qemu, "-accel", "tcg", "-M", "isapc", "-cpu", model]
            command += ["-m", str(memory), "-display", "none", "-serial", "stdio"]
            command += ["-monitor", "none", "-no-reboot"]
            options = "-kernel", "-append", "-initrd"
        values = str(kernel), append, str(initrd or "")
        pairs = zip(options, values, strict=True)
        return command + [word for pair in pairs if pair[1] for word in pair]

    def environment(self) -> dict[str, str]:
        """The environment in which `python -m emu86` is that of the tree."""
        # Warm means that compiled modules are kept, as they are wherever emu86 is
        # installed. With a safe path -m does not put the current folder first.
        environment = dict(os.environ, PYTHONSAFEPATH="1")
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPATH"] = os.pathsep.join([str(self.tree), str(ROOT)])
        return environment

    def missing(self) -> str:
        """Why it cannot run on this host, or nothing."""
        if self.name == "QEMU" and shutil.which(QEMU) is None:
            return f"{QEMU} is not installed"
        return self.absent


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Rows of figures, measured by contenders in turn; and what its page says."""

    name: str
    title: str
    about: str  # Markdown
    contenders: Callable[[], Iterable[Contender]]
    # Rows by name, which ends in the unit. Sizes are those of the page, times a scale.
    measure: Callable[[Contender, float], dict[str, float]]
    base: str | None = "QEMU"  # by whose figures those of the others are divided
    once: bool = False  # not in every pair


def contenders(*names: str) -> Callable[[], Iterable[Contender]]:
    """QEMU, or techniques of this tree's emu86."""
    made = [Contender(name, None if name == "QEMU" else name) for name in names]
    return lambda: made


class Guest:
    """A guest in a child process, until the end of a `with` block.

    Times are CPU seconds, user and system, of the whole process since its start.
    """

    def __init__(
        self,
        contender: Contender,
        kernel: Path,
        append: str = "",
        *,
        initrd: Path | None = None,
        memory: int = 256,
        on_terminal: bool = False,
        cpu: str = "pentium3",
    ) -> None:
        for file in (kernel, initrd):
            if file is not None and not file.exists():
                raise BenchError(f"there is no {file.relative_to(ROOT)}: make guests")
        command = contender.command(kernel, append, initrd, memory, cpu)
        if shutil.which(command[0]) is None:
            raise BenchError(f"{command[0]} is not installed")
        self._memory = memory
        self._text = b""
        self.before = b""  # what the console has shown between the last two marks
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the exit
        self._output, end = pty.openpty() if on_terminal else os.pipe()
        self._process = subprocess.Popen(
            command,
            stdin=end if on_terminal else subprocess.DEVNULL,
            stdout=end,
            stderr=self._errors,
            env=contender.environment(),
        )
        os.close(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._output)
        self._errors.close()

    def clock(self) -> float:
        """CPU seconds so far: clock_getcpuclockid(3)."""
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def until(self, mark: bytes) -> float:
        """Wait until the console has shown `mark` behind the last one; the clock then.

        Raises BenchError if it never does.
        """
        end = time.monotonic() + TIMEOUT
        while (at := self._text.find(mark)) < 0:
            left = max(end - time.monotonic(), 0)
            ready, _, _ = select.select([self._output], [], [], left)
            try:
                data = os.read(self._output, 65536) if ready else b""
            except OSError:  # a terminal whose other end is closed
                data = b""
            if not data:
                what = "ended" if ready else f"has had {TIMEOUT} seconds"
                raise BenchError(f"{what} without {mark.decode()!r}{self._last_word()}")
            self._text += data
        now = self.clock()
        self.before, self._text = self._text[:at], self._text[at + len(mark) :]
        return now

    def memory(self) -> tuple[float, float]:
        """MiB: the peak of what is resident, and what of the guest's RAM is now."""
        folder = Path(f"/proc/{self._process.pid}")
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines()
        )
        # Of what is large enough and no code, the most used part is the guest's RAM.
        # (Linux may have joined a neighbour to it.)
        kind, size, touched = "", 0, 0
        for line in (folder / "smaps").read_text().splitlines():
            name, value, *_ = line.split()
            if not name.endswith(":"):
                kind = value
            elif name == "Size:":
                size = int(value)
            elif name == "Rss:" and kind == "rw-p" and size >= self._memory << 10:
                touched = max(touched, int(value))
        return int(status["VmHWM"].split()[0]) / 1024, touched / 1024

    def _last_word(self) -> str:
        self._process.kill()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return "".join(f": {line}" for line in [one for one in lines if one][-1:])


def doing(text: str) -> None:
    """Tell on standard error what is measured: in one place on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)  # noqa: T201
    else:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def say(text: str) -> None:
    """Print a line."""
    if sys.stderr.isatty():
        doing("")
    print(text, flush=True)  # noqa: T201


def show(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: text in the first column, figures in the others."""
    say("\n" + table(title, headings, list(rows), figures=True))
