"""The engine's TLB, of which a switch of roots drops what the two do not share.

A flush of all would drop the kernel's translations too, and with them the engine's
cache of jumps, by which it finds the next block. Both are in `cpu.offsets`.
"""

import ctypes

from emu86.native.abi import Control, Jumps, LeafTable, ShadowPdes, Tlb, TlbEntry
from emu86.native.records import u64
from emu86.spec import x86

_ENTRY = ctypes.sizeof(TlbEntry)


def is_shared(old: u64, new: u64, linear: u64) -> bool:
    """Tell whether two roots have one shadow table for an address.

    old, new: addresses of their PDEs. Above 4 GiB are the VMM's own tables, and what is
    no address: an empty entry's.
    """
    if linear > x86.MASK32:
        return True
    slot = linear >> 21 & 2047
    return ShadowPdes.from_address(old)[slot] == ShadowPdes.from_address(new)[slot]


def is_shared_64(old: u64, new: u64, linear: u64) -> bool:
    """Tell whether two roots have one shadow PDPT for an address: see `native.tree`.

    old, new: addresses of their PML4s. Ones are an empty entry's.
    """
    if linear == x86.MASK64:
        return True
    slot = linear >> 39 & 511
    place = slot + (512 if slot > 255 else 0) & 1023
    return LeafTable.from_address(old)[place] == LeafTable.from_address(new)[place]


def shares(old: u64, new: u64, linear: u64, is_tree: bool) -> bool:
    """Tell whether two roots have the same for an address."""
    if is_tree:
        return is_shared_64(old, new, linear)
    return is_shared(old, new, linear)


def drop_entry(old: u64, new: u64, at: u64, is_tree: bool) -> bool:
    """Empty an entry if the roots do not share it, and tell whether it was.

    It has one page's address in some of its first three words, and ones in the others.
    """
    entry = TlbEntry.from_address(at)
    if shares(old, new, entry[0] & entry[1] & entry[2], is_tree):
        return False
    for i in range(3):
        entry[i] = x86.MASK64
    return True


def drop_jumps(control: Control, old: u64, new: u64, is_tree: bool) -> None:
    """Forget blocks that may be others in the new root. They begin with their address.

    A block may go on in the next page.
    """
    jumps = Jumps.from_address(control.jumps)
    for i in range(4096):
        if jumps[i]:
            pc = ctypes.c_uint64.from_address(jumps[i]).value
            end = pc + x86.PAGE_SIZE & x86.MASK64
            same = shares(old, new, pc, is_tree) and shares(old, new, end, is_tree)
            if not same:
                jumps[i] = 0


def drop_unshared(control: Control, old: u64, new: u64) -> None:
    """Drop what two roots do not share."""
    drop_parts(control, old, new, False)


def drop_unshared_64(control: Control, old: u64, new: u64) -> None:
    """Drop what two roots of 4-level paging do not share."""
    drop_parts(control, old, new, True)


def drop_parts(control: Control, old: u64, new: u64, is_tree: bool) -> None:
    """Drop parts of the TLB and of the jumps."""
    tlb = Tlb.from_address(control.tlb)
    for index in range(3):
        if tlb.dirty >> index & 1:
            table = tlb.tables[index]
            last = table.first + table.mask & x86.MASK64
            at: u64 = table.first
            mode = tlb.modes[index]
            while at <= last:
                if drop_entry(old, new, at, is_tree):
                    mode.used = mode.used - 1
                at = at + _ENTRY & x86.MASK64
            victims = ctypes.addressof(mode.victims)
            for i in range(8):
                drop_entry(old, new, victims + _ENTRY * i & x86.MASK64, is_tree)
    drop_jumps(control, old, new, is_tree)
