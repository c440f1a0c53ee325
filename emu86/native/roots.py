"""MOV to CR3: another shadow root, or the same, without what the guest has changed.

What `mmu.shadow.ShadowMmu.switch` does for a root that it knows.
"""

import ctypes

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import (
    Control,
    Cpu,
    GuestTable,
    Leaf,
    LeafTable,
    Root,
    ShadowPdes,
    WideTable,
)
from emu86.native.records import u32, u64
from emu86.native.state import NOWHERE, leave
from emu86.native.tables import directory_of, entry_at, page_table, pde_index, pte_index
from emu86.native.tlb import drop_unshared
from emu86.spec import x86

NONE, SOME, PYTHON = 0, 1, 2
_PDPT = 0xFFFFFFE0
_PDPTE_RESERVED = 0x1E6  # and those above MAXPHYADDR, which no known one has


def differ(one: u64, other: u64) -> bool:
    """Tell whether two pages at addresses of this process differ."""
    left = WideTable.from_address(one)
    right = WideTable.from_address(other)
    bits: u64 = 0
    for i in range(512):
        bits |= left[i] ^ right[i]
    return bits != 0


def sync_directory(control: Control, known: Root, number: u32, directory: u64) -> bool:
    """Take PDEs that have changed and are not linked; False if one that is has."""
    copy = known.known_pdes + (number << x86.PAGE_SHIFT) & x86.MASK64
    if not differ(directory, copy):
        return True
    shadow = ShadowPdes.from_address(known.shadow_pdes)
    entries = 512 if control.wide else 1024
    width = 1 if control.wide else 2  # shadow PDEs of each
    for i in range(1024):
        shadow_pde = shadow[(number << 9) + width * i & 2047]
        if i >= entries or not shadow_pde:
            continue
        if entry_at(control, directory, i) != entry_at(control, copy, i):
            return False
    guest = WideTable.from_address(directory)
    copied = WideTable.from_address(copy)
    for j in range(512):
        copied[j] = guest[j]
    return True


def sync_leaf(control: Control, leaf: Leaf, table: u64, entries: u64) -> bool:
    """Drop the entries whose guest entry has changed; False: a global one has.

    Then nothing is done.
    """
    if control.wide:
        return sync_wide_leaf(control, leaf, table, entries)
    guest = GuestTable.from_address(table)
    copy = leaf.copy.contents
    global_: u32 = 0
    for i in range(1024):
        if guest[i] != copy[i]:
            global_ |= copy[i]
    if global_ & x86.PTE_G:
        return False
    shadow = LeafTable.from_address(entries)
    count: u32 = 0
    for j in range(1024):
        if guest[j] != copy[j]:
            shadow[j] = 0
            copy[j] = guest[j]
            count = count + 1 & 0xFFFF
    control.count_resynced += count
    return True


def sync_wide_leaf(control: Control, leaf: Leaf, table: u64, entries: u64) -> bool:
    """Do the same for entries of 64 bits."""
    guest = WideTable.from_address(table)
    copy = WideTable.from_address(ctypes.addressof(leaf.copy.contents))
    global_: u64 = 0
    for i in range(512):
        if guest[i] != copy[i]:
            global_ |= copy[i]
    if global_ & x86.PTE_G:
        return False
    shadow = WideTable.from_address(entries)
    count: u32 = 0
    for j in range(512):
        if guest[j] != copy[j]:
            shadow[j] = 0
            copy[j] = guest[j]
            count = count + 1 & 0xFFFF
    control.count_resynced += count
    return True


def sync_linked(control: Control, pde: u64) -> u32:
    """Drop what differs in the leaf table that a shadow PDE links, if it links one.

    Returns NONE or SOME, or PYTHON if one of the entries is global.
    """
    leaf = control.leaves.contents[pde >> 12 & abi.LEAF_PAGES - 1]
    if not pde or leaf.page_table < 0 or not leaf.has_nonglobal:
        return NONE
    page_table = leaf.page_table & x86.MASK64
    if page_table >= control.ram_size:
        return NONE
    table = control.ram + page_table & x86.MASK64
    if not differ(table, ctypes.addressof(leaf.copy.contents)):
        return NONE
    entries = (pde & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
    return SOME if sync_leaf(control, leaf, table, entries) else PYTHON


def sync(control: Control, known: Root) -> u32:
    """Drop all entries of a root that differ from the guest's tables.

    Returns NONE or SOME, or PYTHON if one of them is global. What is dropped before
    that one does no harm.
    """
    shadow = ShadowPdes.from_address(known.shadow_pdes)
    width = 1 if control.wide else 2
    dropped: u32 = NONE
    for run in range(64):
        if not known.linked_pdes >> run & 1:
            continue
        for i in range(32):
            pde = shadow[width * (32 * run + i) & 2047]
            result = sync_linked(control, pde)
            if result == PYTHON:
                return PYTHON
            dropped |= result
    return dropped


def has_pdptes(control: Control, known: Root, root: u64) -> bool:
    """Tell whether the PDPTEs at `root` are those that a root was made for."""
    if root >= control.ram_size:
        return False
    table = WideTable.from_address(control.ram + (root & ~0xFFF) & x86.MASK64)
    for i in range(4):
        pdpte = table[(root >> 3) + i & 511]
        if pdpte & x86.PTE_P:
            page = pdpte >> x86.PAGE_SHIFT
            if pdpte & _PDPTE_RESERVED or known.directories[i] - 1 != page:
                return False
        elif known.directories[i]:
            return False
    return True


def directory_at(control: Control, known: Root, number: u32) -> u64:
    """Return where in this process a root's directory is, or NOWHERE."""
    found = known.directories[number & 3]
    if not found:
        return NOWHERE
    at: u64 = control.ram + (found - 1 << x86.PAGE_SHIFT) & x86.MASK64
    return at


def holds_pages(control: Control, known: Root) -> bool:
    """Tell whether the pages of `held` are by another root what they were."""
    if control.held_count > abi.HELD_MOST:
        return False
    for i in range(abi.HELD_MOST):
        if i < control.held_count:
            held = control.held[i]
            linear = held.page << x86.PAGE_SHIFT & x86.MASK32
            pdes = directory_at(control, known, directory_of(control, linear))
            if pdes == NOWHERE:
                return False
            pde = entry_at(control, pdes, pde_index(control, linear))
            if not pde & x86.PTE_P or pde & control.reserved:
                return False
            if pde & x86.PDE_PS and (control.wide or control.cr4 & x86.CR4_PSE):
                small = 511 if control.wide else 1023
                large = (pde & control.frame) >> x86.PAGE_SHIFT
                # What is more than the frame is PAT or PSE-36.
                if large & small or large | held.page & small != held.frame:
                    return False
                continue
            where = page_table(control, pde)
            if where == NOWHERE:
                return False
            pte = entry_at(control, where, pte_index(control, linear))
            frame = (pte & control.frame) >> x86.PAGE_SHIFT
            if not pte & x86.PTE_P or pte & control.reserved_page:
                return False
            if frame != held.frame:
                return False
    return True


def write_cr3(control: Control, cpu: Cpu, register: u32) -> bool:
    """Do a MOV to CR3 from a register."""
    if control.told or not control.tables_known:
        return False
    value = cpu.gpr[register & 7] & x86.MASK32
    root = value & _PDPT if control.wide else value & x86.PAGE_MASK
    known = control.roots[(root >> 12 ^ root >> 5) & abi.ROOTS - 1]
    if known.at != root + 1 or not control.flush_tlb:
        return False
    if control.wide and not has_pdptes(control, known, root):
        return False
    if not holds_pages(control, known):
        return False
    for i in range(4):
        at = directory_at(control, known, i)
        if at != NOWHERE and not sync_directory(control, known, i, at):
            return False
    dropped = sync(control, known)
    if dropped == PYTHON:
        return False
    if dropped or (cpu.cr3 != known.hpa and not control.tlb):
        control.flush_tlb(control.engine_cpu)
    elif cpu.cr3 != known.hpa:
        drop_unshared(control, control.shadow_pdes, known.shadow_pdes)
    if cpu.cr3 != known.hpa:
        cpu.cr3 = known.hpa
        control.shadow_pdes = known.shadow_pdes
        control.linked_pdes = known.linked_pdes
        for j in range(4):
            control.guest_pdes[j] = directory_at(control, known, j)
            copy = known.known_pdes + (j << x86.PAGE_SHIFT) & x86.MASK64
            control.known_pdes[j] = copy
    control.cr3 = value
    if control.wide:
        pdptes = WideTable.from_address(control.ram + (root & ~0xFFF) & x86.MASK64)
        for k in range(4):
            pdpte = pdptes[(root >> 3) + k & 511]
            control.pdptes[k] = pdpte if pdpte & x86.PTE_P else 0
    control.behind |= abi.SWITCHED
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_switched += 1
    control.count_write_cr += 1
    leave(control, cpu, 3)
    return True
