"""The shadow leaf tables: their entries, their memory, and what narrows them.

A leaf table is made from a guest page table or from a large page, for one combination
of rights above it (`Role`), and roots share it. `mmu.shadow` fills its entries; here is
where they are allocated, compared with the guest's, and narrowed or dropped when a
guest page changes its use. Nobody else writes shadow entries but `mmu.shadow`, its
roots (`shadow_roots`, `shadow_tree`), and compiled handlers (`native`).
"""

import ctypes
from array import array
from dataclasses import dataclass
from typing import Final, Protocol

from emu86.cpu import offsets
from emu86.cpu.engine import Engine
from emu86.cpu.state import HFLAGS
from emu86.mmu.listeners import Listeners
from emu86.mmu.page_use import PageUse
from emu86.mmu.paging import LEAF_SHIFT, NO_PAGING, Format, Walk
from emu86.mmu.ram import CODE, DATA, TABLE, Ram
from emu86.mmu.rmap import ReverseMap
from emu86.mmu.shadow_tables import (
    LEAF_LEVEL,
    MOST_STARTS,
    LeafTables,
    Role,
    UpperTable,
)
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.spec import x86

LINK: Final = x86.PTE_P | x86.PTE_RW | x86.PTE_US | x86.PTE_A
LEAF: Final = x86.PTE_P | x86.PTE_A | x86.PTE_D
RIGHTS: Final = x86.PTE_RW | x86.PTE_US | x86.PTE_NX
_NX: Final = x86.PTE_NX
_PART: Final = 128  # bytes of a table that are compared at once
_WINDOW: Final = x86.PTE_P | x86.PTE_A | x86.PTE_D


@dataclass(slots=True)
class ShadowStats:
    """Counts since the start: entries made, dropped, and made stale by the guest."""

    fills: int = 0
    drops: int = 0
    resynced: int = 0
    switches: int = 0
    resets: int = 0


class Root(Protocol):
    """A shadow root: what the engine walks while CR3 is what it was made for.

    hpa: of its uppermost table.
    """

    hpa: int

    def table_at(self, gva: int) -> LeafTables | None:
        """Return the leaf tables that are linked at an address."""

    def leaf(self, gva: int, found: Walk, pde: int) -> LeafTables:
        """Return the leaf tables for an address, which are linked if need be.

        pde: the walk's, with the bits that it has been given since.
        """
        ...

    def sync(self) -> None:
        """Drop the links and entries that differ from the guest's tables."""

    def sync_directories(self) -> bool:
        """Drop the links that differ from the guest's; tell whether there were any."""
        ...


class ShadowLeaves:
    """The leaf tables of all roots.

    root: the one that the engine walks; format, wp, span_shift: what the guest's
    registers choose. uppers: tables above the leaf tables that roots share, too.
    """

    root: Root

    def __init__(self, engine: Engine, ram: Ram, vmm_memory: VmmMemory) -> None:
        self.engine = engine
        self.ram = ram
        self.vmm_memory = vmm_memory
        self.sptes = vmm_memory.sptes
        self.listeners = Listeners()
        self.leaf_records = (abi.Leaf * abi.LEAF_PAGES)()
        self.rmap = ReverseMap(vmm_memory.sptes, engine.shared)
        self.use = PageUse(engine, ram, self, self.listeners)
        self.stats = ShadowStats()
        self.format: Format = NO_PAGING
        self.wp = False
        self.span_shift = NO_PAGING.span_shift
        self.span_last = 0  # the last page of a span
        # Shadow tables by what they are made from: a guest-physical address, and more.
        self.leaves: dict[tuple[int, Role], LeafTables] = {}
        self.uppers: dict[tuple[int, Role], UpperTable] = {}
        self.roots: dict[tuple[int, Role], Root] = {}
        self._next = VmmMemory.POOL

    def reset(self) -> None:
        """Drop every shadow table and start again from the current registers."""
        raise NotImplementedError

    def forget_roots(self) -> None:
        """Have every switch of roots done by Python, until it has done it once."""
        roots = self.engine.shared.roots
        ctypes.memset(ctypes.addressof(roots), 0, ctypes.sizeof(roots))

    def drop_tables(self) -> None:
        """Forget all tables: their memory is free."""
        self.leaves.clear()
        self.uppers.clear()
        self.rmap.reset()
        self._next = VmmMemory.POOL

    def tell_flushed_all(self) -> None:
        """Tell that translations have changed, global ones among them."""
        self.engine.shared.held_count = 0  # who still holds a page says so
        for tell in self.listeners.flushed_all:
            tell()

    # -- tables ------------------------------------------------------------------------

    def make_room(self, pages: int) -> None:
        """Have the pool hold so many pages; when it is full all tables are dropped."""
        if self._next + pages > VmmMemory.PAGES:
            self.reset()

    def allocate(self, pages: int) -> int:
        """Take zeroed pages from the pool, which `make_room` has seen to."""
        base = self._next
        self._next = base + pages
        start, end = base << x86.PAGE_SHIFT, self._next << x86.PAGE_SHIFT
        self.vmm_memory.bytes[start:end] = bytes(end - start)
        return base

    def leaf_tables(
        self, pde: int, page: int, rights: int, *, large: bool
    ) -> LeafTables:
        """Return the leaf tables for the entry `pde`, from the cache or new.

        page: of the walk; rights: RW, US and NX of `pde` and the entries above it. If
        the pool was full, all other tables are gone.
        """
        paging = self.format
        dirty = False
        if large:
            dirty = bool(pde & x86.PTE_D)
            frame, page_table = page & ~self.span_last, -1
            made_from = frame << x86.PAGE_SHIFT
        else:
            frame, page_table = 0, pde & paging.frame
            made_from = page_table
        key = made_from, Role(paging.name, LEAF_LEVEL, rights, self.wp, large, dirty)
        table = self.leaves.get(key)
        if table is None:
            pages = 1 << self.span_shift - LEAF_SHIFT
            self.make_room(pages)
            base = self.allocate(pages)
            record = self.leaf_records[base]
            table = LeafTables(base * 512, paging, page_table, frame, rights, record)
            self.leaves[key] = table
            self.rmap.add_table(table)
            if large and not (paging.direct and self.ram.is_gated):
                self._fill_large(table, dirty=dirty)
            elif not large and self.ram.holds(page_table):
                table.copy[:] = self.ram.map[page_table : page_table + x86.PAGE_SIZE]
        elif not large and self.sync_table(table):
            self.engine.flush_tlb()
        if large and pde & x86.PTE_G:
            table.has_global = True
        return table

    def _fill_large(self, table: LeafTables, *, dirty: bool) -> None:
        """Make all entries of a large page at once: its A (and D) bit is set."""
        rights = table.rights if dirty else table.rights & ~x86.PTE_RW
        first, sptes, base = table.frame, self.sptes, table.base
        count = min(table.size, max(0, self.ram.pages - first))
        start = first << x86.PAGE_SHIFT | LEAF | rights | _NX
        end = start + (count << x86.PAGE_SHIFT)
        sptes[base : base + count] = array("Q", range(start, end, x86.PAGE_SIZE))
        narrow = ~(x86.PTE_RW | (_NX ^ rights & _NX))
        for i, state in enumerate(self.ram.state[first : first + count], base):
            if state == CODE:
                sptes[i] &= narrow
            elif state == TABLE:
                sptes[i] &= ~x86.PTE_RW
            elif state != DATA:
                sptes[i] = 0
        self.stats.fills += count

    def changed(
        self, now: bytes, copy: bytearray, entries: "memoryview[int]"
    ) -> list[int]:
        """Return which entries of a guest table differ from its copy's."""
        changed = memoryview(now).cast(self.format.typecode)
        size = self.format.entry_size
        return [
            i
            for at in range(0, x86.PAGE_SIZE, _PART)
            if now[at : at + _PART] != copy[at : at + _PART]
            for i in range(at // size, (at + _PART) // size)
            if changed[i] != entries[i]
        ]

    def sync_table(self, table: LeafTables) -> bool:
        """Drop the entries whose guest entry changed; tell whether there were any."""
        start = table.page_table
        if not self.ram.holds(start):
            return False
        now = self.ram.map[start : start + x86.PAGE_SIZE]
        if now == table.copy:
            return False
        stale = self.changed(now, table.copy, table.gptes)
        for i in stale:
            self.sptes[table.base + i] = 0
        if any(table.gptes[i] & x86.PTE_G for i in stale):
            self.tell_flushed_all()
        table.copy[:] = now
        self.stats.resynced += len(stale)
        return True

    # -- what the use of pages asks for ------------------------------------------------

    def write_protect(self, page: int) -> None:
        """Make every mapping of a guest page read-only."""
        self._change(page, x86.PTE_RW, 0)

    def forbid_execution(self, page: int) -> None:
        """Make every mapping of a guest page not executable."""
        self._change(page, 0, _NX)

    def _change(self, page: int, clear: int, set_: int) -> None:
        """Clear and set bits of every mapping."""
        sptes = self.sptes
        changed = []
        for index, table in self.rmap.entries(page):
            entry = sptes[index]
            narrow = (entry & ~clear) | set_
            if narrow != entry:
                sptes[index] = narrow
                changed.append((index, table))
        self.flush(changed)

    def drop_mappings(self, page: int, keep: int = -1) -> None:
        """Remove every mapping of a guest page but the entry at index `keep`."""
        dropped = [entry for entry in self.rmap.entries(page) if entry[0] != keep]
        for index, _table in dropped:
            self.sptes[index] = 0
        self.rmap.keep(page, keep)
        self.flush(dropped)

    def flush(self, entries: list[tuple[int, LeafTables]]) -> None:
        """Drop what the TLB has of these entries, or all it has if they are many."""
        if sum(len(table.starts) for _index, table in entries) > MOST_STARTS:
            self.engine.flush_tlb()
        else:
            flush = self.engine.flush_page
            for index, table in entries:
                for start in table.starts:
                    flush(start + (index - table.base << x86.PAGE_SHIFT))
        for tell in self.listeners.rights_lost:
            tell()

    def is_mapped_elsewhere(self, page: int, index: int) -> bool:
        """Tell whether an entry other than the one at `index` maps a guest page."""
        return self.rmap.has_other(page, index)

    # -- windows on devices' memory ----------------------------------------------------

    def open_window(self, index: int, gva: int, page: int, *, write: bool) -> None:
        """Have the entry at `index`, which maps `gva`, map a page of the VMM's own."""
        rights = x86.PTE_RW if write else 0
        if self.engine.d[HFLAGS] & offsets.HF_CPL == x86.CPL_USER:
            rights |= x86.PTE_US  # else SMAP might keep the kernel out
        self.sptes[index] = VmmMemory.hpa(page) | _WINDOW | rights
        self.engine.flush_page(gva & ~0xFFF)

    def close_window(self, index: int, gva: int) -> None:
        """Undo `open_window`: the next access misses."""
        self.sptes[index] = 0
        self.engine.flush_page(gva & ~0xFFF)
