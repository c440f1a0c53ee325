"""Strategies of values, operands and prefixes: what instructions are made of.

Strategies that others use are made once, because hypothesis examines each new one.
"""

from functools import cache
from typing import Final

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.spec.opcodes import SEGMENT_PREFIXES
from emu86.testing import stage
from emu86.testing.encode import i32

Code = st.SearchStrategy[bytes]

_ADDRESSES: Final = (
    stage.DATA, stage.DATA + 0xFFE, stage.CODE, stage.CODE + 0x20, stage.STACK0 - 16,
    stage.STACK3 - 16, stage.CODE + stage.ALIAS, stage.DATA + stage.ALIAS,
    stage.DATA + 0xC0000000, stage.GDT, stage.LDT, stage.IDT, stage.TSS, 0x3F000,
    0x9FFFE, 0xA0000, 0xC00000, 0x80000000, 0xFFFFF000, 0,
)  # fmt: skip
_FLAGS: Final = (
    0x2, 0x202, 0x8D7, 0x3202, 0x402, 0x102, 0x4002, 0x40002, 0x200002,
)  # fmt: skip
# The GDT's and the LDT's, at the RPLs that ring compression keeps.
_SELECTORS: Final = tuple(
    index | table | rpl
    for rpl in (0, 3)
    for table in (0, 4)
    for index in range(0, stage.LAST_SELECTOR + 16, 8)
    if index != stage.TSS16_SELECTOR
)


@cache
def words() -> st.SearchStrategy[int]:
    """32-bit values, most of them special ones."""
    return st.one_of(
        st.sampled_from((0, 1, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF)),
        addresses(),
        selectors(),
        st.sampled_from(_FLAGS),
        st.integers(0, x86.MASK32),
    )


@cache
def addresses() -> st.SearchStrategy[int]:
    """Linear addresses on the stage, beside it, and where two pages meet."""
    return st.builds(
        lambda base, offset: (base + offset) & x86.MASK32,
        st.sampled_from(_ADDRESSES),
        st.sampled_from((0, 4, 8, 1, 2, -1, -2, -4)),
    )


@cache
def selectors() -> st.SearchStrategy[int]:
    """Selectors of the stage's descriptors, some beyond the tables."""
    return st.sampled_from(_SELECTORS)


@cache
def flags() -> st.SearchStrategy[int]:
    """EFLAGS images, 32 bits, without VM."""
    return st.one_of(
        st.sampled_from(_FLAGS), st.integers(0, 0x3FFFFF).map(lambda f: f & ~x86.VM)
    )


def operands(reg: int, *, memory: bool | None = None) -> Code:
    """ModRM, SIB and displacement for this reg field, in every form of addressing.

    memory: memory only, a register only, or either. Raises ValueError for a number that
    no reg field can hold.
    """
    _check(reg)
    return _operands(reg, memory=memory)


@cache
@st.composite
def _operands(draw: st.DrawFn, reg: int, *, memory: bool | None) -> bytes:
    forms = ["absolute", "base", "base8", "base32", "sib"]
    if not memory:
        forms = ["register"] if memory is False else ["register", *forms]
    form = draw(st.sampled_from(forms))
    rm = draw(st.integers(0, 7))
    if form == "register":
        return bytes([0xC0 | reg << 3 | rm])
    if form == "absolute":
        return bytes([reg << 3 | 5]) + i32(draw(addresses()))
    mod = {"base": 0, "base8": 1, "base32": 2, "sib": draw(st.integers(0, 2))}[form]
    sib = b""
    if form == "sib" or rm == x86.ESP:
        rm = x86.ESP
        sib = bytes([draw(st.integers(0, 0xFF))])
    out = bytes([mod << 6 | reg << 3 | rm]) + sib
    absolute = mod == 0 and (rm == x86.EBP or (sib and sib[0] & 7 == x86.EBP))
    if mod == 1:
        out += bytes([draw(st.sampled_from((0, 4, 0xFF)))])
    elif mod == 2 or absolute:
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


def encoded(
    opcode: bytes,
    reg: int,
    immediate: Code | None = None,
    *,
    memory: bool | None = None,
) -> Code:
    """Instructions with this opcode and reg field, with all prefixes and operands.

    memory: as for `operands`; immediate: what follows the operand. Raises ValueError
    for a number that no reg field can hold.
    """
    parts = _encoded(opcode, reg, memory)
    if immediate is None:
        return parts
    return st.builds(lambda one, other: one + other, parts, immediate)


@cache
def _encoded(opcode: bytes, reg: int, memory: bool | None) -> Code:
    wide = st.tuples(prefixes(), st.just(opcode), operands(reg, memory=memory))
    forms = [wide, wide, wide, wide]
    if memory is not False:
        narrow = operands16(reg)
        forms.append(st.tuples(prefixes(), st.just(b"\x67" + opcode), narrow))
    return st.one_of(forms).map(b"".join)


@cache
def with_reg(opcode: bytes, *, memory: bool | None = None) -> Code:
    """Instructions whose ModRM.reg is a register."""
    return st.integers(0, 7).flatmap(lambda reg: encoded(opcode, reg, memory=memory))


@cache
def imm8() -> Code:
    """Immediates of 8 bits."""
    return st.integers(0, 0xFF).map(lambda byte: bytes([byte]))
