"""Hypothesis strategies: instructions by class, programs, states, tables.

All of them shrink: a program to fewer and plainer instructions, an instruction to one
without prefixes on a register, an address to the first of the stage's. Programs are
meant for the stage (`emu86.testing.stage`); what they hold is 32-bit code.

What the engine under emu86 is known to have wrong, and the prices that techniques are
documented to have, are left out of `programs`; see `docs/testing.md`.
"""

import struct
from collections.abc import Callable
from typing import Final

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32, mov, push
from emu86.testing.stage import State

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
_SEGMENT_PREFIXES: Final = (0x3E, 0x26, 0x2E, 0x36, 0x64, 0x65)
_PORTS: Final = (0x80, 0x21, 0x60, 0x3F8, 0xCF8, 0xFFFF)


def words() -> st.SearchStrategy[int]:
    """32-bit values, most of them ones that matter."""
    return st.one_of(
        st.sampled_from((0, 1, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF)),
        addresses(),
        selectors(),
        st.sampled_from(_FLAGS),
        st.integers(0, x86.MASK32),
    )


def addresses() -> st.SearchStrategy[int]:
    """Linear addresses on the stage, beside it, and where two pages meet."""
    return st.builds(
        lambda base, offset: (base + offset) & x86.MASK32,
        st.sampled_from(_ADDRESSES),
        st.sampled_from((0, 4, 8, 1, 2, -1, -2, -4)),
    )


def selectors() -> st.SearchStrategy[int]:
    """Selectors of the stage's descriptors, some beyond the tables."""
    return st.sampled_from(_SELECTORS)


def flags() -> st.SearchStrategy[int]:
    """EFLAGS images, 32 bits, without VM."""
    return st.one_of(
        st.sampled_from(_FLAGS), st.integers(0, 0x3FFFFF).map(lambda f: f & ~x86.VM)
    )


def descriptors() -> Code:
    """Descriptors of 8 bytes: valid ones, and any with a few bits wrong."""
    sound = st.builds(
        stage.descriptor,
        st.sampled_from((0, stage.DATA, 0xC0000000, 0xFFFFF000)),
        st.sampled_from((0xFFFFF, 0xFFFF, 0xFFF, 0)),
        st.integers(0, 0xFF),
        st.sampled_from((0xC, 0x4, 0x8, 0)),
    )
    return st.one_of(sound, st.binary(min_size=8, max_size=8))


def page_table_entries() -> st.SearchStrategy[int]:
    """Entries of page tables, 32 bits: pages of the stage with any rights, and rubbish.

    No reserved bit is set but by rubbish.
    """
    sound = st.builds(
        lambda page, rights: page << 12 | rights,
        st.sampled_from((stage.DATA >> 12, stage.CODE >> 12, 0x60, 0x9F, 0xA0, 0)),
        st.sampled_from((7, 3, 5, 1, 0, 6, 0x27, 0x67, 0x107)),
    )
    return st.one_of(sound, st.integers(0, x86.MASK32))


@st.composite
def states(draw: st.DrawFn, paging: bool | None = None) -> State:
    """Where a program may start; paging: on, off, or either."""
    cr4 = draw(st.sampled_from((0, 0x10, 0x90)))
    names = [name for name in x86.GPR_NAMES if name != "esp"]
    return State(
        ring=draw(st.sampled_from((0, 3))),
        paging=draw(st.booleans()) if paging is None else paging,
        flags=draw(st.sampled_from((0x2, 0x202, 0x3202, 0x102))),
        registers={name: draw(words()) for name in names},
        cr0=draw(st.sampled_from((0, x86.CR0_WP))),
        cr4=cr4,
        large=bool(cr4) and draw(st.booleans()),
        at=draw(st.sampled_from((stage.CODE, stage.CODE + 0xFF0))),
        skip=draw(st.sampled_from((1, 2, 3))),
    )


# -- encoding --------------------------------------------------------------------------


@st.composite
def operands(draw: st.DrawFn, reg: int, *, memory: bool | None = None) -> bytes:
    """ModRM, SIB and displacement for this reg field: every form of addressing.

    memory: memory only, a register only, or either.
    """
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


def prefixes() -> Code:
    """Operand size, address size, segment, and combinations; most often none."""
    segment = st.sampled_from(_SEGMENT_PREFIXES).map(lambda byte: bytes([byte]))
    return st.one_of(
        st.just(b""), st.just(b""), st.just(b"\x66"), segment,
        st.builds(lambda one, other: one + other, st.just(b"\x66"), segment),
    )  # fmt: skip


def _encoded(opcode: bytes, operand: Code, immediate: Code | None = None) -> Code:
    parts = [prefixes(), st.just(opcode), operand]
    if immediate is not None:
        parts.append(immediate)
    return st.tuples(*parts).map(b"".join)


def _imm32() -> Code:
    return words().map(i32)


def _imm8() -> Code:
    return st.integers(0, 0xFF).map(lambda byte: bytes([byte]))


def _with_reg(opcode: bytes, *, memory: bool | None = None) -> Code:
    """An instruction whose ModRM.reg is a register."""
    return st.integers(0, 7).flatmap(
        lambda reg: _encoded(opcode, operands(reg, memory=memory))
    )


# -- classes of instructions -----------------------------------------------------------


def moves() -> Code:
    """MOV in its forms, XCHG, LEA, MOVZX, MOVSX, PUSH, POP, PUSHA, ENTER, LEAVE."""
    opcodes = (b"\x89", b"\x8b", b"\x88", b"\x8a", b"\x87", b"\x0f\xb6")
    stack = (b"\x50", b"\x58", b"\x60", b"\x61", b"\xc9", b"\x54", b"\x5c")
    return st.one_of(
        st.just(b"\x90"),
        st.builds(mov, st.sampled_from((0, 1, 2, 3, 5, 6, 7)), words()),
        *map(_with_reg, opcodes),
        _with_reg(b"\x8d", memory=True),
        st.builds(push, words()),
        st.sampled_from(stack),
    )


def arithmetic() -> Code:
    """ADD to CMP, INC, DEC, NOT, NEG, MUL, shifts of registers, the flags."""
    opcodes = (b"\x01", b"\x03", b"\x29", b"\x31", b"\x39", b"\x85", b"\x21")
    return st.one_of(
        *map(_with_reg, opcodes),
        st.sampled_from((0, 1, 4, 5, 6, 7)).flatmap(
            lambda r: _encoded(b"\x83", operands(r), _imm8())
        ),
        st.sampled_from((0, 1)).flatmap(lambda r: _encoded(b"\xff", operands(r))),
        st.sampled_from((2, 3, 4)).flatmap(lambda r: _encoded(b"\xf7", operands(r))),
        st.sampled_from((0, 1, 4, 5, 7)).flatmap(
            lambda r: _encoded(b"\xd1", operands(r, memory=False))
        ),
        st.sampled_from((b"\xf9", b"\xf8", b"\xfc", b"\xfd")),
    )


def strings() -> Code:
    """MOVS, STOS, LODS, SCAS, CMPS, alone and repeated, over the ends of pages."""
    return st.builds(
        lambda source, target, count, rep, size, opcode: (
            mov(x86.ESI, source) + mov(x86.EDI, target) + mov(x86.ECX, count)
            + rep + size + bytes([opcode])
        ),
        addresses(), addresses(), st.sampled_from((1, 0, 3, 5)),
        st.sampled_from((b"", b"\xf3", b"\xf2")), st.sampled_from((b"", b"\x66")),
        st.sampled_from((0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0xA6, 0xA7)),
    )  # fmt: skip


def jumps() -> Code:
    """Short jumps, LOOP, JECXZ, near CALL and RET."""
    short = st.sampled_from((0xEB, 0x74, 0x75, 0x72, 0x7C, 0xE2, 0xE3))
    return st.one_of(
        st.builds(lambda op, to: bytes([op, to]), short, st.integers(0, 12)),
        st.just(b"\xe8\0\0\0\0"),
        st.just(b"\xc3"),
    )


def privileged() -> Code:
    """CLI, STI, HLT, MOV CR and DR, LGDT, LIDT, LLDT, LTR, LMSW, CLTS, INVLPG, INVD."""
    reg = st.integers(0, 7)
    table = st.builds(
        lambda op, limit, base, at: (
            b"\x66\xc7\x05" + i32(at) + struct.pack("<H", limit)
            + b"\xc7\x05" + i32(at + 2) + i32(base)
            + bytes([0x0F, 0x01, op << 3 | 5]) + i32(at)
        ),
        st.sampled_from((2, 3)), st.sampled_from((0xBF, 0x7FF, 0x7F, 0)),
        st.sampled_from((stage.GDT, stage.IDT, stage.LDT)), st.just(stage.DATA + 0x100),
    )  # fmt: skip
    cr0 = st.builds(
        lambda bit: b"\x0f\x20\xc0\x35" + i32(1 << bit) + b"\x0f\x22\xc0",
        st.sampled_from((1, 2, 3, 16, 18, 29, 30, 31)),
    )
    cr4 = st.builds(
        lambda value: mov(x86.EAX, value) + b"\x0f\x22\xe0",
        st.sampled_from((0x10, 0x90, 0, 0x4, 0x200, 0x800)),
    )
    return st.one_of(
        st.sampled_from((b"\xfa", b"\xfb", b"\x0f\x06", b"\x0f\x08", b"\x0f\x09")),
        st.just(b"\xfb\x90"), st.just(b"\xf4"),
        st.builds(lambda n, r: bytes([0x0F, 0x20, 0xC0 | n << 3 | r]),
                  st.sampled_from((0, 2, 3, 4)), reg),
        st.just(b"\x0f\x20\xd8\x0f\x22\xd8"),
        cr0, cr4, table,
        st.builds(lambda n, r: bytes([0x0F, 0x21, 0xC0 | n << 3 | r]),
                  st.sampled_from((0, 1, 3, 7)), reg),
        st.builds(lambda s, op: mov(x86.EAX, s) + bytes([0x0F, 0, 0xC0 | op << 3]),
                  selectors(), st.sampled_from((2, 3))),
        _encoded(b"\x0f\x01", operands(7, memory=True)),
        _encoded(b"\x0f\x01", operands(6)),
        st.sampled_from((0x17, 0x8B, 0, 0x1B, 0xC0000080)).map(
            lambda n: mov(x86.ECX, n) + b"\x0f\x32"
        ),
    )  # fmt: skip


def sensitive() -> Code:
    """POPF, PUSHF, SGDT, SIDT, SLDT, STR, SMSW, LAR, LSL, VERR, VERW, reads of Sreg."""
    reg = st.integers(0, 7)
    return st.one_of(
        st.builds(lambda f, size: push(f) + size + b"\x9d", flags(),
                  st.sampled_from((b"", b"\x66"))),
        st.sampled_from((b"\x9c", b"\x66\x9c")),
        st.sampled_from((0, 1)).flatmap(
            lambda op: _encoded(b"\x0f\x01", operands(op, memory=True))
        ),
        _encoded(b"\x0f\x01", operands(4)),
        st.sampled_from((0, 1)).flatmap(lambda op: _encoded(b"\x0f\x00", operands(op))),
        st.builds(lambda s, op: mov(x86.EAX, s) + bytes([0x0F, 0, 0xC0 | op << 3]),
                  selectors(), st.sampled_from((4, 5))),
        st.builds(lambda s, op, r: mov(x86.EAX, s) + bytes([0x0F, op, 0xC0 | r << 3]),
                  selectors(), st.sampled_from((2, 3)), reg),
        st.sampled_from((0, 1, 2, 3, 4, 5)).flatmap(
            lambda s: _encoded(b"\x8c", operands(s))
        ),
        st.sampled_from((b"\x06", b"\x0e", b"\x16", b"\x1e", b"\x0f\xa0", b"\x0f\xa8")),
    )  # fmt: skip


def segment_loads() -> Code:
    """MOV and POP of segment registers, LES, LDS, LSS, LFS, LGS."""
    pops = (b"\x07", b"\x1f", b"\x0f\xa1", b"\x0f\xa9", b"\x17")
    far = (b"\xc4", b"\xc5", b"\x0f\xb2", b"\x0f\xb4", b"\x0f\xb5")
    return st.one_of(
        st.builds(lambda s, i: mov(x86.EAX, s) + bytes([0x8E, 0xC0 | i << 3]),
                  selectors(), st.sampled_from((0, 3, 4, 5, 2))),
        st.builds(lambda s, pop: push(s) + pop, selectors(), st.sampled_from(pops)),
        st.builds(
            lambda s, offset, op, r, at: (
                b"\xc7\x05" + i32(at) + i32(offset)
                + b"\xc7\x05" + i32(at + 4) + i32(s)
                + op + bytes([r << 3 | 5]) + i32(at)
            ),
            selectors(), words(), st.sampled_from(far), st.sampled_from((0, 3, 6)),
            st.just(stage.DATA + 0x200),
        ),
    )  # fmt: skip


def transfers() -> Code:
    """JMP, CALL and RET far, IRET to both rings, INT n, INT3, INTO, UD2."""
    to = st.integers(0, 0x80).map(lambda offset: stage.CODE + offset)
    iret0 = st.builds(
        lambda f, cs, eip: push(f) + push(cs) + push(eip) + b"\xcf",
        flags(), st.one_of(st.just(stage.CODE0), st.just(stage.CODE3), selectors()), to,
    )  # fmt: skip
    iret3 = st.builds(
        lambda f, cs, eip: (
            push(stage.DATA3) + push(stage.STACK3) + push(f) + push(cs) + push(eip)
            + b"\xcf"
        ),
        flags(), st.just(stage.CODE3), to,
    )  # fmt: skip
    return st.one_of(
        st.sampled_from((3, 4, 0x80, 0x82, 0x20, 13, 14)).map(
            lambda vector: bytes([0xCD, vector])
        ),
        st.sampled_from((b"\xcc", b"\xce", b"\x0f\x0b")),
        st.builds(lambda op, eip, s: bytes([op]) + i32(eip) + struct.pack("<H", s),
                  st.sampled_from((0xEA, 0x9A)), to, selectors()),
        st.builds(lambda s, eip, op: push(s) + push(eip) + op, selectors(), to,
                  st.sampled_from((b"\xcb", b"\xca\x08\x00"))),
        iret0, iret3,
    )  # fmt: skip


def ports() -> Code:
    """IN, OUT, INS and OUTS of all widths, repeated too."""
    plain = st.builds(
        lambda port, op: mov(x86.EDX, port) + op,
        st.sampled_from(_PORTS),
        st.sampled_from((b"\xec", b"\xed", b"\x66\xed", b"\xee", b"\xef", b"\x66\xef")),
    )
    moved = st.builds(
        lambda port, at, rep, op: (
            mov(x86.EDX, port) + mov(x86.ESI, at) + mov(x86.EDI, at)
            + mov(x86.ECX, 3) + rep + op
        ),
        st.sampled_from(_PORTS), addresses(), st.sampled_from((b"", b"\xf3")),
        st.sampled_from((b"\x6c", b"\x6d", b"\x66\x6d", b"\x6e", b"\x6f", b"\x66\x6f")),
    )  # fmt: skip
    return st.one_of(plain, moved)


def rewriting() -> Code:
    """A byte of code written, by its own address, an alias, or over a page's end."""
    return st.builds(
        lambda offset, alias, byte: (
            b"\xc6\x05" + i32(stage.CODE + offset + alias) + bytes([byte])
        ),
        st.one_of(st.integers(0, 0x80), st.just(0xFFF)),
        st.sampled_from((0, stage.ALIAS, 0xC0000000)),
        st.sampled_from((0x90, 0xFA, 0x9D, 0xCC, 0xF4, 0x40)),
    )


def page_table_edits() -> Code:
    """An entry of a page table changed, and invalidated as the SDM asks."""
    places = (
        (stage.PT, stage.DATA >> 12), (stage.PT, 0x60), (stage.PT, 0x3F),
        (stage.PD, 1), (stage.PD, 3), (stage.PT, 0x9F),
    )  # fmt: skip

    def edit(place: tuple[int, int], entry: int, whole: bool) -> bytes:
        table, index = place
        linear = index << (22 if table == stage.PD else 12)
        change = b"\xc7\x05" + i32(table + 4 * index) + i32(entry)
        if whole or table == stage.PD:
            return change + b"\x0f\x20\xd8\x0f\x22\xd8"
        return change + b"\x0f\x01\x3d" + i32(linear)

    return st.builds(edit, st.sampled_from(places), page_table_entries(), st.booleans())


def descriptor_edits() -> Code:
    """A descriptor of the GDT or LDT rewritten, by its own address or an alias."""
    return st.builds(
        lambda table, index, entry, alias: b"".join(
            b"\xc7\x05" + i32(table + 8 * index + alias + i) + entry[i : i + 4]
            for i in (0, 4)
        ),
        st.sampled_from((stage.GDT, stage.LDT)),
        st.integers(13, 20),
        descriptors(),
        st.sampled_from((0, stage.ALIAS)),
    )


CLASSES: Final[dict[str, Callable[[], Code]]] = {
    function.__name__: function
    for function in (
        moves, arithmetic, strings, jumps, privileged, sensitive, segment_loads,
        transfers, ports, rewriting, page_table_edits, descriptor_edits,
    )
}  # fmt: skip


def instructions(*classes: str) -> Code:
    """One instruction (or the few that one needs) of these classes, or of any."""
    chosen = classes or tuple(CLASSES)
    return st.one_of(*(CLASSES[name]() for name in chosen))


def programs(*classes: str, most: int = 8) -> Code:
    """Programs of up to `most` instructions of these classes, or of any."""
    return st.lists(instructions(*classes), min_size=1, max_size=most).map(b"".join)
