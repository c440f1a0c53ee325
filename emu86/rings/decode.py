"""Decode instructions: prefixes, opcode, ModRM, address, length.

Lengths are right for every instruction of 32- and 16-bit code, because a scan for what
must be patched has to step over all others; so are ModRM's operands and the immediate.
Source: SDM Vol. 2A chapter 2, Vol. 2D appendix A (opcode map).
"""

from typing import Final

from emu86.spec import x86

_SEGMENT_PREFIX: Final = {
    0x26: x86.ES, 0x2E: x86.CS, 0x36: x86.SS, 0x3E: x86.DS, 0x64: x86.FS, 0x65: x86.GS,
}  # fmt: skip
_ESCAPE: Final = 0x0F
_ESCAPE_38: Final = 0x0F38
_ESCAPE_3A: Final = 0x0F3A
_TEST: Final = (0xF6, 0xF7)  # group 3: /0 and /1 have an immediate, the others none
_EXTRQ: Final = 0x0F78  # SSE4a, which the engine has: after 66h or F2h, 2 bytes
_ALU: Final = range(0, 0x40, 8)  # ADD to CMP: four with ModRM, then AL and eAX with imm
_MODRM: Final = frozenset(
    {base + i for base in _ALU for i in range(4)}
    | {0x62, 0x63, 0x69, 0x6B, *range(0x80, 0x90), 0xC0, 0xC1, *range(0xC4, 0xC8)}
    | {*range(0xD0, 0xD4), *range(0xD8, 0xE0), *_TEST, 0xFE, 0xFF}
)
# Two-byte opcodes without ModRM.
_NO_MODRM: Final = frozenset(
    {*range(0x04, 0x0D), 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90)}
    | {0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA, *range(0xC8, 0xD0)}
)
# Bytes of immediate; z stands for the operand size and a for the address size.
_Z: Final = -1
_A: Final = -2
_IMMEDIATE: Final = {
    **{base + 4: 1 for base in _ALU}, **{base + 5: _Z for base in _ALU},
    0x68: _Z, 0x69: _Z, 0x6A: 1, 0x6B: 1, **dict.fromkeys(range(0x70, 0x80), 1),
    0x80: 1, 0x81: _Z, 0x82: 1, 0x83: 1, **dict.fromkeys(range(0xA0, 0xA4), _A),
    0xA8: 1, 0xA9: _Z, **dict.fromkeys(range(0xB0, 0xB8), 1),
    **dict.fromkeys(range(0xB8, 0xC0), _Z), 0xC0: 1, 0xC1: 1, 0xC2: 2, 0xC6: 1,
    0xC7: _Z, 0xC8: 3, 0xCA: 2, 0xCD: 1, 0xD4: 1, 0xD5: 1,
    **dict.fromkeys(range(0xE0, 0xE8), 1), 0xE8: _Z, 0xE9: _Z, 0xEB: 1,
    0x0F0F: 1, **dict.fromkeys(range(0x0F70, 0x0F74), 1), 0x0FA4: 1, 0x0FAC: 1,
    **dict.fromkeys(range(0x0F80, 0x0F90), _Z), 0x0FBA: 1, 0x0FC2: 1, 0x0FC4: 1,
    0x0FC5: 1, 0x0FC6: 1, _ESCAPE_3A: 1,
}  # fmt: skip
_FAR: Final = frozenset({0x9A, 0xEA})
# mod 0-2, 16-bit: (base, index) by r/m.
_BASES16: Final = (
    (x86.EBX, x86.ESI), (x86.EBX, x86.EDI), (x86.EBP, x86.ESI), (x86.EBP, x86.EDI),
    (x86.ESI, -1), (x86.EDI, -1), (x86.EBP, -1), (x86.EBX, -1),
)  # fmt: skip


class Insn:
    """One decoded instruction.

    opcode: one byte, or 0F00h + the second byte; modrm: its byte, or -1; reg, rm: the
    fields; memory: whether r/m is memory; size: operand size, 2 or 4; address_size: 2
    or 4; segment: of the memory operand (or of a string's source); base, index:
    register numbers or -1; scale: a shift; displacement, immediate: as encoded, not
    sign-extended unless they are addresses; rep: 0, F2h or F3h; lock: a LOCK prefix
    stands there.
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


def decode(code: bytes, bits: int) -> Insn | None:
    """Decode the instruction at the start of `code` (15 bytes are enough).

    bits: 16 or 32, the default operand and address size. None: `code` is too
    short or the instruction longer than 15 bytes.
    """
    insn = Insn()
    size, other = (4, 2) if bits == 32 else (2, 4)
    insn.size = insn.address_size = size
    at = 0
    try:
        while True:
            byte = code[at]
            if byte in _SEGMENT_PREFIX:
                insn.segment = _SEGMENT_PREFIX[byte]
                insn.override = True
            elif byte == 0x66:
                insn.size = other
            elif byte == 0x67:
                insn.address_size = other
            elif byte in (0xF2, 0xF3):
                insn.rep = byte
            elif byte == 0xF0:
                insn.lock = True
            else:
                break
            at += 1
        at += 1
        opcode = byte
        modrm = byte in _MODRM
        if byte == _ESCAPE:
            opcode = 0x0F00 | code[at]
            modrm = code[at] not in _NO_MODRM
            at += 1
            if opcode in (_ESCAPE_38, _ESCAPE_3A):
                at += 1
        insn.opcode = opcode
        if modrm:
            at = _modrm(insn, code, at)
        count = _IMMEDIATE.get(opcode, 0)
        if count < 0:
            count = insn.size if count == _Z else insn.address_size
        elif opcode in _TEST and insn.reg < 2:
            count = insn.size if opcode & 1 else 1
        elif opcode == _EXTRQ and (insn.rep == 0xF2 or insn.size != size):
            count = 2
        if opcode in _FAR:
            count = insn.size
            insn.selector = code[at + count] | code[at + count + 1] << 8
            insn.immediate = int.from_bytes(code[at : at + count], "little")
            count += 2
        elif count:
            if at + count > len(code):
                return None
            insn.immediate = int.from_bytes(code[at : at + count], "little")
        at += count
    except IndexError:
        return None
    insn.length = at
    return insn if at <= x86.LONGEST_INSN else None


def _modrm(insn: Insn, code: bytes, at: int) -> int:
    """Decode ModRM, SIB and displacement at `code[at]`; return where they end."""
    modrm = insn.modrm = code[at]
    at += 1
    mod, insn.reg, insn.rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
    # MOV to and from CR and DR take any mod as 3 (SDM Vol. 2B).
    if mod == 3 or 0x0F20 <= insn.opcode <= 0x0F23:
        return at
    insn.memory = True
    rm = insn.rm
    size = mod
    if insn.address_size == 2:
        insn.base, insn.index = _BASES16[rm]
        if rm == 6 and mod == 0:
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
        insn.displacement = _signed(
            int.from_bytes(code[at : at + size], "little"), size
        )
    return at + size
