"""Strategies of prefixes, where they mean something and where they do not."""

from typing import Final

from hypothesis import strategies as st

from emu86.testing.operands import (
    SEGMENT_PREFIXES,
    Code,
    encoded,
    imm8,
    with_reg,
)

_LOCK: Final = b"\xf0"
LONGEST: Final = 15  # bytes of an instruction; longer is #GP(0), Vol. 2A 2.3.11


def _locked(code: Code) -> Code:
    return code.map(lambda found: _LOCK + found)


def locked() -> Code:
    """LOCK before what takes it: read-modify-writes of memory (Vol. 2A LOCK).

    But for BTS, BTR and BTC, which leave flags undefined.
    """
    opcodes = (b"\x01", b"\x29", b"\x11", b"\x19", b"\x21", b"\x09", b"\x31", b"\x87",
               b"\x00", b"\x86", b"\x0f\xb1", b"\x0f\xc1")  # fmt: skip
    return _locked(
        st.one_of(
            *(with_reg(opcode, memory=True) for opcode in opcodes),
            st.sampled_from((0, 1, 2, 3, 4, 5, 6)).flatmap(
                lambda reg: encoded(b"\x83", reg, imm8(), memory=True)
            ),
            *(encoded(b"\xff", reg, memory=True) for reg in (0, 1)),
            *(encoded(b"\xf7", reg, memory=True) for reg in (2, 3)),
            encoded(b"\x0f\xc7", 1, memory=True),
        )
    )


def locked_wrongly() -> Code:
    """LOCK before privileged and sensitive instructions, which is #UD.

    Not before RDTSC: a handler that skips the prefix would run it, and time differs.
    """
    return _locked(
        st.one_of(
            st.sampled_from(
                (b"\xfa", b"\xfb", b"\xf4", b"\x9c", b"\x9d", b"\x0f\x06",
                 b"\x0f\x20\xc0", b"\x0f\x22\xd8", b"\x0f\x21\xc0", b"\x0f\x32",
                 b"\xec", b"\xee", b"\x6c", b"\xcf")
            ),
            encoded(b"\x0f\x01", 0, memory=True),
            encoded(b"\x0f\x01", 4),
            encoded(b"\x0f\x00", 0),
            encoded(b"\x8e", 0),
        )
    )  # fmt: skip


def locked_natively() -> Code:
    """LOCK before what no VMM handles: #UD on a CPU, but the engine runs it.

    Not in `programs`.
    """
    return _locked(
        st.one_of(
            st.just(b"\x90"), with_reg(b"\x89"), with_reg(b"\x39"),
            with_reg(b"\x01", memory=False),
        )
    )  # fmt: skip


def _plain() -> Code:
    """One instruction without prefixes: native, privileged and sensitive ones."""
    return st.one_of(
        st.sampled_from(
            (b"\x40", b"\x9c", b"\xfa", b"\xfb", b"\x0f\x20\xc0", b"\x0f\x01\xe0",
             b"\x9d", b"\x0f\x06", b"\x8c\xd8", b"\x0f\x00\xc8", b"\xe4\x21", b"\x50")
        ),
        st.sampled_from((b"\xa1", b"\xa3")).map(lambda code: code + b"\0\0\5\0"),
    )  # fmt: skip


def repeated() -> Code:
    """Prefixes that say the same again, contradict each other, or mean nothing.

    REP and REPNE before what is no string instruction, two segments, 66h twice.
    """
    pool = (0x66, *SEGMENT_PREFIXES, 0xF3, 0xF2)
    return st.builds(
        lambda before, code: bytes(before) + code,
        st.lists(st.sampled_from(pool), min_size=1, max_size=4),
        _plain(),
    )


def long() -> Code:
    """Instructions of 15 bytes, and of 16, which are #GP(0)."""
    return st.builds(
        lambda code, prefix, length: bytes([prefix]) * (length - len(code)) + code,
        _plain(),
        st.sampled_from((0x3E, 0x26, 0x64, 0x66)),
        st.sampled_from((LONGEST, LONGEST + 1)),
    )
