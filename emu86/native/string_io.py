"""REP INS and REP OUTS of a drive's data port: many iterations in one exit.

The engine runs each iteration as a block of its own, and calls a handler in each. At
the call it has accessed the page of the memory operand, RIP is at the instruction, and
the index and the count are those of this iteration. What more iterations would do is
done here at once, in that page, up to when a block would have to stop. Time, counts and
registers are then what they would be one by one.
"""

import ctypes
from typing import Final

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, Transfer
from emu86.native.records import i32, u32, u64
from emu86.native.state import NOWHERE, host
from emu86.native.transfers64 import host64
from emu86.spec import x86

_INS: Final = 0x6D
_OUTS: Final = 0x6F
_REP: Final = 0xF3
_OPERAND_SIZE: Final = 0x66
_ADDRESS_SIZE: Final = 0x67
_LONGEST: Final = 4  # of what is looked at: three prefixes and the opcode
_LENGTH: Final = 7
_RESIZED: Final = 8  # beside the length: there is a prefix 67h
_MASK: Final = abi.TRANSFER_WORDS - 1


def place(control: Control, cpu: Cpu, linear: u64, size: u32, write: bool) -> u64:
    """Return where in this process `size` bytes of one page are, or NOWHERE."""
    if cpu.hflags & offsets.HF_CS64:
        return host64(control, linear, size, write) if control.uppers else NOWHERE
    if linear & 0xFFF > x86.PAGE_SIZE - size:
        return NOWHERE
    return host(control, linear & x86.MASK32, write)


def based(cpu: Cpu, index: u32, offset: u64) -> u64:
    """Return the linear address of an offset in ES, CS or DS."""
    if cpu.hflags & offsets.HF_CS64:
        return offset
    linear: u64 = cpu.segments[index & 3].base + offset & x86.MASK32
    return linear


def repeated(control: Control, cpu: Cpu, opcode: u32) -> u32:
    """Return the length of the REP INS or OUTS at RIP, with _RESIZED; 0: another."""
    code = place(control, cpu, based(cpu, x86.CS, cpu.rip), _LONGEST, False)
    if code == NOWHERE:
        return 0
    found: u32 = 0
    resized: u32 = 0
    for i in range(_LONGEST):
        byte = ctypes.c_uint8.from_address(code + i & x86.MASK64).value
        if byte == opcode:
            return (i + 1 | resized) if found else 0
        if byte == _REP:
            found = 1
        elif byte == _ADDRESS_SIZE:
            resized = _RESIZED
        elif byte != _OPERAND_SIZE:
            return 0
    return 0


def address_mask(cpu: Cpu, resized: u32) -> u64:
    """Return the mask of the index and the count."""
    if cpu.hflags & offsets.HF_CS64:
        return x86.MASK32 if resized else x86.MASK64
    is_wide = bool(cpu.hflags & offsets.HF_CS32) != bool(resized)
    return x86.MASK32 if is_wide else 0xFFFF


def most(control: Control, transfer: Transfer, width: i32, length: u32) -> u64:
    """Return for how many more iterations block and time last, but for its last."""
    if control.pending or control.stop_at <= control.now:
        return 0
    time = control.stop_at - control.now & x86.MASK64
    in_block = (transfer.end - transfer.at - 1 & x86.MASK32) >> (2 if width == 4 else 1)
    return min(in_block, (time - 1 & x86.MASK64) // (abi.IO_TIME + length))


def go_on(control: Control, transfer: Transfer, width: i32, way: u32) -> u64:
    """Do more iterations, behind one that was inside the block; return how many.

    way: `abi.TO_HOST` or `abi.TO_DRIVE`.
    """
    cpu = control.cpu.contents
    reads = way == abi.TO_HOST
    found = repeated(control, cpu, _INS if reads else _OUTS)
    if not found or cpu.df != 1:
        return 0
    mask = address_mask(cpu, found & _RESIZED)
    segment = x86.ES if reads else x86.DS
    register = x86.EDI if reads else x86.ESI
    offset = cpu.gpr[register] & mask
    linear = based(cpu, segment, offset)
    size = 4 if width == 4 else 2
    at = place(control, cpu, linear, size, reads)
    if at == NOWHERE:
        return 0
    is_64_bit = cpu.hflags & offsets.HF_CS64
    end = mask if is_64_bit else min(cpu.segments[segment].limit, mask)
    if end < offset:
        return 0
    fits = (min(end - offset & x86.MASK64, 0xFFF - (linear & 0xFFF)) + 1) >> size // 2
    length = found & _LENGTH
    # The first is one of those that fit and are left.
    left = min(cpu.gpr[x86.ECX] & mask, fits, abi.TRANSFER_WORDS)
    more = min(most(control, transfer, width, length), max(left, 1) - 1)
    first = transfer.at >> 1
    for i in range(more * size >> 1):
        word = ctypes.c_uint16.from_address(at + size + 2 * i & x86.MASK64)
        if reads:
            word.value = transfer.words[first + i & _MASK]
        else:
            transfer.words[first + i & _MASK] = word.value
    transfer.at += more * size
    cpu.gpr[register] += more * size
    cpu.gpr[x86.ECX] -= more
    control.now += more * (abi.IO_TIME + length)
    done: u64 = more
    return done
