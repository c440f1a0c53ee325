"""Shadow misses: entries that the guest's tables allow and the shadow does not have.

What `mmu.shadow.ShadowMmu.miss` does for small pages, where no page changes its use.
Where there is no RAM, ones are read. Everything else goes on to Python.
"""

import ctypes

from emu86.native import abi
from emu86.native.abi import Control, Cpu, Leaf, LeafEntries, LeafTable, ShadowPdes
from emu86.native.records import u32, u64
from emu86.native.state import NOWHERE, leave, waits
from emu86.native.tables import (
    directory_of,
    entry_at,
    first_shadow_pde,
    page_table,
    pde_index,
    pte_index,
    set_entry,
    use_entry,
)
from emu86.spec import x86

_LEAF = x86.PTE_P | x86.PTE_A | x86.PTE_D
_USED = x86.PTE_P | x86.PTE_A
_RIGHTS = x86.PTE_RW | x86.PTE_US
_ONES = abi.VMM_BASE | _LEAF
_AROUND = 16


def takes_away(was: u64, entry: u64) -> bool:
    """Tell whether a shadow entry allows what its successor does not, or elsewhere."""
    if not was & x86.PTE_P:
        return False
    other = (was ^ entry) & x86.LONG_FRAME | was & ~entry & _RIGHTS
    return bool(other | entry & ~was & x86.PTE_NX)


def entry_of(control: Control, pte: u64, rights: u64, never: u64) -> u64:
    """Return the shadow entry for a guest's; 0: by the use of its page there is none.

    rights: what PDE and PTE allow; never: NX if either has it.
    """
    frame = pte & control.frame
    if frame >= control.ram_size:
        return 0
    state = control.page_state.contents[frame >> 12 & abi.PAGES_MOST - 1]
    entry: u64 = frame | _LEAF | rights & x86.PTE_US
    if state == abi.DATA:
        return entry | x86.PTE_NX | (rights & x86.PTE_RW if pte & x86.PTE_D else 0)
    return entry | never if state == abi.CODE else 0


def put(
    control: Control, entries: LeafEntries, first: u32, at: u32, pte: u64, entry: u64
) -> None:
    """Make shadow entry `at`, from `pte`, and have the reverse map learn of it.

    first: the first page of its table, among the VMM's.
    """
    entries[at & 1023] = entry
    leaf = control.leaves.contents[first & abi.LEAF_PAGES - 1]
    set_entry(control, ctypes.addressof(leaf.copy.contents), at, pte)
    if pte & control.global_bit:
        leaf.has_global = 1
    else:
        leaf.has_nonglobal = 1
    added = control.added[max(min(control.added_count, abi.ADDED_MOST - 1), 0)]
    added.page = (pte & control.frame) >> 12 & abi.PAGES_MOST - 1
    added.index = (first << 9) + at
    control.added_count += 1


def no_data(control: Control, cpu: Cpu) -> u64:
    """Return US if SMAP forbids what instructions of a supervisor do, or 0."""
    return 0 if cpu.rflags & x86.AC else control.no_user_data


def fill(control: Control, cpu: Cpu) -> bool:
    """Fill the missing shadow entry of a #PF, and neighbours that were used before."""
    if cpu.cr2 > x86.MASK32 or not control.tables_known:
        return False
    if control.told or waits(control, cpu):
        return False
    if control.added_count > abi.ADDED_FULL:
        return False
    linear = cpu.cr2 & x86.MASK32
    directory = directory_of(control, linear)
    pdes = control.guest_pdes[directory & 3]
    if pdes == NOWHERE:
        return False
    slot = pde_index(control, linear)
    pde = entry_at(control, pdes, slot)
    if pde != entry_at(control, control.known_pdes[directory & 3], slot):
        return False
    if pde & (_USED | x86.PDE_PS) != _USED or pde & control.reserved:
        return False
    shadow_pdes = ShadowPdes.from_address(control.shadow_pdes)
    shadow_pde = shadow_pdes[first_shadow_pde(control, linear) & 2047]
    where = page_table(control, pde)
    if not shadow_pde & x86.PTE_P or where == NOWHERE:
        return False
    if where == pdes:
        return False  # a directory that maps itself
    at = pte_index(control, linear) & 1023
    return fill_entry(control, cpu, where, at, shadow_pde, pde & control.frame, pde)


def fill_entry(
    control: Control, cpu: Cpu, where: u64, at: u32, shadow_pde: u64, gpa: u64,
    above: u64,
) -> bool:  # fmt: skip
    """Fill entry `at` of the leaf tables that `shadow_pde` links.

    where: address in this process of the guest's page table, at `gpa`; above: the
    rights of the entries above it.
    """
    error = cpu.error_code
    pte: u64 = entry_at(control, where, at)
    rights = above & pte
    never = (above | pte) & x86.PTE_NX
    writes = error & x86.PF_W
    if not pte & x86.PTE_P or pte & control.reserved_page:
        return False
    # Else the fault is the guest's own, or CR0.WP is 0.
    if error & x86.PF_U:
        if not rights & x86.PTE_US:
            return False
    elif rights & (control.no_user_code if error & x86.PF_I else no_data(control, cpu)):
        return False
    if writes and not rights & x86.PTE_RW:
        return False
    if error & x86.PF_I and never:
        return False
    frame = pte & control.frame
    if frame >= control.ram_size:
        return False
    first = shadow_pde >> 12 & abi.LEAF_PAGES - 1  # its memory is aligned to its size
    leaf = control.leaves.contents[first]
    if leaf.page_table & x86.MASK64 != gpa:
        return False
    entries = LeafTable.from_address(
        (shadow_pde & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
    )
    wanted = x86.PTE_A | x86.PTE_D if writes else x86.PTE_A
    used = pte | wanted
    state = control.page_state.contents[frame >> 12 & abi.PAGES_MOST - 1]
    changes_use = error & x86.PF_I if state == abi.DATA else writes
    if changes_use:
        return False
    entry: u64 = entry_of(control, used, rights, never)
    page = frame >> x86.PAGE_SHIFT
    if state == abi.UNBACKED and not control.mmio_first <= page < control.mmio_end:
        entry = _ONES | rights & x86.PTE_US | never
    if not entry or takes_away(entries[at & 1023], entry):
        return False  # the TLB may have what was there
    if pte != used:
        use_entry(control, where, at, used)
    put(control, entries, first, at, used, entry)
    control.count_filled += 1
    if not used & control.global_bit:
        start = at & ~(_AROUND - 1)
        for j in range(_AROUND):
            near = start + j & 1023
            there = entry_at(control, where, near)
            neighbour(control, leaf, entries, first, near, there)
    leave(control, cpu, 0)
    return True


def neighbour(
    control: Control, leaf: Leaf, entries: LeafEntries, first: u32, at: u32, pte: u64
) -> None:
    """Fill entry `at` if the guest has used it before; no page changes its use."""
    if entries[at & 1023] or pte & (_USED | control.reserved_page) != _USED:
        return
    rights = pte & leaf.rights
    entry = entry_of(control, pte, rights, (pte | leaf.rights) & x86.PTE_NX)
    if entry:
        put(control, entries, first, at, pte, entry)
