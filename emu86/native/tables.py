"""The guest's page tables, of entries of 32 or 64 bits: `mmu.paging` has the formats.

A directory is a table of PDEs. With 32-bit paging there is one, whose PDEs have two
shadow PDEs each; with PAE paging there are four, whose PDEs have one.
"""

import ctypes

from emu86.native import abi
from emu86.native.abi import Control, GuestTable, WideTable
from emu86.native.records import u32, u64
from emu86.native.state import NOWHERE
from emu86.spec import x86


def directory_of(control: Control, linear: u32) -> u32:
    """Return the number of the directory that a linear address is in."""
    return linear >> 30 if control.wide else 0


def pde_index(control: Control, linear: u32) -> u32:
    """Return the number of its PDE, in its directory."""
    return linear >> 21 & 511 if control.wide else linear >> 22


def pte_index(control: Control, linear: u32) -> u32:
    """Return the number of its PTE, in its page table."""
    return linear >> 12 & 511 if control.wide else linear >> 12 & 1023


def first_shadow_pde(control: Control, linear: u32) -> u32:
    """Return the number of the first shadow PDE that stands for its PDE."""
    return linear >> 21 if control.wide else linear >> 21 & ~1


def entry_at(control: Control, table: u64, index: u32) -> u64:
    """Return an entry of a table at an address of this process."""
    if control.wide:
        return WideTable.from_address(table)[index & 511]
    return GuestTable.from_address(table)[index & 1023]


def set_entry(control: Control, table: u64, index: u32, entry: u64) -> None:
    """Write an entry of a table at an address of this process."""
    if control.wide:
        WideTable.from_address(table)[index & 511] = entry
    else:
        GuestTable.from_address(table)[index & 1023] = entry & x86.MASK32


def use_entry(control: Control, table: u64, index: u32, entry: u64) -> None:
    """Write the half of an entry that has its accessed and dirty bits."""
    shift = 3 if control.wide else 2
    at = table + (index << shift) & x86.MASK64
    ctypes.c_uint32.from_address(at).value = entry & x86.MASK32


def page_table(control: Control, pde: u64) -> u64:
    """Return where in this process a PDE's page table is, or NOWHERE: in no RAM."""
    table = pde & control.frame
    if table >= control.ram_size:
        return NOWHERE
    if control.page_state.contents[table >> 12 & abi.PAGES_MOST - 1] == abi.UNBACKED:
        return NOWHERE
    return control.ram + table & x86.MASK64
