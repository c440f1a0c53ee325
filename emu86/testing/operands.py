"""Strategies of values, operands and prefixes: what instructions are made of.

Strategies that others use are made once, because hypothesis examines each new one.
"""

from functools import cache
from typing import Final

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.spec.opcodes import SEGMENT_PREFIXES
from emu86.testing import stage
from emu86.testing.encode import absolute, i32

Code = st.SearchStrategy[bytes]

_ADDRESSES: Final = (
    stage.DATA, stage.DATA + 0xFFE, stage.CODE, stage.CODE + 0x20, stage.STACK0 - 16,
    stage.STACK3 - 16, stage.CODE + stage.ALIAS, stage.DATA + stage.ALIAS,
    stage.DATA + 0xC0000000, stage.GDT, stage.LDT, stage.IDT, stage.TSS, 0x3F000,
    0x9FFFE, 0xA0000, 0xC00000, 0x80000000, 0xFFFFF000, 0,
)  # fmt: skip
# In 64-bit code also: the stage in the upper half, and the ends of what is canonical.
_ADDRESSES64: Final = (
    stage.DATA + 0xFFFFFFFF80000000, stage.STACK3 + 0xFFFFFF8000000000 - 16,
    stage.DATA + 0x40000000, stage.CODE + 0xE00000, 1 << 47, -(1 << 47) & x86.MASK64,
    stage.DATA + 0x7FFF00000000, stage.DATA + (1 << 60), -4096 & x86.MASK64,
)  # fmt: skip
_FLAGS: Final = (
    0x2, 0x202, 0x8D7, 0x3202, 0x402, 0x102, 0x4002, 0x40002, 0x200002,
)  # fmt: skip
# The GDT's and the LDT's, at the RPLs that ring compression keeps.
_SELECTORS: Final = {
    bits: tuple(
        index | table | rpl
        for rpl in (0, 3)
        for table in (0, 4)
        for index in range(0, last + 16, 8)
        if index != stage.TSS16_SELECTOR or bits == 64
    )
    for bits, last in ((32, stage.LAST_SELECTOR), (64, stage.LAST_SELECTOR64))
}


@cache
def words(bits: int = 32) -> st.SearchStrategy[int]:
    """Values of 32 or 64 bits, most of them special ones."""
    most = (1 << bits) - 1
    return st.one_of(
        st.sampled_from((0, 1, most, most // 2 + 1, most // 2)),
        addresses(bits),
        selectors(bits),
        st.sampled_from(_FLAGS),
        st.integers(0, most),
    )


@cache
def addresses(bits: int = 32) -> st.SearchStrategy[int]:
    """Linear addresses on the stage, beside it, and where two pages meet."""
    bases = _ADDRESSES if bits == 32 else _ADDRESSES + _ADDRESSES64
    return st.builds(
        lambda base, offset: (base + offset) & (1 << bits) - 1,
        st.sampled_from(bases),
        st.sampled_from((0, 4, 8, 1, 2, -1, -2, -4)),
    )


@cache
def selectors(bits: int = 32) -> st.SearchStrategy[int]:
    """Selectors of the stage's descriptors, some beyond the tables."""
    return st.sampled_from(_SELECTORS[bits])


@cache
def flags() -> st.SearchStrategy[int]:
    """EFLAGS images, 32 bits, without VM."""
    return st.one_of(
        st.sampled_from(_FLAGS), st.integers(0, 0x3FFFFF).map(lambda f: f & ~x86.VM)
    )


def operands(reg: int, *, memory: bool | None = None, bits: int = 32) -> Code:
    """ModRM, SIB and displacement for this reg field, in every form of addressing.

    memory: memory only, a register only, or either; bits: of the code, 32 or 64. Raises
    ValueError for a number that no reg field can hold.
    """
    _check(reg)
    return _operands(reg, memory=memory, bits=bits)


@cache
@st.composite
def _operands(draw: st.DrawFn, reg: int, *, memory: bool | None, bits: int) -> bytes:
    forms = ["absolute", "base", "base8", "base32", "sib"]
    if bits == 64:
        forms.append("RIP")
    if not memory:
        forms = ["register"] if memory is False else ["register", *forms]
    form = draw(st.sampled_from(forms))
    rm = draw(st.integers(0, 7))
    if form == "register":
        return bytes([0xC0 | reg << 3 | rm])
    if form == "absolute":
        return absolute(reg, draw(addresses()), bits)
    if form == "RIP":
        away = draw(st.sampled_from((stage.DATA, stage.DATA + 0xFD0, stage.STACK0)))
        return bytes([reg << 3 | 5]) + i32(away - stage.CODE)
    mod = {"base": 0, "base8": 1, "base32": 2, "sib": draw(st.integers(0, 2))}[form]
    sib = b""
    if form == "sib" or rm == x86.ESP:
        rm = x86.ESP
        sib = bytes([draw(st.integers(0, 0xFF))])
    out = bytes([mod << 6 | reg << 3 | rm]) + sib
    alone = mod == 0 and (rm == x86.EBP or (sib and sib[0] & 7 == x86.EBP))
    if mod == 1:
        out += bytes([draw(st.sampled_from((0, 4, 0xFF)))])
    elif mod == 2 or alone:
        out += i32(draw(addresses()))
    return out


def operands16(reg: int) -> Code:
    """ModRM and displacement of a memory operand under the prefix 67h.

    All eight forms, without displacement and with 8 or 16 bits of it. The address is in
    the first 64 KiB of its segment. Raises ValueError for a number that no reg field
    can hold.
    """
    _check(reg)
    return _operands16(reg)


def _check(reg: int) -> None:
    if not stage.is_number(reg, 8):
        message = f"reg: {reg!r} is no field of 3 bits"
        raise ValueError(message)


@cache
@st.composite
def _operands16(draw: st.DrawFn, reg: int) -> bytes:
    mod = draw(st.sampled_from((0, 1, 2)))
    rm = draw(st.sampled_from((6, 0, 1, 2, 3, 4, 5, 7)))
    out = bytes([mod << 6 | reg << 3 | rm])
    if mod == 1:
        return out + bytes([draw(st.sampled_from((0, 4, 0xFF)))])
    if mod == 2 or rm == 6:
        return out + draw(st.integers(0, 0xFFFF)).to_bytes(2, "little")
    return out


@cache
def prefixes() -> Code:
    """Prefixes of operand size and segment, and combinations; most often none.

    The prefix of the address size depends on the operand: see `encoded`.
    """
    segment = st.sampled_from([*SEGMENT_PREFIXES]).map(lambda byte: bytes([byte]))
    return st.one_of(
        st.just(b""), st.just(b""), st.just(b"\x66"), segment,
        st.builds(lambda one, other: one + other, st.just(b"\x66"), segment),
    )  # fmt: skip


@cache
def rex() -> Code:
    """REX prefixes of 64-bit code, and none."""
    return st.sampled_from(
        (b"", b"\x48", b"", b"\x48", *(bytes([byte]) for byte in range(0x40, 0x50)))
    )


def encoded(
    opcode: bytes,
    reg: int,
    immediate: Code | None = None,
    *,
    memory: bool | None = None,
    bits: int = 32,
) -> Code:
    """Instructions with this opcode and reg field, with all prefixes and operands.

    memory, bits: as for `operands`; immediate: what follows the operand. Raises
    ValueError for a number that no reg field can hold.
    """
    parts = _encoded(opcode, reg, memory, bits)
    if immediate is None:
        return parts
    return st.builds(lambda one, other: one + other, parts, immediate)


@cache
def _encoded(opcode: bytes, reg: int, memory: bool | None, bits: int) -> Code:
    operand = operands(reg, memory=memory, bits=bits)
    if bits == 64:
        narrow = st.just(b"") if memory is False else st.sampled_from((b"", b"\x67"))
        parts = st.tuples(prefixes(), narrow, rex(), st.just(opcode), operand)
        return parts.map(b"".join)
    wide = st.tuples(prefixes(), st.just(opcode), operand)
    forms = [wide, wide, wide, wide]
    if memory is not False:
        short = operands16(reg)
        forms.append(st.tuples(prefixes(), st.just(b"\x67" + opcode), short))
    return st.one_of(forms).map(b"".join)


@cache
def with_reg(opcode: bytes, *, memory: bool | None = None, bits: int = 32) -> Code:
    """Instructions whose ModRM.reg is a register."""
    return st.integers(0, 7).flatmap(
        lambda reg: encoded(opcode, reg, memory=memory, bits=bits)
    )


@cache
def imm8() -> Code:
    """Immediates of 8 bits."""
    return st.integers(0, 0xFF).map(lambda byte: bytes([byte]))
