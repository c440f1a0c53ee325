"""The engine's lazy flags at an instruction, by what its block did before.

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

_LEFT: Final = {"compared": COMPARED, "computed": COMPUTED, "other": UNKNOWN}
# Pairs of conditions (tttn >> 1) that the engine reads without touching what it has.
_CARRY: Final = frozenset({1})
_SIMPLE: Final = _CARRY | {2, 4}  # ZF, SF
_ORDERED: Final = _SIMPLE | {3, 6, 7}  # above, less, less or equal
_SAFE: Final = {CAME: _CARRY, COMPARED: _ORDERED, COMPUTED: _SIMPLE, UNKNOWN: _CARRY}


def after(insn: "Insn", state: int) -> int:
    """Return what the flags are after an instruction that found them in `state`."""
    flags = insn.spec.flags
    return state if flags == "kept" else _LEFT[flags]


def are_kept(insn: "Insn", state: int) -> bool:
    """Tell whether CMPXCHG8B or SETcc of memory keeps flags that it finds so."""
    if insn.opcode == CMPXCHG8B:
        return state == CAME
    return insn.opcode in SETCC and (insn.opcode & 15) >> 1 in _SAFE[state]
