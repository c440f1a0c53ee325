"""Decode the instructions that a VMM must emulate: prefixes, opcode, ModRM, address.

Not a general disassembler: lengths are right for the instructions of the exit table, all
of which have at most a ModRM operand and one immediate. Source: SDM Vol. 2A chapter 2.
"""

from typing import Final

from emu86.spec import x86

_SEGMENT_PREFIX: Final = {
    0x26: x86.ES, 0x2E: x86.CS, 0x36: x86.SS, 0x3E: x86.DS, 0x64: x86.FS, 0x65: x86.GS,
}  # fmt: skip
_LONGEST: Final = 15
# One-byte opcodes with ModRM: MOV Sreg, LES, LDS, FF group, POP r/m.
_MODRM: Final = frozenset({0x62, 0x63, 0x8C, 0x8E, 0xC4, 0xC5, 0xFF, 0x8F})
# Two-byte opcodes without ModRM.
_NO_MODRM: Final = frozenset(
    {0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35,
     0x77, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA}
)  # fmt: skip
_IMM8: Final = frozenset({0xCD, 0xE4, 0xE5, 0xE6, 0xE7})
_IMM16: Final = frozenset({0xCA})
_FAR: Final = frozenset({0x9A, 0xEA})
# mod 0-2, 16-bit: (base, index) by r/m.
_BASES16: Final = (
    (x86.EBX, x86.ESI), (x86.EBX, x86.EDI), (x86.EBP, x86.ESI), (x86.EBP, x86.EDI),
    (x86.ESI, -1), (x86.EDI, -1), (x86.EBP, -1), (x86.EBX, -1),
)  # fmt: skip


class Insn:
    """One decoded instruction.

    opcode: one byte, or 0F00h + the second byte; modrm: its byte, or -1; reg, rm: the
    fields; memory: whether r/m is memory; size: operand size, 2 or 4; address_size: 2 or
    4; segment: of the memory operand (or of a string's source); base, index: register
    numbers or -1; scale: a shift; displacement, immediate: as encoded, not sign-extended
    unless they are addresses; rep: 0, F2h or F3h; lock: a LOCK prefix stands there.
    """

    __slots__ = (
        "address_size", "base", "displacement", "immediate", "index", "length", "lock",
        "memory", "modrm", "opcode", "override", "record", "reg", "rep", "rm", "scale",
        "segment", "selector", "size",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opcode = 0
        self.modrm = -1
        self.reg = self.rm = 0
        self.memory = False
        self.size = self.address_size = 4
        self.segment = x86.DS
        self.override = False
        self.base = self.index = -1
        self.scale = 0
        self.displacement = self.immediate = self.selector = 0
        self.rep = 0
        self.lock = False
        self.length = 0
        self.record: object = None


def _signed(value: int, size: int) -> int:
    sign = 1 << 8 * size - 1
    return (value ^ sign) - sign


def decode(code: bytes, *, wide: bool) -> Insn | None:
    """Decode the instruction at the start of `code` (15 bytes are enough).

    wide: CS.D, the default operand and address size is 32 bits. None: `code` is too short
    or the instruction longer than 15 bytes.
    """
    insn = Insn()
    insn.size = insn.address_size = 4 if wide else 2
    at = 0
    try:
        while True:
            byte = code[at]
            if byte in _SEGMENT_PREFIX:
                insn.segment = _SEGMENT_PREFIX[byte]
                insn.override = True
            elif byte == 0x66:  # noqa: PLR2004
                insn.size = 2 if wide else 4
            elif byte == 0x67:  # noqa: PLR2004
                insn.address_size = 2 if wide else 4
            elif byte in (0xF2, 0xF3):
                insn.rep = byte
            elif byte == 0xF0:  # noqa: PLR2004
                insn.lock = True
            else:
                break
            at += 1
        at += 1
        insn.opcode = byte
        modrm = byte in _MODRM
        if byte == 0x0F:  # noqa: PLR2004
            insn.opcode = 0x0F00 | code[at]
            modrm = code[at] not in _NO_MODRM
            at += 1
        if modrm:
            at = _modrm(insn, code, at)
        size = insn.size
        if byte in _IMM8:
            insn.immediate = code[at]
            at += 1
        elif byte in _IMM16:
            insn.immediate = code[at] | code[at + 1] << 8
            at += 2
        elif byte in _FAR:
            insn.immediate = int.from_bytes(code[at : at + size], "little")
            at += size
            insn.selector = code[at] | code[at + 1] << 8
            at += 2
    except IndexError:
        return None
    insn.length = at
    return insn if at <= _LONGEST else None


def _modrm(insn: Insn, code: bytes, at: int) -> int:
    """Decode ModRM, SIB and displacement at `code[at]`; return where they end."""
    modrm = insn.modrm = code[at]
    at += 1
    mod, insn.reg, insn.rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
    # MOV to and from CR and DR take any mod as 3 (SDM Vol. 2B).
    if mod == 3 or 0x0F20 <= insn.opcode <= 0x0F23:  # noqa: PLR2004
        return at
    insn.memory = True
    rm = insn.rm
    size = mod
    if insn.address_size == 2:  # noqa: PLR2004
        insn.base, insn.index = _BASES16[rm]
        if rm == 6 and mod == 0:  # noqa: PLR2004
            insn.base, size = -1, 2
    else:
        size = (0, 1, 4)[mod]
        if rm == x86.ESP:
            sib = code[at]
            at += 1
            insn.scale, index, rm = sib >> 6, sib >> 3 & 7, sib & 7
            insn.index = -1 if index == x86.ESP else index
        insn.base = rm
        if rm == x86.EBP and mod == 0:
            insn.base, size = -1, 4
    if insn.base in (x86.ESP, x86.EBP) and not insn.override:
        insn.segment = x86.SS
    if size:
        if at + size > len(code):
            raise IndexError
        insn.displacement = _signed(int.from_bytes(code[at : at + size], "little"), size)
    return at + size
