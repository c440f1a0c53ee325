"""SETcc of memory, whose flags the engine loses: see `rings.insn.lazy_flags`."""

import ctypes

from emu86.cpu import offsets
from emu86.native.abi import Control, Cpu
from emu86.native.records import i64, u32
from emu86.native.state import (
    NOWHERE,
    flags_of,
    host_of,
    knows_flags,
    leave,
    operand_offset,
    spte_of,
    waits,
)
from emu86.spec import x86

# Of a condition's code, without its lowest bit: the flags of which one must be set.
_ONE_OF = (x86.OF, x86.CF, x86.ZF, x86.CF | x86.ZF, x86.SF, x86.PF)
_LESS, _LESS_OR_EQUAL = 6, 7
_SF, _OF = 7, 11  # their bits' numbers


def holds(condition: u32, flags: u32) -> bool:
    """Tell whether a condition (tttn, 4 bits) holds: SDM Vol. 2D table B-10."""
    pair = condition >> 1 & 7
    found: u32 = 0
    if pair < _LESS:
        found = 1 if flags & _ONE_OF[min(pair, 5)] else 0
    else:
        found = (flags >> _SF ^ flags >> _OF) & 1
        if pair == _LESS_OR_EQUAL and flags & x86.ZF:
            found = 1
    return found != condition & 1


def setcc(control: Control, cpu: Cpu, kind: i64) -> bool:
    """Write the byte; kind: see `abi.setcc_kind`. EIP is behind the patch."""
    if waits(control, cpu) or cpu.rflags & x86.AC or not cpu.hflags & offsets.HF_CS32:
        return False
    if not knows_flags(control, cpu):
        return False
    segment = cpu.segments[min(kind >> 4 & 7, 5)]
    asked = x86.DESC_P | x86.DESC_CODE | x86.DESC_CE | x86.DESC_RW
    if segment.attributes & asked != x86.DESC_P | x86.DESC_RW:
        return False
    if segment.limit != x86.MASK32:
        return False
    offset = operand_offset(cpu, kind)
    linear = segment.base + offset & x86.MASK32
    entry = spte_of(control, linear)
    if cpu.hflags & offsets.HF_CPL == x86.CPL_USER:
        if not entry & x86.PTE_US:
            return False
    elif entry & control.no_user_data:
        return False
    at = host_of(control, entry, linear, True)
    if at == NOWHERE:
        return False
    found = holds(kind >> 24 & 15, flags_of(control, cpu))
    ctypes.c_uint8.from_address(at).value = 1 if found else 0
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_setcc += 1
    leave(control, cpu, (kind >> 28 & 15) - 1 & 15)
    return True
