"""Hypothesis strategies: instructions by class, programs, states, tables.

All of them shrink: a program to fewer and plainer instructions, an instruction to one
without prefixes on a register, an address to the first of the stage's. Programs are
code for the stage (`emu86.testing.stage`), of 32 bits unless 64 are asked for: then
their states have the mode "long". `programs` leaves out what the engine
under emu86 is known to have wrong, and the documented costs of the techniques: see
`docs/testing.md`.
"""

from collections.abc import Callable
from typing import Final

from hypothesis import strategies as st

from emu86.errors import unknown
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.accesses import Access, AccessPattern, access_patterns, accesses
from emu86.testing.encode import absolute, check_bits, i32, mov, mov64, push
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
from emu86.testing.stage import Mode, State
from emu86.testing.system import (
    breakpoints,
    descriptor_edits,
    page_table_edits,
    privileged,
    segment_loads,
    sensitive,
    timed,
    transfers,
)
from emu86.testing.tables import (
    descriptor_tables,
    descriptors,
    gates,
    page_table_entries,
    page_tables,
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
    mode: Mode = "protected",
    virtual_8086: bool = False,
    clocked: bool = False,
) -> State:
    """Where a program may start.

    paging: on, off, or either; rings: 0 to 3; patches: tables for `State.patches`, such
    as `descriptor_tables("hostile")`; mode: the state's; virtual_8086: start in that
    mode, with any IOPL, whatever the ring; clocked: each instruction takes a fixed
    time, and interrupts come.
    """
    cr4 = draw(st.sampled_from((0, 0x10, 0x90)))
    bits = 64 if mode == "long" else 32
    names = x86.GPR_NAMES64 if bits == 64 else x86.GPR_NAMES
    eflags = draw(st.sampled_from((0x2, 0x202, 0x3202, 0x102)))
    at = draw(st.sampled_from((stage.CODE, stage.CODE + 0xFF0)))
    return State(
        mode=mode,
        ring=draw(st.sampled_from(rings)),
        paging=draw(st.booleans()) if paging is None else paging,
        flags=eflags | x86.VM if virtual_8086 else eflags,
        registers={
            name: draw(words(bits)) for i, name in enumerate(names) if i != x86.ESP
        },
        cr0=draw(st.sampled_from((0, x86.CR0_WP))),
        cr4=cr4,
        large=(bool(cr4) or mode != "protected") and draw(st.booleans()),
        at=at,
        skip=draw(st.sampled_from((1, 2, 3))),
        interrupts=draw(interrupts()) if clocked else None,
        patches=() if patches is None else draw(patches),
    )


# -- classes of instructions -----------------------------------------------------------


def moves(bits: int = 32) -> Code:
    """MOV in its forms, XCHG, LEA, MOVZX, MOVSX, PUSH, POP, PUSHA, ENTER, LEAVE."""
    opcodes = [b"\x89", b"\x8b", b"\x88", b"\x8a", b"\x87", b"\x0f\xb6"]
    stack = (b"\x50", b"\x58", b"\x60", b"\x61", b"\xc9", b"\x54", b"\x5c")
    loads = st.builds(mov, st.sampled_from((0, 1, 2, 3, 5, 6, 7)), words())
    if bits == 64:
        opcodes.append(b"\x63")  # MOVSXD
        stack = (b"\x50", b"\x58", b"\x41\x50", b"\x41\x5c", b"\xc9", b"\x54", b"\x5c")
        wide = st.integers(0, 15).filter(lambda register: register != x86.ESP)
        loads = st.one_of(loads, st.builds(mov64, wide, words(64)))
    return st.one_of(
        st.just(b"\x90"),
        loads,
        *(with_reg(opcode, bits=bits) for opcode in opcodes),
        with_reg(b"\x8d", memory=True, bits=bits),
        st.builds(push, words()),
        st.sampled_from(stack),
    )


def arithmetic(bits: int = 32) -> Code:
    """ADD to CMP, INC, DEC, NOT, NEG, MUL, shifts of registers, the flags."""
    opcodes = (b"\x01", b"\x03", b"\x29", b"\x31", b"\x39", b"\x85", b"\x21")
    return st.one_of(
        *(with_reg(opcode, bits=bits) for opcode in opcodes),
        st.sampled_from((0, 1, 4, 5, 6, 7)).flatmap(
            lambda r: encoded(b"\x83", r, imm8(), bits=bits)
        ),
        st.sampled_from((0, 1)).flatmap(lambda r: encoded(b"\xff", r, bits=bits)),
        st.sampled_from((2, 3, 4)).flatmap(lambda r: encoded(b"\xf7", r, bits=bits)),
        st.sampled_from((0, 1, 4, 5, 7)).flatmap(
            lambda r: encoded(b"\xd1", r, memory=False, bits=bits)
        ),
        st.sampled_from((b"\xf9", b"\xf8", b"\xfc", b"\xfd")),
    )


def conditionals(bits: int = 32) -> Code:
    """SETcc and CMOVcc of registers and memory, after what sets flags."""
    condition = st.integers(0, 15)
    increment = b"\x40" if bits == 32 else b"\xff\xc0"
    before = st.sampled_from((b"", b"\xf9", b"\x39\xc8", b"\x31\xc0", increment))

    def set_(condition: int, *, memory: bool) -> Code:
        return encoded(bytes([0x0F, 0x90 | condition]), 0, memory=memory, bits=bits)

    setcc = st.builds(
        lambda flags, kept, setting: flags + kept + setting,
        before, st.sampled_from((b"", b"\x90", b"\x89\xc3")),
        condition.flatmap(lambda c: set_(c, memory=True)),
    )  # fmt: skip
    others = st.one_of(
        condition.flatmap(lambda c: set_(c, memory=False)),
        condition.flatmap(lambda c: with_reg(bytes([0x0F, 0x40 | c]), bits=bits)),
    )
    return st.one_of(st.builds(lambda one, other: one + other, before, others), setcc)


def strings(bits: int = 32) -> Code:
    """MOVS, STOS, LODS, SCAS, CMPS, alone and repeated, over the ends of pages.

    Both ways, with any segment, operand and address size.
    """
    prefixes = [b"", b"\x66", b"\x67", b"\x2e", b"\x64", b"\x36\x66"]
    if bits == 64:
        prefixes += [b"\x48", b"\x67\x48"]
    load = mov64 if bits == 64 else mov
    return st.builds(
        lambda source, target, count, rep, prefix, way, opcode: (
            load(x86.ESI, source) + load(x86.EDI, target) + mov(x86.ECX, count)
            + way + rep + prefix + bytes([opcode])
        ),
        addresses(bits), addresses(bits), st.sampled_from((1, 0, 3, 5)),
        st.sampled_from((b"", b"\xf3", b"\xf2")), st.sampled_from(prefixes),
        st.sampled_from((b"", b"", b"\xfd", b"\xfc")),
        st.sampled_from((0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0xA6, 0xA7)),
    )  # fmt: skip


def jumps(bits: int = 32) -> Code:
    """Jumps, short, near and by register or memory, LOOP, near CALL and RET.

    In 64-bit code none has the prefix 66h: Intel's CPUs and AMD's differ about it.
    """
    short = st.sampled_from((0xEB, *range(0x70, 0x80), *range(0xE0, 0xE4)))
    near = st.sampled_from(
        (b"\xe8", b"\xe9", *(bytes([15, 0x80 | c]) for c in range(16)))
    )
    to = st.integers(0, 12)
    size = [b"", b"", b"\x66", b"\x67"]
    registers = [b"\xff\xd3", b"\xff\xe3", b"\x66\xff\xe3"]
    returns = [b"\xc3", b"\xc2\4\0", b"\x66\xc3"]
    wide = b""
    if bits == 64:
        size, registers, returns = size[::3], registers[:2], [b"\xc3", b"\xc2\x08\0"]
        wide = b"\x48"
    return st.one_of(
        st.builds(
            lambda prefix, op, to: prefix + bytes([op, to]),
            st.sampled_from(size), short, to,
        ),
        st.builds(lambda op, to: op + i32(to), near, to),
        st.builds(
            lambda to, op: mov(x86.EBX, stage.CODE + to) + op,
            to, st.sampled_from(registers),
        ),
        st.builds(
            lambda to, reg: (
                wide + b"\xc7" + absolute(0, stage.DATA, bits) + i32(stage.CODE + to)
                + b"\xff" + absolute(reg, stage.DATA, bits)
            ),
            to, st.sampled_from((2, 4)),
        ),
        st.just(b"\xe8\0\0\0\0"),
        st.sampled_from(returns),
    )  # fmt: skip


def ports(bits: int = 32) -> Code:
    """IN, OUT, INS and OUTS of all widths, repeated too, and by an immediate port."""
    plain = st.builds(
        lambda port, op: mov(x86.EDX, port) + op,
        st.sampled_from(_PORTS),
        st.sampled_from((b"\xec", b"\xed", b"\x66\xed", b"\xee", b"\xef", b"\x66\xef")),
    )
    load = mov64 if bits == 64 else mov
    moved = st.builds(
        lambda port, at, rep, op: (
            mov(x86.EDX, port) + load(x86.ESI, at) + load(x86.EDI, at)
            + mov(x86.ECX, 3) + rep + op
        ),
        st.sampled_from(_PORTS), addresses(bits), st.sampled_from((b"", b"\xf3")),
        st.sampled_from((b"\x6c", b"\x6d", b"\x66\x6d", b"\x6e", b"\x6f", b"\x66\x6f")),
    )  # fmt: skip
    immediate = st.builds(
        lambda op, port: bytes([op, port]), st.integers(0xE4, 0xE7), st.integers(0, 255)
    )
    return st.one_of(plain, moved, immediate)


def rewriting(bits: int = 32) -> Code:
    """A byte of code written, by its own address, an alias, or over a page's end."""
    return st.builds(
        lambda offset, alias, byte: (
            b"\xc6" + absolute(0, stage.CODE + offset + alias, bits) + bytes([byte])
        ),
        st.one_of(st.integers(0, 0x80), st.just(0xFFF)),
        st.sampled_from((0, stage.ALIAS, 0xC0000000)),
        st.sampled_from((0x90, 0xFA, 0x9D, 0xCC, 0xF4, 0x40)),
    )


CLASSES: Final[dict[str, Callable[[int], Code]]] = {
    function.__name__: function
    for function in (
        moves, arithmetic, strings, jumps, privileged, sensitive, segment_loads,
        transfers, ports, rewriting, page_table_edits, descriptor_edits, conditionals,
        accesses, locked, locked_wrongly, repeated, long, breakpoints,
    )
}  # fmt: skip
# Not among "any": without a clock time is the technique's, and LOCK is the engine's.
_OFFERED: Final = CLASSES | {"timed": timed, "locked_natively": locked_natively}


def instructions(*classes: str, bits: int = 32) -> Code:
    """One instruction (or the few that it needs) of these classes, or of any.

    bits: of the code, 32 or 64. "timed" and "locked_natively" are drawn only if they
    are named. Raises ValueError.
    """
    check_bits(bits)
    for name in classes:
        if name not in _OFFERED:
            message = f"instructions: {unknown(name, _OFFERED)}"
            raise ValueError(message)
    chosen = classes or tuple(CLASSES)
    return st.one_of(*(_OFFERED[name](bits) for name in chosen))


def programs(*classes: str, most: int = 8, bits: int = 32) -> Code:
    """Programs of up to `most` instructions of these classes, or of any."""
    one = instructions(*classes, bits=bits)
    return st.lists(one, min_size=1, max_size=most).map(b"".join)
