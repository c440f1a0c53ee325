"""The opcode table: what every opcode of x86 is like.

The decoder, the scanner, data breakpoints and the test strategies derive from it; no
fact about an encoding stands anywhere else. Source: SDM Vol. 2D appendix A (the opcode
map), and each instruction's own page in Vol. 2.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from emu86.spec import x86

# Prefixes: Vol. 2A section 2.1.1.
SEGMENT_PREFIXES: Final = {
    0x3E: x86.DS, 0x26: x86.ES, 0x2E: x86.CS, 0x36: x86.SS, 0x64: x86.FS, 0x65: x86.GS,
}  # fmt: skip
OPERAND_SIZE: Final = 0x66
ADDRESS_SIZE: Final = 0x67
LOCK: Final = 0xF0
REPNE: Final = 0xF2
REP: Final = 0xF3
PREFIXES: Final = frozenset(
    {*SEGMENT_PREFIXES, OPERAND_SIZE, ADDRESS_SIZE, LOCK, REPNE, REP}
)
# Of 64-bit code: 40h and W, R, X, B as bits 3 to 0; the last before the opcode counts
# (Vol. 2A section 2.2.1).
REX: Final = range(0x40, 0x50)
REX_W: Final = 8
# Prefixes of AVX and AVX-512 with the bytes that follow, up to the opcode (sections 2.3
# and 2.7): in 64-bit code always, in 32-bit code where mod would be 3.
VEX3, VEX2, EVEX = 0xC4, 0xC5, 0x62
VECTOR_PREFIXES: Final = {VEX3: 2, VEX2: 1, EVEX: 3}
# A second byte follows, and behind two of those a third.
ESCAPE: Final = 0x0F
ESCAPES3: Final = (0x0F38, 0x0F3A)
TWO_BYTES: Final = ESCAPE << 8


class Opcode(NamedTuple):
    """One opcode, or one member of a group: an opcode and ModRM.reg.

    rm: "" for no ModRM; else what it may name: "rm" a register or memory, "m" memory
    alone, "r" a register whatever its mod says.

    immediate: what follows, in the letters of appendix A: "b" a byte, "w" a word, "z" a
    word or doubleword by the operand size, "v" also a quadword, "o" an offset in the
    segment by the address size, "p" a far pointer by the operand size, "wb" both, "bb"
    two bytes, behind 66h or F2h alone.

    memory: what becomes of an operand in memory that ModRM or an "o" names: "r" read,
    "w" written, "rw" read to be written (its fault is a write's, Vol. 3A 4.7), "" left
    alone. sizes: its bytes by operand size, 16, 32 and 64 bits, where that is not what
    a plain operand has. bit_string: ModRM.reg's register is the number of a bit, in
    memory before or behind the address, too.

    aligned: mandatory prefixes (0: none) with which an operand in memory must be at a
    multiple of 16 bytes. mxcsr: from what byte of it on MXCSR is loaded, or -1.

    source: a string instruction that reads DS:eSI; target: what it does at ES:eDI.

    pushes, pops: operands on the stack. ENTER pushes more by its level, LEAVE pops at
    eBP; what the delivery of an event pushes does not count.

    flags: "kept" by what only moves data, "compared" by CMP and SUB, "computed" by
    another operation whose result alone tells ZF, SF and PF, or "other": it may keep,
    read, or write them in any other way.

    transfers: it may set EIP, and not by an event. ends_block: a translator ends its
    block behind it, in any mode: it transfers or stops, or may change EFLAGS, SS or
    what is mapped. lock: LOCK may stand before one of memory. modes: bits of the code
    segments that have it. operands64: where in 64-bit code operands are not of 32 bits
    without a prefix, the superscript of appendix A: "d64" of 64, or of 16 with 66h;
    "f64" of 64 always, "z" never of 64.
    """

    rm: Literal["", "rm", "m", "r"] = ""
    immediate: Literal["", "b", "w", "z", "v", "o", "p", "wb", "bb"] = ""
    memory: Literal["", "r", "w", "rw"] = "r"
    sizes: tuple[int, ...] = ()
    bit_string: bool = False
    aligned: tuple[int, ...] = ()
    mxcsr: int = -1
    source: bool = False
    target: Literal["", "r", "w"] = ""
    pushes: int = 0
    pops: int = 0
    flags: Literal["kept", "compared", "computed", "other"] = "other"
    transfers: bool = False
    ends_block: bool = False
    lock: bool = False
    modes: tuple[int, ...] = (16, 32, 64)
    operands64: Literal["", "d64", "f64", "z"] = ""

    @property
    def is_string(self) -> bool:
        """Whether it is a string instruction, of one element or repeated."""
        return self.source or bool(self.target)


Group = tuple[Opcode, ...]  # by ModRM.reg


def _group(others: Opcode, members: Mapping[tuple[int, ...], Opcode]) -> Group:
    """Return a group: some members by ModRM.reg, and the others."""
    found = [others] * 8
    for regs, member in members.items():
        for reg in regs:
            found[reg] = member
    return tuple(found)


def _each(bases: Iterable[int], *offsets: int) -> tuple[int, ...]:
    return tuple(base + offset for base in bases for offset in offsets)


_LEGACY: Final = (16, 32)  # modes
_FAR: Final = (4, 6, 10)  # sizes of a far pointer
_ADD_TO_XOR: Final = (0x00, 0x08, 0x10, 0x18, 0x20, 0x30)  # but for SUB
_SUB, _CMP = (0x28,), (0x38,)

_PLAIN: Final = Opcode()
_RM: Final = Opcode("rm")
_IMM8: Final = Opcode(immediate="b")
_STORE: Final = Opcode("rm", memory="w")
_UNTOUCHED: Final = Opcode("rm", memory="")
_MODIFY: Final = Opcode("rm", memory="rw")
_LOCKABLE: Final = _MODIFY._replace(lock=True)
_MOVE: Final = Opcode("rm", flags="kept")
_COMPUTE: Final = _LOCKABLE._replace(flags="computed")
_TEST: Final = Opcode("rm", flags="computed")
_PUSH_SREG: Final = Opcode(pushes=1, modes=_LEGACY)
_POP_SREG: Final = Opcode(pops=1, modes=_LEGACY)
_NOT_IN_64: Final = Opcode(modes=_LEGACY)
_ENDS: Final = Opcode(ends_block=True)
_JUMP: Final = Opcode(transfers=True, ends_block=True)
_NEAR: Final = _JUMP._replace(operands64="f64")
_JUMP8: Final = _NEAR._replace(immediate="b")
_JUMP_RM: Final = _NEAR._replace(rm="rm")
_STACK: Final = Opcode(operands64="d64")
_CONTROL: Final = Opcode("r", operands64="f64")
_JUMP_FAR: Final = _JUMP._replace(rm="m", sizes=_FAR)
_LOAD_FAR: Final = Opcode("m", sizes=_FAR)
_LES: Final = _LOAD_FAR._replace(modes=_LEGACY)
_BIT_STRING: Final = _LOCKABLE._replace(bit_string=True)
_MEMORY: Final = Opcode("m")
_ENVIRONMENT: Final = Opcode("rm", sizes=(14, 28, 28))
_FPU_STATE: Final = Opcode("rm", sizes=(94, 108, 108))
_FXSAVE: Final = Opcode("rm", sizes=(512, 512, 512), aligned=(0,))
# SSE and SSE2: of floats, and of integers in XMM registers.
_PACKED: Final = Opcode("rm", aligned=(0, OPERAND_SIZE))
_INTEGERS: Final = Opcode("rm", aligned=(OPERAND_SIZE,))
_INTEGERS_F2: Final = Opcode("rm", aligned=(OPERAND_SIZE, REPNE))


def _group1(one: Opcode) -> Group:
    """ADD to CMP of r/m and an immediate."""
    sub = one._replace(flags="compared")
    return _group(one, {(5,): sub, (7,): sub._replace(memory="r", lock=False)})


def _group3(immediate: Literal["b", "z"]) -> Group:
    """TEST, NOT, NEG, MUL to IDIV."""
    return _group(_RM, {(0, 1): _TEST._replace(immediate=immediate), (2, 3): _LOCKABLE})


ROWS: Final[tuple[tuple[Iterable[int], Opcode | Group], ...]] = (
    # ADD, OR, ADC, SBB, AND, XOR, then SUB, then CMP
    (_each(_ADD_TO_XOR, 0, 1), _COMPUTE),
    (_each(_ADD_TO_XOR, 2, 3), _TEST),
    (_each(_ADD_TO_XOR, 4), Opcode(immediate="b", flags="computed")),
    (_each(_ADD_TO_XOR, 5), Opcode(immediate="z", flags="computed")),
    (_each(_SUB, 0, 1), _LOCKABLE._replace(flags="compared")),
    ((*_each(_SUB, 2, 3), *_each(_CMP, 0, 1, 2, 3)), Opcode("rm", flags="compared")),
    (_each(_SUB + _CMP, 4), Opcode(immediate="b", flags="compared")),
    (_each(_SUB + _CMP, 5), Opcode(immediate="z", flags="compared")),
    ((0x06, 0x0E, 0x16, 0x1E), _PUSH_SREG),
    ((0x07, 0x1F), _POP_SREG),
    ((0x17,), _POP_SREG._replace(ends_block=True)),  # SS
    ((0x27, 0x2F, 0x37, 0x3F), _NOT_IN_64),  # DAA, DAS, AAA, AAS
    (range(0x40, 0x50), Opcode(flags="computed", modes=_LEGACY)),  # INC, DEC; or REX
    (range(0x50, 0x58), _STACK._replace(pushes=1, flags="kept")),
    (range(0x58, 0x60), _STACK._replace(pops=1, flags="kept")),
    ((0x60,), Opcode(pushes=8, modes=_LEGACY)),  # PUSHA
    ((0x61,), Opcode(pops=8, modes=_LEGACY)),  # POPA
    ((0x62,), Opcode("m", modes=_LEGACY)),  # BOUND
    ((0x63,), _STORE._replace(modes=_LEGACY)),  # ARPL: it reads, and may not write
    ((0x68,), _STACK._replace(immediate="z", pushes=1, flags="kept")),
    ((0x69,), Opcode("rm", "z")),  # IMUL
    ((0x6A,), _STACK._replace(immediate="b", pushes=1, flags="kept")),
    ((0x6B,), Opcode("rm", "b")),
    ((0x6C, 0x6D), Opcode(target="w", operands64="z")),  # INS
    ((0x6E, 0x6F), Opcode(source=True, operands64="z")),  # OUTS
    (range(0x70, 0x80), _JUMP8),  # Jcc
    ((0x80, 0x83), _group1(_COMPUTE._replace(immediate="b"))),
    ((0x81,), _group1(_COMPUTE._replace(immediate="z"))),
    ((0x82,), _group1(_COMPUTE._replace(immediate="b", modes=_LEGACY))),
    ((0x84, 0x85), _TEST),
    ((0x86, 0x87), _LOCKABLE._replace(flags="kept")),  # XCHG
    ((0x88, 0x89, 0x8C), _STORE._replace(flags="kept")),  # MOV, also from Sreg
    ((0x8A, 0x8B), _MOVE),
    ((0x8D,), Opcode("m", memory="", flags="kept")),  # LEA
    ((0x8E,), _group(_RM, {(2,): _RM._replace(ends_block=True)})),  # MOV to Sreg: SS
    ((0x8F,), _STORE._replace(pops=1, operands64="d64")),
    (range(0x90, 0x98), Opcode(flags="kept")),  # NOP, XCHG
    ((0x9A,), _JUMP._replace(immediate="p", pushes=2, modes=_LEGACY)),  # CALL far
    ((0x9C,), _STACK._replace(pushes=1)),  # PUSHF
    ((0x9D,), _STACK._replace(pops=1, ends_block=True)),  # POPF
    ((0xA0, 0xA1), Opcode(immediate="o", flags="kept")),  # MOV
    ((0xA2, 0xA3), Opcode(immediate="o", memory="w", flags="kept")),
    ((0xA4, 0xA5), Opcode(source=True, target="w")),  # MOVS
    ((0xA6, 0xA7), Opcode(source=True, target="r")),  # CMPS
    ((0xA8,), Opcode(immediate="b", flags="computed")),  # TEST
    ((0xA9,), Opcode(immediate="z", flags="computed")),
    ((0xAA, 0xAB), Opcode(target="w")),  # STOS
    ((0xAC, 0xAD), Opcode(source=True)),  # LODS
    ((0xAE, 0xAF), Opcode(target="r")),  # SCAS
    (range(0xB0, 0xB8), Opcode(immediate="b", flags="kept")),  # MOV
    (range(0xB8, 0xC0), Opcode(immediate="v", flags="kept")),
    ((0xC0, 0xC1), _MODIFY._replace(immediate="b")),  # rotates and shifts
    ((0xC2,), _NEAR._replace(immediate="w", pops=1)),  # RET
    ((0xC3,), _NEAR._replace(pops=1)),
    ((0xC4, 0xC5), _LES),  # and LDS
    ((0xC6,), Opcode("rm", "b", "w", flags="kept")),  # MOV
    ((0xC7,), Opcode("rm", "z", "w", flags="kept")),
    ((0xC8,), _STACK._replace(immediate="wb", pushes=1)),  # ENTER
    ((0xC9,), _STACK._replace(pops=1)),  # LEAVE
    ((0xCA,), _JUMP._replace(immediate="w", pops=2)),  # RET far
    ((0xCB,), _JUMP._replace(pops=2)),
    ((0xCC, 0xF1, 0xF4, 0xFB), _ENDS),  # INT3, INT1, HLT, STI
    ((0xCD,), _ENDS._replace(immediate="b")),  # INT n
    ((0xCE, 0xD6), _NOT_IN_64),  # INTO, SALC
    ((0xCF,), _JUMP._replace(pops=3)),  # IRET
    (range(0xD0, 0xD4), _MODIFY),
    ((0xD4, 0xD5), _IMM8._replace(modes=_LEGACY)),  # AAM, AAD
    # The FPU: FST and the like store, FLDENV, FRSTOR and theirs have much to move.
    ((0xD8, 0xDA, 0xDC, 0xDE), _RM),
    ((0xD9,), _group(_RM, {
        (2, 3, 7): _STORE,
        (4,): _ENVIRONMENT,
        (6,): _ENVIRONMENT._replace(memory="w"),
    })),
    ((0xDB,), _group(_RM, {(1, 2, 3, 7): _STORE})),
    ((0xDD,), _group(_RM, {
        (1, 2, 3, 7): _STORE,
        (4,): _FPU_STATE,
        (6,): _FPU_STATE._replace(memory="w"),
    })),
    ((0xDF,), _group(_RM, {(1, 2, 3, 6, 7): _STORE})),
    (range(0xE0, 0xE4), _JUMP8),  # LOOPNE, LOOPE, LOOP, JCXZ
    (range(0xE4, 0xE8), _IMM8._replace(operands64="z")),  # IN, OUT
    ((0xE8,), _NEAR._replace(immediate="z", pushes=1)),  # CALL
    ((0xE9,), _NEAR._replace(immediate="z")),
    ((0xEA,), _JUMP._replace(immediate="p", modes=_LEGACY)),  # JMP far
    ((0xEB,), _JUMP8),
    (range(0xEC, 0xF0), Opcode(operands64="z")),  # IN, OUT
    ((0xF6,), _group3("b")),
    ((0xF7,), _group3("z")),
    ((0xFE,), _group(_RM, {(0, 1): _COMPUTE})),  # INC, DEC
    ((0xFF,), _group(_RM, {
        (0, 1): _COMPUTE,  # INC, DEC
        (2,): _JUMP_RM._replace(pushes=1),  # CALL
        (3,): _JUMP_FAR._replace(pushes=2),  # CALL far
        (4,): _JUMP_RM,
        (5,): _JUMP_FAR,
        (6,): _STACK._replace(rm="rm", pushes=1),
    })),
    # SLDT, STR, LLDT, LTR, VERR, VERW
    ((0x0F00,), _group(_RM, {(0, 1): _STORE})),
    # SGDT, SIDT, LGDT, LIDT, SMSW, LMSW, INVLPG
    ((0x0F01,), _group(_MEMORY, {
        (0, 1): _MEMORY._replace(memory="w"),
        (4,): _STORE,
        (6,): _RM._replace(ends_block=True),
        (7,): _MEMORY._replace(memory="", ends_block=True),
    })),
    ((0x0F04, 0x0F08, 0x0F09, 0x0F0A, 0x0F0C, 0x0F0E), _PLAIN),  # INVD, WBINVD, FEMMS
    ((0x0F05, 0x0F07, 0x0F34, 0x0F35), _JUMP),  # SYSCALL, SYSRET, SYSENTER, SYSEXIT
    ((0x0F06, 0x0F0B), _ENDS),  # CLTS, UD2
    ((0x0F0D, *range(0x0F18, 0x0F1F)), _UNTOUCHED),  # prefetches
    ((0x0F0F,), Opcode("rm", "b")),  # 3DNow!
    ((0x0F11, 0x0F13, 0x0F17), _STORE),  # MOVUPS and the like
    ((0x0F12, 0x0F16), Opcode("rm", aligned=(REP,))),  # MOVSLDUP, MOVSHDUP
    ((0x0F14, 0x0F15, 0x0F28, *range(0x0F54, 0x0F5A)), _PACKED),  # UNPCK, MOVAPS, AND
    ((0x0F51, *range(0x0F5C, 0x0F60)), _PACKED),  # SQRT, SUB, MIN, DIV, MAX
    ((0x0F29, 0x0F2B), _PACKED._replace(memory="w")),  # MOVAPS, MOVNTPS
    ((0x0F52, 0x0F53), Opcode("rm", aligned=(0,))),  # RSQRTPS, RCPPS
    ((0x0F2C, 0x0F2D, 0x0F5A), _INTEGERS),  # CVTPD2PI, CVTPD2PS
    ((0x0F5B,), Opcode("rm", aligned=(0, OPERAND_SIZE, REP))),  # CVTDQ2PS
    ((*range(0x0F60, 0x0F6E), 0x0F6F, *range(0x0F74, 0x0F77)), _INTEGERS),
    ((*range(0x0FD1, 0x0FD6), *range(0x0FD8, 0x0FE6)), _INTEGERS),
    ((*range(0x0FE8, 0x0FF0), *range(0x0FF1, 0x0FF7)), _INTEGERS),
    (range(0x0FF8, 0x0FFF), _INTEGERS),
    ((0x0F7C, 0x0F7D, 0x0FD0, 0x0FE6), _INTEGERS_F2),  # HADD, ADDSUB, CVTPD2DQ
    ((0x0F1F,), _UNTOUCHED._replace(flags="kept")),  # NOP
    ((0x0F20, 0x0F21), _CONTROL),  # MOV from CR and DR
    ((0x0F22, 0x0F23), _CONTROL._replace(ends_block=True)),  # MOV to CR and DR
    ((*range(0x0F30, 0x0F34), 0x0F36, 0x0F37, 0x0F77), _PLAIN),  # MSRs, GETSEC, EMMS
    ((0x0F3A, *range(0x0F71, 0x0F74)), Opcode("rm", "b")),
    ((0x0F70,), Opcode("rm", "b", aligned=(OPERAND_SIZE, REPNE, REP))),  # PSHUFD
    ((0x0F78,), Opcode("rm", "bb")),  # SSE4a: EXTRQ, INSERTQ
    ((0x0F7E, 0x0FC3, 0x0FD6), _STORE),  # MOVD, MOVNTI, MOVQ
    ((0x0F7F, 0x0FE7), _INTEGERS._replace(memory="w")),  # MOVDQA, MOVNTDQ
    (range(0x0F80, 0x0F90), _NEAR._replace(immediate="z")),  # Jcc
    (range(0x0F90, 0x0FA0), _STORE),  # SETcc
    ((0x0FA0, 0x0FA8), _STACK._replace(pushes=1)),  # FS, GS
    ((0x0FA1, 0x0FA9), _STACK._replace(pops=1)),
    ((0x0FA2,), _PLAIN),  # CPUID
    ((0x0FAA,), _JUMP),  # RSM
    ((0x0FA3,), Opcode("rm", bit_string=True)),  # BT
    ((0x0FAB, 0x0FB3, 0x0FBB), _BIT_STRING),  # BTS, BTR, BTC
    ((0x0FA4, 0x0FAC), _MODIFY._replace(immediate="b")),  # SHLD, SHRD
    ((0x0FA5, 0x0FAD), _MODIFY),
    # FXSAVE, FXRSTOR, LDMXCSR, STMXCSR, XSAVE, fences and CLFLUSH
    ((0x0FAE,), _group(_RM, {
        (0,): _FXSAVE._replace(memory="w"),
        (1,): _FXSAVE._replace(mxcsr=24),
        (2,): _RM._replace(mxcsr=0),
        (3,): _STORE,
        (5, 6, 7): _UNTOUCHED,
    })),
    ((0x0FB0, 0x0FB1, 0x0FC0, 0x0FC1), _LOCKABLE),  # CMPXCHG, XADD
    ((0x0FB2,), _LOAD_FAR._replace(ends_block=True)),  # LSS
    ((0x0FB4, 0x0FB5), _LOAD_FAR),  # LFS, LGS
    ((0x0FB6, 0x0FB7, 0x0FBE, 0x0FBF), _MOVE),  # MOVZX, MOVSX
    # BT, BTS, BTR, BTC
    ((0x0FBA,), _group(Opcode("rm", "b"), {
        (5, 6, 7): _LOCKABLE._replace(immediate="b"),
    })),
    ((0x0FC4, 0x0FC5), Opcode("rm", "b")),  # PINSRW, PEXTRW
    ((0x0FC2, 0x0FC6), _PACKED._replace(immediate="b")),  # CMPPS, SHUFPS
    # CMPXCHG8B, and RDRAND and RDSEED
    ((0x0FC7,), _group(_RM, {(1,): _LOCKABLE._replace(rm="m"), (6, 7): _MEMORY})),
    (range(0x0FC8, 0x0FD0), _PLAIN),  # BSWAP
)  # fmt: skip


def _table() -> dict[int, Group]:
    plain: Group = (_PLAIN,) * 8
    found = dict.fromkeys(set(range(0x100)) - PREFIXES - {ESCAPE}, plain)
    found |= dict.fromkeys(range(TWO_BYTES, TWO_BYTES + 0x100), _group(_RM, {}))
    for opcodes, what in ROWS:
        members = _group(what, {}) if isinstance(what, Opcode) else what
        found |= dict.fromkeys(opcodes, members)
    return found


# By opcode (one byte, or 0F00h + the second) and ModRM.reg (0 where there is none).
# What has no row is plain: without ModRM if it is of one byte, with it if of two.
OPCODES: Final = _table()
# Of 64-bit code: there is MOVSXD; REX are prefixes; and what lacks it in its `modes` is
# #UD.
OPCODES64: Final = OPCODES | {0x63: _group(_MOVE, {})}
# Where ModRM.reg is none of the general or control registers: it selects a member of a
# group, or a segment register. There REX.R counts for nothing (Vol. 2A 2.2.1.2).
GROUPS: Final = frozenset({
    0x80, 0x81, 0x82, 0x83, 0x8C, 0x8E, 0x8F, 0xC0, 0xC1, 0xC6, 0xC7,
    *range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF, 0x0F00, 0x0F01,
    0x0F0D, 0x0F18, *range(0x0F71, 0x0F74), *range(0x0F90, 0x0FA0),
    0x0FAE, 0x0FBA, 0x0FC7,
})  # fmt: skip
