"""Strategies of memory accesses, with the address of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import absolute, mov, mov64
from emu86.testing.operands import Code


@dataclass(frozen=True)
class Access:
    """One access of a pattern.

    kind: "load", "store", "modify", "fill" (REP STOS) or "scan" (REP LODS); at: linear
    address; size: of one element, 1, 2, 4 or (in 64-bit code) 8 bytes; count: elements,
    at rising ones.
    """

    kind: str
    at: int
    size: int
    count: int = 1


@dataclass(frozen=True)
class AccessPattern:
    """Accesses in order, and the code that makes them, with flat segments."""

    accesses: tuple[Access, ...]
    code: bytes


_BASES: Final = (
    stage.DATA, stage.DATA + x86.PAGE_SIZE, 0x60000, stage.DATA + stage.ALIAS,
    stage.DATA + 0xC0000000, stage.STACK3, 0x3F000, stage.MEMORY, 0xC00000, 0,
)  # fmt: skip
# In 64-bit code also: the stage in the upper half, the ends of the address space.
_BASES64: Final = (
    stage.DATA + 0xFFFFFFFF80000000, 0, 1 << 47, -(1 << 47) & x86.MASK64,
    stage.DATA + 0x40000000, stage.DATA + 0x7FFF00000000,
)  # fmt: skip
_SIZES: Final = (1, 2, 4)


def _sized(opcode: int, size: int) -> bytes:
    """An opcode whose lowest bit says that it is not about bytes."""
    return _PREFIX.get(size, b"") + bytes([opcode | (size > 1)])


_PREFIX: Final = {2: b"\x66", 8: b"\x48"}


def _single(opcode: int, reg: int, access: Access, bits: int) -> bytes:
    code = _sized(opcode, access.size)
    if bits == 64:
        return mov64(x86.EDI, access.at) + code + bytes([reg << 3 | x86.EDI])
    return code + absolute(reg, access.at)


def _repeated(opcode: int, pointer: int, access: Access, bits: int) -> bytes:
    code = _sized(opcode, access.size)
    load = mov64 if bits == 64 else mov
    where = load(pointer, access.at) + mov(x86.ECX, access.count)
    if access.size == 8:
        return b"\xfc" + where + b"\xf3" + code  # REX stands last
    return b"\xfc" + where + code[:-1] + b"\xf3" + code[-1:]  # CLD; REP


_CODE: Final[dict[str, Callable[[Access, int], bytes]]] = {
    "load": partial(_single, 0x8A, x86.ECX),  # MOV ECX, [at]
    "store": partial(_single, 0x88, x86.EDX),  # MOV [at], EDX
    "modify": partial(_single, 0x00, x86.EBX),  # ADD [at], EBX
    "fill": partial(_repeated, 0xAA, x86.EDI),  # STOS
    "scan": partial(_repeated, 0xAC, x86.ESI),  # LODS
}


@st.composite
def _accesses(draw: st.DrawFn, bits: int) -> Access:
    kind = draw(st.sampled_from(tuple(_CODE)))
    size = draw(st.sampled_from(_SIZES if bits == 32 else (*_SIZES, 8)))
    # Aligned, misaligned, over the end of a page, and over the end of 4 GiB.
    offset = draw(st.sampled_from((0, size, 1, 2, -1, -2, -3, -size)))
    count = draw(st.sampled_from((1, 2, 5))) if kind in ("fill", "scan") else 1
    base = draw(st.sampled_from(_BASES if bits == 32 else _BASES + _BASES64))
    return Access(kind, base + offset & (1 << bits) - 1, size, count)


def access_patterns(most: int = 6, bits: int = 32) -> st.SearchStrategy[AccessPattern]:
    """Up to `most` loads, stores, read-modify-writes and repeated STOS and LODS.

    They are of 1, 2 and 4 bytes (in 64-bit code 8, too), aligned and not. They cross
    the ends of pages, of RAM and of 4 GiB, and use the same pages again and again, of
    which some are present and some are not.
    """
    return st.lists(_accesses(bits), min_size=1, max_size=most).map(
        lambda found: AccessPattern(
            tuple(found), b"".join(_CODE[access.kind](access, bits) for access in found)
        )
    )


def accesses(bits: int = 32) -> Code:
    """The code of one access."""
    return access_patterns(1, bits).map(lambda pattern: pattern.code)
