"""Strategies of prefixes: those that have an effect, and those that have none."""

from functools import partial
from typing import Final

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.spec.opcodes import (
    LOCK,
    OPCODES,
    OPERAND_SIZE,
    REP,
    REPNE,
    SEGMENT_PREFIXES,
    TWO_BYTES,
)
from emu86.testing.operands import Code, encoded, imm8, with_reg

_LEAVE_FLAGS_UNDEFINED: Final = (0x0FAB, 0x0FB3, 0x0FBA, 0x0FBB)  # BTS, BTR, BTC


def _locked(code: Code) -> Code:
    return code.map(lambda found: bytes([LOCK]) + found)


def locked(bits: int = 32) -> Code:
    """LOCK before what allows it: read-modify-writes of memory (Vol. 2A LOCK).

    Left out are BTS, BTR and BTC, which leave flags undefined, and immediates of the
    operand's size.
    """
    found = []
    for opcode, group in OPCODES.items():
        regs = [i for i in range(8) if group[i].lock and group[i].immediate != "z"]
        if regs and opcode not in _LEAVE_FLAGS_UNDEFINED:
            code = opcode.to_bytes(2 if opcode >= TWO_BYTES else 1, "big")
            immediate = imm8() if group[regs[0]].immediate else None
            one = partial(encoded, code, immediate=immediate, memory=True, bits=bits)
            found.append(st.sampled_from(regs).flatmap(one))
    return _locked(st.one_of(*found))


def locked_wrongly(bits: int = 32) -> Code:
    """LOCK before privileged and sensitive instructions, which is #UD.

    RDTSC is left out: a handler that skips the prefix would run it, and time differs.
    """
    return _locked(
        st.one_of(
            st.sampled_from(
                (b"\xfa", b"\xfb", b"\xf4", b"\x9c", b"\x9d", b"\x0f\x06",
                 b"\x0f\x20\xc0", b"\x0f\x22\xd8", b"\x0f\x21\xc0", b"\x0f\x32",
                 b"\xec", b"\xee", b"\x6c", b"\xcf")
            ),
            encoded(b"\x0f\x01", 0, memory=True, bits=bits),
            encoded(b"\x0f\x01", 4, bits=bits),
            encoded(b"\x0f\x00", 0, bits=bits),
            encoded(b"\x8e", 0, bits=bits),
        )
    )  # fmt: skip


def locked_natively(bits: int = 32) -> Code:
    """LOCK before what no VMM handles: #UD on a CPU, but the engine runs it.

    Not in `programs`.
    """
    return _locked(
        st.one_of(
            st.just(b"\x90"), with_reg(b"\x89", bits=bits),
            with_reg(b"\x39", bits=bits), with_reg(b"\x01", memory=False, bits=bits),
        )
    )  # fmt: skip


def _plain(bits: int) -> Code:
    """One instruction without prefixes: native, privileged and sensitive ones."""
    increment = b"\x40" if bits == 32 else b"\xff\xc0"
    where = b"\0\0\5\0".ljust(bits // 8, b"\0")
    return st.one_of(
        st.sampled_from(
            (increment, b"\x9c", b"\xfa", b"\xfb", b"\x0f\x20\xc0", b"\x0f\x01\xe0",
             b"\x9d", b"\x0f\x06", b"\x8c\xd8", b"\x0f\x00\xc8", b"\xe4\x21", b"\x50")
        ),
        st.sampled_from((b"\xa1", b"\xa3")).map(lambda code: code + where),
    )  # fmt: skip


def repeated(bits: int = 32) -> Code:
    """Prefixes that repeat, contradict each other, or have no effect.

    REP and REPNE before what is no string instruction, two segments, 66h twice; in
    64-bit code REX that does not stand last.
    """
    pool = [OPERAND_SIZE, *SEGMENT_PREFIXES, REP, REPNE]
    if bits == 64:
        pool += [0x48, 0x40]
    return st.builds(
        lambda before, code: bytes(before) + code,
        st.lists(st.sampled_from(pool), min_size=1, max_size=4),
        _plain(bits),
    )


def long(bits: int = 32) -> Code:
    """Instructions of 15 bytes, and of 16, which are #GP(0): Vol. 2A 2.3.11."""
    return st.builds(
        lambda code, prefix, length: bytes([prefix]) * (length - len(code)) + code,
        _plain(bits),
        st.sampled_from((0x3E, 0x26, 0x64, 0x66)),
        st.sampled_from((x86.LONGEST_INSN, x86.LONGEST_INSN + 1)),
    )
