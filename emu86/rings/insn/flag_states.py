"""What a block has done to the engine's lazy flags before an instruction of it.

The engine keeps the arithmetic flags as the last operation and its operands, and while
it translates a block it knows which operation that is. CMPXCHG8B and SETcc of memory go
wrong only for some of what it knows (`lazy_flags`); elsewhere they run natively.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from emu86.rings.decode import Insn

CAME: Final = 0  # as they came: no instruction of the block has touched them
COMPARED: Final = 1  # a CMP or SUB was last
COMPUTED: Final = 2  # another operation that the engine knows
UNKNOWN: Final = 3

SETCC: Final = tuple(range(0x0F90, 0x0FA0))
CMPXCHG8B: Final = 0x0FC7

_ALU: Final = frozenset(base + i for base in range(0, 0x40, 8) for i in range(6))
_IMMEDIATE: Final = (0x80, 0x81, 0x82, 0x83)
_SUB, _CMP = 5, 7  # of the ALU's eight operations
_KEEP: Final = frozenset(
    {*range(0x50, 0x60), 0x68, 0x6A, *range(0x86, 0x8E), *range(0x90, 0x98)}
    | {*range(0xA0, 0xA4), *range(0xB0, 0xC0), 0xC6, 0xC7}
    | {0x0FB6, 0x0FB7, 0x0FBE, 0x0FBF, 0x0F1F}
)
_TEST_INC_DEC: Final = frozenset({0x84, 0x85, 0xA8, 0xA9, *range(0x40, 0x50)})
_UNARY: Final = (0xF6, 0xF7)
_STEP: Final = (0xFE, 0xFF)
_TEST_REGS: Final = (0, 1)
_STEP_REGS: Final = (0, 1)
# Pairs of conditions (tttn >> 1) that the engine reads without touching what it has.
_CARRY: Final = frozenset({1})
_SIMPLE: Final = _CARRY | {2, 4}  # ZF, SF
_ORDERED: Final = _SIMPLE | {3, 6, 7}  # above, less, less or equal
_SAFE: Final = {CAME: _CARRY, COMPARED: _ORDERED, COMPUTED: _SIMPLE, UNKNOWN: _CARRY}


def after(insn: "Insn", state: int) -> int:
    """Return what the flags are after an instruction that found them in `state`."""
    opcode = insn.opcode
    if opcode in _KEEP:
        return state
    if opcode in _ALU or opcode in _IMMEDIATE:
        operation = insn.reg if opcode in _IMMEDIATE else opcode >> 3
        return COMPARED if operation in (_SUB, _CMP) else COMPUTED
    if (
        opcode in _TEST_INC_DEC
        or (opcode in _UNARY and insn.reg in _TEST_REGS)
        or (opcode in _STEP and insn.reg in _STEP_REGS)
    ):
        return COMPUTED
    return UNKNOWN


def are_kept(insn: "Insn", state: int) -> bool:
    """Tell whether CMPXCHG8B or SETcc of memory keeps flags that it finds so."""
    if insn.opcode == CMPXCHG8B:
        return state == CAME
    return insn.opcode in SETCC and (insn.opcode & 15) >> 1 in _SAFE[state]


# What reads its memory operand and then writes it, by opcode: ModRM.reg, or any.
_ANY: Final = frozenset(range(8))
_WRITTEN: Final = {
    **dict.fromkeys((base + i for base in range(0, 0x38, 8) for i in (0, 1)), _ANY),
    **dict.fromkeys(_IMMEDIATE, _ANY - {_CMP}),
    **dict.fromkeys((0x86, 0x87, 0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3), _ANY),
    **dict.fromkeys(_UNARY, frozenset({2, 3})),
    **dict.fromkeys(_STEP, frozenset({0, 1})),
    **dict.fromkeys((0x0FA4, 0x0FA5, 0x0FAC, 0x0FAD, 0x0FAB, 0x0FB3, 0x0FBB), _ANY),
    0x0FBA: frozenset({5, 6, 7}),
    **dict.fromkeys((0x0FB0, 0x0FB1, 0x0FC0, 0x0FC1), _ANY),
    CMPXCHG8B: frozenset({1}),
}


def is_read_to_write(insn: "Insn") -> bool:
    """Tell of a read-modify-write of memory: its fault is a write's (Vol. 3A 4.7)."""
    return insn.memory and insn.reg in _WRITTEN.get(insn.opcode, ())
