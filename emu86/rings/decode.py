"""Decode instructions: prefixes, opcode, ModRM, address, length.

Lengths are right for every instruction of 32- and 16-bit code, because a scan for what
must be patched has to step over all others; so are ModRM's operands and the immediate.
Source: SDM Vol. 2A chapter 2, Vol. 2D appendix A (opcode map).
"""

from typing import Final

from emu86.spec import x86
from emu86.spec.opcodes import (
    ADDRESS_SIZE,
    ESCAPE,
    ESCAPES3,
    LOCK,
    OPCODES,
    OPERAND_SIZE,
    PREFIXES,
    REPNE,
    SEGMENT_PREFIXES,
    TWO_BYTES,
    Group,
    Opcode,
)

# Bytes of immediate, by its letter in the opcode table; below 0: what decides.
_Z, _OFFSET, _FAR, _SSE4A, _BY_REG = range(-1, -6, -1)
_COUNTS: Final = {
    "": 0, "b": 1, "w": 2, "wb": 3, "z": _Z, "v": _Z, "o": _OFFSET, "p": _FAR,
    "bb": _SSE4A,
}  # fmt: skip


def _form(group: Group) -> tuple[str, int]:
    """Return what ModRM may name and the bytes of immediate, of all of a group."""
    counts = {_COUNTS[member.immediate] for member in group}
    return group[0].rm, counts.pop() if len(counts) == 1 else _BY_REG


_FORMS: Final = {opcode: _form(group) for opcode, group in OPCODES.items()}
_REGISTERS_ONLY: Final = frozenset(
    opcode for opcode, (rm, _) in _FORMS.items() if rm == "r"
)
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
    stands there; size_prefix: an operand-size prefix (66h) does; code: its bytes.
    """

    __slots__ = (
        "address_size", "base", "code", "displacement", "immediate", "index", "length",
        "lock", "memory", "modrm", "opcode", "override", "record", "reg", "rep", "rm",
        "scale", "segment", "selector", "size", "size_prefix",
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
        self.lock = self.size_prefix = False
        self.length = 0
        self.code = b""
        self.record: object = None

    @property
    def spec(self) -> Opcode:
        """What the opcode table says of it."""
        return OPCODES[self.opcode][self.reg]

    @property
    def modifies_memory(self) -> bool:
        """Whether it reads memory to write it: its fault is a write's (Vol. 3A 4.7)."""
        return self.memory and self.spec.memory == "rw"


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
    at = 1
    try:
        opcode = code[0]
        while opcode in PREFIXES:
            if opcode in SEGMENT_PREFIXES:
                insn.segment = SEGMENT_PREFIXES[opcode]
                insn.override = True
            elif opcode == OPERAND_SIZE:
                insn.size = other
                insn.size_prefix = True
            elif opcode == ADDRESS_SIZE:
                insn.address_size = other
            elif opcode == LOCK:
                insn.lock = True
            else:
                insn.rep = opcode
            opcode = code[at]
            at += 1
        if opcode == ESCAPE:
            opcode = TWO_BYTES | code[at]
            at += 2 if opcode in ESCAPES3 else 1
        insn.opcode = opcode
        modrm, count = _FORMS[opcode]
        if modrm:
            at = _modrm(insn, code, at)
        if count:
            kind = count
            if kind < 0:
                count = insn.size if kind == _Z else _count(insn, kind, size)
            end = at + count
            if end > len(code):
                return None
            insn.immediate = int.from_bytes(code[at:end], "little")
            at = end
            if kind == _FAR:
                insn.selector = insn.immediate >> 8 * insn.size
                insn.immediate &= (1 << 8 * insn.size) - 1
    except IndexError:
        return None
    insn.length = at
    insn.code = code[:at]
    return insn if at <= x86.LONGEST_INSN else None


def _count(insn: Insn, kind: int, size: int) -> int:
    """Return the bytes of an immediate of this kind; size: of operands by default."""
    if kind == _OFFSET:
        return insn.address_size
    if kind == _FAR:
        return insn.size + 2
    if kind == _SSE4A:
        return 2 if insn.rep == REPNE or insn.size != size else 0
    count = _COUNTS[OPCODES[insn.opcode][insn.reg].immediate]
    return insn.size if count == _Z else count


def _modrm(insn: Insn, code: bytes, at: int) -> int:
    """Decode ModRM, SIB and displacement at `code[at]`; return where they end."""
    modrm = insn.modrm = code[at]
    at += 1
    mod, insn.reg, insn.rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
    # MOV to and from CR and DR take any mod as 3 (SDM Vol. 2B).
    if mod == 3 or insn.opcode in _REGISTERS_ONLY:
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
