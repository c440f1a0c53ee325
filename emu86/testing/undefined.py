"""The flags that the SDM leaves undefined, by instruction."""

from functools import cache
from typing import Final

import capstone

from emu86.spec import x86
from emu86.testing import stage

_CF, _PF, _AF, _ZF, _SF, _OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
_SHIFT: Final = _AF | _OF  # AF, and OF for counts other than 1: Vol. 2B SAL/SAR/SHL/SHR
_ALL: Final = x86.ARITHMETIC_FLAGS

# By mnemonic: Vol. 1 appendix A, table A-1, and the instruction's own page for OF of
# shifts and rotates.
UNDEFINED: Final[dict[str, int]] = {
    **dict.fromkeys(("and", "or", "xor", "test"), _AF),
    **dict.fromkeys(("shl", "sal", "shr", "sar"), _SHIFT),
    **dict.fromkeys(("shld", "shrd"), _SHIFT),
    **dict.fromkeys(("rol", "ror", "rcl", "rcr"), _OF),
    **dict.fromkeys(("mul", "imul"), _SF | _ZF | _AF | _PF),
    **dict.fromkeys(("div", "idiv"), _ALL),
    **dict.fromkeys(("bt", "bts", "btr", "btc"), _OF | _SF | _AF | _PF),
    **dict.fromkeys(("bsf", "bsr"), _CF | _OF | _SF | _AF | _PF),
    **dict.fromkeys(("aaa", "aas"), _OF | _SF | _ZF | _PF),
    **dict.fromkeys(("aam", "aad"), _OF | _AF | _CF),
    **dict.fromkeys(("daa", "das"), _OF),
}
# CF is undefined for counts from the operand's 8 or 16 bits on: Vol. 2B
# SAL/SAR/SHL/SHR. SAR's is not: it is the sign.
_NARROW: Final = ("shl", "sal", "shr")
_MODES: Final = {32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}


@cache
def _decoder(bits: int) -> capstone.Cs:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits])
    decoder.detail = True
    return decoder


def last(program: bytes, bits: int = 32) -> capstone.CsInsn | None:
    """Return the last instruction of code that has no data in it, decoded."""
    insns = list(_decoder(bits).disasm(program, stage.CODE))
    return insns[-1] if insns else None


def disassembly(program: bytes, bits: int = 32) -> list[str]:
    """Return the instructions of a program, as text."""
    return [
        f"{insn.mnemonic} {insn.op_str}".strip()
        for insn in _decoder(bits).disasm(program, stage.CODE)
    ]


def undefined(program: bytes, bits: int = 32) -> int:
    """Return the flags that the last instruction of a program leaves undefined."""
    insn = last(program, bits)
    if insn is None:
        return 0
    name = insn.mnemonic.rpartition(" ")[2]
    flags = UNDEFINED.get(name, 0)
    if name in _NARROW and insn.operands[0].size <= 2:
        flags |= _CF
    return flags
