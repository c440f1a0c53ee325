"""Which shadow entries map a guest page, and what that page may be used for.

Every guest page is data (writable, not executable), code (executable, not writable), a
descriptor table (not writable) or, if it keeps changing between the first two, mixed:
both at once, through one mapping only, at the engine's slow path
(`docs/maintainers/hardware.md`). Changing the use narrows every mapping of the page, so
no alias escapes it.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from emu86.cpu.engine import Engine
from emu86.mmu.ram import CODE, DATA, MIXED, TABLE, Hidden, Ram
from emu86.native import abi
from emu86.spec import x86

FLIPS: Final = 8  # changes within the window that make a page mixed
WINDOW: Final = 1_000_000 * abi.QUARTERS  # virtual time
_MANY: Final = 64  # pages, from which one flush of the whole TLB is cheaper


class LeafTable:
    """1024 shadow entries, for one 4 MiB of linear space under one guest PDE.

    base: index of its first entry in the pool; page_table: GPA of the guest's page
    table, or -1 if a 4 MiB page (or no paging) maps the range; frame: first guest page
    then; rights: RW and US of the PDE; copy: the page table when last compared;
    slots: PDE indices at which it is linked; local, shared: it holds entries that are
    not global, and such that are.
    """

    __slots__ = (
        "base", "copy", "copy32", "frame", "local", "page_table", "rights", "shared",
        "slots",
    )  # fmt: skip

    def __init__(self, base: int, page_table: int, frame: int, rights: int) -> None:
        self.base = base
        self.page_table = page_table
        self.frame = frame
        self.rights = rights
        self.slots: set[int] = set()
        self.local = self.shared = False
        self.copy = bytearray(x86.PAGE_SIZE if page_table >= 0 else 0)
        self.copy32 = memoryview(self.copy).cast("I")


class PageUse:
    """The use of every guest page, with the reverse map that enforces it."""

    def __init__(self, engine: Engine, ram: Ram, hidden: Hidden) -> None:
        self.engine = engine
        self.ram = ram
        self.pool = hidden.q
        self.state = ram.state
        self.table_of: dict[int, LeafTable] = {}  # pool page number // 2 -> table
        self.large: dict[int, list[LeafTable]] = {}  # guest page // 1024 -> tables
        self.mapped: list[set[int] | None] = [None] * ram.pages
        self.watched: set[int] = set()  # pages whose descriptors are in a shadow table
        self.flips: dict[int, tuple[int, int]] = {}
        # The mixed page of the last claim that took it from another mapping, or -1.
        self.contended = -1
        # Mixed pages that a step uses by several mappings.
        self.shared: set[int] = set()
        self.forget_code: Callable[[int], None] = lambda _page: None
        self.table_written: Callable[[int], None] = lambda _page: None
        self.narrowed: Callable[[], None] = lambda: None
        self.global_changed: Callable[[], None] = lambda: None

    def reset(self) -> None:
        """Forget every mapping: the shadow tables are gone."""
        self.table_of.clear()
        self.large.clear()
        self.mapped = [None] * self.ram.pages

    def add(self, page: int, index: int) -> None:
        """Note that pool entry `index` maps `page`."""
        entries = self.mapped[page]
        if entries is None:
            self.mapped[page] = {index}
        else:
            entries.add(index)

    def entries(self, page: int) -> Iterator[tuple[int, LeafTable]]:
        """Yield the pool entries that map `page` now, each with its table."""
        pool = self.pool
        frame = page << x86.PAGE_SHIFT
        for index in self.mapped[page] or ():
            table = self.table_of.get(index >> 10)
            if table is not None and pool[index] & 0xFFFFFF000 == frame:
                yield index, table
        for table in self.large.get(page >> 10, ()):
            index = table.base + (page & 1023)
            if pool[index]:
                yield index, table

    def code_pages(self) -> list[int]:
        """Return the pages that may have been executed."""
        state = self.ram.state_np
        pages: list[int] = np.flatnonzero((state == CODE) | (state == MIXED)).tolist()
        return pages

    def _narrow(self, page: int, forbid: int, grant: int) -> None:
        """In each mapping clear the bits `forbid`, then set `grant`."""
        pool = self.pool
        narrowed = []
        for index, table in self.entries(page):
            entry = pool[index]
            changed = (entry & ~forbid) | grant
            if changed != entry:
                pool[index] = changed
                narrowed.append((index, table))
        self._flush(narrowed)

    def _drop(self, page: int, keep: int = -1) -> None:
        """Remove every mapping but the one at pool entry `keep`."""
        dropped = [entry for entry in self.entries(page) if entry[0] != keep]
        for index, _table in dropped:
            self.pool[index] = 0
        self.mapped[page] = {keep} if keep >= 0 else None
        self._flush(dropped)

    def _flush(self, entries: list[tuple[int, LeafTable]]) -> None:
        """Drop what the TLB has of these entries, of which there may be a million."""
        if sum(len(table.slots) for _index, table in entries) > _MANY:
            self.engine.flush_tlb()
        else:
            flush = self.engine.flush_page
            for index, table in entries:
                for slot in table.slots:
                    flush(slot << 22 | (index & 1023) << 12)
        self.narrowed()

    def execute(self, page: int) -> None:
        """Make a data (or table) page code: no mapping may write it any more."""
        self.state[page] = CODE
        self._narrow(page, x86.PTE_RW, 0)

    def write(self, page: int) -> None:
        """Make a code page data, or mixed if it has changed too often of late."""
        now = self.engine.control[abi.NOW]
        since, count = self.flips.get(page, (now, 0))
        if now - since > WINDOW:
            since, count = now, 0
        self.flips[page] = (since, count + 1)
        self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
        self.forget_code(page)
        self._told(page)
        if count + 1 >= FLIPS:
            self.state[page] = MIXED
            self._drop(page)
        else:
            self.state[page] = DATA
            self._narrow(page, 0, x86.PTE_NX)

    def settle(self, page: int) -> None:
        """Make a mixed page code again if it has not changed of late."""
        if page >= self.ram.pages or self.state[page] != MIXED or page in self.shared:
            return
        since, _count = self.flips[page]
        if self.engine.control[abi.NOW] - since > WINDOW:
            del self.flips[page]
            self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
            self.state[page] = CODE
            self._narrow(page, x86.PTE_RW, 0)

    def watch(self, page: int) -> None:
        """Have the next write to this page of descriptors told to `table_written`.

        A code page stays one, as it cannot be written either.
        """
        self.watched.add(page)
        state = self.state[page]
        if state == MIXED:
            self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
            self.forget_code(page)
            self.state[page] = TABLE
            self._drop(page)
        elif state == DATA:
            self.state[page] = TABLE
            self._narrow(page, x86.PTE_RW, 0)

    def unwatch(self, page: int) -> None:
        """Take a write to a descriptor table: it is data until it is read again."""
        self.state[page] = DATA
        self._told(page)

    def _told(self, page: int) -> None:
        if page in self.watched:
            self.watched.discard(page)
            self.table_written(page)

    def claim(self, page: int, index: int) -> None:
        """Give a mixed page to one mapping: the engine sees rewriting only there."""
        if page not in self.shared and self.held(page, index):
            self.contended = page
            self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
            self._drop(page, index)

    def held(self, page: int, index: int) -> bool:
        """Tell whether a mapping other than `index` has the page."""
        return any(other != index for other, _table in self.entries(page))

    def unshare(self, page: int) -> None:
        """End of a step that used several mappings of a mixed page."""
        self.shared.discard(page)
        self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
        self.forget_code(page)
        self._drop(page)

    def touched(self, page: int) -> None:
        """Prepare for the VMM itself to write in `page`."""
        state = self.state[page]
        if state == CODE:
            self.write(page)
        elif state == MIXED:
            # All of it: the patches in what was left would be forgotten.
            self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)
            self.forget_code(page)
        elif state == TABLE:
            self.unwatch(page)
