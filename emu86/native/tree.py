"""Fills, INVLPG and MOV to CR3 of guests with 4-level paging.

What `mmu.shadow` and `mmu.shadow_tree` do where no link comes or goes. A shadow table
is found by the number of its page in the VMM's memory; `abi.Leaf` tells what it was
made from.
"""

import ctypes

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, LeafTable, ShadowTable, Uppers, WideTable
from emu86.native.fills import fill_entry
from emu86.native.records import u32, u64
from emu86.native.roots import NONE, PYTHON, differ, sync_linked
from emu86.native.state import NOWHERE, is_canonical, leave, waits
from emu86.native.tables import page_table
from emu86.native.tlb import drop_unshared_64
from emu86.spec import x86

_USED = x86.PTE_P | x86.PTE_A
_WRITTEN = _USED | x86.PTE_RW | x86.PTE_D
_ROOT = (1 << x86.MAXPHYADDR) - x86.PAGE_SIZE
_PD, _PML4 = 2, 4


def table_at(control: Control, page: u32) -> u64:
    """Return where in this process a shadow table is."""
    hpa = abi.VMM_BASE + (page << x86.PAGE_SHIFT)
    return hpa + control.vmm_memory_bias & x86.MASK64


def guest_at(control: Control, page: u32) -> u64:
    """Return where in this process the guest's table is that a shadow table is of."""
    known = control.leaves.contents[page & abi.LEAF_PAGES - 1]
    at: u64 = control.ram + (known.page_table & x86.MASK64) & x86.MASK64
    return at


def entry_place(level: u32, i: u32) -> u32:
    """Return where in a shadow table the guest's entry `i` is; a PML4 has two pages."""
    return i + (512 if level == _PML4 and i > 255 else 0) & 1023


def sync_upper(control: Control, page: u32) -> bool:
    """Take entries that have changed and are not linked; False if one that is has."""
    known = control.leaves.contents[page & abi.LEAF_PAGES - 1]
    where = known.page_table & x86.MASK64
    if where >= control.ram_size:
        return True
    guest_at = control.ram + where & x86.MASK64
    copy_at = ctypes.addressof(known.copy.contents)
    if not differ(guest_at, copy_at):
        return True
    guest = WideTable.from_address(guest_at)
    copy = WideTable.from_address(copy_at)
    shadow = LeafTable.from_address(table_at(control, page))
    for i in range(512):
        if guest[i] != copy[i] and shadow[entry_place(known.level, i) & 1023]:
            return False
    for j in range(512):
        copy[j] = guest[j]
    return True


def sync_leaves(control: Control, page: u32) -> u32:
    """Drop what differs in the leaf tables of a directory: see `roots.sync`."""
    known = control.leaves.contents[page & abi.LEAF_PAGES - 1]
    shadow = ShadowTable.from_address(table_at(control, page))
    dropped: u32 = NONE
    for run in range(64):
        if not known.runs >> run & 1:
            continue
        for i in range(8):
            pde = shadow[8 * run + i]
            result = sync_linked(control, pde)
            if result == PYTHON:
                return PYTHON
            dropped |= result
    return dropped


def sync_tree(control: Control, list_at: u64, count: u64) -> u32:
    """Drop all entries that can be reached and differ: NONE, SOME or PYTHON."""
    uppers = Uppers.from_address(list_at)
    result: u32 = NONE
    for n in range(abi.UPPERS_MOST):
        if n >= count:
            break
        page = uppers[n]
        if not sync_upper(control, page):
            return PYTHON
        if control.leaves.contents[page & abi.LEAF_PAGES - 1].level == _PD:
            dropped = sync_leaves(control, page)
            if dropped == PYTHON:
                return PYTHON
            result |= dropped
    return result


def write_cr3_64(control: Control, cpu: Cpu, register: u32, length: u32) -> bool:
    """Do a MOV to CR3 from a register."""
    if control.told or not control.upper_count or not control.tlb:
        return False
    value = cpu.gpr[register & 15]
    if value >> x86.MAXPHYADDR or control.held_count:
        return False
    root = value & _ROOT
    known = control.roots[(root >> 12 ^ root >> 5) & abi.ROOTS - 1]
    if known.at != root + 1:
        return False
    dropped = sync_tree(control, known.shadow_pdes, known.linked_pdes)
    if dropped == PYTHON:
        return False
    top: u32 = known.known_pdes & abi.LEAF_PAGES - 1
    if dropped:
        control.flush_tlb(control.engine_cpu)
    elif cpu.cr3 != known.hpa:
        old = table_at(control, control.top_page & abi.LEAF_PAGES - 1)
        drop_unshared_64(control, old, table_at(control, top))
    cpu.cr3 = known.hpa
    control.uppers = known.shadow_pdes
    control.upper_count = known.linked_pdes & abi.UPPERS_MOST - 1
    control.top_page = top
    control.cr3 = value
    control.behind |= abi.SWITCHED
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_switched += 1
    control.count_write_cr += 1
    leave(control, cpu, length)
    return True


def shadow_pde_of(control: Control, linear: u64) -> u64:
    """Return the shadow entry that links the leaf table of an address, or 0."""
    top = LeafTable.from_address(
        table_at(control, control.top_page & abi.LEAF_PAGES - 1)
    )
    entry: u64 = top[entry_place(_PML4, linear >> 39 & 511) & 1023]
    for level in range(2):
        if not entry & x86.PTE_P:
            return 0
        table = (entry & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
        entry = ShadowTable.from_address(table)[linear >> 30 - 9 * level & 511]
    return entry


def invlpg_64(control: Control, cpu: Cpu, register: u32, length: u32) -> bool:
    """Drop the shadow entry of the page that a register points into.

    Python's is what is unusual: see `handlers.invlpg`.
    """
    linear = cpu.gpr[register & 15]
    page = linear >> 12
    guarded = control.guarded[page >> 6 & abi.GUARDED_WORDS - 1] >> (page & 63) & 1
    count = control.dropped_count
    if guarded or control.told or not control.upper_count:
        return False
    if not is_canonical(linear) or count >= abi.DROPPED_MOST:
        return False
    uppers = Uppers.from_address(control.uppers)
    for n in range(abi.UPPERS_MOST):
        if n < control.upper_count and not sync_upper(control, uppers[n]):
            return False
    pde = shadow_pde_of(control, linear)
    leaf = control.leaves.contents[pde >> 12 & abi.LEAF_PAGES - 1]
    if pde & x86.PTE_P and leaf.page_table >= 0:
        at = (pde & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
        entries = ShadowTable.from_address(at)
        if entries[page & 511]:
            entries[page & 511] = 0
            control.count_dropped += 1
            if leaf.is_shared:
                control.flush_tlb(control.engine_cpu)  # INVLPG of another finds 0
            else:
                control.flush_page(control.engine_cpu, linear & ~0xFFF)
    control.dropped[max(min(count, abi.DROPPED_MOST - 1), 0)] = page
    control.dropped_count = count + 1
    control.behind |= abi.DROPPED
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_invlpg += 1
    leave(control, cpu, length)
    return True


def link_of(control: Control, page: u32, level: u32, linear: u64) -> u64:
    """Return a shadow table's entry for an address, if it is what the guest's says.

    And if that has been used before; else 0. level: counted from the root, 0.
    """
    known = control.leaves.contents[page & abi.LEAF_PAGES - 1]
    if known.page_table & x86.MASK64 >= control.ram_size:
        return 0
    i = linear >> 39 - 9 * min(level, 2) & 511
    entry = WideTable.from_address(guest_at(control, page))[i]
    if entry != WideTable.from_address(ctypes.addressof(known.copy.contents))[i]:
        return 0
    if entry & (_USED | (x86.PDE_PS if level < 2 else 0)) != _USED:
        return 0
    shadow = LeafTable.from_address(table_at(control, page))
    link = shadow[entry_place(_PML4 - min(level, 2), i) & 1023]
    return link if link & x86.PTE_P else 0


def directory_page(control: Control, linear: u64) -> u32:
    """Return the page of the shadow directory of an address, or 0: see `link_of`."""
    page: u32 = control.top_page & abi.LEAF_PAGES - 1
    for level in range(2):
        link = link_of(control, page, level, linear)
        if not link:
            return 0
        page = link >> 12 & abi.LEAF_PAGES - 1
    return page


def may_write_64(control: Control, linear: u64) -> bool:
    """Tell what `gdt.may_write` tells, by tables of four levels."""
    if not control.upper_count or not is_canonical(linear):
        return False
    directory = directory_page(control, linear)
    link = link_of(control, directory, 2, linear) if directory else 0
    if not link:
        return False
    leaf = control.leaves.contents[link >> 12 & abi.LEAF_PAGES - 1]
    if leaf.is_shared or not leaf.rights & x86.PTE_RW:
        return False
    pde = WideTable.from_address(guest_at(control, directory))[linear >> 21 & 511]
    if pde & x86.PDE_PS:
        return bool(pde & x86.PTE_D)
    where = page_table(control, pde)
    if where == NOWHERE:
        return False
    pte = WideTable.from_address(where)[linear >> 12 & 511]
    return pte & _WRITTEN == _WRITTEN


def fill_64(control: Control, cpu: Cpu) -> bool:
    """Do what `fills.fill` does, by tables of four levels."""
    linear = cpu.cr2
    if control.told or waits(control, cpu) or not control.upper_count:
        return False
    if control.added_count > abi.ADDED_FULL or not is_canonical(linear):
        return False
    directory = directory_page(control, linear)
    link = link_of(control, directory, 2, linear) if directory else 0
    if not link:
        return False
    pde = WideTable.from_address(guest_at(control, directory))[linear >> 21 & 511]
    where = page_table(control, pde)
    if pde & x86.PDE_PS or where == NOWHERE:
        return False
    if where == guest_at(control, directory):
        return False  # a directory that maps itself
    above = control.leaves.contents[link >> 12 & abi.LEAF_PAGES - 1].rights
    at: u32 = linear >> 12 & 511
    return fill_entry(control, cpu, where, at, link, pde & control.frame, above)
