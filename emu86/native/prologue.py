"""The clock inside of translated blocks, written into each: see `cpu.prologue`."""

import ctypes
from typing import Final

from emu86.native import abi
from emu86.native.abi import Control
from emu86.native.records import i64, u32, u64
from emu86.spec import x86

_KEY: Final = 30  # bytes of the block hook's call, but for the call
_LOAD: Final = 12  # bytes of: mov rdi, uc; xor esi, esi
_SEARCHED: Final = 1 << 16
_MOV_RDI: Final = 0xBF48
_MOV_RCX: Final = 0xB948
_MOV_ESI: Final = 0xBE
_MOV_EDX: Final = 0xBA
_XOR_ESI: Final = 0xF633
_FAR_CALL: Final = 0x15FF
_NEAR_CALL: Final = 0xE8
_PADDING: Final = (0, 0x90, 0x9066)


def call_length(at: u64) -> u32:
    """Return the bytes of the call there; 0: there is none."""
    if ctypes.c_uint16.from_address(at).value == _FAR_CALL:
        return 6
    return 5 if ctypes.c_uint8.from_address(at).value == _NEAR_CALL else 0


def is_key(control: Control, at: u64, pc: u32, size: u32) -> bool:
    """Tell whether the block's hook is called there."""
    if ctypes.c_uint64.from_address(at + 2 & x86.MASK64).value != control.uc:
        return False
    if ctypes.c_uint16.from_address(at).value != _MOV_RDI:
        return False
    if ctypes.c_uint8.from_address(at + 10 & x86.MASK64).value != _MOV_ESI:
        return False
    if ctypes.c_uint32.from_address(at + 11 & x86.MASK64).value != pc:
        return False
    if ctypes.c_uint8.from_address(at + 15 & x86.MASK64).value != _MOV_EDX:
        return False
    if ctypes.c_uint32.from_address(at + 16 & x86.MASK64).value != size:
        return False
    if ctypes.c_uint16.from_address(at + 20 & x86.MASK64).value != _MOV_RCX:
        return False
    here = ctypes.addressof(control)
    return ctypes.c_uint64.from_address(at + 22 & x86.MASK64).value == here


def find(control: Control, pc: u32, size: u32) -> u64:
    """Return where the newest block's hook is called, or 0."""
    at: u64 = control.code_next
    if not at:
        return 0
    most = at + _SEARCHED & x86.MASK64
    end = min(most, control.code_end - 64 & x86.MASK64)
    while at < end:
        if is_key(control, at, pc, size):
            return at
        at = at + 1 & x86.MASK64
    return 0


def shorten(control: Control, pc: u32, size: u32, guard: i64) -> bool:
    """Rewrite the beginning of a block; False: it is not as expected."""
    at = find(control, pc, size)
    if not at:
        return False
    first = call_length(at + _KEY & x86.MASK64)
    between = at + _KEY + first & x86.MASK64
    second = call_length(between + _LOAD & x86.MASK64)
    if not first or not second:
        return False
    if ctypes.c_uint16.from_address(between).value != _MOV_RDI:
        return False
    if ctypes.c_uint64.from_address(between + 2 & x86.MASK64).value != control.uc:
        return False
    if ctypes.c_uint16.from_address(between + 10 & x86.MASK64).value != _XOR_ESI:
        return False
    made: u32 = abi.GUARDED_PROLOGUE if guard else 0
    for i in range(6):
        word = ctypes.c_uint64.from_address(at + 8 * i & x86.MASK64)
        word.value = control.prologues[made + i & 15]
    last = ctypes.c_uint32.from_address(at + 48 & x86.MASK64)
    last.value = control.prologues[made + 6 & 15]
    ctypes.c_uint32.from_address(at + abi.SIZE_AT & x86.MASK64).value = size
    if guard:
        ctypes.c_uint32.from_address(at + abi.GUARD_AT & x86.MASK64).value = guard
        ctypes.c_uint32.from_address(at + abi.GUARDED_PC_AT & x86.MASK64).value = pc
    else:
        ctypes.c_uint32.from_address(at + abi.PC_AT & x86.MASK64).value = pc
    more = _KEY + first + _LOAD + second - abi.PROLOGUE
    padding = ctypes.c_uint8.from_address(at + abi.PROLOGUE & x86.MASK64)
    if more == 1:
        padding.value = _PADDING[1]
    elif more == 2:
        both = ctypes.c_uint16.from_address(at + abi.PROLOGUE & x86.MASK64)
        both.value = _PADDING[2]
    control.code_next = at + abi.PROLOGUE & x86.MASK64
    control.count_shortened += 1
    return True
