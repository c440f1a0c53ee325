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


def note(control: Control, page: u32, index: u64) -> None:
    """Have the reverse map learn of a shadow entry."""
    added = control.added[max(min(control.added_count, abi.ADDED_MOST - 1), 0)]
    added.page = page
    added.index = index
    control.added_count += 1


def takes_away(was: u64, entry: u64) -> bool:
    """Tell whether a shadow entry allows what its successor does not, or elsewhere."""
    if not was & x86.PTE_P:
        return False
    other = (was ^ entry) & x86.LONG_FRAME | was & ~entry & _RIGHTS
    return bool(other | entry & ~was & x86.PTE_NX)


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
    state = control.page_state.contents[page]
    is_ones = state == abi.UNBACKED and not control.mmio
    if state == abi.DATA:
        if error & x86.PF_I:
            return False
    elif writes or not (is_ones or state == abi.CODE):
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
    entry: u64 = page << 12 | _LEAF | rights & x86.PTE_US
    if is_ones:
        entry = _ONES | rights & x86.PTE_US
    elif state == abi.DATA:
        entry |= x86.PTE_NX | (rights & x86.PTE_RW if used & x86.PTE_D else 0)
    if takes_away(entries[at], entry):
        return False  # the TLB may have what was there
    if pte != used:
        pte = used
        ptes[at] = pte
    entries[at] = entry
    if not is_ones:
        note(control, page, (first << 9) + at)
    control.count_filled += 1
    leaf.copy.contents[at] = pte
    if pte & control.global_bit:
        leaf.has_global = 1
    else:
        leaf.has_nonglobal = 1
        start = at & ~(_AROUND - 1)
        for j in range(_AROUND):
            neighbour(
                control, leaf, entries, ptes[start + j & 1023], first, start + j & 1023
            )
    leave(control, cpu, 0)
    return True


def neighbour(
    control: Control, leaf: Leaf, entries: LeafEntries, pte: u32, first: u32, at: u32
) -> None:
    """Fill entry `at` if the guest has used it before; no page changes its use."""
    page = pte >> 12
    if entries[at & 1023] or pte & _USED != _USED or page << 12 >= control.ram_size:
        return
    state = control.page_state.contents[page]
    entry = page << 12 | _LEAF | pte & leaf.rights & x86.PTE_US
    if state == abi.DATA:
        writable = pte & leaf.rights & x86.PTE_RW if pte & x86.PTE_D else 0
        entries[at & 1023] = entry | writable | x86.PTE_NX
    elif state == abi.CODE:
        entries[at & 1023] = entry
    else:
        return
    note(control, page, (first << 9) + at)
    leaf.copy.contents[at & 1023] = pte
    if pte & x86.PTE_G:
        leaf.has_global = 1
