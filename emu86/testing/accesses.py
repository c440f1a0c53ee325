"""Strategies of memory accesses, with the address of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32, mov
from emu86.testing.operands import Code


@dataclass(frozen=True)
class Access:
    """One access of a pattern.

    kind: "load", "store", "modify", "fill" (REP STOS) or "scan" (REP LODS); at: linear
    address; size: of one element, 1, 2 or 4 bytes; count: elements, at rising ones.
    """

    kind: str
    at: int
    size: int
    count: int = 1


@dataclass(frozen=True)
class AccessPattern:
    """Accesses in order, and the 32-bit code that makes them with flat segments."""

    accesses: tuple[Access, ...]
    code: bytes


_BASES: Final = (
    stage.DATA, stage.DATA + x86.PAGE_SIZE, 0x60000, stage.DATA + stage.ALIAS,
    stage.DATA + 0xC0000000, stage.STACK3, 0x3F000, stage.MEMORY, 0xC00000, 0,
)  # fmt: skip
_SIZES: Final = (1, 2, 4)


def _sized(opcode: int, size: int) -> bytes:
    """An opcode whose lowest bit says that it is not about bytes."""
    return b"\x66" * (size == 2) + bytes([opcode | (size > 1)])


def _load(access: Access) -> bytes:
    return _sized(0x8A, access.size) + b"\x0d" + i32(access.at)  # MOV ECX, [at]


def _store(access: Access) -> bytes:
    return _sized(0x88, access.size) + b"\x15" + i32(access.at)  # MOV [at], EDX


def _modify(access: Access) -> bytes:
    return _sized(0x00, access.size) + b"\x1d" + i32(access.at)  # ADD [at], EBX


def _repeated(opcode: int, pointer: int, access: Access) -> bytes:
    code = _sized(opcode, access.size)
    where = mov(pointer, access.at) + mov(x86.ECX, access.count)
    return b"\xfc" + where + code[:-1] + b"\xf3" + code[-1:]  # CLD; REP


_CODE: Final[dict[str, Callable[[Access], bytes]]] = {
    "load": _load, "store": _store, "modify": _modify,
    "fill": partial(_repeated, 0xAA, x86.EDI),  # STOS
    "scan": partial(_repeated, 0xAC, x86.ESI),  # LODS
}  # fmt: skip


@st.composite
def _accesses(draw: st.DrawFn) -> Access:
    kind = draw(st.sampled_from(tuple(_CODE)))
    size = draw(st.sampled_from(_SIZES))
    # Aligned, misaligned, over the end of a page, and over the end of 4 GiB.
    offset = draw(st.sampled_from((0, size, 1, 2, -1, -2, -3, -size)))
    count = draw(st.sampled_from((1, 2, 5))) if kind in ("fill", "scan") else 1
    base = draw(st.sampled_from(_BASES))
    return Access(kind, base + offset & x86.MASK32, size, count)


def access_patterns(most: int = 6) -> st.SearchStrategy[AccessPattern]:
    """Up to `most` loads, stores, read-modify-writes and repeated STOS and LODS.

    They are of 1, 2 and 4 bytes, aligned and not. They cross the ends of pages, of RAM
    and of 4 GiB, and use the same pages again and again, of which some are present and
    some are not.
    """
    return st.lists(_accesses(), min_size=1, max_size=most).map(
        lambda found: AccessPattern(
            tuple(found), b"".join(_CODE[access.kind](access) for access in found)
        )
    )


def accesses() -> Code:
    """The code of one access."""
    return access_patterns(most=1).map(lambda pattern: pattern.code)
