"""The clock inside of translated blocks, written into each: see `cpu.prologue`."""

import ctypes
from typing import Final

from emu86.native import abi
from emu86.native.abi import Control
from emu86.native.records import i64, u32, u64
from emu86.spec import x86

_KEY: Final = 25  # bytes of the block hook's call, but for the call and the address
_LOAD: Final = 12  # bytes of: mov rdi, uc; xor esi, esi
_SEARCHED: Final = 1 << 16
_MOV_RDI: Final = 0xBF48
_MOV_RCX: Final = 0xB948
_MOV_ESI: Final = 0xBE  # of 32 bits; then of 32 that are sign-extended, and of 64
_MOV_RSI_SIGNED: Final = 0xC6C748
_MOV_RSI: Final = 0xBE48
_LEA_RSI: Final = 0x358D48  # of what is within 2 GiB of the instruction
_MOV_RAX: Final = 0xB848
_CALL_RAX: Final = 0xD0FF
_NOP_4: Final = 0x00401F0F
_MOV_EDX: Final = 0xBA
_XOR_ESI: Final = 0xF633
_FAR_CALL: Final = 0x15FF
_NEAR_CALL: Final = 0xE8
_PADDING: Final = (0, 0x90, 0x9066)
_NOP: Final = 0x90


def call_length(at: u64) -> u32:
    """Return the bytes of the call there; 0: there is none."""
    if ctypes.c_uint16.from_address(at).value == _FAR_CALL:
        return 6
    return 5 if ctypes.c_uint8.from_address(at).value == _NEAR_CALL else 0


def address_length(at: u64, pc: u64) -> u32:
    """Return the bytes of what loads RSI with `pc` there; 0: nothing does."""
    if pc <= x86.MASK32:
        if ctypes.c_uint8.from_address(at).value != _MOV_ESI:
            return 0
        found = ctypes.c_uint32.from_address(at + 1 & x86.MASK64).value
        return 5 if found == pc else 0
    first = ctypes.c_uint32.from_address(at).value
    if first & 0xFFFF == _MOV_RSI:
        whole = ctypes.c_uint64.from_address(at + 2 & x86.MASK64).value
        return 10 if whole == pc else 0
    low: u64 = pc
    if first & 0xFFFFFF == _LEA_RSI:
        low = pc - at - 7 & x86.MASK64
    elif first & 0xFFFFFF != _MOV_RSI_SIGNED:
        return 0
    if low + 0x80000000 & x86.MASK64 > x86.MASK32:
        return 0  # no 32 bits are sign-extended to it
    distance = ctypes.c_uint32.from_address(at + 3 & x86.MASK64).value
    return 7 if distance == low & x86.MASK32 else 0


def key_length(control: Control, at: u64, pc: u64, size: u32) -> u32:
    """Return the bytes up to the call of a block's hook; 0: it is not called."""
    if ctypes.c_uint64.from_address(at + 2 & x86.MASK64).value != control.uc:
        return 0
    if ctypes.c_uint16.from_address(at).value != _MOV_RDI:
        return 0
    length = address_length(at + 10 & x86.MASK64, pc)
    if not length:
        return 0
    rest: u64 = at + 10 + length & x86.MASK64
    if ctypes.c_uint8.from_address(rest).value != _MOV_EDX:
        return 0
    if ctypes.c_uint32.from_address(rest + 1 & x86.MASK64).value != size:
        return 0
    if ctypes.c_uint16.from_address(rest + 5 & x86.MASK64).value != _MOV_RCX:
        return 0
    here = ctypes.addressof(control)
    if ctypes.c_uint64.from_address(rest + 7 & x86.MASK64).value != here:
        return 0
    return _KEY + length & 63


def find(control: Control, pc: u64, size: u32) -> u64:
    """Return where the newest block's hook is called, or 0."""
    at: u64 = control.code_next
    if not at:
        return 0
    most = at + _SEARCHED & x86.MASK64
    end = min(most, control.code_end - 64 & x86.MASK64)
    while at < end:
        if key_length(control, at, pc, size):
            return at
        at = at + 1 & x86.MASK64
    return 0


def shorten(control: Control, pc: u64, size: u32, guard: i64) -> bool:
    """Rewrite the beginning of a block; False: it is not as expected."""
    is_far = pc > x86.MASK32
    if guard and is_far:
        return False
    at = find(control, pc, size)
    if not at:
        return False
    key = key_length(control, at, pc, size)
    first = call_length(at + key & x86.MASK64)
    between = at + key + first & x86.MASK64
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
    more = key + first + _LOAD + second - abi.PROLOGUE & 15
    padding = ctypes.c_uint8.from_address(at + abi.PROLOGUE & x86.MASK64)
    if is_far:
        widen(at, pc, more)
    elif more == 1:
        padding.value = _PADDING[1]
    elif more == 2:
        both = ctypes.c_uint16.from_address(at + abi.PROLOGUE & x86.MASK64)
        both.value = _PADDING[2]
    control.code_next = at + abi.PROLOGUE & x86.MASK64
    control.count_shortened += 1
    return True


def widen(at: u64, pc: u64, more: u32) -> None:
    """Have a block that has been rewritten call with 64 bits of its address.

    more: bytes behind it that it jumps over when there is nothing to look at.
    """
    late = ctypes.c_uint64.from_address(at + abi.LATE_CALL_AT & x86.MASK64).value
    load: u64 = at + abi.PC_AT - 1 & x86.MASK64
    ctypes.c_uint16.from_address(load).value = _MOV_RSI
    ctypes.c_uint64.from_address(load + 2 & x86.MASK64).value = pc
    ctypes.c_uint16.from_address(load + 10 & x86.MASK64).value = _MOV_RAX
    ctypes.c_uint64.from_address(load + 12 & x86.MASK64).value = late
    ctypes.c_uint16.from_address(load + 20 & x86.MASK64).value = _CALL_RAX
    ctypes.c_uint32.from_address(load + 22 & x86.MASK64).value = _NOP_4
    ctypes.c_uint8.from_address(load - 1 & x86.MASK64).value = 26 + more
    for i in range(more):
        ctypes.c_uint8.from_address(at + abi.PROLOGUE + i & x86.MASK64).value = _NOP
