"""Shadow roots of guests with 4-level paging.

Above the leaf tables stand shadow tables as the guest's own do, from its PML4 down to
its page directories. Each is made when it is first used, from one table of the guest's,
and roots share them as they share leaf tables: processes have the kernel's half in
common.

The engine walks five levels then (CR4.LA57), of which the first leads to the lower or
to the upper half of the guest's PML4. So the VMM's own tables have an address of 57
bits, which is none for the guest, and of the guest's 512 PML4 entries none is taken.
"""

import ctypes
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from emu86.mmu.paging import Walk
from emu86.mmu.shadow_leaves import LINK, ShadowLeaves
from emu86.mmu.shadow_tables import (
    PD_LEVEL,
    PML4_LEVEL,
    LeafTables,
    Role,
    UpperTable,
)
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.spec import x86

_ROOT_PAGES: Final = 3  # the engine's PML5, and the two halves of the PML4
_PATH: Final = 3  # shadow tables that one miss needs at most, the leaf tables included

Table: TypeAlias = UpperTable | LeafTables


class TreeRoot:
    """A shadow root: one guest PML4, and what can be reached from it."""

    def __init__(self, shadow: ShadowLeaves, pml4: int, record: abi.Root) -> None:
        self._shadow = shadow
        self._record = record
        self._numbers = abi.Uppers()
        self._listed: frozenset[int] = frozenset()  # those numbers, while published
        base = shadow.allocate(_ROOT_PAGES)
        self.hpa = VmmMemory.hpa(base)
        rights, known = x86.PTE_RW | x86.PTE_US, shadow.leaf_records[base + 1]
        self._top = UpperTable((base + 1) * 512, PML4_LEVEL, pml4, rights, known)
        self._top.link(0)
        entries = shadow.sptes
        entries[base * 512] = VmmMemory.hpa(base + 1) | LINK
        entries[base * 512 + 511] = VmmMemory.hpa(base + 2) | LINK
        hidden = VmmMemory.hpa(VmmMemory.PML4) | x86.PTE_P | x86.PTE_RW | x86.PTE_A
        entries[base * 512 + VmmMemory.PML5_SLOT] = hidden

    def publish(self) -> None:
        """Have compiled handlers know of this root, which the engine walks now."""
        shadow, top = self._shadow, self._top
        pages = [
            table.base >> 9
            for table in self._uppers(top)
            if table.page_table >= 0 and shadow.ram.holds(table.page_table)
        ]
        count = len(pages) if len(pages) < abi.UPPERS_MOST else 0
        for i, page in enumerate(pages[:count]):
            self._numbers[i] = page
        shared, known = shadow.engine.shared, self._record
        self._listed = frozenset(pages)
        known.at = top.page_table + 1 if count else 0
        known.hpa = self.hpa
        known.shadow_pdes = shared.uppers = ctypes.addressof(self._numbers)
        known.linked_pdes = shared.upper_count = count
        known.known_pdes = shared.top_page = top.base >> 9

    def leads_to_more(self, page: int) -> None:
        """Learn that one of the shadow tables leads to another one from now on."""
        if page in self._listed:
            self._listed = frozenset()
            if self._record.hpa == self.hpa:
                self._record.at = 0

    def table_at(self, gva: int) -> LeafTables | None:
        """Return the leaf tables that are linked at an address."""
        table: Any = self._top
        for shift in (39, 30, 21):
            table = table.children.get(gva >> shift & 511)
            if table is None:
                return None
        leaf: LeafTables = table
        return leaf

    def leaf(self, gva: int, found: Walk, pde: int) -> LeafTables:
        """Return the leaf tables for an address; tables that lack are linked.

        pde: the walk's, with the bits that it has been given since.
        """
        entries = [entry | x86.PTE_A for _at, entry in found.above]
        entries.append(pde)
        if len(entries) < PML4_LEVEL - 1:
            entries.append(0)  # of the directory that a page of 1 GiB does not have
        table: Any = self._top
        for entry, shift in zip(entries, (39, 30, 21), strict=True):
            i = gva >> shift & 511
            child = table.children.get(i)
            if child is None or table.gptes[i] != entry:
                self._shadow.make_room(_PATH)
                root = self._shadow.root  # a new one, if the pool was full
                assert isinstance(root, TreeRoot)
                return root.link(gva, found, entries)
            table = child
        leaf: LeafTables = table
        return leaf

    def link(self, gva: int, found: Walk, entries: list[int]) -> LeafTables:
        """Link the tables by which `entries`, root first, lead to an address."""
        shadow = self._shadow
        both, either = x86.PTE_RW | x86.PTE_US, 0
        table: Any = self._top
        for entry in entries:
            i = gva >> table.shift & 511
            child = table.children.get(i)
            if child is not None and table.gptes[i] != entry:
                self._unlink(table, i)
                shadow.engine.flush_tlb()
                child = None
            if table.page_table >= 0:
                both, either = both & entry, either | entry
            rights = both | either & x86.PTE_NX
            if child is None:
                if table.level == PD_LEVEL:
                    pde = entries[-1] or entries[-2]
                    large = bool(found.large)
                    child = shadow.leaf_tables(pde, found.page, rights, large=large)
                else:
                    huge = table.level == PD_LEVEL + 1 and bool(entry & x86.PDE_PS)
                    child = self._upper(table.level - 1, entry, rights, huge=huge)
                self._put(table, i, entry, child)
            table = child
        if not self._listed:
            self.publish()
        leaf: LeafTables = table
        return leaf

    def _upper(self, level: int, entry: int, rights: int, *, huge: bool) -> UpperTable:
        """Return the table that an entry above refers to, from the cache or new.

        huge: there is none, for the entry maps 1 GiB.
        """
        shadow = self._shadow
        made_from = entry & shadow.format.frame
        dirty = huge and bool(entry & x86.PTE_D)
        role = Role(shadow.format.name, level, rights, shadow.wp, huge, dirty)
        table = shadow.uppers.get((made_from, role))
        if table is None:
            base = shadow.allocate(1) * 512
            at = -1 if huge else made_from
            record = shadow.leaf_records[base >> 9]
            table = UpperTable(base, level, at, rights, record)
            shadow.uppers[made_from, role] = table
            if not huge and shadow.ram.holds(made_from):
                table.copy[:] = shadow.ram.map[made_from : made_from + x86.PAGE_SIZE]
        elif self._sync(table, every=True):
            shadow.engine.flush_tlb()
        return table

    def _put(self, table: UpperTable, i: int, entry: int, child: Table) -> None:
        table.put(i, entry, child)
        page = child.base >> 9
        self._shadow.sptes[table.place(i)] = VmmMemory.hpa(page) | LINK
        if isinstance(child, UpperTable):
            # By a PDPT of theirs it can be reached from other roots, too.
            for root in self._shadow.roots.values():
                if isinstance(root, TreeRoot):
                    root.leads_to_more(table.base >> 9)
        for first in table.starts:
            child.link(table.start(first, i))

    def _unlink(self, table: UpperTable, i: int) -> None:
        child = table.children.pop(i)
        table.paged.pop(i, None)
        shadow = self._shadow
        shadow.sptes[table.place(i)] = 0
        shadow.stats.drops += 1
        for first in table.starts:
            child.unlink(table.start(first, i))
        if self._has_global(child):
            shadow.tell_flushed_all()

    def _has_global(self, table: Table) -> bool:
        """Tell whether there have been entries of global pages from a table on."""
        if isinstance(table, LeafTables):
            return table.has_global
        directories = (one for one in self._uppers(table) if one.level == PD_LEVEL)
        return any(
            leaf.has_global for one in directories for leaf in one.children.values()
        )

    def sync(self) -> None:
        """Drop the links and entries that differ from the guest's tables."""
        self._sync(self._top)

    def sync_directories(self) -> bool:
        """Drop the links that differ from the guest's; tell whether there were any."""
        dropped = False
        for table in self._uppers(self._top):
            dropped |= self._compare(table)
        return dropped

    def _sync(self, top: UpperTable, *, every: bool = False) -> bool:
        """Do `sync` of a part; tell whether anything was dropped.

        every: of leaf tables whose entries are all global, too.
        """
        dropped = False
        for table in self._uppers(top):
            dropped |= self._compare(table)
            for leaf in table.paged.values():
                if every or leaf.has_nonglobal:
                    dropped |= self._shadow.sync_table(leaf)
        return dropped

    def _uppers(self, top: UpperTable) -> Iterator[UpperTable]:
        """Yield a table and all above the leaf tables that it leads to.

        Each is yielded before its children are looked at.
        """
        seen = set()
        waiting = [top]
        while waiting:
            table = waiting.pop()
            if table.base in seen:
                continue
            seen.add(table.base)
            yield table
            if table.level > PD_LEVEL:
                waiting += table.children.values()

    def _compare(self, table: UpperTable) -> bool:
        """Drop the links of a table whose entry has changed; tell of any."""
        ram, at = self._shadow.ram, table.page_table
        if at < 0 or not ram.holds(at):
            return False
        now = ram.map[at : at + x86.PAGE_SIZE]
        if now == table.copy:
            return False
        linked = [
            i
            for i in self._shadow.changed(now, table.copy, table.gptes)
            if i in table.children
        ]
        for i in linked:
            self._unlink(table, i)
        table.copy[:] = now
        return bool(linked)
