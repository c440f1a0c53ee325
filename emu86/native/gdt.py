"""Writes to the GDT, and what the shadow GDT becomes by them.

A kernel writes its TLS descriptors at each switch of tasks. What
`rings.technique.shadow_segments` does about that, for a GDT in one page, of at most 64
descriptors, in which data segments of users change. While it is written its page is
writable by one mapping (it is *open*), and the shadow GDT is empty.
"""

import ctypes
from typing import Final

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, Descriptors, ShadowPdes
from emu86.native.records import u32, u64
from emu86.native.state import (
    NOWHERE,
    entry_for,
    host_of,
    leave,
    spte_address,
    spte_address_64,
    stack_top,
    sync_mode,
    waits,
)
from emu86.native.tables import (
    directory_of,
    entry_at,
    first_shadow_pde,
    page_table,
    pde_index,
    pte_index,
)
from emu86.native.tree import may_write_64
from emu86.spec import x86

_HIGH: Final = 32
_NATIVE: Final = x86.DESC_P | x86.DESC_S | x86.DESC_A | x86.DESC_DPL
_KIND: Final = _NATIVE | x86.DESC_CODE | x86.DESC_RW | x86.DESC_CE | x86.DESC_G
_FLAT: Final = _NATIVE | x86.DESC_RW | x86.DESC_G
_LIMIT_HIGH: Final = 0xF0000
_LIMIT: Final = 0xFFFF
_USED: Final = x86.PTE_P | x86.PTE_RW | x86.PTE_A
_WRITTEN: Final = _USED | x86.PTE_D
_MOV_SREG: Final = 0x8E
_POP_ES, _POP_DS, _POP_FS, _POP_GS = 0x07, 0x1F, 0xA10F, 0xA90F
_NONE: Final = 6  # of the segment registers
_TABLE: Final = 4  # TI of a selector


def may_write(control: Control, linear: u32) -> bool:
    """Tell whether the guest's ring 0 may write there, and has done so before.

    And by no other linear address through the same shadow entry.
    """
    directory = directory_of(control, linear)
    pdes = control.guest_pdes[directory & 3]
    if pdes == NOWHERE:
        return False
    slot = pde_index(control, linear)
    pde = entry_at(control, pdes, slot)
    if pde != entry_at(control, control.known_pdes[directory & 3], slot):
        return False
    shadow_pdes = ShadowPdes.from_address(control.shadow_pdes)
    shadow_pde = shadow_pdes[first_shadow_pde(control, linear) & 2047]
    leaf = control.leaves.contents[shadow_pde >> 12 & abi.LEAF_PAGES - 1]
    if leaf.is_shared:
        return False
    if leaf.page_table < 0:  # of 4 MiB; without CR4.PSE the bit says nothing
        return pde & _WRITTEN == _WRITTEN
    where = page_table(control, pde)
    if pde & _USED != _USED or where == NOWHERE:
        return False
    pte = entry_at(control, where, pte_index(control, linear))
    return pte & _WRITTEN == _WRITTEN


def open_gdt(control: Control, cpu: Cpu) -> bool:
    """Handle a #PF of a write to the GDT's page: it becomes writable there."""
    if control.told or waits(control, cpu) or control.gdt_spte:
        return False
    linear = cpu.cr2
    is_tree = control.efer & x86.EFER_LMA
    if not control.gdt_filled:
        return False
    if not is_tree and (linear > x86.MASK32 or not control.tables_known):
        return False
    low = linear & x86.MASK32
    wide = spte_address_64(control, linear) if is_tree else NOWHERE
    at = wide if is_tree else spte_address(control, low)
    if at == NOWHERE:
        return False
    spte = ctypes.c_uint64.from_address(at)
    entry = spte.value
    if not entry & x86.PTE_P or (entry & x86.LONG_FRAME) >> 12 != control.gdt_page:
        return False
    if cpu.error_code != x86.PF_P | x86.PF_W:
        return False
    if not (may_write_64(control, linear) if is_tree else may_write(control, low)):
        return False
    if control.page_state.contents[entry >> 12 & abi.PAGES_MOST - 1] != abi.TABLE:
        return False
    control.gdt_spte = at
    spte.value = entry | x86.PTE_RW
    entries = Descriptors.from_address(control.gdt_entries)
    for i in range(abi.GDT_MOST):
        if i < control.gdt_filled:
            entries[i] = 0
    control.gdt_opened = linear
    control.gdt_was_stale = control.stale
    control.stale = 1
    control.behind |= abi.WRITTEN
    control.count_filled += 1
    leave(control, cpu, 0)
    return True


def is_flat_users(word: u64) -> bool:
    """Tell whether a descriptor is a user's data segment that forbids nothing."""
    high = word >> _HIGH
    if high & _KIND != _FLAT or high & _LIMIT_HIGH != _LIMIT_HIGH:
        return False
    return word & _LIMIT == _LIMIT


def may_become(control: Control, index: u32, word: u64) -> bool:
    """Tell whether a descriptor may be `word` now, without Python's knowing."""
    i = min(index, abi.GDT_MOST - 1)
    if word == control.gdt_words[i]:
        return True
    if control.gdt_used >> i & 1:
        return False
    return word == 0 or is_flat_users(word)


def settle(control: Control) -> bool:
    """Read the GDT again after writes; False: it is Python's, and nothing is done."""
    if not control.gdt_spte or control.gdt_was_stale or not control.flush_page:
        return False
    guest = Descriptors.from_address(control.gdt_at)
    for i in range(abi.GDT_MOST):
        if i < control.gdt_filled and not may_become(control, i, guest[i]):
            return False
    entries = Descriptors.from_address(control.gdt_entries)
    is_ia32e = control.efer & x86.EFER_LMA
    kept = x86.MASK64 & ~(0 if is_ia32e else x86.DESC_L << _HIGH)
    for j in range(abi.GDT_MOST):
        if j < control.gdt_filled:
            if guest[j] != control.gdt_words[j]:
                control.gdt_words[j] = guest[j]
                control.gdt_shadow[j] = guest[j] & kept
            entries[j] = control.gdt_shadow[j]
    spte = ctypes.c_uint64.from_address(control.gdt_spte)
    spte.value = spte.value & ~x86.PTE_RW
    control.flush_page(control.engine_cpu, control.gdt_opened & ~0xFFF & x86.MASK64)
    control.gdt_spte = 0
    control.stale = 0
    control.behind |= abi.REREAD
    return True


def popped_by(opcode: u32) -> u32:
    """Return which data segment register the first two bytes of code pop, or _NONE."""
    byte = opcode & 0xFF
    if byte == _POP_ES:
        return x86.ES
    if byte == _POP_DS:
        return x86.DS
    if opcode == _POP_FS:
        return x86.FS
    return x86.GS if opcode == _POP_GS else _NONE


def load_sreg(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Do a load of a data segment register that the empty shadow GDT has let trap.

    A MOV from a register, or a POP.
    """
    selector = cpu.error_code
    if vector != x86.VEC_GP or selector & _TABLE or not control.gdt_spte:
        return False
    if cpu.hflags & offsets.HF_CPL != 1 or not cpu.hflags & offsets.HF_CS32:
        return False
    linear = cpu.rip + cpu.segments[x86.CS].base & x86.MASK32
    if control.told or waits(control, cpu) or linear & 0xFFF == 0xFFF:
        return False
    at = host_of(control, entry_for(control, linear), linear, False)
    if at == NOWHERE:
        return False
    opcode = ctypes.c_uint16.from_address(at).value
    popped = popped_by(opcode)
    index = opcode >> 11 & 7 if popped == _NONE else popped
    loaded: u32 = cpu.gpr[opcode >> 8 & 7] & 0xFFFF
    if popped != _NONE:
        top = stack_top(control, cpu, 4)
        if top == NOWHERE:
            return False
        loaded = ctypes.c_uint16.from_address(top).value
    elif opcode & 0xFF != _MOV_SREG or opcode >> 14 != 3:
        return False
    if loaded & ~3 != selector or loaded >> 3 >= control.gdt_filled:
        return False
    if index not in (x86.ES, x86.DS, x86.FS, x86.GS) or not settle(control):
        return False
    word = control.gdt_words[loaded >> 3 & abi.GDT_MOST - 1]
    if not is_flat_users(word):
        return False
    if popped != _NONE:
        cpu.gpr[x86.ESP] = cpu.gpr[x86.ESP] + 4 & x86.MASK32
    segment = cpu.segments[min(index, 5)]
    segment.selector = loaded
    segment.base = word >> 16 & 0xFFFFFF | word >> 56 << 24
    segment.limit = x86.MASK32
    segment.attributes = word >> _HIGH & x86.DESC_ATTRIBUTES & ~x86.DESC_L
    sync_mode(cpu, 1)  # DS or ES may have got a base, or lost it
    if popped == _NONE:
        control.count_load_sreg += 1
    else:
        control.count_pop_sreg += 1
    leave(control, cpu, 1 if popped in (x86.ES, x86.DS) else 2)
    return True
