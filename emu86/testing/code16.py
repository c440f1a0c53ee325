"""Random programs of 16-bit code, for real mode, and states that they start from."""

import struct
from typing import Final

from hypothesis import strategies as st

from emu86.spec.opcodes import SEGMENT_PREFIXES
from emu86.testing.real_mode import MEMORY

# Segments that programs begin with, 64 KiB each, and where the vectors' HLTs are.
CODE, STACK, DATA, EXTRA, FS, GS, _HANDLERS = (
    0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x60,
)  # fmt: skip
ENTRY: Final = 0x100
_HLT: Final = 0xF4
_IOPL: Final = 0x3000

_SIZES: Final = (b"", b"", b"\x66", b"\x67", b"\x66\x67")
_ALU: Final = tuple(8 * op + form for op in range(8) for form in range(4))
# Without BT and its kin: their OF is undefined, and goes by how blocks are cut.
_RM: Final = (
    *_ALU, *range(0x84, 0x8D), 0x8D, 0x62, 0x63, 0xC4, 0xC5, 0x8E, 0xD0, 0xD1, 0xD2,
    0xD3, 0xF6, 0xF7, 0xFE,
)  # fmt: skip
_SHIFTS: Final = 0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3
_RM_IMM8: Final = 0x6B, 0x80, 0x82, 0x83, 0xC0, 0xC1, 0xC6
_RM2: Final = (
    0x0FAF, 0x0FB0, 0x0FB1, 0x0FB2, 0x0FB4, 0x0FB5, 0x0FB6, 0x0FB7, 0x0FBE, 0x0FBF,
    0x0FC0, 0x0FC1, 0x0FA5, 0x0FAD, 0x0FBC, 0x0FBD,
    0x0F44, 0x0F92, 0x0F00, 0x0F02, 0x0F03,
)  # fmt: skip
_RM2_IMM8: Final = 0x0FA4, 0x0FAC
_PLAIN: Final = (
    *range(0x40, 0x62), 0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37,
    0x3F, *range(0x91, 0x9A), 0x9C, 0x9E, 0x9F, 0xC3, 0xC9, 0xCB, 0xCC, 0xCE, 0xD6,
    0xD7, 0xF5, 0xF8, 0xF9, 0xFA, 0xFB, 0xFC, 0xFD, 0x0FA0, 0x0FA1, 0x0FA8,
    0x0FA9, 0x0FA2, 0x0F0B, 0x0F06, 0x0FC9,
)  # fmt: skip
_STRINGS: Final = *range(0xA4, 0xA8), *range(0xAA, 0xB0), 0x6C, 0x6D, 0x6E, 0x6F
_IMM8: Final = (
    *(8 * op + 4 for op in range(8)), 0x6A, 0xA8, *range(0xB0, 0xB8), 0xCD, 0xD4, 0xD5,
    0xE4, 0xE5, *range(0x70, 0x80), 0xE0, 0xE1, 0xE2, 0xE3, 0xEB,
)  # fmt: skip


def _opcode(code: int) -> bytes:
    return bytes([code]) if code < 0x100 else bytes([code >> 8, code & 0xFF])


_words: Final = st.one_of(
    st.sampled_from((0, 1, 2, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10, 0x100)),
    st.integers(0, 0xFFFF),
)
_segments: Final = st.one_of(
    st.sampled_from((CODE, STACK, DATA, EXTRA, FS, GS, DATA + 1, 0xF000)), _words
)


@st.composite
def _operands(draw: st.DrawFn, *, wide: bool) -> bytes:
    """ModRM and what follows, of 16-bit addresses or (wide) of 32-bit ones."""
    mod, reg, rm = draw(st.tuples(*(st.integers(0, most) for most in (3, 7, 7))))
    modrm = bytes([mod << 6 | reg << 3 | rm])
    if mod == 3:
        return modrm
    near = struct.pack("<b", draw(st.integers(-128, 127)))
    if wide:
        sib = bytes([draw(st.integers(0, 255))]) if rm == 4 else b""
        far = struct.pack("<I", draw(st.one_of(_words, st.just(0x10000))))
        direct = rm == 5 or (sib and sib[0] & 7 == 5)
        if mod == 0:
            return modrm + sib + (far if direct else b"")
        return modrm + sib + (near if mod == 1 else far)
    far = struct.pack("<H", draw(_words))
    if mod == 0:
        return modrm + (far if rm == 6 else b"")
    return modrm + (near if mod == 1 else far)


@st.composite
def instructions(draw: st.DrawFn, *, holes: bool = True) -> bytes:
    """Return an instruction, or a few that belong together.

    holes: also what nothing but a patch puts right: SMSW, SGDT, SIDT, INT1, RCL, RCR.
    """
    kind = draw(st.sampled_from(("rm", "rm", "rm", "plain", "string", "imm", "whole")))
    size = draw(st.sampled_from(_SIZES))
    segment = draw(st.sampled_from((b"", b"", b"", *map(_byte, SEGMENT_PREFIXES))))
    prefixes = size + segment
    if kind == "rm":
        code = draw(st.sampled_from((*_RM, *_RM2, *_RM_IMM8, *_RM2_IMM8)))
        operands = draw(_operands(wide=b"\x67"[0] in size))
        imm8 = code in _RM_IMM8 or code in _RM2_IMM8
        if code in (0xF6, 0xF7) and operands[0] & 0x30 == 0:  # TEST with an immediate
            operands = bytes([operands[0] | 0x10]) + operands[1:]
        if code in _SHIFTS and not holes and operands[0] & 0x30 == 0x10:
            operands = bytes([operands[0] | 0x20]) + operands[1:]
        tail = bytes([draw(st.integers(0, 255))]) if imm8 else b""
        return prefixes + _opcode(code) + operands + tail
    if kind == "plain":
        code = draw(st.sampled_from(_PLAIN))
        # With 66h they may go beyond FFFFh, which deprivileged real mode sees too late.
        returns = code in (0xC3, 0xCB)
        return (segment if returns else prefixes) + _opcode(code)
    if kind == "string":
        repeat = draw(st.sampled_from((b"", b"\xf3", b"\xf2")))
        return prefixes + repeat + bytes([draw(st.sampled_from(_STRINGS))])
    if kind == "imm":
        code = draw(st.sampled_from(_IMM8))
        return segment + bytes([code, draw(st.integers(0, 255))])
    return draw(_sequences(holes=holes))


def _byte(value: int) -> bytes:
    return bytes([value])


@st.composite
def _sequences(draw: st.DrawFn, *, holes: bool) -> bytes:
    """What needs its own operands: flags, far transfers, segments, MOV of CR0."""
    word = struct.pack("<H", draw(_words))
    segment = struct.pack("<H", draw(_segments))
    flags = struct.pack("<H", draw(st.integers(0, 0x4FFF)) & 0x4ED7 | _IOPL | 2)
    code = struct.pack("<H", CODE)
    found = [
        b"\x68" + flags + b"\x9d",  # POPF
        b"\x68" + flags + b"\x68" + code + b"\x68" + word + b"\xcf",  # IRET
        b"\x68" + code + b"\x68" + word + b"\xcb",  # RETF
        b"\x9a" + word + code,
        b"\xea" + word + code,
        b"\xb8" + segment + b"\x8e\xd8",  # MOV DS
        b"\xb8" + segment + b"\x8e\xc0",
        b"\xb8" + segment + b"\x8e\xd0",  # MOV SS
        b"\x68" + segment + b"\x0f\xa1",  # POP FS
        b"\xc8" + word[:1] + b"\0" + word[1:],  # ENTER
        b"\x0f\x20\xc0",  # MOV EAX, CR0
        b"\xe8\0\0",  # CALL
        b"\xc2" + word[:1] + b"\0",  # RET
        b"\xca" + word[:1] + b"\0",
    ]
    if holes:
        found += [
            b"\xf1",  # INT1
            b"\x0f\x01\xe0",  # SMSW AX
            b"\x0f\x01\x06" + word,  # SGDT
            b"\x0f\x01\x0e" + word,  # SIDT
        ]
    return draw(st.sampled_from(found))


def programs(*, holes: bool = True) -> st.SearchStrategy[bytes]:
    """Up to eight `instructions`; HLT is not among them, but stands all around."""
    one = instructions(holes=holes)
    return st.lists(one, min_size=1, max_size=8).map(b"".join)


@st.composite
def states(draw: st.DrawFn) -> dict[str, int]:
    """Registers to start from, by name, at the program of `image_of`."""
    names = ("eax", "ebx", "edx", "esi", "edi", "ebp")
    found = {name: draw(_words) for name in names}
    if draw(st.booleans()):
        found["eax"] |= draw(_words) << 16
    found |= {"ecx": draw(st.integers(0, 40)), "esp": draw(_words)}
    found |= {"cs": CODE, "ss": STACK, "ds": DATA, "es": EXTRA, "fs": FS, "gs": GS}
    return found | {"eip": ENTRY, "eflags": draw(st.integers(0, 0xFFF)) & 0xED7}


def _background() -> bytes:
    """HLT everywhere but in the data segment, so that a jump to anywhere ends."""
    image = bytearray([_HLT]) * MEMORY
    for vector in range(256):  # each ends at an IP of its own
        struct.pack_into("<HH", image, 4 * vector, vector, _HANDLERS)
    image[16 * DATA : 16 * DATA + 0x10000] = bytes(range(256)) * 256
    return bytes(image)


_BACKGROUND: Final = _background()


def image_of(program: bytes) -> bytes:
    """Return all of RAM with a program at CODE:ENTRY, where `states` begin."""
    at = 16 * CODE + ENTRY
    return _BACKGROUND[:at] + program + _BACKGROUND[at + len(program) :]
