"""The blocks that hold nothing to patch, which is most: what `technique.scan` asks.

A block is decoded as far as lengths, by a table that `rings.technique.scan` has made.
Python's are: 16-bit code, blocks on two pages, what has to be decoded to be judged, and
all blocks while accesses are checked.
"""

import ctypes
from typing import Final

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Opcodes
from emu86.native.records import i64, u32, u64
from emu86.native.state import NOWHERE, entry_of_itself, host_of, spte_of, spte_of_64
from emu86.spec import x86
from emu86.spec.opcodes import ADDRESS_SIZE, ESCAPE, LOCK, OPERAND_SIZE, REX_W

PYTHON: Final = -1
_PROTECTED_32: Final = offsets.HF_CS32 | offsets.HF_PE
_CS, _FS, _GS = 0x2E, 0x64, 0x65
_SEGMENTS: Final = (0x26, 0x36, 0x3E)
_REPEATS: Final = (0xF2, 0xF3)
_PLAIN: Final = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0xF2, 0xF3)  # to 64-bit code
_ESCAPES3: Final = (0x38, 0x3A)
_REX: Final = 4  # the upper half of the byte
# Where in the CPU's state a byte has a segment register's P bit as its bit 7.
_P_OF_FS: Final = offsets.SEGMENTS + 24 * x86.FS + 21
_P_OF_GS: Final = offsets.SEGMENTS + 24 * x86.GS + 21


def load_slot(linear: u32) -> u32:
    """Return the number of the bit of `behind_load` for a linear address."""
    return (linear ^ linear >> 12) & 0xFFF


def fetched_by(control: Control, linear: u32) -> u64:
    """Return the shadow entry by which code is fetched; one that would do; or 0."""
    if control.efer & x86.EFER_LMA:
        return spte_of_64(control, linear)
    if control.shadow_pdes:
        return spte_of(control, linear)
    return entry_of_itself(control, linear) if control.direct else 0


def behind_address(code: u64, at: u32, size: u32, modrm: u32) -> u32:
    """Return where the SIB byte and the displacement at `at` end: beyond `size`, too.

    Of addresses of 32 and of 64 bits.
    """
    mod = modrm >> 6
    rm: u32 = modrm & 7
    if rm == x86.ESP:
        if at >= size:
            return size + 1 & x86.MASK32
        rm = ctypes.c_uint8.from_address(code + at & x86.MASK64).value & 7
        at = at + 1 & x86.MASK32
    if mod == 2 or (mod == 0 and rm == x86.EBP):
        return at + 4 & x86.MASK32
    return at + (1 if mod == 1 else 0) & x86.MASK32


def may_break(control: Control, linear: u64, size: u32) -> bool:
    """Tell whether a block is where some breakpoint may be: it is looked at again."""
    first: u32 = linear & 0xFFF
    last: u32 = (first + size & x86.MASK32) >> 6
    for line in range(64):
        at: u32 = (first >> 6) + line
        if at > last:
            break
        if control.breaks >> (at & 63) & 1:
            return True
    return False


def guard_of(control: Control, linear: u64, size: u32) -> i64:
    """Return what the block must look at as it begins: see `cpu.prologue`; or PYTHON.

    linear: 64 bits; size: in bytes.
    """
    cpu = control.cpu.contents
    if not control.scans or control.patched:
        return PYTHON
    if control.breaks and may_break(control, linear, size):
        return PYTHON
    if cpu.hflags & offsets.HF_CS64:
        return guard_of_64(control, linear, size)
    if linear > x86.MASK32:
        return PYTHON
    if control.unguarded or control.inner:
        return PYTHON
    if control.armed[1] or control.armed[3]:
        return PYTHON
    if cpu.rflags & (x86.AC | x86.VM) or cpu.hflags & _PROTECTED_32 != _PROTECTED_32:
        return PYTHON
    start = linear & x86.MASK32
    slot = load_slot(start)
    if control.behind_load[slot >> 6 & 63] >> (slot & 63) & 1:
        return PYTHON
    if not size or (start & 0xFFF) + size > x86.PAGE_SIZE:
        return PYTHON
    at = host_of(control, fetched_by(control, start), start, False)
    if at == NOWHERE:
        return PYTHON
    return walk(control, at, size, cpu.hflags & offsets.HF_CPL == x86.CPL_USER)


def walk(control: Control, code: u64, size: u32, is_user: bool) -> i64:
    """Return `guard_of` for these bytes."""
    guard: i64 = 0
    at: u32 = 0
    while at < size:
        # -- prefixes
        segment: u32 = 0
        narrow: u32 = 0
        locked: u32 = 0
        byte: u32 = 0
        for _ in range(x86.LONGEST_INSN):
            if at >= size:
                return PYTHON
            byte = ctypes.c_uint8.from_address(code + at & x86.MASK64).value
            at = at + 1 & x86.MASK32
            if byte in (_CS, _FS, _GS):
                segment = byte
            elif byte == OPERAND_SIZE:
                narrow = 1
            elif byte == LOCK:
                locked = 1
            elif byte == ADDRESS_SIZE:
                return PYTHON
            elif byte in _SEGMENTS:
                segment = 0
            elif byte not in _REPEATS:
                break
        index: u32 = byte
        if byte == ESCAPE:
            if at >= size:
                return PYTHON
            byte = ctypes.c_uint8.from_address(code + at & x86.MASK64).value
            at = at + 1 & x86.MASK32
            if byte in _ESCAPES3:
                return PYTHON
            index = 256 + byte & 511
        entry = control.opcodes[index & 511]
        if entry & abi.OPCODE_PYTHON:
            return PYTHON
        if is_user and narrow and entry & abi.OPCODE_USER_66:
            return PYTHON
        # -- ModRM
        reg: u32 = 0
        is_memory: u32 = 1 if entry >> abi.OPCODE_MEMORY & 1 else 0
        forms: u32 = abi.OPCODE_KERNEL
        if is_user:
            forms = abi.OPCODE_USER
        if entry & abi.OPCODE_MODRM:
            if at >= size:
                return PYTHON
            modrm = ctypes.c_uint8.from_address(code + at & x86.MASK64).value
            at = at + 1 & x86.MASK32
            reg = modrm >> 3 & 7
            is_memory = 0
            if modrm >> 6 == 3 or entry & abi.OPCODE_REGISTERS:
                forms = forms + 8 & 63
            else:
                is_memory = entry >> abi.OPCODE_MEMORY + (reg & 7) & 1
                at = behind_address(code, at, size, modrm)
        if entry >> (forms + reg & 63) & 1:
            return PYTHON
        if locked and entry >> abi.OPCODE_NO_LOCK + (reg & 7) & 1:
            return PYTHON
        if segment and is_memory:
            uses: i64 = _P_OF_FS if segment == _FS else _P_OF_GS
            if segment == _CS or (guard and guard != uses):
                return PYTHON
            guard = uses
        # -- immediate
        kind: u32 = entry >> abi.OPCODE_IMMEDIATE & 7
        if entry & abi.OPCODE_TEST and reg > 1:
            kind = abi.IMMEDIATE_NONE
        if kind == abi.IMMEDIATE_Z:
            at = at + (2 if narrow else 4) & x86.MASK32
        else:
            at = at + kind & x86.MASK32
        if at > size:
            return PYTHON
    return guard


def guard_of_64(control: Control, linear: u64, size: u32) -> i64:
    """Return `guard_of` for 64-bit code, which has nothing to guard: 0 or PYTHON."""
    cpu = control.cpu.contents
    if control.inner or cpu.rflags & x86.AC:
        return PYTHON
    if not size or (linear & 0xFFF) + size > x86.PAGE_SIZE:
        return PYTHON
    entry = spte_of_64(control, linear)
    at = host_of(control, entry, linear & x86.MASK32, False)
    if at == NOWHERE:
        return PYTHON
    is_user = cpu.hflags & offsets.HF_CPL == x86.CPL_USER
    return 0 if is_plain(control, at, size, is_user) else PYTHON


def is_plain(control: Control, code: u64, size: u32, is_user: bool) -> bool:
    """Tell whether these bytes, as 64-bit code, hold nothing to patch or to decode."""
    opcodes = Opcodes.from_address(control.opcodes64)
    at: u32 = 0
    while at < size:
        # -- prefixes
        rex: u32 = 0
        narrow: u32 = 0
        short: u32 = 0
        locked: u32 = 0
        byte: u32 = 0
        for _ in range(x86.LONGEST_INSN):
            if at >= size:
                return False
            byte = ctypes.c_uint8.from_address(code + at & x86.MASK64).value
            at = at + 1 & x86.MASK32
            if byte >> 4 == _REX:
                rex = byte
            else:
                if byte == OPERAND_SIZE:
                    narrow = 1
                elif byte == LOCK:
                    locked = 1
                elif byte == ADDRESS_SIZE:
                    short = 1
                elif byte not in _PLAIN:
                    break
                rex = 0
        index: u32 = byte
        if byte == ESCAPE:
            if at >= size:
                return False
            byte = ctypes.c_uint8.from_address(code + at & x86.MASK64).value
            at = at + 1 & x86.MASK32
            if byte in _ESCAPES3:
                return False
            index = 256 + byte & 511
        entry = opcodes[index & 511]
        if entry & abi.OPCODE_PYTHON:
            return False
        if rex & REX_W:
            narrow = 0
        if narrow and entry & abi.OPCODE_USER_66:
            return False
        # -- ModRM
        reg: u32 = 0
        forms: u32 = abi.OPCODE_KERNEL
        if is_user:
            forms = abi.OPCODE_USER
        if entry & abi.OPCODE_MODRM:
            if at >= size:
                return False
            modrm = ctypes.c_uint8.from_address(code + at & x86.MASK64).value
            at = at + 1 & x86.MASK32
            reg = modrm >> 3 & 7
            if modrm >> 6 == 3 or entry & abi.OPCODE_REGISTERS:
                forms = forms + 8 & 63
            else:
                at = behind_address(code, at, size, modrm)
        if entry >> (forms + reg & 63) & 1:
            return False
        if locked and entry >> abi.OPCODE_NO_LOCK + (reg & 7) & 1:
            return False
        # -- immediate
        kind: u32 = entry >> abi.OPCODE_IMMEDIATE & 7
        if entry & abi.OPCODE_TEST and reg > 1:
            kind = abi.IMMEDIATE_NONE
        if kind == abi.IMMEDIATE_V and rex & REX_W:
            kind = 8
        elif kind in (abi.IMMEDIATE_Z, abi.IMMEDIATE_V):
            kind = 2 if narrow else 4
        elif kind == abi.IMMEDIATE_OFFSET:
            kind = 4 if short else 8
        at = at + kind & x86.MASK32
        if at > size:
            return False
    return True
