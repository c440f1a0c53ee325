"""Decode instructions: prefixes, opcode, ModRM, address, length.

Lengths are right for every instruction of 64-, 32- and 16-bit code, because a scan for
what must be patched has to step over all others; so are ModRM's operands and the
immediate. Source: SDM Vol. 2A chapter 2, Vol. 2D appendix A (opcode map).
"""

from typing import Final

from emu86.spec import x86
from emu86.spec.opcodes import (
    ADDRESS_SIZE,
    ESCAPE,
    ESCAPES3,
    EVEX,
    GROUPS,
    LOCK,
    OPCODES,
    OPCODES64,
    OPERAND_SIZE,
    PREFIXES,
    REPNE,
    REX_W,
    SEGMENT_PREFIXES,
    TWO_BYTES,
    VECTOR_PREFIXES,
    VEX2,
    Group,
    Opcode,
)

# Bytes of immediate, by its letter in the opcode table; below 0: what decides.
_Z, _V, _OFFSET, _FAR, _SSE4A, _BY_REG = range(-1, -7, -1)
_COUNTS: Final = {
    "": 0, "b": 1, "w": 2, "wb": 3, "z": _Z, "v": _V, "o": _OFFSET, "p": _FAR,
    "bb": _SSE4A,
}  # fmt: skip


def _form(group: Group) -> tuple[str, int, Group]:
    """Return what ModRM may name and the bytes of immediate, of all of a group; it."""
    counts = {_COUNTS[member.immediate] for member in group}
    return group[0].rm, counts.pop() if len(counts) == 1 else _BY_REG, group


_FORMS: Final = {opcode: _form(group) for opcode, group in OPCODES.items()}
_FORMS64: Final = {opcode: _form(group) for opcode, group in OPCODES64.items()}
_REGISTERS_ONLY: Final = frozenset(
    opcode for opcode, (rm, _, _) in _FORMS.items() if rm == "r"
)
# By bits: operand and address size, and those with 66h and 67h.
_SIZES: Final = {16: (2, 2, 4, 4), 32: (4, 4, 2, 2), 64: (4, 8, 2, 4)}
_REX: Final = 4  # the upper half of the prefix
_REX_R, _REX_X, _REX_B = 4, 2, 1
# mod 0-2, 16-bit: (base, index) by r/m.
_BASES16: Final = (
    (x86.EBX, x86.ESI), (x86.EBX, x86.EDI), (x86.EBP, x86.ESI), (x86.EBP, x86.EDI),
    (x86.ESI, -1), (x86.EDI, -1), (x86.EBP, -1), (x86.EBX, -1),
)  # fmt: skip


class Insn:
    """One decoded instruction.

    opcode: one byte, or 0F00h + the second; modrm: its byte, or -1; reg, rm: the
    fields, with REX 0 to 15; memory: whether r/m is memory; size: operand size, 2, 4
    or 8; address_size: 2, 4 or 8; segment: of the memory operand (or of a string's
    source), in 64-bit code DS unless it is FS, GS or SS; base, index: register numbers
    or -1, and `x86.RIP` as a base; scale: a shift; displacement: what is added, from
    the instruction's own address if the base is RIP; immediate: as encoded, not
    sign-extended; rep: 0, F2h or F3h; lock: a LOCK prefix stands there; size_prefix: an
    operand-size prefix (66h) does; rex: the REX prefix that counts, or 0; spec: what
    the opcode table says; code: its bytes.

    code64: it stands in 64-bit code. invalid: that does not have it (#UD). That is so
    of AVX and AVX-512, too: to no CPU model is VEX or EVEX anything else than the
    opcode C4h, C5h or 62h. Of theirs the length alone is right.
    """

    __slots__ = (
        "address_size", "base", "code", "code64", "displacement", "immediate", "index",
        "invalid", "length",
        "lock", "memory", "modrm", "opcode", "override", "record", "reg", "rep", "rex",
        "rm", "scale", "segment", "selector", "size", "size_prefix", "spec",
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
        self.rep = self.rex = 0
        self.lock = self.size_prefix = self.code64 = self.invalid = False
        self.length = 0
        self.code = b""
        self.record: object = None
        self.spec: Opcode = OPCODES[0][0]

    @property
    def modifies_memory(self) -> bool:
        """Whether it reads memory to write it: its fault is a write's (Vol. 3A 4.7)."""
        return self.memory and self.spec.memory == "rw"


def _signed(value: int, size: int) -> int:
    sign = 1 << 8 * size - 1
    return (value ^ sign) - sign


def decode(code: bytes, bits: int) -> Insn | None:
    """Decode the instruction at the start of `code` (15 bytes are enough).

    bits: of the code segment, 16, 32 or 64. None: `code` is too short or the
    instruction longer than 15 bytes.
    """
    insn = Insn()
    long = bits == 64
    size, insn.address_size, other_size, other_address = _SIZES[bits]
    insn.size = size
    rex = 0
    at = 1
    try:
        opcode = code[0]
        while True:
            while opcode in PREFIXES:
                rex = 0  # that one was not the last
                if opcode in SEGMENT_PREFIXES:
                    segment = SEGMENT_PREFIXES[opcode]
                    if not long or segment >= x86.FS:
                        insn.segment = segment
                        insn.override = True
                elif opcode == OPERAND_SIZE:
                    insn.size = other_size
                    insn.size_prefix = True
                elif opcode == ADDRESS_SIZE:
                    insn.address_size = other_address
                elif opcode == LOCK:
                    insn.lock = True
                else:
                    insn.rep = opcode
                opcode = code[at]
                at += 1
            if opcode >> 4 != _REX or not long:
                break
            rex = opcode
            opcode = code[at]
            at += 1
        if opcode == ESCAPE:
            opcode = TWO_BYTES | code[at]
            at += 2 if opcode in ESCAPES3 else 1
        insn.opcode = opcode
        if long:
            insn.code64 = True
            insn.rex = rex
            if rex & REX_W:
                insn.size = 8
            if opcode in VECTOR_PREFIXES:
                insn.invalid = True
                return _finish(insn, code, _vector(insn, code, at))
            modrm, count, group = _FORMS64[opcode]
        else:
            modrm, count, group = _FORMS[opcode]
        if modrm:
            at = _modrm(insn, code, at, long=long)
            spec = group[insn.reg & 7]
        else:
            spec = group[0]
        insn.spec = spec
        if long:
            insn.invalid = 64 not in spec.modes
            if spec.operands64:
                insn.size = _size64(spec.operands64, insn.size)
        if count:
            if count < 0:
                count = _count(insn, count)
            end = at + count
            if end > len(code):
                return None
            insn.immediate = int.from_bytes(code[at:end], "little")
            at = end
            if spec.immediate == "p":
                insn.selector = insn.immediate >> 8 * insn.size
                insn.immediate &= (1 << 8 * insn.size) - 1
    except IndexError:
        return None
    return _finish(insn, code, at)


def _finish(insn: Insn, code: bytes, length: int) -> Insn | None:
    if length > x86.LONGEST_INSN:
        return None
    if insn.base == x86.RIP:
        insn.displacement += length
    insn.length = length
    insn.code = code[:length]
    return insn


def _size64(kind: str, size: int) -> int:
    """Return the operand size in 64-bit code where `operands64` says `kind`."""
    if kind == "z":
        return min(size, 4)
    return 8 if kind == "f64" or size == 4 else size


def _count(insn: Insn, kind: int) -> int:
    """Return the bytes of an immediate of this kind."""
    if kind == _Z:
        return min(insn.size, 4)
    if kind == _V:
        return insn.size
    if kind == _OFFSET:
        return insn.address_size
    if kind == _FAR:
        return insn.size + 2
    if kind == _SSE4A:
        return 2 if insn.rep == REPNE or insn.size_prefix else 0
    count = _COUNTS[insn.spec.immediate]
    return min(insn.size, 4) if count == _Z else count


def _modrm(insn: Insn, code: bytes, at: int, *, long: bool) -> int:
    """Decode ModRM, SIB and displacement at `code[at]`; return where they end."""
    modrm = insn.modrm = code[at]
    at += 1
    mod, insn.reg, insn.rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
    rex = insn.rex
    if rex & _REX_R and insn.opcode not in GROUPS:
        insn.reg |= 8
    # MOV to and from CR and DR take any mod as 3 (SDM Vol. 2B).
    if mod == 3 or insn.opcode in _REGISTERS_ONLY:
        insn.rm |= (rex & _REX_B) << 3
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
        no_base = -1
        if rm == x86.ESP:
            sib = code[at]
            at += 1
            insn.scale, index, rm = sib >> 6, sib >> 3 & 7, sib & 7
            index |= (rex & _REX_X) << 2
            insn.index = -1 if index == x86.ESP else index
        elif long:
            no_base = x86.RIP
        insn.base = rm | (rex & _REX_B) << 3
        if rm == x86.EBP and mod == 0:
            insn.base, size = no_base, 4
    if insn.base in (x86.ESP, x86.EBP) and not insn.override:
        insn.segment = x86.SS
    if size:
        if at + size > len(code):
            raise IndexError
        insn.displacement = _signed(
            int.from_bytes(code[at : at + size], "little"), size
        )
    return at + size


def _vector(insn: Insn, code: bytes, at: int) -> int:
    """Return where an instruction of AVX or AVX-512 ends; `at` is behind its prefix.

    Source: SDM Vol. 2A sections 2.3 and 2.7; the immediate goes by the opcode map.
    """
    prefix = insn.opcode
    opcode_at = at + VECTOR_PREFIXES[prefix]
    opcode = code[opcode_at]
    map_ = 1 if prefix == VEX2 else code[at] & (7 if prefix == EVEX else 0x1F)
    at = opcode_at + 1
    count = 0
    if map_ == 1:
        rm, count, _ = _FORMS[TWO_BYTES | opcode]
        if not rm:  # VZEROUPPER
            return at
        count = max(count, 0)
    elif map_ == 3:
        count = 1
    operand = Insn()
    operand.address_size = insn.address_size
    end = _modrm(operand, code, at, long=True) + count
    if end > len(code):
        raise IndexError
    return end
