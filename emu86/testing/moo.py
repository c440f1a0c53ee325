"""A processor's own answers: test vectors in MOO files, run in real mode.

`python -m emu86.testing.moo DIR` runs the files of a folder, such as those that the
SingleStepTests project has captured from an 80286 and an 80386. Each vector is a state,
an instruction with HLT behind it, and the state in which the processor stopped.

Source: MOO File Format Specification, version 1.1 (github.com/dbalsom/moo).
"""

import gzip
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from emu86 import config
from emu86.errors import ConfigError
from emu86.spec import x86
from emu86.testing.real_mode import FLAGS, MEMORY, RealMode

# In the order of their bits in a REGS or an RG32 chunk.
_REGS: Final = (
    "eax", "ebx", "ecx", "edx", "cs", "ss", "ds", "es", "esp", "ebp", "esi", "edi",
    "eip", "eflags",
)  # fmt: skip
_RG32: Final = (
    "cr0", "cr3", "eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "cs", "ds",
    "es", "fs", "gs", "ss", "eip", "eflags", "dr6", "dr7",
)  # fmt: skip
_LEFT_OUT: Final = {
    "cr0",
    "cr3",
    "dr6",
    "dr7",
}  # each model has reserved bits of its own
_HEADER: Final = 8  # bytes of a chunk: four characters, and the size of what follows
_MOST: Final = 64 << 20  # bytes of a file, unpacked


class MooError(ConfigError):
    """A file is no MOO file, or is damaged; the text says which and how."""


@dataclass(frozen=True)
class Registers:
    """Registers by name, and how many bits each value has: 16 or 32."""

    values: dict[str, int] = field(default_factory=dict)
    bits: int = 16


@dataclass(frozen=True)
class Vector:
    """One test of a file.

    before, after: the registers, of `after` those that change; ram, ram_after: bytes by
    physical address; masks: of each register the bits that are defined; flags_at:
    where an exception has pushed the flags, a physical address.
    """

    index: int
    name: str
    before: Registers
    after: Registers
    ram: dict[int, int]
    ram_after: dict[int, int]
    masks: dict[str, int]
    flags_at: int | None


def _chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the chunks of a file or of a chunk: the name, and what it holds."""
    at = 0
    while at < len(data):
        if at + _HEADER > len(data):
            raise MooError("it ends inside of a chunk's header")
        name, size = struct.unpack_from("<4sI", data, at)
        at += _HEADER
        if at + size > len(data):
            raise MooError("it ends inside of a chunk")
        yield name.decode("ascii", "replace"), data[at : at + size]
        at += size


def _registers(name: str, data: bytes) -> Registers:
    """Read REGS or RMSK (16 bits), RG32 or RM32 (32 bits)."""
    wide = name in ("RG32", "RM32")
    size, code, order = (4, "I", _RG32) if wide else (2, "H", _REGS)
    present, *values = struct.unpack(f"<{len(data) // size}{code}", data)
    names = [one for i, one in enumerate(order) if present >> i & 1]
    return Registers(dict(zip(names, values, strict=True)), 8 * size)


def _ram(data: bytes) -> dict[int, int]:
    (count,) = struct.unpack_from("<I", data)
    return {
        address: value
        for address, value in struct.iter_unpack("<IB", data[4 : 4 + 5 * count])
        if address < MEMORY
    }


def _text(data: bytes) -> str:
    (size,) = struct.unpack_from("<I", data)
    return data[4 : 4 + size].decode("ascii", "replace")


def _vector(data: bytes, masks: dict[str, int]) -> Vector:
    (index,) = struct.unpack_from("<I", data)
    name, flags_at = "", None
    states = {"INIT": Registers(), "FINA": Registers()}
    ram: dict[str, dict[int, int]] = {"INIT": {}, "FINA": {}}
    masks = dict(masks)
    for kind, body in _chunks(data[4:]):
        if kind == "NAME":
            name = _text(body)
        elif kind == "EXCP":
            _number, flags_at = struct.unpack_from("<BI", body)
        elif kind in states:
            for part, what in _chunks(body):
                if part in ("REGS", "RG32"):
                    states[kind] = _registers(part, what)
                elif part in ("RMSK", "RM32"):
                    masks |= _registers(part, what).values
                elif part == "RAM ":
                    ram[kind] = _ram(what)
    if not states["INIT"].values.keys() >= set(_REGS):
        message = f"test {index} does not say all registers"
        raise MooError(message)
    return Vector(
        index,
        name,
        states["INIT"],
        states["FINA"],
        ram["INIT"],
        ram["FINA"],
        masks,
        flags_at,
    )


def read(path: Path) -> list[Vector]:
    """Return the vectors of a file, which may be packed by gzip.

    Raises MooError for what is no MOO file, OSError if it cannot be read.
    """
    try:
        return _vectors(_unpacked(path))
    except (struct.error, ValueError) as error:
        message = f"{path}: a chunk is not as long as it has to be: {error}"
        raise MooError(message) from None
    except (MooError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"{path}: {error}"
        raise MooError(message) from None


def _unpacked(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        return file.read(_MOST)


def _vectors(data: bytes) -> list[Vector]:
    if data[:4] != b"MOO ":
        raise MooError("it is no MOO file")
    masks: dict[str, int] = {}
    vectors = []
    for kind, body in _chunks(data):
        if kind in ("RMSK", "RM32"):
            masks |= _registers(kind, body).values
        elif kind == "TEST":
            vectors.append(_vector(body, masks))
    return vectors


def difference(vector: Vector, machine: RealMode) -> tuple[str, bool]:
    """Run a vector; return where it ends otherwise, and whether bits were masked.

    "" if it ends as on the processor: masked, then, if an undefined bit differs.
    """
    image = bytearray(MEMORY)
    for address, value in vector.ram.items():
        image[address] = value
    found = machine.play(vector.before.values, image)
    if found.end != "halted":
        return f"it does not halt: {found.end}", False
    masked = False
    most = (1 << vector.before.bits) - 1
    for name, value in (vector.before.values | vector.after.values).items():
        if name in _LEFT_OUT:
            continue
        bits = FLAGS if name == "eflags" else most
        if name in x86.SEGMENT_NAMES:
            bits = 0xFFFF
        differing = (found.registers[name] ^ value) & bits
        if differing & vector.masks.get(name, most):
            return f"{name} {found.registers[name]:X}, not {value & bits:X}", masked
        masked |= bool(differing)
    for address, value in vector.ram_after.items():
        image[address] = value
    if found.memory == image:
        return "", masked
    pushed = _undefined_flags(vector)
    for address, (is_there, wanted) in enumerate(zip(found.memory, image, strict=True)):
        if (is_there ^ wanted) & ~pushed.get(address, 0):
            return f"memory at {address:X} {is_there:02X}, not {wanted:02X}", masked
    return "", True


def _undefined_flags(vector: Vector) -> dict[int, int]:
    """Return what is undefined of flags that were pushed: bits by address."""
    if vector.flags_at is None:
        return {}
    undefined = ~(vector.masks.get("eflags", x86.MASK32) & FLAGS) & 0xFFFF
    at = vector.flags_at
    return {at: undefined & 0xFF, at + 1: undefined >> 8}


@dataclass
class Form:
    """What came of a file: how many vectors passed, and how many failed.

    masked: those that passed but for undefined bits; first: the first that failed, in
    words.
    """

    name: str
    passed: int = 0
    masked: int = 0
    failed: int = 0
    first: str = ""


def run(path: Path, machine: RealMode, most: int | None = None) -> Form:
    """Run the vectors of a file, or its first `most`; raises as `read` does."""
    form = Form(path.name.partition(".MOO")[0].partition(".moo")[0])
    for vector in read(path)[:most]:
        found, masked = difference(vector, machine)
        if found:
            form.failed += 1
            form.first = form.first or f"test {vector.index}, {vector.name}: {found}"
        elif masked:
            form.masked += 1
        else:
            form.passed += 1
    return form


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        message = f"{folder}: no such folder"
        raise MooError(message)
    names = ("*.moo", "*.MOO", "*.moo.gz", "*.MOO.gz")
    found = sorted({file for name in names for file in folder.glob(name)})
    if not found:
        message = f"{folder}: has no MOO file"
        raise MooError(message)
    return found


@click.command()
@click.argument("folder", type=Path)
@click.option("--technique", default="bare", show_default=True, help="Who runs them.")
@click.option("--cpu", default=config.CPU, show_default=True, help="The CPU model.")
@click.option("--most", type=click.IntRange(1), help="So many vectors of each file.")
def command(folder: Path, technique: str, cpu: str, most: int | None) -> int:
    """Run a processor's test vectors, the MOO files of FOLDER, in real mode.

    A line for each file: how many vectors passed, how many passed but for bits that
    the file calls undefined (masked), and how many failed. The status is 1 if one did.
    """
    files = _files(folder)
    machine = RealMode(technique, cpu)
    failed = 0
    click.echo(f"{'form':<10} {'pass':>6} {'masked':>6} {'fail':>6}")
    for file in files:
        form = run(file, machine, most)
        failed += form.failed
        counts = f"{form.passed:>6} {form.masked:>6} {form.failed:>6}"
        click.echo(f"{form.name:<10} {counts}  {form.first}".rstrip())
    return 1 if failed else 0


def main() -> None:
    """Run the command; a mistake of the user's is one line, and status 2."""
    try:
        status = command.main(prog_name="moo", standalone_mode=False)
    except click.ClickException as error:
        status = f"moo: {error.format_message()}"
    except (ConfigError, OSError) as error:
        status = f"moo: {error}"
    if isinstance(status, str):
        print(status, file=sys.stderr)  # noqa: T201
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
