"""Hypothesis strategies for `ring3`: what a user's program may compute, and states.

All code here is of 32 bits or of 64, as `bits` says. Registers from which addresses are
made start on the data page or the stack page. So most accesses stay there, and the
others are page faults on every machine. No instruction has an undefined result. Flags
may be undefined: `computing_programs` makes them 0 before the next instruction sees
them. The strategies shrink like those of `emu86.testing.strategies`. They leave out
what the engine is known to have wrong: see docs/testing.md.
"""

import operator
import struct
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.spec.opcodes import OPCODES, Group
from emu86.testing import simd, stage
from emu86.testing.encode import i32
from emu86.testing.operands import Code, flags, words
from emu86.testing.ring3 import USER_FLAGS, User
from emu86.testing.undefined import undefined

_ARITHMETIC: Final = tuple(f"{8 * n + low:02x}" for n in range(8) for low in (1, 3))
_BYTES: Final = tuple(f"{8 * n + low:02x}" for n in range(8) for low in (0, 2))
_SHIFTS: Final = (0, 1, 4, 5, 7)
_ROTATES: Final = (2, 3)  # through carry
_REX_W, _REX_R, _REX_X, _REX_B = 8, 4, 2, 1
# The first are those whose values are no addresses at the start.
_REGISTERS: Final = (0, 1, 2, 0, 1, 2, 6, 7, 3, 5, 4)
# Where an operand stands on the data page; the last ones reach over its end.
_OFFSETS: Final = st.one_of(
    st.integers(0, 0x1F).map(lambda n: 8 * n),
    st.integers(0, 0xFC0),
    st.sampled_from((0xFF8, 0xFFC, 0xFFF, 0xFFD, 0xFF9, -1)),
)
_SAFE: Final = st.integers(0, 0x1FF).map(lambda n: 4 * n)


@dataclass(frozen=True)
class Form:
    """Instructions that are encoded alike; the opcode table tells the rest.

    opcodes: in hex; reg: ModRM's field, if there is one: the opcode's extension, or "r"
    for a register; rm: what ModRM may name: "rm", "r" or "m", or "safe": memory that is
    surely there; size: "v" takes an operand size prefix or REX.W, "y" REX.W alone, "q"
    always does, "" none; bits: of the code that is to have it, 0: all that can.
    """

    opcodes: tuple[str, ...]
    reg: tuple[int, ...] | Literal["r"] = "r"
    rm: Literal["rm", "r", "m", "safe"] = "rm"
    size: Literal["v", "y", "q", ""] = "v"
    bits: int = 0

    def groups(self) -> dict[bytes, Group]:
        """Return what the opcode table has, by the opcode's bytes."""
        return {bytes.fromhex(c): OPCODES[int(c, 16)] for c in self.opcodes}

    def stands_in(self, bits: int) -> bool:
        """Tell whether code of so many bits is to have it."""
        if self.bits:
            return self.bits == bits
        return all(bits in group[0].modes for group in self.groups().values())


def _all(pattern: str, base: int = 0, count: int = 8) -> tuple[str, ...]:
    return tuple(f"{pattern}{base + n:02x}" for n in range(count))


FORMS: Final = (
    Form(_ARITHMETIC),
    Form(_BYTES, size=""),
    Form(("89", "8b", "85", "87")),
    Form(("88", "8a", "84", "86"), size=""),
    Form(("81",), tuple(range(8))),
    Form(("83",), tuple(range(8))),
    Form(("80",), tuple(range(8)), size=""),
    Form(tuple(f"{8 * n + 5:02x}" for n in range(8))),
    Form(tuple(f"{8 * n + 4:02x}" for n in range(8)), size=""),
    Form(("a9",)),
    Form(("a8",), size=""),
    Form(_all("", 0xB8)),
    Form(_all("", 0xB0), size=""),
    Form(("c7",), (0,)),
    Form(("c6",), (0,), size=""),
    Form(("a1", "a3")),
    Form(("a0", "a2"), size=""),
    Form(_all("", 0x90)),  # XCHG
    Form(("8d",), rm="m"),
    Form(("0fb6", "0fb7", "0fbe", "0fbf", "0faf")),
    Form(("63",), size="y", bits=64),  # of 16 bits the engine reads 32
    Form(("69",)),
    Form(("6b",)),
    # Of 0 they leave the register undefined: a CPU keeps all of it, the engine half.
    Form(("0fbc", "0fbd"), bits=32),
    Form(("0fbc", "0fbd"), size="q", bits=64),
    Form(("0fc1",)),
    Form(("0fb1",), bits=32),
    # One of 32 bits that fails clears the rest of its register in the engine.
    Form(("0fb1",), rm="m", size="q", bits=64),
    Form(("0fc0", "0fb0"), size=""),
    Form(("0fa3", "0fab", "0fb3", "0fbb")),
    Form(("0fba",), (4, 5, 6, 7)),
    # With 16 bits a count above 16 leaves SHLD's and SHRD's result undefined.
    Form(("0fa4", "0fac"), size="y", bits=32),
    Form(("0fa4", "0fac"), rm="safe", size="y", bits=64),
    Form(("0fa5", "0fad"), size="y"),
    Form(_all("0f", 0x40, 16)),  # CMOVcc
    Form(_all("0f", 0x90, 16), (0,), "r", size=""),  # SETcc; of memory: LOSSY
    Form(("c1",), _SHIFTS),
    Form(("d1", "d3"), _SHIFTS),
    Form(("c0",), _SHIFTS, size=""),
    Form(("d0", "d2"), _SHIFTS, size=""),
    # Of registers; of memory: LOSSY.
    Form(("c1",), _ROTATES, "r"),
    Form(("d1", "d3"), _ROTATES, "r"),
    Form(("c0",), _ROTATES, "r", size=""),
    Form(("d0", "d2"), _ROTATES, "r", size=""),
    Form(("f7",), (0,)),
    Form(("f6",), (0,), size=""),
    Form(("f7",), (2, 3, 4, 5, 6, 7)),
    Form(("f6",), (2, 3, 4, 5, 6, 7), size=""),
    Form(("ff",), (0, 1)),
    Form(("fe",), (0, 1), size=""),
    Form(_all("", 0x40, 16)),  # INC, DEC
    Form(("ff",), (6,)),
    Form(("8f",), (0,)),
    Form(_all("", 0x50, 16)),  # PUSH, POP
    Form(("68",)),
    Form(("6a",)),
    Form(("98", "99")),
    Form(("9c",)),
    Form(("c9",), size=""),
    Form(("f5", "f8", "f9", "fc", "fd", "d7"), size=""),
    Form(("9e", "9f"), size="", bits=32),
    Form(("27", "2f", "37", "3f"), size=""),
    Form(("d4", "d5"), size=""),
    Form(_all("0f", 0xC8), size="y"),  # BSWAP
    Form(("a4", "a6", "aa", "ac", "ae"), size=""),
    Form(("a5", "a7", "ab", "ad", "af")),
    Form(("0f1f",), (0,)),
)
# The engine loses flags of these, so emu86 does not have it run them.
LOSSY: Final = (
    Form(("c1",), _ROTATES, "m"),
    Form(("d1", "d3"), _ROTATES, "m"),
    Form(("c0",), _ROTATES, "m", size=""),
    Form(("d0", "d2"), _ROTATES, "m", size=""),
    Form(_all("0f", 0x90, 16), (0,), "m", size=""),
    Form(("0fc7",), (1,), "m", size=""),
)


@cache
def _one(*choices: int) -> st.SearchStrategy[int]:
    return st.sampled_from(choices)


_REGISTER: Final = st.sampled_from(_REGISTERS)
_BASE_REGISTER: Final = st.sampled_from((3, 6, 7, 5, 0, 1, 2, 4))
_INDEX_REGISTER: Final = st.sampled_from((4, 1, 2, 0, 3, 5, 6, 7))
_DISP8: Final = st.sampled_from((0, 4, 0xFF, 0x7F, 0x80))
_DISP32: Final = st.sampled_from((0, 8, -1, 0x7FF, -0x100, -0x80000000))
_IMM8: Final = st.integers(0, 0xFF)
_RARELY: Final = st.integers(0, 7).map(lambda n: n == 7)


def _addressings(rm: str, bits: int) -> st.SearchStrategy[str]:
    if rm == "r":
        return st.just("register")
    if rm == "safe":
        return st.just("absolute")
    forms = ["register"] if rm == "rm" else []
    forms += ["absolute", "base8", "base", "base32", "sib"]
    return st.sampled_from([*forms, "rip"] if bits == 64 else forms)


def _operand(
    draw: st.DrawFn, form: str, offsets: st.SearchStrategy[int], bits: int, reg: int
) -> tuple[int, bytes]:
    """ModRM, SIB and displacement, behind the bits of REX that they need.

    form: of `_addressings`; offsets: of absolute addresses on the data page; reg:
    ModRM.reg, 3 bits.
    """
    field = reg << 3
    if form == "register":
        return _rex(draw, bits, _REX_B), bytes([0xC0 | field | draw(_REGISTER)])
    if form == "absolute":
        sib = b"\x25" if bits == 64 else b""
        low = x86.ESP if sib else x86.EBP
        return 0, bytes([field | low]) + sib + i32(stage.DATA + draw(offsets))
    if form == "rip":
        away = stage.DATA - stage.CODE + draw(offsets)
        return 0, bytes([field | x86.EBP]) + i32(away)
    mod = {"base": 0, "base8": 1, "base32": 2, "sib": -1}[form]
    if mod < 0:
        mod = draw(_one(0, 1, 2))
    low = draw(_BASE_REGISTER)
    if bits == 64 and (mod, low) == (0, x86.EBP):
        mod = 1  # it would be relative to RIP, and to the program itself
    rex = _rex(draw, bits, _REX_B)
    sib = b""
    if form == "sib" or low == x86.ESP:
        rex |= _rex(draw, bits, _REX_X)
        index = draw(_INDEX_REGISTER)
        sib = bytes([draw(_one(0, 1, 2, 3)) << 6 | index << 3 | low])
        low = x86.ESP
    out = bytes([mod << 6 | field | low]) + sib
    last = sib[0] & 7 if sib else low
    if mod == 1:
        out += bytes([draw(_DISP8)])
    elif mod == 2 or last == x86.EBP:
        out += i32(draw(_DISP32))
    return rex, out


def _rex(draw: st.DrawFn, bits: int, bit: int) -> int:
    return draw(_one(0, 0, bit)) if bits == 64 else 0


def _immediate(draw: st.DrawFn, kind: str, size: int, bits: int) -> bytes:
    if not kind:
        return b""
    if kind == "b":
        return bytes([draw(_IMM8)])
    if kind == "o":
        at = stage.DATA + draw(_OFFSETS)
        return struct.pack("<Q" if bits == 64 else "<I", at)
    width = {"z": min(size, 4), "v": size}[kind]
    return draw(values(8 * width)).to_bytes(width, "little")


@cache
def values(bits: int) -> st.SearchStrategy[int]:
    """Values of so many bits, most of them special ones."""
    top = 1 << bits - 1
    edges = (0, 1, 2 * top - 1, top, top - 1, 0x80, 0x7FFF, 0xFFFF)
    return st.one_of(
        st.sampled_from(edges),
        st.integers(0, 70),
        words().map(lambda value: value % (2 * top)),
        st.integers(0, 2 * top - 1),
    )


def encodings(form: Form, bits: int) -> Code:
    """Instructions of one form in code of `bits` bits."""
    wide = bits == 64
    widths = {"": (4,), "y": (4, 8) if wide else (4,)}
    widths |= {"v": (*widths["y"], 2), "q": (8,)}
    sizes = st.sampled_from(widths[form.size])
    groups = form.groups()
    first = st.sampled_from(list(groups))
    fields = _REGISTER if form.reg == "r" else st.sampled_from(form.reg)
    addressings = _addressings(form.rm, bits)
    offsets = _SAFE if form.rm == "safe" else _OFFSETS

    @st.composite
    def encoded(draw: st.DrawFn) -> bytes:
        size = draw(sizes)
        rex = _REX_W if size == 8 else 0
        opcode = draw(first)
        group = groups[opcode]
        field, operand = 0, b""
        if group[0].rm:
            if form.reg == "r":
                rex |= _rex(draw, bits, _REX_R)
            where = draw(addressings)
            field = draw(fields)
            more, operand = _operand(draw, where, offsets, bits, field)
            rex |= more
        elif wide:
            rex |= _rex(draw, bits, _REX_B)
        # An empty REX makes SPL of AH.
        prefix = b"\x66" if size == 2 else b""
        if rex or (wide and draw(_RARELY)):
            prefix += bytes([0x40 | rex])
        immediate = _immediate(draw, group[field].immediate, size, bits)
        return prefix + opcode + operand + immediate

    return encoded()


_WAYS: Final = st.sampled_from((b"\xfc", b"\xfd"))
_REPEATS: Final = st.sampled_from((b"\xf3", b"\xf2"))


def _strings(bits: int) -> Code:
    """MOVS, STOS, LODS: where to, how many times, which way."""
    wide = (b"", b"\x66", b"\x48") if bits == 64 else (b"", b"\x66")
    place = st.one_of(st.integers(0, 0x40), _OFFSETS).map(lambda n: stage.DATA + n)
    return st.builds(
        lambda source, target, count, way, rep, size, opcode: (
            b"\xbe" + i32(source) + b"\xbf" + i32(target) + b"\xb9" + i32(count) + way
            + rep + size + bytes([opcode])
        ),
        place, place, st.sampled_from((1, 0, 3, 17, 600)),
        _WAYS, _REPEATS, st.sampled_from(wide),
        st.sampled_from((0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD)),
    )  # fmt: skip


def _compares(bits: int) -> Code:
    """CMPS and SCAS repeated, where they do not fault: the engine has wrong flags."""
    wide = (b"", b"\x66", b"\x48") if bits == 64 else (b"", b"\x66")
    place = st.integers(0x100, 0x140).map(lambda n: stage.DATA + n)
    return st.builds(
        lambda source, target, count, way, rep, size, opcode: (
            b"\xbe" + i32(source) + b"\xbf" + i32(target) + b"\xb9" + i32(count) + way
            + rep + size + bytes([opcode])
        ),
        place, place, st.integers(0, 17), _WAYS, _REPEATS, st.sampled_from(wide),
        st.sampled_from((0xA6, 0xA7, 0xAE, 0xAF)),
    )  # fmt: skip


def _wide_exchanges() -> Code:
    """CMPXCHG8B for the engine: after a POPF, since it takes flags of before it."""
    form = Form(("0fc7",), (1,), "m", size="")
    return encodings(form, 32).map(lambda code: b"\x9c\x9d" + code)


def _written(bits: int) -> Code:
    """RCL, RCR, SETcc for the engine: of memory that does not fault."""
    sib = b"\x04\x25" if bits == 64 else b"\x05"
    written = b"\x88" + sib + i32(stage.DATA + 0xFF0)  # mov [...], al
    forms = (
        Form(("d1", "d3"), _ROTATES, "safe"),
        Form(("d0", "d2"), _ROTATES, "safe", size=""),
        Form(_all("0f", 0x90, 16), (0,), "safe", size=""),
    )
    one = st.one_of(*(encodings(form, bits) for form in forms))
    return one.map(lambda code: written + code)


def _jumps() -> Code:
    """Jcc, LOOP, JCXZ over a MOV, CALL and its return address, POPF, ENTER."""
    over = (*range(0x70, 0x80), 0xE0, 0xE1, 0xE2, 0xE3)
    image = flags().map(lambda value: value & USER_FLAGS | 0x202)
    return st.one_of(
        st.builds(lambda op, value: bytes([op, 2, 0xB0, value]),
                  st.sampled_from(over), st.integers(0, 0xFF)),
        st.integers(0, 7).map(lambda r: b"\xe8\0\0\0\0" + bytes([0x58 + r])),
        image.map(lambda value: b"\x68" + i32(value) + b"\x9d"),
        st.builds(lambda size, level: b"\xc8" + struct.pack("<HB", size, level),
                  st.sampled_from((0, 8, 0x20)), st.integers(0, 3)),
    )  # fmt: skip


def _narrow() -> tuple[Code, ...]:
    """LEA with 16-bit addressing, and PUSHA and POPA where they do not fault.

    What is in CR2 when they do is the engine's own; a CPU's POPA reads the doubleword
    that it skips, too, which the SDM leaves open.
    """
    lea = st.builds(
        lambda size, reg, modrm, far: (
            size + b"\x67\x8d" + bytes([modrm & 0xC7 | reg << 3]) + far
        ),
        st.sampled_from((b"", b"\x66")), st.integers(0, 7), st.integers(0x80, 0xBF),
        st.binary(min_size=2, max_size=2),
    )  # fmt: skip
    mov_esp = b"\xbc" + i32(stage.STACK3 - 0x200)
    all_of_them = (b"\x60", b"\x66\x60", b"\x61", b"\x66\x61")
    return lea, st.sampled_from([mov_esp + code for code in all_of_them])


def _wide(*, engine: bool) -> tuple[Code, ...]:
    """What 64-bit code does otherwise in the engine; for it alone, LAHF and SAHF.

    With a REX prefix it takes AH for SPL. SHLD and SHRD are relative to RIP, too,
    CMPXCHG is of registers of 32 bits, too.
    """
    moves = st.sampled_from((b"\x9e", b"\x9f"))
    if engine:
        return (moves,)
    rexes = st.integers(0x40, 0x4F).map(lambda rex: bytes([rex]))
    shifts = Form(("0fa4", "0fac"), rm="m", size="y")
    exchanges = Form(("0fb1",), rm="r", size="y")
    return (
        moves,
        st.builds(operator.add, rexes, moves),
        encodings(shifts, 64),
        encodings(exchanges, 64),
    )


def _losing_flags(bits: int, *, engine: bool) -> tuple[Code, ...]:
    """What the engine loses flags of; for it alone, where it does not."""
    if not engine:
        locked = encodings(LOSSY[-1], bits).map(lambda code: b"\xf0" + code)
        return (*(encodings(form, bits) for form in LOSSY), locked)
    return (_wide_exchanges(), _written(bits))


def _check(bits: int) -> None:
    if bits not in (32, 64):
        message = f"bits: {bits!r} is neither 32 nor 64"
        raise ValueError(message)


def computations(bits: int = 32, *, engine: bool = False) -> Code:
    """One instruction of any user (or the few that it needs), `bits` of code.

    engine: leave out what the engine has wrong and emu86 has right. Raises ValueError
    for other bits.
    """
    _check(bits)
    forms = [form for form in FORMS if form.stands_in(bits)]
    return st.one_of(
        *(encodings(form, bits) for form in forms),
        _strings(bits),
        _compares(bits),
        *_losing_flags(bits, engine=engine),
        _jumps(),
        *_narrow() if bits == 32 else _wide(engine=engine),
        simd.operations(),
    )


def defined(instruction: bytes, bits: int = 32) -> bytes:
    """Return an instruction followed by code that makes its undefined flags 0."""
    mask = undefined(instruction, bits)
    if not mask:
        return instruction
    # pushf; and dword [esp], ~mask; popf
    return instruction + b"\x9c\x81\x24\x24" + i32(~mask) + b"\x9d"


def computing_programs(bits: int = 32, most: int = 12, *, engine: bool = False) -> Code:
    """Programs of up to `most` of `computations`, without undefined flags."""
    one = computations(bits, engine=engine).map(lambda code: defined(code, bits))
    return st.lists(one, min_size=1, max_size=most).map(b"".join)


@cache
def computing_states(bits: int = 32) -> st.SearchStrategy[User]:
    """Registers, flags and a data page for `computations`; its ValueError, too."""
    _check(bits)
    names = x86.GPR_NAMES64 if bits == 64 else x86.GPR_NAMES
    pointers = {
        3: stage.DATA + 8, 5: stage.STACK3 - 0x100, 6: stage.DATA + 0x40,
        7: stage.DATA + 0x200, 11: stage.DATA + 0x80, 13: stage.DATA + 0x800,
    }  # fmt: skip
    others = [i for i in range(len(names)) if i not in {*pointers, x86.ESP}]
    fixed = {names[i]: at for i, at in pointers.items() if i < len(names)}
    return st.builds(
        lambda given, image, data: User(
            bits=bits,
            registers={names[i]: v for i, v in zip(others, given, strict=True)} | fixed,
            flags=image & USER_FLAGS | x86.FLAGS_FIXED,
            data=data * (0x800 // len(data)) if data else b"",
        ),
        st.tuples(*[values(bits)] * len(others)),
        flags(),
        st.binary(min_size=0, max_size=64),
    )
