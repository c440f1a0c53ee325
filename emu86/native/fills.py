"""Shadow misses: entries that the guest's tables allow and the shadow does not have.

What `mmu.shadow.ShadowMmu.miss` does for small pages of 32-bit paging, where no page
changes its use. Where there is no RAM, ones are read. Everything else goes on to
Python.
"""

from emu86.native import abi
from emu86.native.abi import (
    Control,
    Cpu,
    GuestTable,
    Leaf,
    LeafEntries,
    LeafTable,
    ShadowPdes,
)
from emu86.native.records import u32, u64
from emu86.native.state import NOWHERE, leave, page_table, waits
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


def entry_of(control: Control, pte: u32, rights: u32) -> u64:
    """Return the shadow entry for a guest's; 0: by the use of its page there is none.

    rights: what PDE and PTE allow.
    """
    page = pte >> 12
    state = control.page_state.contents[page]
    entry: u64 = page << 12 | _LEAF | rights & x86.PTE_US
    if state == abi.DATA:
        return entry | x86.PTE_NX | (rights & x86.PTE_RW if pte & x86.PTE_D else 0)
    return entry if state == abi.CODE else 0


def put(
    control: Control, entries: LeafEntries, first: u32, at: u32, pte: u32, entry: u64
) -> None:
    """Make shadow entry `at`, from `pte`, and have the reverse map learn of it.

    first: the first page of its table, among the VMM's.
    """
    entries[at & 1023] = entry
    leaf = control.leaves.contents[first & abi.LEAF_PAGES - 1]
    leaf.copy.contents[at & 1023] = pte
    if pte & control.global_bit:
        leaf.has_global = 1
    else:
        leaf.has_nonglobal = 1
    added = control.added[max(min(control.added_count, abi.ADDED_MOST - 1), 0)]
    added.page = pte >> 12
    added.index = (first << 9) + at
    control.added_count += 1


def fill(control: Control, cpu: Cpu) -> bool:
    """Fill the missing shadow entry of a #PF, and neighbours that were used before."""
    if cpu.cr2 > x86.MASK32 or not control.shadow_pdes:
        return False
    if control.told or waits(control, cpu):
        return False
    if control.added_count > abi.ADDED_FULL:
        return False
    slot = cpu.cr2 >> 22 & 1023
    at = cpu.cr2 >> 12 & 1023
    error = cpu.error_code
    pde = GuestTable.from_address(control.guest_pdes)[slot]
    if pde != GuestTable.from_address(control.known_pdes)[slot]:
        return False
    if pde & (x86.PTE_P | x86.PTE_A | x86.PDE_PS) != x86.PTE_P | x86.PTE_A:
        return False
    shadow_pde = ShadowPdes.from_address(control.shadow_pdes)[slot * 2]
    where = page_table(control, pde)
    if not shadow_pde & x86.PTE_P or where == NOWHERE:
        return False
    if where == control.guest_pdes:
        return False  # a directory that maps itself
    ptes = GuestTable.from_address(where)
    pte: u32 = ptes[at]
    rights = pde & pte
    writes = error & x86.PF_W
    if not pte & x86.PTE_P or (error & x86.PF_U and not rights & x86.PTE_US):
        return False
    if writes and not rights & x86.PTE_RW:
        return False  # the guest's own, or CR0.WP is 0
    page = pte >> 12
    if page << 12 >= control.ram_size:
        return False
    first = shadow_pde >> 12 & abi.LEAF_PAGES - 1  # its memory is aligned to its size
    leaf = control.leaves.contents[first]
    if leaf.page_table != pde & x86.PAGE_MASK:
        return False
    entries = LeafTable.from_address(
        (shadow_pde & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
    )
    wanted = x86.PTE_A | x86.PTE_D if writes else x86.PTE_A
    used = pte | wanted
    state = control.page_state.contents[page]
    changes_use = error & x86.PF_I if state == abi.DATA else writes
    if changes_use:
        return False
    entry: u64 = entry_of(control, used, rights)
    if state == abi.UNBACKED and not control.mmio:
        entry = _ONES | rights & x86.PTE_US
    if not entry or takes_away(entries[at], entry):
        return False  # the TLB may have what was there
    if pte != used:
        ptes[at] = used
    put(control, entries, first, at, used, entry)
    control.count_filled += 1
    if not used & control.global_bit:
        start = at & ~(_AROUND - 1)
        for j in range(_AROUND):
            near = start + j & 1023
            neighbour(control, leaf, entries, first, near, ptes[near])
    leave(control, cpu, 0)
    return True


def neighbour(
    control: Control, leaf: Leaf, entries: LeafEntries, first: u32, at: u32, pte: u32
) -> None:
    """Fill entry `at` if the guest has used it before; no page changes its use."""
    page = pte >> 12
    if entries[at & 1023] or pte & _USED != _USED or page << 12 >= control.ram_size:
        return
    entry = entry_of(control, pte, pte & leaf.rights)
    if entry:
        put(control, entries, first, at, pte, entry)
