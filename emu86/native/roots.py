"""MOV to CR3: another shadow root, or the same, without what the guest has changed.

What `mmu.shadow.ShadowMmu.switch` does for a root that it knows, of 32-bit paging.
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
    Pdes,
    Root,
    ShadowPdes,
)
from emu86.native.records import u32, u64
from emu86.native.state import NOWHERE, leave, page_table
from emu86.native.tlb import drop_unshared
from emu86.spec import x86

_NONE, _SOME, _PYTHON = 0, 1, 2
_NOT_OF_LARGE = 0x3FF000  # PAT, and PSE-36


def differ(one: u64, other: u64) -> bool:
    """Tell whether two pages at addresses of this process differ."""
    left = Pdes.from_address(one)
    right = Pdes.from_address(other)
    bits: u64 = 0
    for i in range(512):
        bits |= left[i] ^ right[i]
    return bits != 0


def sync_directory(known: Root, directory: u64) -> bool:
    """Take PDEs that have changed and are not linked; False if one that is has."""
    if not differ(directory, known.known_pdes):
        return True
    guest = GuestTable.from_address(directory)
    copy = GuestTable.from_address(known.known_pdes)
    shadow = ShadowPdes.from_address(known.shadow_pdes)
    for i in range(1024):
        if guest[i] != copy[i] and shadow[2 * i]:
            return False
    for j in range(1024):
        copy[j] = guest[j]
    return True


def sync_leaf(control: Control, leaf: Leaf, table: u64, entries: u64) -> bool:
    """Drop the entries whose guest entry has changed; False: a global one has.

    Then nothing is done.
    """
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


def sync(control: Control, known: Root) -> u32:
    """Drop all entries of a root that differ from the guest's tables.

    Returns _NONE or _SOME, or _PYTHON if one of them is global. What is dropped before
    that one does no harm.
    """
    shadow = ShadowPdes.from_address(known.shadow_pdes)
    dropped: u32 = _NONE
    for run in range(32):
        if not known.linked_pdes >> run & 1:
            continue
        for i in range(32):
            pde = shadow[2 * (32 * run + i)]
            leaf = control.leaves.contents[pde >> 12 & abi.LEAF_PAGES - 1]
            if not pde or leaf.page_table < 0 or not leaf.has_nonglobal:
                continue
            page_table = leaf.page_table & x86.MASK32
            if page_table >= control.ram_size:
                continue
            table = control.ram + page_table & x86.MASK64
            if not differ(table, ctypes.addressof(leaf.copy.contents)):
                continue
            entries = (pde & x86.LONG_FRAME) + control.vmm_memory_bias & x86.MASK64
            if not sync_leaf(control, leaf, table, entries):
                return _PYTHON
            dropped = _SOME
    return dropped


def holds_pages(control: Control, directory: u64) -> bool:
    """Tell whether the pages of `held` are by another directory what they were."""
    if control.held_count > abi.HELD_MOST:
        return False
    pdes = GuestTable.from_address(directory)
    for i in range(abi.HELD_MOST):
        if i < control.held_count:
            held = control.held[i]
            pde = pdes[held.page >> 10 & 1023]
            if not pde & x86.PTE_P:
                return False
            if pde & x86.PDE_PS and control.cr4 & x86.CR4_PSE:
                large = pde >> 12 | held.page & 1023
                if pde & _NOT_OF_LARGE or large != held.frame:
                    return False
                continue
            where = page_table(control, pde)
            if where == NOWHERE:
                return False
            pte = GuestTable.from_address(where)[held.page & 1023]
            if not pte & x86.PTE_P or pte >> 12 != held.frame:
                return False
    return True


def write_cr3(control: Control, cpu: Cpu, register: u32) -> bool:
    """Do a MOV to CR3 from a register."""
    if control.told or not control.shadow_pdes:
        return False
    value = cpu.gpr[register & 7] & x86.MASK32
    directory = value & x86.PAGE_MASK
    known = control.roots[directory >> 12 & abi.ROOTS - 1]
    if known.directory != directory + 1 or not control.flush_tlb:
        return False
    at = control.ram + directory & x86.MASK64
    if not holds_pages(control, at) or not sync_directory(known, at):
        return False
    dropped = sync(control, known)
    if dropped == _PYTHON:
        return False
    if dropped or (cpu.cr3 != known.hpa and not control.tlb):
        control.flush_tlb(control.engine_cpu)
    elif cpu.cr3 != known.hpa:
        drop_unshared(control, control.shadow_pdes, known.shadow_pdes)
    if cpu.cr3 != known.hpa:
        cpu.cr3 = known.hpa
        control.shadow_pdes = known.shadow_pdes
        control.guest_pdes = at
        control.known_pdes = known.known_pdes
        control.linked_pdes = known.linked_pdes
    control.cr3 = value
    control.behind |= abi.SWITCHED
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_switched += 1
    control.count_write_cr += 1
    leave(control, cpu, 3)
    return True
