"""Traces of exits: what a line of the file has, and how the file is read.

A file is lines of JSON, packed by gzip if its name ends in `.gz`. docs/timeline.md has
the schema. Addresses and values of registers are text in hexadecimal, for a JavaScript
program has no 64-bit numbers; all others are numbers.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final

from emu86.errors import ConfigError

VERSION: Final = 1  # of the schema: a change of what a field means is another one
MARK: Final = "emu86 trace"


@dataclass(frozen=True, slots=True)
class Code:
    """An instruction of the guest that has exits.

    linear: its linear address; cs, ip: CS:EIP; bits: of the code, 16, 32 or 64; data:
    its bytes; text: as a disassembler writes it, "" if it is none; name: the function
    and how far into it, "" if nothing names it.
    """

    linear: int
    cs: int
    ip: int
    bits: int
    data: bytes
    text: str
    name: str = ""

    @property
    def function(self) -> str:
        """The function alone."""
        return self.name.rpartition("+")[0] or self.name

    @property
    def where(self) -> str:
        """CS:EIP, as messages have it."""
        return f"{self.cs:04x}:{self.ip:0{16 if self.bits == 64 else 8}x}"


@dataclass(frozen=True, slots=True)
class Port:
    """A port access: the port, bytes, the value, and whether it was written."""

    port: int
    width: int
    value: int
    write: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What a page fault of the engine was about.

    address: linear; error: the engine's error code; gpte: the last entry of the guest's
    walk, 0 if none is present; before, after: the shadow's entry.
    """

    address: int
    error: int
    gpte: int
    before: int
    after: int


@dataclass(slots=True)
class Exit:
    """One exit, or an interrupt that was delivered.

    number: counted from 1; time: virtual ns when it began; ring:
    the guest's; engine: the ring of the engine that ran it; cr3: the guest's, which
    tells its processes apart; reason: as in `Machine.stats`; native: compiled code
    handled it; cost: virtual ns; changes: by register, from what to what (of EFLAGS
    without the arithmetic flags); to: ring, CS and EIP, where the guest went instead of
    on; events: vectors and error codes that were delivered to the guest.
    """

    number: int
    time: int
    ring: int
    engine: int
    cr3: int
    code: Code
    reason: str
    native: bool
    cost: int
    changes: dict[str, tuple[int, int]] = field(default_factory=dict)
    to: tuple[int, int, int] | None = None
    ports: tuple[Port, ...] = ()
    page: Page | None = None
    events: tuple[tuple[int, int | None], ...] = ()


def code_line(number: int, code: Code) -> str:
    """Return the line that tells of an instruction, before the first that names it."""
    line = {
        "code": number, "linear": f"{code.linear:x}", "cs": f"{code.cs:x}",
        "ip": f"{code.ip:x}", "bits": code.bits, "bytes": code.data.hex(),
        "insn": code.text,
    }  # fmt: skip
    if code.name:
        line["name"] = code.name
    return json.dumps(line)


def _code(line: dict[str, Any]) -> Code:
    return Code(
        int(line["linear"], 16), int(line["cs"], 16), int(line["ip"], 16), line["bits"],
        bytes.fromhex(line["bytes"]), line["insn"], line.get("name", ""),
    )  # fmt: skip


def _exit(line: dict[str, Any], codes: dict[int, Code]) -> Exit:
    to, page = line.get("to"), line.get("page")
    return Exit(
        line["n"], line["t"], line["ring"], line["engine"], int(line["cr3"], 16),
        codes[line["at"]], line["reason"], line["by"] == "compiled", line["cost"],
        {
            name: (int(old, 16), int(new, 16))
            for name, (old, new) in line.get("regs", {}).items()
        },
        to and (to[0], int(to[1], 16), int(to[2], 16)),
        tuple(Port(*one) for one in line.get("io", ())),
        page and Page(int(page[0], 16), page[1], *(int(one, 16) for one in page[2:])),
        tuple((vector, error) for vector, error in line.get("events", ())),
    )  # fmt: skip


def parse(lines: Iterable[str]) -> Iterator[Exit]:
    """Yield the exits of lines behind the first one, to where they are cut off."""
    codes: dict[int, Code] = {}
    for text in lines:
        try:
            line = json.loads(text)
            if "code" in line:
                codes[line["code"]] = _code(line)
            elif "n" in line:
                found = _exit(line, codes)
            else:
                continue
        except (ValueError, KeyError, TypeError):
            if text.endswith("\n"):
                message = f"this line is none of a trace: {text.strip()!r:.60}"
                raise ConfigError(message) from None
            return  # the last line, cut off
        if "n" in line:
            yield found


class TraceFile:
    """A file with a trace: its header, and its exits each time it is iterated over.

    Raises ConfigError, one clear line, for what is none, or of another version. A file
    that was cut off ends where that was.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = fspath(path)
        lines = self._lines()
        first = next(lines, "")
        try:
            header = json.loads(first)
            version = header[MARK]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.path}: it is no trace of emu86") from None
        if version != VERSION:
            message = f"{self.path}: a trace of version {version!r:.20}, not {VERSION}"
            raise ConfigError(message)
        self.header: dict[str, Any] = header

    def __iter__(self) -> Iterator[Exit]:
        lines = self._lines()
        next(lines)
        try:
            yield from parse(lines)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None

    def _lines(self) -> Iterator[str]:
        try:
            with Path(self.path).open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                source = gzip.GzipFile(fileobj=file) if packed else file
                while True:
                    try:
                        line = source.readline()
                    except (EOFError, zlib.error, gzip.BadGzipFile):
                        return  # cut off
                    if not line:
                        return
                    yield line.decode("utf-8", "replace")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from None
