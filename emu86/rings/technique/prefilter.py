"""What tells at once that a block holds nothing to patch, which is most.

An expression that each block with a site matches; and a table of opcodes, by which
compiled code decodes a block as far as lengths (`native.scan`). What may hold a site,
`scan` decodes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Final

from emu86.native import abi
from emu86.rings.events.accesses import XLAT
from emu86.rings.insn import sse_operands
from emu86.rings.insn.table import RECORDS
from emu86.rings.technique.null_selectors import byte_class
from emu86.spec import x86
from emu86.spec.features import FORMS
from emu86.spec.opcodes import (
    ESCAPE,
    LOCK,
    OPCODES,
    OPCODES64,
    OPERAND_SIZE,
    PREFIXES,
    TWO_BYTES,
    Group,
)

REAL: Final = 0  # instead of a ring: what is patched in real mode
# What of the kernel's sites is not: the engine does it as a CPU, or has #UD as that.
NATIVE_IN_REAL_MODE: Final = (
    "POPF", "IRET", "MOV to SS", "POP SS", "LSS", "JMP far", "JMP far, indirect",
    "CALL far", "CALL far, indirect", "RET far", "SLDT", "STR", "LAR", "LSL", "VERR",
    "VERW",
)  # fmt: skip
_PUSHF: Final = 0x9C
_CS_PREFIX: Final = 0x2E
# What loads DS, ES, FS or GS: MOV, POP, LES and its kind.
_LOADS: Final = (0x8E, 0x07, 0x1F, 0xC4, 0xC5, 0x0FA1, 0x0FA9, 0x0FB4, 0x0FB5)
_TESTS: Final = (0xF6, 0xF7)
_WIDE_POINTERS: Final = (0x0FB2, 0x0FB4, 0x0FB5)  # with REX.W they are patched
_MOV_TO_SREG, _LSS = 0x8E, 0x0FB2
# Immediates of 32-bit code without prefixes, and of 64-bit code.
_KINDS: Final = {
    "b": 1, "w": 2, "wb": 3, "o": 4, "z": abi.IMMEDIATE_Z, "v": abi.IMMEDIATE_Z,
}  # fmt: skip
_KINDS64: Final = _KINDS | {"v": abi.IMMEDIATE_V, "o": abi.IMMEDIATE_OFFSET}

_MEMORY, _REGISTER = (0, 1, 2), (3,)  # ModRM.mod
# Expressions for immediates, of what ends blocks.
_IMMEDIATES: Final = {
    "": b"", "b": b".", "w": b"..", "z": b"(?:..){1,2}", "p": b".{4,6}",
}  # fmt: skip


_BUT_LOCK: Final = byte_class(PREFIXES - {LOCK}) + b"*"
_BY_CS: Final = re.escape(bytes([_CS_PREFIX])) + byte_class(PREFIXES) + b"*"
# An opcode, with expressions for what stands before it and behind it.
_Site = tuple[bytes, int, bytes]
_PUSHFD: Final[_Site] = bytes([OPERAND_SIZE]) + _BUT_LOCK, _PUSHF, b""


@cache
def _modrm(mods: tuple[int, ...], regs: Sequence[int]) -> bytes:
    """Return an expression for ModRM bytes with these fields."""
    return byte_class(
        mod << 6 | reg << 3 | rm for mod in mods for reg in regs for rm in range(8)
    )


def _any_of(sites: Iterable[_Site]) -> bytes:
    """Return an expression for all of these, with those in one part that are alike."""
    alike: dict[tuple[bytes, bytes], set[int]] = {}
    for before, opcode, behind in sites:
        escape = bytes([ESCAPE]) if opcode >= TWO_BYTES else b""
        alike.setdefault((before + escape, behind), set()).add(opcode & 0xFF)
    return b"|".join(
        before + byte_class(opcodes) + behind
        for (before, behind), opcodes in sorted(alike.items())
    )


def _denied(lacks: int) -> Iterator[_Site]:
    """Give the instructions of features that the CPU model lacks."""
    for opcode, by_prefix in FORMS.items():
        for prefix, forms in by_prefix.items():
            lacking = tuple(form for form in range(16) if forms[form] & lacks)
            if not lacking:
                continue
            before = (
                byte_class([prefix]) + byte_class(PREFIXES) + b"*" if prefix else b""
            )
            behind = _forms(lacking) if len(lacking) < len(forms) else b""
            yield before if opcode >= TWO_BYTES else b"", opcode, behind
            if not prefix:
                break  # it is found with a prefix, too


@cache
def _forms(numbers: tuple[int, ...]) -> bytes:
    """Return an expression for the ModRM bytes of these forms (see `FORMS`)."""
    in_memory = tuple(form for form in numbers if form < 8)
    in_register = tuple(form - 8 for form in numbers if form >= 8)
    both = (_MEMORY, in_memory), (_REGISTER, in_register)
    found = [_modrm(mods, regs) for mods, regs in both if regs]
    return b"(?:" + b"|".join(found) + b")"


def _native_mistakes(ring: int, lacks: int) -> Iterator[_Site]:
    """Give what no record has and a CPU does not run so."""
    yield from _denied(lacks)
    if ring == REAL:
        return
    if ring == x86.CPL_USER:
        yield _PUSHFD
    yield from _stores_to_code()


def _stores_to_code() -> Iterator[_Site]:
    """Give what writes memory behind a CS prefix."""
    for opcode, group in OPCODES.items():
        writes = tuple(reg for reg in range(8) if "w" in group[reg].memory)
        if writes:
            yield _BY_CS, opcode, _modrm(_MEMORY, writes) if group[0].rm else b""


@cache
def prefilter(ring: int, skip: tuple[str, ...], lacks: int) -> re.Pattern[bytes]:
    """Return a pattern that every block with a site to patch at `ring` matches.

    ring: 1, 3 or REAL; lacks: see `CpuModel`.

    What ends a block is looked for at the end of a block only: the opcodes of those are
    common bytes.
    """
    sites = set(_native_mistakes(ring, lacks))
    for record in RECORDS:
        if 32 not in record.modes:
            continue
        members = slice(None) if record.reg < 0 else slice(record.reg, record.reg + 1)
        regs = range(8)[members]
        told = record.reg >= 0 or record.memory
        mods = _MEMORY if record.memory else _MEMORY + _REGISTER
        for opcode in record.opcodes:
            if record.modrm >= 0:  # of a group whose others are another's
                if ring in record.patched:
                    sites.add((b"", opcode, re.escape(bytes([record.modrm]))))
                continue
            group = OPCODES[opcode][members]
            behind = _modrm(mods, regs) if told else b""
            if not all(member.lock for member in group):
                # With a LOCK prefix it is #UD, and the engine runs many all the same.
                sites.add((bytes([LOCK]) + _BUT_LOCK, opcode, behind))
            if (ring or 1) not in record.patched or record.mnemonic in skip:
                continue
            if all(member.ends_block for member in group):
                if group[0].rm:  # SIB and displacement
                    behind += b".{0,5}" if told else b".{1,6}"
                behind += _IMMEDIATES[group[0].immediate] + b"\\Z"
            sites.add((b"", opcode, behind))
    return re.compile(_any_of(sites), re.DOTALL)


# Loads of SS in 64-bit code, MOV and LSS: see `scan.Scanner`.
LOADS_SS: Final = re.compile(
    _any_of(
        ((b"", _MOV_TO_SREG, _modrm(_MEMORY + _REGISTER, (x86.SS,))), (b"", _LSS, b""))
    )
)
LOOKED_AT: Final = re.compile(
    _any_of(
        (b"", opcode, _modrm(_MEMORY, range(8)))
        for opcode in sse_operands.OPCODES_LOOKED_AT
    )
)


def opcode_table(
    bits: int, skip: Mapping[int, tuple[str, ...]], lacks: int
) -> list[int]:
    """Return what compiled code knows of opcodes: see `abi.OPCODE_MODRM`.

    bits: 32 or 64, of the code; skip: mnemonics that run natively, by ring (1 and 3);
    lacks: see `CpuModel`.
    """
    made = [abi.OPCODE_PYTHON] * 512
    for number, group in (OPCODES64 if bits == 64 else OPCODES).items():
        if number < 0x100 or number >> 8 == ESCAPE:
            index = number & 0xFF | (number >= TWO_BYTES) << 8
            made[index] = _entry(number, group, bits)
            for ring, first in ((1, abi.OPCODE_KERNEL), (3, abi.OPCODE_USER)):
                made[index] |= _wanted(number, ring, bits, skip[ring], lacks) << first
    return made


def _entry(number: int, group: Group, bits: int) -> int:
    if bits not in group[0].modes:
        return abi.OPCODE_PYTHON
    kinds = [member.immediate for member in group]
    known = _KINDS64 if bits == 64 else _KINDS
    entry = known.get(kinds[0], 0) << abi.OPCODE_IMMEDIATE
    if len(set(kinds)) > 1:
        if number not in _TESTS:
            return abi.OPCODE_PYTHON
        entry |= abi.OPCODE_TEST
    elif kinds[0] and kinds[0] not in known:
        return abi.OPCODE_PYTHON
    rm = group[0].rm
    entry |= abi.OPCODE_MODRM if rm else 0
    entry |= abi.OPCODE_REGISTERS if rm == "r" else 0
    if bits == 64:
        odd = any(record.narrow and number in record.opcodes for record in RECORDS)
    else:
        odd = number == _PUSHF
    entry |= abi.OPCODE_USER_66 if odd else 0
    for reg, member in enumerate(group):
        entry |= (not member.lock) << abi.OPCODE_NO_LOCK + reg
        if rm:
            entry |= bool(member.memory) << abi.OPCODE_MEMORY + reg
    plain = group[0].source or group[0].immediate == "o" or number == XLAT
    if plain and not rm:
        entry |= 1 << abi.OPCODE_MEMORY
    return entry


def _wanted(
    number: int, ring: int, bits: int, skip: tuple[str, ...], lacks: int
) -> int:
    """Return which forms of an opcode must be decoded: see `FORMS`; as bits."""
    found = 0
    if bits == 64:
        found = 0x00FF if number in _WIDE_POINTERS else 0
    else:
        found = 0xFFFF if number in _LOADS else 0
        if number in sse_operands.OPCODES_LOOKED_AT:
            found |= 0x00FF
    for forms in FORMS.get(number, {}).values():
        for form, features in enumerate(forms):
            found |= bool(features & lacks) << form
    for record in RECORDS:
        wanted = ring in record.patched and record.mnemonic not in skip
        wanted = wanted and bits in record.modes and not record.narrow
        if wanted and number in record.opcodes:
            regs = 0xFF if record.reg < 0 else 1 << record.reg
            found |= 0 if record.registers else regs
            found |= 0 if record.memory else regs << 8
    return found
