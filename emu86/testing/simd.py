"""Hypothesis strategies: x87, MMX, SSE and SSE2 between places in memory.

Each is a load, an operation and a store, on the stage's data page; they are the same
bytes in 32-bit and 64-bit code, where ESI or RSI gives the place.
"""

from typing import Final

from hypothesis import strategies as st

from emu86.testing.operands import Code, imm8

# Of 0F: packed integers, in MMX registers without the prefix 66h, in XMM with it.
_PACKED: Final = (
    0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x6B, 0x74, 0x75,
    0x76, 0xD1, 0xD2, 0xD3, 0xD5, 0xD8, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF, 0xE1, 0xE2, 0xE5,
    0xE8, 0xE9, 0xEB, 0xEC, 0xED, 0xEF, 0xF1, 0xF2, 0xF3, 0xF5, 0xF8, 0xF9, 0xFA, 0xFC,
    0xFD, 0xFE, 0xD4, 0xDA, 0xDE, 0xE0, 0xE3, 0xE4, 0xEA, 0xEE, 0xF4, 0xF6, 0xFB,
)  # fmt: skip
# Of 0F: SQRT, AND, ANDN, OR, XOR, ADD, MUL, CVT between floats, SUB, MIN, DIV, MAX, and
# UCOMI and COMI, which set flags.
_FLOATING: Final = (
    0x51, 0x58, 0x59, 0x5A, 0x5C, 0x5D, 0x5E, 0x5F,
)  # fmt: skip
_LOGICAL: Final = (0x54, 0x55, 0x56, 0x57, 0x14, 0x15)
_X87: Final = (0, 1, 4, 5, 6, 7)  # of D8: FADD, FMUL, FSUB, FSUBR, FDIV, FDIVR


def _bytes(*choices: int) -> Code:
    return st.sampled_from([bytes([choice]) for choice in choices])


def _prefixed(*prefixes: str) -> Code:
    return st.sampled_from([bytes.fromhex(prefix) for prefix in prefixes])


def operations() -> Code:
    """A load, an operation and a store, relative to ESI or RSI."""
    place = st.integers(0, 0x1F).map(lambda n: bytes([0x46, 4 * n]))  # [esi + 4 * n]
    mmx = st.builds(
        lambda one, op, other, to: (
            b"\x0f\x6f" + one + b"\x0f" + op + other + b"\x0f\x7f" + to + b"\x0f\x77"
        ),
        place, _bytes(*_PACKED), place, place,
    )  # fmt: skip

    def xmm(operation: Code) -> Code:
        """MOVUPS both ways, XMM1 as the second operand."""
        return st.builds(
            lambda one, other, op, to: (
                b"\x0f\x10" + one + b"\x0f\x10" + bytes([other[0] | 8]) + other[1:]
                + op + b"\x0f\x11" + to
            ),
            place, place, operation, place,
        )  # fmt: skip

    def on_registers(prefix: Code, opcode: Code, after: Code) -> Code:
        return st.builds(
            lambda before, op, last: before + b"\x0f" + op + b"\xc1" + last,
            prefix, opcode, after,
        )  # fmt: skip

    none = st.just(b"")
    x87 = st.builds(
        lambda load, one, op, field, other, to, last: (
            b"\xdb\xe3" + load + one + op + bytes([other[0] | field << 3]) + other[1:]
            + to + bytes([last[0] | 3 << 3]) + last[1:]
        ),
        _prefixed("d9", "dd", "db", "df"), place,
        _prefixed("d8", "dc", "da", "de"), st.sampled_from(_X87), place,
        _prefixed("d9", "dd", "db", "df"), place,
    )  # fmt: skip
    return st.one_of(
        mmx,
        xmm(on_registers(st.just(b"\x66"), _bytes(*_PACKED), none)),
        xmm(on_registers(_prefixed("", "66"), _bytes(*_LOGICAL), none)),
        xmm(on_registers(_prefixed("", "66", "f3", "f2"), _bytes(*_FLOATING), none)),
        xmm(on_registers(_prefixed("", "66"), _bytes(0x2E, 0x2F), none)),
        xmm(on_registers(_prefixed("", "66"), _bytes(0xC6), imm8())),
        xmm(on_registers(_prefixed("66", "f3", "f2"), _bytes(0x70), imm8())),
        xmm(on_registers(_prefixed("", "66", "f3", "f2"), _bytes(0xC2),
                         st.integers(0, 7).map(lambda byte: bytes([byte])))),
        x87,
    )  # fmt: skip
