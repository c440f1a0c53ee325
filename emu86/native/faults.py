"""Exceptions that are the guest's own, delivered by a plan.

What `rings.technique.deprivileged` does, of page faults for small pages. Everything
else goes on to Python.
"""

import ctypes
from typing import Final

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, WideTable
from emu86.native.records import i64, u32, u64
from emu86.native.state import NOWHERE, host_of, is_canonical, leave, spte_of, waits
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
from emu86.native.transfers64 import code_at, deliver64
from emu86.spec import opcodes, x86
from emu86.spec.opcodes import ESCAPE, OPCODES, TWO_BYTES

PREFIXES = tuple(sorted(opcodes.PREFIXES))
_ACCESS = x86.PF_W | x86.PF_U
_EMULATES = x86.CR0_EM << offsets.HF_MP_EM_TS_SHIFT
_LONGEST = 8  # bytes that are looked at
_PREFIXES_MOST = 4
_UNKNOWN = 1  # of `access_of`


def _modifying(first: int) -> tuple[int, ...]:
    """Return which of 256 opcodes read memory to write it, 8 bits each by ModRM.reg."""
    found = [0] * 32
    for number in range(256):
        for reg, member in enumerate(OPCODES.get(first + number, ())):
            if member.memory == "rw":
                found[number >> 3] |= 1 << (number << 3 & 63) + reg
    return tuple(found)


_ONE: Final = _modifying(0)
_TWO: Final = _modifying(TWO_BYTES)


def access_of(at: u64, is_64_bit: bool) -> u32:
    """Return PF_W if the instruction at `at` writes what it reads, 0 if it does not.

    Or _UNKNOWN. at: an address in this process, or NOWHERE; is_64_bit: of 64-bit code.
    """
    if at == NOWHERE:
        return _UNKNOWN
    for i in range(_PREFIXES_MOST):
        byte: u32 = ctypes.c_uint8.from_address(at + i & x86.MASK64).value
        if byte in PREFIXES or (is_64_bit and byte & 0xF0 == 0x40):
            continue
        escape = 1 if byte == ESCAPE else 0
        second = ctypes.c_uint8.from_address(at + i + 1 & x86.MASK64).value
        modrm = ctypes.c_uint8.from_address(at + i + 1 + escape & x86.MASK64).value
        bits = _TWO[second >> 3 & 31] if escape else _ONE[byte >> 3 & 31]
        shift = (second if escape else byte) << 3 & 63
        return x86.PF_W if bits >> (shift | modrm >> 3 & 7) & 1 else 0
    return _UNKNOWN


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
    is_64_bit = cpu.hflags & offsets.HF_CS64
    if not is_64_bit and not has_data_segments(cpu):
        return False
    cs = cpu.segments[x86.CS].selector
    eip = cpu.rip & (x86.MASK64 if is_64_bit else x86.MASK32)
    if control.efer & x86.EFER_LMA:
        if not deliver64(control, cpu, vector, error, True, False):
            return False
    elif not deliver_by_plan(control, cpu, vector, error, True, False):
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
    if cpu.cr2 > x86.MASK32:
        return False
    linear = cpu.rip + cpu.segments[x86.CS].base & x86.MASK32
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
    in_page = linear & 0xFFF <= x86.PAGE_SIZE - _LONGEST
    entry = spte_of(control, linear) if in_page else 0
    at = host_of(control, entry, linear, False)
    return own_fault(control, cpu, linear, at, pte, pde & pte, pde | pte)


def own_fault(
    control: Control, cpu: Cpu, linear: u64, at: u64, pte: u64, both: u64, either: u64
) -> bool:
    """Deliver a #PF if the guest's entries forbid the access.

    linear: of the instruction; at: where in this process it is, or NOWHERE; pte: 0 if
    there is none; both, either: what is set in all entries, and in one of them.
    """
    error = cpu.error_code
    if error & x86.PF_I and (cpu.cr2 ^ linear) >> 12:
        return False  # the block is translated ahead of what runs
    code: u32 = error & (_ACCESS | control.fetch_bit)
    if pte & x86.PTE_P:
        if pte & control.reserved_page:
            return False
        if not is_denied(control, error, both, either & x86.PTE_NX):
            return False
        code |= x86.PF_P
    # The engine reads first; on a CPU what will be written is asked for so.
    if not error & (x86.PF_W | x86.PF_I):
        access = access_of(at, bool(cpu.hflags & offsets.HF_CS64))
        if access == _UNKNOWN:
            return False
        code |= access
    if not reflect(control, cpu, x86.VEC_PF, code, cpu.cr2):
        return False
    control.count_page_fault += 1
    return True


def page_fault_64(control: Control, cpu: Cpu) -> bool:
    """Do `page_fault` by tables of four levels."""
    if control.told or control.by_ring or waits(control, cpu):
        return False
    linear = cpu.cr2
    top = control.leaves.contents[control.top_page & abi.LEAF_PAGES - 1]
    table = top.page_table & x86.MASK64
    if not control.upper_count or not is_canonical(linear):
        return False
    if table >= control.ram_size:
        return False
    where: u64 = control.ram + table & x86.MASK64
    both: u64 = x86.MASK64
    either: u64 = 0
    entry: u64 = 0
    for level in range(4):
        entry = WideTable.from_address(where)[linear >> 39 - 9 * level & 511]
        if not entry & x86.PTE_P:
            break
        both &= entry
        either |= entry
        if level < 3:
            where = page_table(control, entry)
            if entry & (x86.PDE_PS | control.reserved) or where == NOWHERE:
                return False
    in_32_bits = cpu.rip + cpu.segments[x86.CS].base & x86.MASK32
    rip = cpu.rip if cpu.hflags & offsets.HF_CS64 else in_32_bits
    at = code_at(control, rip, _LONGEST)
    return own_fault(control, cpu, rip, at, entry, both, either)


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
