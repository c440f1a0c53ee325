"""The reverse map: which shadow entries map a guest page (KVM's word).

It notes where entries were made, not when they go: an entry that has become another
since is recognised by its frame, and forgotten once there are many. It reads shadow
entries and writes none.
"""

from collections.abc import Iterator
from typing import Final

from emu86.mmu.shadow_tables import LeafTables
from emu86.native import abi
from emu86.spec import x86

MANY: Final = 16384  # notes, of some 100 bytes


class ReverseMap:
    """The reverse map of guest pages over the entries `sptes`."""

    def __init__(self, sptes: memoryview, control: abi.Control) -> None:
        self._control = control
        added = memoryview(control.added).cast("B").cast("I")
        self._added = added[::2], added[1::2]  # pages, and indices
        self._sptes = sptes.toreadonly()
        self._table_of: dict[int, LeafTables] = {}  # by index of an entry // 512
        self._large: dict[int, list[LeafTables]] = {}  # by guest page // 512
        # Indices of the entries made for each guest page one at a time.
        self._indices: dict[int, set[int]] = {}
        self._noted = 0  # since the last look, and what was left then
        self._most = MANY

    def reset(self) -> None:
        """Forget everything: the shadow tables are gone."""
        self._control.added_count = 0
        self._table_of.clear()
        self._large.clear()
        self._indices.clear()
        self._noted = 0

    def add_table(self, table: LeafTables) -> None:
        """Learn of new leaf tables; those of a large page are filled at once."""
        for i, leaf in enumerate(table.pages):
            self._table_of[leaf] = table
            if table.page_table < 0:
                self._large.setdefault((table.frame >> 9) + i, []).append(table)

    def add(self, page: int, index: int) -> None:
        """Note that the entry at `index` maps `page`."""
        indices = self._indices.get(page)
        if indices is None:
            self._indices[page] = {index}
        else:
            indices.add(index)

    def learn(self) -> None:
        """Learn of the entries that the compiled handlers have made."""
        control, indices = self._control, self._indices
        pages, entries = (words[: control.added_count] for words in self._added)
        for page, index in zip(pages, entries, strict=True):
            if page in indices:
                indices[page].add(index)
            else:
                indices[page] = {index}
        self._noted += control.added_count
        control.added_count = 0
        if self._noted > self._most:
            self._forget_others()

    def _forget_others(self) -> None:
        """Forget the entries that have become others since, of processes that ended."""
        sptes = self._sptes
        known, self._indices = self._indices, {}
        for page, indices in known.items():
            frame = page << x86.PAGE_SHIFT
            kept = {i for i in indices if sptes[i] & x86.LONG_FRAME == frame}
            if kept:
                self._indices[page] = kept
        self._noted = sum(map(len, self._indices.values()))
        self._most = max(MANY, 2 * self._noted)

    def make_room(self) -> None:
        """Have the compiled handlers go on, if they have made too many to tell of."""
        if self._control.added_count > abi.ADDED_FULL:
            self.learn()

    def keep(self, page: int, index: int) -> None:
        """Forget the entries of `page` but the one at `index` (-1: that one too)."""
        self.learn()
        if index >= 0:
            self._indices[page] = {index}
        else:
            self._indices.pop(page, None)

    def entries(self, page: int) -> Iterator[tuple[int, LeafTables]]:
        """Yield the indices of the entries that map `page` now, each with its table."""
        self.learn()
        sptes = self._sptes
        frame = page << x86.PAGE_SHIFT
        for index in self._indices.get(page, ()):
            table = self._table_of.get(index >> 9)
            if table is not None and sptes[index] & x86.LONG_FRAME == frame:
                yield index, table
        for table in self._large.get(page >> 9, ()):
            index = table.base + page - table.frame
            if sptes[index]:
                yield index, table

    def has_other(self, page: int, index: int) -> bool:
        """Tell whether an entry other than the one at `index` maps `page`."""
        return any(other != index for other, _table in self.entries(page))
