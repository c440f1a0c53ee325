"""What each guest page may be used for: W^X, over every mapping of it.

Every guest page is data (writable, not executable), code (executable, not writable), a
descriptor table (not writable) or, if it keeps changing between the first two, mixed:
both at once, through one mapping only, at the engine's slow path
(`docs/maintainers/hardware.md`, M3). Changing the use narrows every mapping of the
page, so no alias escapes it; `ShadowMmu` does that.
"""

from itertools import compress
from typing import Final, Protocol

from emu86.cpu.engine import Engine
from emu86.cpu.state import BASE, RIP
from emu86.mmu.listeners import Listeners
from emu86.mmu.ram import CODE, DATA, MIXED, TABLE, UNBACKED, Ram
from emu86.native import abi
from emu86.spec import x86

FLIPS: Final = 8  # changes within the window that make a page mixed
REAL_MODE_FLIPS: Final = 4  # there, whenever
WINDOW: Final = 1_000_000 * abi.QUARTERS  # virtual time

# Of each use: what it becomes when all is forgotten; whether it may have been executed.
_USES: Final = range(256)
_ALL_DATA: Final = bytes(UNBACKED if use == UNBACKED else DATA for use in _USES)
_IS_CODE: Final = bytes(use in (CODE, MIXED) for use in _USES)


class Mappings(Protocol):
    """The shadow entries that map a guest page, as far as its use narrows them."""

    def write_protect(self, page: int) -> None:
        """Make every mapping of the page read-only."""

    def forbid_execution(self, page: int) -> None:
        """Make every mapping of the page not executable."""

    def drop_mappings(self, page: int, keep: int = -1) -> None:
        """Remove every mapping of the page but the entry at index `keep`."""

    def is_mapped_elsewhere(self, page: int, index: int) -> bool:
        """Tell whether an entry other than the one at `index` maps the page."""


class PageUse:
    """The use of every guest page: `state`, which is the RAM's."""

    def __init__(
        self, engine: Engine, ram: Ram, mappings: Mappings, listeners: Listeners
    ) -> None:
        self.engine = engine
        self.ram = ram
        self.state = ram.state
        # Its programs have code and data in one page, and change both all the time.
        self.in_real_mode = False
        self.mappings = mappings
        self.listeners = listeners
        self.watched: set[int] = set()  # pages whose descriptors are in a shadow table
        # Page -> virtual time of the first change in its window, changes since.
        self.flips: dict[int, tuple[int, int]] = {}
        # The mixed page that the last fill took from another mapping, or -1.
        self.taken_over = -1
        # Mixed pages that may have several mappings, for one instruction.
        self.aliased: set[int] = set()

    def drop_derived(self) -> None:
        """Make every page data: no code is translated, and nothing is mapped."""
        self.state[:] = self.state.translate(_ALL_DATA)
        self.watched.clear()
        self.flips.clear()
        self.aliased.clear()
        self.taken_over = -1

    def code_pages(self) -> list[int]:
        """Return the pages that may have been executed."""
        return list(compress(range(self.ram.pages), self.state.translate(_IS_CODE)))

    # -- accesses that change the use --------------------------------------------------

    def execute(self, page: int) -> None:
        """Make a data (or table) page code: no mapping may write it any more."""
        self.state[page] = CODE
        self.mappings.write_protect(page)

    def write(self, page: int) -> None:
        """Make a code page data, or mixed if it has changed too often of late."""
        now = self.engine.control[abi.NOW]
        since, count = self.flips.get(page, (now, 0))
        if now - since > WINDOW and not self.in_real_mode:
            since, count = now, 0
        self.flips[page] = (since, count + 1)
        self._code_changed(page)
        self._table_written(page)
        most = FLIPS
        if self.in_real_mode:
            most = 1 if self._runs(page) else REAL_MODE_FLIPS
        if count + 1 >= most:
            self.state[page] = MIXED
            self.mappings.drop_mappings(page)
        else:
            self.state[page] = DATA
            self.mappings.forbid_execution(page)

    def _runs(self, page: int) -> bool:
        """Tell whether the instruction under way is in a page; without paging."""
        linear = self.engine.q[RIP] + self.engine.q[BASE[x86.CS]]
        return (linear ^ page << x86.PAGE_SHIFT) & x86.MASK32 < x86.PAGE_SIZE

    def before_write(self, page: int) -> None:
        """Prepare for the VMM itself, or a device, to write to `page`."""
        state = self.state[page]
        if state == CODE:
            self.write(page)
        elif state == MIXED:
            # All of it: the patches in what was left would be forgotten.
            self._code_changed(page)
        elif state == TABLE:
            self.unwatch(page)

    def _code_changed(self, page: int) -> None:
        self._drop_code(page)
        for tell in self.listeners.code_changed:
            tell(page)

    def _drop_code(self, page: int) -> None:
        """Drop what the engine has translated of a page."""
        self.engine.drop_code(page << x86.PAGE_SHIFT, x86.PAGE_SIZE)

    def set_backed(self, page: int, *, backed: bool) -> None:
        """Have plain memory at a page, with other content now, or none."""
        if self.state[page] != UNBACKED:
            self.before_write(page)
            if not backed:
                self.mappings.drop_mappings(page)
                self.state[page] = UNBACKED
        elif backed:
            self.state[page] = DATA

    # -- descriptor tables -------------------------------------------------------------

    def watch(self, page: int) -> None:
        """Have the next write to this page of descriptors told to `table_written`.

        A code page stays one, as it cannot be written either.
        """
        self.watched.add(page)
        state = self.state[page]
        if state == MIXED:
            self._code_changed(page)
            self.state[page] = TABLE
            self.mappings.drop_mappings(page)
        elif state == DATA:
            self.state[page] = TABLE
            self.mappings.write_protect(page)

    def unwatch(self, page: int) -> None:
        """Take a write to a descriptor table: it is data until it is read again."""
        self.state[page] = DATA
        self._table_written(page)

    def _table_written(self, page: int) -> None:
        if page in self.watched:
            self.watched.discard(page)
            for tell in self.listeners.table_written:
                tell(page)

    # -- mixed pages -------------------------------------------------------------------

    def take_over(self, page: int, index: int) -> None:
        """Make the entry at `index` the only mapping of a mixed page.

        The engine sees that code is rewritten only where one address does both.
        """
        if page in self.aliased or not self.mappings.is_mapped_elsewhere(page, index):
            return
        self.taken_over = page
        self._drop_code(page)
        self.mappings.drop_mappings(page, index)

    def allow_aliases(self, page: int) -> None:
        """Let one instruction use a mixed page by several mappings."""
        self.aliased.add(page)

    def end_aliases(self, page: int) -> None:
        """End what `allow_aliases` began."""
        self.aliased.discard(page)
        self._code_changed(page)
        self.mappings.drop_mappings(page)

    def unmix(self, page: int) -> None:
        """Make a mixed page code again if it has not changed of late."""
        if page >= self.ram.pages or self.state[page] != MIXED or page in self.aliased:
            return
        since, _count = self.flips[page]
        if self.in_real_mode:
            return
        if self.engine.control[abi.NOW] - since > WINDOW:
            del self.flips[page]
            self._drop_code(page)
            self.state[page] = CODE
            self.mappings.write_protect(page)
