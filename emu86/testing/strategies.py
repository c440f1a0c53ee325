"""Hypothesis strategies: instructions by class, programs, states, tables.

All of them shrink: a program to fewer and plainer instructions, an instruction to one
without prefixes on a register, an address to the first of the stage's. Programs are
32-bit code for the stage (`emu86.testing.stage`). `programs` leaves out what the engine
under emu86 is known to have wrong, and the documented costs of the techniques: see
`docs/testing.md`.
"""

import struct
from collections.abc import Callable
from typing import Final

from hypothesis import strategies as st

from emu86.errors import unknown
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.accesses import Access, AccessPattern, access_patterns, accesses
from emu86.testing.encode import i32, mov, push
from emu86.testing.operands import (
    Code,
    addresses,
    encoded,
    flags,
    imm8,
    operands,
    operands16,
    prefixes,
    selectors,
    with_reg,
    words,
)
from emu86.testing.prefixed import (
    locked,
    locked_natively,
    locked_wrongly,
    long,
    repeated,
)
from emu86.testing.stage import State
from emu86.testing.tables import (
    descriptor_tables,
    descriptors,
    gates,
    page_table_entries,
    page_tables,
    without_reserved,
)

__all__ = [
    "CLASSES", "Access", "AccessPattern", "Code", "access_patterns", "accesses",
    "addresses", "arithmetic", "conditionals", "descriptor_edits", "descriptor_tables",
    "descriptors", "encoded", "flags", "gates", "instructions", "interrupts", "jumps",
    "locked",
    "locked_natively", "locked_wrongly", "long", "moves", "operands", "operands16",
    "page_table_edits", "page_table_entries", "page_tables", "ports", "prefixes",
    "privileged", "programs", "repeated", "rewriting", "segment_loads", "selectors",
    "sensitive", "states", "strings", "timed", "transfers", "words",
]  # fmt: skip

_PORTS: Final = (0x80, 0x21, 0x60, 0x3F8, 0xCF8, 0xFFFF)


def interrupts() -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """Up to four interrupts for `State.interrupts`, some with a fault's vector."""
    vectors = (0x21, 0x30, 0x80, 0x81, 0x82, 8, 13, 14, 0xFF)
    one = st.tuples(st.integers(0, 40), st.sampled_from(vectors))
    return st.lists(one, max_size=4).map(tuple)


@st.composite
def states(
    draw: st.DrawFn,
    paging: bool | None = None,
    rings: tuple[int, ...] = (0, 3),
    patches: st.SearchStrategy[tuple[tuple[int, bytes], ...]] | None = None,
    *,
    virtual_8086: bool = False,
    clocked: bool = False,
) -> State:
    """Where a program may start.

    paging: on, off, or either; rings: 0 to 3; patches: tables for `State.patches`, such
    as `descriptor_tables("hostile")`; virtual_8086: start in that mode, with any IOPL,
    whatever the ring; clocked: each instruction takes a fixed time, and interrupts
    come.
    """
    cr4 = draw(st.sampled_from((0, 0x10, 0x90)))
    names = [name for name in x86.GPR_NAMES if name != "esp"]
    eflags = draw(st.sampled_from((0x2, 0x202, 0x3202, 0x102)))
    at = draw(st.sampled_from((stage.CODE, stage.CODE + 0xFF0)))
    return State(
        ring=draw(st.sampled_from(rings)),
        paging=draw(st.booleans()) if paging is None else paging,
        flags=eflags | x86.VM if virtual_8086 else eflags,
        registers={name: draw(words()) for name in names},
        cr0=draw(st.sampled_from((0, x86.CR0_WP))),
        cr4=cr4,
        large=bool(cr4) and draw(st.booleans()),
        at=at,
        skip=draw(st.sampled_from((1, 2, 3))),
        interrupts=draw(interrupts()) if clocked else None,
        patches=() if patches is None else draw(patches),
    )


# -- classes of instructions -----------------------------------------------------------


def moves() -> Code:
    """MOV in its forms, XCHG, LEA, MOVZX, MOVSX, PUSH, POP, PUSHA, ENTER, LEAVE."""
    opcodes = (b"\x89", b"\x8b", b"\x88", b"\x8a", b"\x87", b"\x0f\xb6")
    stack = (b"\x50", b"\x58", b"\x60", b"\x61", b"\xc9", b"\x54", b"\x5c")
    return st.one_of(
        st.just(b"\x90"),
        st.builds(mov, st.sampled_from((0, 1, 2, 3, 5, 6, 7)), words()),
        *map(with_reg, opcodes),
        with_reg(b"\x8d", memory=True),
        st.builds(push, words()),
        st.sampled_from(stack),
    )


def arithmetic() -> Code:
    """ADD to CMP, INC, DEC, NOT, NEG, MUL, shifts of registers, the flags."""
    opcodes = (b"\x01", b"\x03", b"\x29", b"\x31", b"\x39", b"\x85", b"\x21")
    return st.one_of(
        *map(with_reg, opcodes),
        st.sampled_from((0, 1, 4, 5, 6, 7)).flatmap(
            lambda r: encoded(b"\x83", r, imm8())
        ),
        st.sampled_from((0, 1)).flatmap(lambda r: encoded(b"\xff", r)),
        st.sampled_from((2, 3, 4)).flatmap(lambda r: encoded(b"\xf7", r)),
        st.sampled_from((0, 1, 4, 5, 7)).flatmap(
            lambda r: encoded(b"\xd1", r, memory=False)
        ),
        st.sampled_from((b"\xf9", b"\xf8", b"\xfc", b"\xfd")),
    )


def conditionals() -> Code:
    """SETcc and CMOVcc of registers and memory, after what sets flags."""
    condition = st.integers(0, 15)
    before = st.sampled_from((b"", b"\xf9", b"\x39\xc8", b"\x31\xc0", b"\x40"))
    setcc = st.builds(
        lambda flags, kept, setting: flags + kept + setting,
        before, st.sampled_from((b"", b"\x90", b"\x89\xc3")),
        condition.flatmap(lambda c: encoded(bytes([0x0F, 0x90 | c]), 0, memory=True)),
    )  # fmt: skip
    others = st.one_of(
        condition.flatmap(lambda c: encoded(bytes([0x0F, 0x90 | c]), 0, memory=False)),
        condition.flatmap(lambda c: with_reg(bytes([0x0F, 0x40 | c]))),
    )
    return st.one_of(st.builds(lambda one, other: one + other, before, others), setcc)


def strings() -> Code:
    """MOVS, STOS, LODS, SCAS, CMPS, alone and repeated, over the ends of pages.

    Both ways, with any segment, operand and address size.
    """
    prefixes = (b"", b"\x66", b"\x67", b"\x2e", b"\x64", b"\x36\x66")
    return st.builds(
        lambda source, target, count, rep, prefix, way, opcode: (
            mov(x86.ESI, source) + mov(x86.EDI, target) + mov(x86.ECX, count)
            + way + rep + prefix + bytes([opcode])
        ),
        addresses(), addresses(), st.sampled_from((1, 0, 3, 5)),
        st.sampled_from((b"", b"\xf3", b"\xf2")), st.sampled_from(prefixes),
        st.sampled_from((b"", b"", b"\xfd", b"\xfc")),
        st.sampled_from((0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0xA6, 0xA7)),
    )  # fmt: skip


def jumps() -> Code:
    """Jumps, short, near and by register or memory, LOOP, near CALL and RET."""
    short = st.sampled_from((0xEB, *range(0x70, 0x80), *range(0xE0, 0xE4)))
    size = st.sampled_from((b"", b"", b"\x66", b"\x67"))
    near = st.sampled_from(
        (b"\xe8", b"\xe9", *(bytes([15, 0x80 | c]) for c in range(16)))
    )
    to = st.integers(0, 12)
    registers = st.sampled_from((b"\xff\xd3", b"\xff\xe3", b"\x66\xff\xe3"))
    memory = st.sampled_from((b"\xff\x15", b"\xff\x25"))
    return st.one_of(
        st.builds(lambda prefix, op, to: prefix + bytes([op, to]), size, short, to),
        st.builds(lambda op, to: op + i32(to), near, to),
        st.builds(lambda to, op: mov(x86.EBX, stage.CODE + to) + op, to, registers),
        st.builds(
            lambda to, op: (
                b"\xc7\x05" + i32(stage.DATA) + i32(stage.CODE + to)
                + op + i32(stage.DATA)
            ),
            to, memory,
        ),
        st.just(b"\xe8\0\0\0\0"),
        st.sampled_from((b"\xc3", b"\xc2\4\0", b"\x66\xc3")),
    )  # fmt: skip


def privileged() -> Code:
    """CLI, STI, HLT, MOV CR and DR, LGDT, LIDT, LLDT, LTR, LMSW, CLTS, INVLPG, INVD.

    RDMSR, WRMSR and RDPMC, too.
    """
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
        encoded(b"\x0f\x01", 7, memory=True),
        encoded(b"\x0f\x01", 6),
        st.builds(lambda n, r: bytes([0x0F, 0x23, 0xC0 | n << 3 | r]),
                  st.sampled_from((0, 1, 2, 3, 4, 6)), reg),
        st.builds(lambda r: bytes([0x0F, 0x22, 0xD0 | r]), reg),
        st.builds(
            lambda n, op: mov(x86.ECX, n) + op,
            st.sampled_from((0x17, 0x8B, 0, 0x1B, 0x174, 0x277, 0xC0000080)),
            st.sampled_from((b"\x0f\x32", b"\x0f\x30", b"\x0f\x33")),
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
            lambda op: encoded(b"\x0f\x01", op, memory=True)
        ),
        encoded(b"\x0f\x01", 4),
        st.sampled_from((0, 1)).flatmap(lambda op: encoded(b"\x0f\x00", op)),
        st.builds(lambda s, op: mov(x86.EAX, s) + bytes([0x0F, 0, 0xC0 | op << 3]),
                  selectors(), st.sampled_from((4, 5))),
        st.builds(lambda s, op, r: mov(x86.EAX, s) + bytes([0x0F, op, 0xC0 | r << 3]),
                  selectors(), st.sampled_from((2, 3)), reg),
        st.sampled_from((0, 1, 2, 3, 4, 5)).flatmap(
            lambda s: encoded(b"\x8c", s)
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
        st.sampled_from(pops).map(lambda pop: b"\x66" + pop),
        st.sampled_from((0, 3, 4, 5)).flatmap(lambda s: encoded(b"\x8e", s)),
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
        st.sampled_from((b"\xcc", b"\xce", b"\x0f\x0b", b"\xf1")),
        st.builds(
            lambda eip, s, op: (
                b"\xc7\x05" + i32(stage.DATA) + i32(eip)
                + b"\xc7\x05" + i32(stage.DATA + 4) + i32(s) + op + i32(stage.DATA)
            ),
            to, selectors(), st.sampled_from((b"\xff\x1d", b"\xff\x2d")),
        ),
        st.builds(
            lambda values, op: b"".join(b"\x66\x68" + v for v in values) + op,
            st.tuples(
                st.just(b"\2\0"),
                selectors().map(lambda s: struct.pack("<H", s)),
                st.integers(0, 0xFFFF).map(lambda ip: struct.pack("<H", ip)),
            ),
            st.sampled_from((b"\x66\xcb", b"\x66\xcf")),
        ),
        st.builds(lambda op, eip, s: bytes([op]) + i32(eip) + struct.pack("<H", s),
                  st.sampled_from((0xEA, 0x9A)), to, selectors()),
        st.builds(lambda s, eip, op: push(s) + push(eip) + op, selectors(), to,
                  st.sampled_from((b"\xcb", b"\xca\x08\x00"))),
        iret0, iret3,
    )  # fmt: skip


def ports() -> Code:
    """IN, OUT, INS and OUTS of all widths, repeated too, and by an immediate port."""
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
    immediate = st.builds(
        lambda op, port: bytes([op, port]), st.integers(0xE4, 0xE7), st.integers(0, 255)
    )
    return st.one_of(plain, moved, immediate)


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
        entry = without_reserved(entry) if table == stage.PD else entry
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


def timed() -> Code:
    """Instructions that read the time or let interrupts in: for a State with a clock.

    RDTSC, the TSC by RDMSR and WRMSR, STI, CLI, HLT, loads of SS, loops.
    """
    stack = b"\x8c\xd0\x8e\xd0"  # mov eax, ss; mov ss, eax
    return st.one_of(
        st.sampled_from((b"\xfb", b"\xfa", b"\xfb\xf4", b"\xfb\xfb", stack, b"\xf4")),
        st.sampled_from((b"\x0f\x31", b"\x0f\x31\x50", b"\xb9\3\0\0\0\xe2\xfe")),
        st.sampled_from((b"\x0f\x30", b"\x0f\x32")).map(
            lambda move: mov(x86.ECX, x86.MSR_TSC) + move
        ),
    )


def breakpoints() -> Code:
    """Code that sets a breakpoint, reads the debug registers, or switches all off.

    The breakpoint is on code, data or (with CR4.DE) ports, local or global. A return
    with RF is among them.
    """
    set_ = st.builds(
        lambda number, at, kind, enable: (
            mov(x86.EAX, at) + bytes([0x0F, 0x23, 0xC0 | number << 3])
            + mov(x86.EAX, enable << 2 * number | kind << 16 + 4 * number)
            + b"\x0f\x23\xf8"
        ),
        st.integers(0, 3),
        st.one_of(addresses(), st.integers(stage.CODE, stage.CODE + 0x40)),
        # R/W and LEN: code, a byte or four written, two or four touched.
        st.sampled_from((0, 1, 0xD, 7, 0xF)),
        st.sampled_from((2, 1)),
    )  # fmt: skip
    ports_ = st.builds(
        lambda port: (
            mov(x86.EAX, x86.CR4_DE) + b"\x0f\x22\xe0"
            + mov(x86.EAX, port) + b"\x0f\x23\xc0"
            + mov(x86.EAX, 0x20002) + b"\x0f\x23\xf8"
        ),
        st.sampled_from((0x80, 0x21)),
    )  # fmt: skip
    # pushfd; or dword [esp], RF; push cs; call next; add dword [esp], 5; iretd
    resume = st.just(b"\x9c\x81\x0c\x24\0\0\1\0\x0e\xe8\0\0\0\0\x83\x04\x24\5\xcf")
    read = st.builds(
        lambda n, r: bytes([0x0F, 0x21, 0xC0 | n << 3 | r]),
        st.sampled_from((0, 1, 3, 6, 7)), st.integers(0, 7),
    )  # fmt: skip
    off = st.just(mov(x86.EAX, 0) + b"\x0f\x23\xf8")
    return st.one_of(read, off, set_, set_, resume, ports_)


CLASSES: Final[dict[str, Callable[[], Code]]] = {
    function.__name__: function
    for function in (
        moves, arithmetic, strings, jumps, privileged, sensitive, segment_loads,
        transfers, ports, rewriting, page_table_edits, descriptor_edits, conditionals,
        accesses, locked, locked_wrongly, repeated, long, breakpoints,
    )
}  # fmt: skip
# Not among "any": without a clock time is the technique's, and LOCK is the engine's.
_OFFERED: Final = CLASSES | {"timed": timed, "locked_natively": locked_natively}


def instructions(*classes: str) -> Code:
    """One instruction (or the few that it needs) of these classes, or of any.

    "timed" and "locked_natively" are drawn only if they are named.
    """
    for name in classes:
        if name not in _OFFERED:
            message = f"instructions: {unknown(name, _OFFERED)}"
            raise ValueError(message)
    chosen = classes or tuple(CLASSES)
    return st.one_of(*(_OFFERED[name]() for name in chosen))


def programs(*classes: str, most: int = 8) -> Code:
    """Programs of up to `most` instructions of these classes, or of any."""
    return st.lists(instructions(*classes), min_size=1, max_size=most).map(b"".join)
