"""Exceptions that are the guest's own, delivered by a plan.

What `rings.technique.deprivileged` does, of page faults for small pages. Everything
else goes on to Python.
"""

import ctypes
from typing import Final

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu
from emu86.native.records import i64, u32, u64
from emu86.native.state import NOWHERE, host, leave, waits
from emu86.native.tables import (
    directory_of,
    entry_at,
    page_table,
    pde_index,
    pte_index,
)
from emu86.native.transfers import (
    deliver_by_plan,
    has_data_segments,
    note_event,
    note_ring,
)
from emu86.spec import x86
from emu86.spec.opcodes import ESCAPE, OPCODES, PREFIXES, TWO_BYTES

_ACCESS = x86.PF_W | x86.PF_U
_PREFIXES = tuple(sorted(PREFIXES))
_EMULATES = x86.CR0_EM << offsets.HF_MP_EM_TS_SHIFT
_LONGEST = 8  # bytes that are looked at
# Groups of which the one with 7 in ModRM.reg is CMP, which only reads.
_COMPARES = (0x80, 0x81, 0x83)
_CMP = 7


def _modifying(first: int) -> tuple[int, ...]:
    """Return which of 256 opcodes may read memory to write it, as bits of words."""
    found = [0, 0, 0, 0]
    for number in range(256):
        group = OPCODES.get(first + number, ())
        if any(member.memory == "rw" for member in group):
            found[number >> 6] |= 1 << (number & 63)
    return tuple(found)


_ONE: Final = _modifying(0)
_TWO: Final = _modifying(TWO_BYTES)


def only_reads(control: Control, linear: u32) -> bool:
    """Tell whether the instruction at `linear` surely writes nothing that it reads."""
    if linear & 0xFFF > x86.PAGE_SIZE - _LONGEST:
        return False
    at = host(control, linear, False)
    if at == NOWHERE:
        return False
    for i in range(3):
        byte: u32 = ctypes.c_uint8.from_address(at + i & x86.MASK64).value
        if byte in _PREFIXES:
            continue
        if byte == ESCAPE:
            byte = ctypes.c_uint8.from_address(at + i + 1 & x86.MASK64).value
            return not _TWO[byte >> 6 & 3] >> (byte & 63) & 1
        if byte in _COMPARES:
            modrm = ctypes.c_uint8.from_address(at + i + 1 & x86.MASK64).value
            return modrm >> 3 & 7 == _CMP
        return not _ONE[byte >> 6 & 3] >> (byte & 63) & 1
    return False


def is_denied(control: Control, error: u32, rights: u64, never: u64) -> bool:
    """Tell whether an access with this error code is against these rights.

    never: not 0 if nothing may be executed there.
    """
    if error & x86.PF_U and not rights & x86.PTE_US:
        return True
    if error & x86.PF_I and never:
        return True
    if not error & x86.PF_W or rights & x86.PTE_RW:
        return False
    return bool(error & x86.PF_U) or control.write_protect != 0


def reflect(control: Control, cpu: Cpu, vector: u32, error: i64, cr2: u64) -> bool:
    """Deliver a fault of the guest's own, with CR2 as it is then; ends the exit.

    error: -1 for none.
    """
    if not has_data_segments(cpu):
        return False
    cs = cpu.segments[x86.CS].selector
    eip = cpu.rip & x86.MASK32
    if not deliver_by_plan(control, cpu, vector, error, True, False):
        return False
    control.cr2 = cr2
    note_event(control, vector, error, cs, eip)
    note_ring(control, cpu, abi.BY_EVENT | vector, cs, eip)
    leave(control, cpu, 0)
    return True


def page_fault(control: Control, cpu: Cpu) -> bool:
    """Deliver a #PF that the guest's tables say is its own."""
    if control.told or control.by_ring or waits(control, cpu):
        return False
    if not control.tables_known:
        return False
    error = cpu.error_code
    if cpu.cr2 > x86.MASK32:
        return False
    linear = cpu.rip + cpu.segments[x86.CS].base & x86.MASK32
    fetches = error & x86.PF_I
    if fetches and (cpu.cr2 ^ linear) >> 12:
        return False  # the block is translated ahead of what runs
    address = cpu.cr2 & x86.MASK32
    pdes = control.guest_pdes[directory_of(control, address) & 3]
    if pdes == NOWHERE:
        return False
    pde = entry_at(control, pdes, pde_index(control, address))
    pte: u64 = 0
    if pde & x86.PTE_P:
        where = page_table(control, pde)
        if pde & (x86.PDE_PS | control.reserved) or where == NOWHERE:
            return False
        pte = entry_at(control, where, pte_index(control, address))
    code: u32 = error & (_ACCESS | control.fetch_bit)
    if pte & x86.PTE_P:
        if pte & control.reserved_page:
            return False
        if not is_denied(control, error, pde & pte, (pde | pte) & x86.PTE_NX):
            return False
        code |= x86.PF_P
    # The engine reads first; on a CPU what will be written is asked for so.
    reads = not error & (x86.PF_W | x86.PF_I)
    if reads and not only_reads(control, linear):
        return False
    if not reflect(control, cpu, x86.VEC_PF, code, cpu.cr2):
        return False
    control.count_page_fault += 1
    return True


def exception(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Deliver #DE, #BR or #NM, which have no error code and nothing to ask first."""
    if vector not in (x86.VEC_DE, x86.VEC_BR, x86.VEC_NM):
        return False
    if control.told or control.by_ring or waits(control, cpu):
        return False
    # To the engine CR0.TS comes before what makes #UD of it: `table.is_switched_off`.
    usable = cpu.hflags & (_EMULATES | offsets.HF_OSFXSR) == offsets.HF_OSFXSR
    if vector == x86.VEC_NM and not usable:
        return False
    if not reflect(control, cpu, vector, -1, control.cr2 & x86.MASK32):
        return False
    control.count_exceptions[vector & 31] += 1
    return True
