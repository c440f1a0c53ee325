"""The shadow tables: they may lag behind the guest's tables as a TLB may.

The engine's format is 4-level (it runs in long mode), whatever the guest's is: one root
per guest CR3, and leaf tables per guest page table or large page, cached across CR3
writes. Nothing of the guest's tables is write-protected: the SDM (Vol. 3A section 4.10)
lets a TLB be stale until INVLPG or MOV CR3, and that is when an entry is compared with
what it was made from.

Nobody else writes shadow entries but compiled handlers (`native`), each of which does
what a method here does: INVLPG, `fills` (`miss`), `roots` (`switch`) and `gdt`.
"""

import ctypes
from enum import IntEnum
from typing import Final

from emu86.cpu.engine import Engine
from emu86.cpu.state import CR, RFLAGS
from emu86.mmu.paging import NO_PDPTES, Top, denied, format_of, touch
from emu86.mmu.ram import CODE, DATA, TABLE, UNBACKED, Ram
from emu86.mmu.shadow_leaves import LEAF, RIGHTS, Root, ShadowLeaves
from emu86.mmu.shadow_roots import FlatRoot
from emu86.mmu.shadow_tables import LeafTables, Role
from emu86.mmu.shadow_tree import TreeRoot
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.native.fills import takes_away
from emu86.spec import x86

_NX: Final = x86.PTE_NX
_ONES: Final = VmmMemory.hpa(VmmMemory.ONES) | LEAF
_HOST_CR3: Final = CR + 3
_USED: Final = x86.PTE_P | x86.PTE_A
_FLAT: Final = 3  # levels that a `FlatRoot` can stand for
_AROUND: Final = 16  # entries filled together, aligned

# What has PDPTEs loaded again when it changes (Vol. 3A 4.4.1).
RELOADING_CR0: Final = x86.CR0_PG | x86.CR0_CD | x86.CR0_NW
PAGING_CR0: Final = x86.CR0_PG | x86.CR0_WP
RELOADING_CR4: Final = x86.CR4_PSE | x86.CR4_PAE | x86.CR4_PGE | x86.CR4_SMEP
PAGING_CR4: Final = RELOADING_CR4 | x86.CR4_SMAP


class Miss(IntEnum):
    """What a shadow miss came to (after NOVA's vTLB)."""

    FILLED = 0  # resume
    GUEST_FAULT = 1  # the guest's own #PF; `ShadowMmu.fault` is its error code
    NO_BACKING = 2  # no RAM there: memory-mapped I/O, or a write that is lost


# Enum members looked up by name cost more than the rest of a small exit.
FILLED: Final = Miss.FILLED
GUEST_FAULT: Final = Miss.GUEST_FAULT
NO_BACKING: Final = Miss.NO_BACKING


class ShadowMmu(ShadowLeaves):
    """Translates for the engine. `cr0`, `cr3`, `cr4` and `efer` are the guest's.

    top: what walks of its tables begin at.
    """

    def __init__(self, engine: Engine, ram: Ram, vmm_memory: VmmMemory) -> None:
        super().__init__(engine, ram, vmm_memory)
        bias = vmm_memory.address - VmmMemory.BASE
        engine.control[abi.VMM_MEMORY_BIAS] = bias
        control = engine.control
        control[abi.RAM], control[abi.RAM_SIZE] = ram.address, ram.size
        control[abi.PAGE_STATE] = ram.state_address
        control[abi.LEAVES] = ctypes.addressof(self.leaf_records)
        self._roots = engine.shared.roots
        self.cr0 = self.cr3 = self.cr4 = self.efer = 0
        self.top: Top = (0,)
        self.fault = 0
        self._mmio_pages: frozenset[int] = frozenset()
        self._bind()
        self.root = self._new_root()

    @property
    def mmio_pages(self) -> frozenset[int]:
        """Pages without RAM, by number, that are devices': every access traps."""
        return self._mmio_pages

    @mmio_pages.setter
    def mmio_pages(self, pages: frozenset[int]) -> None:
        self._mmio_pages = pages
        below = [page for page in pages if page < self.ram.pages]
        self.engine.control[abi.MMIO_FIRST] = min(below, default=0)
        self.engine.control[abi.MMIO_END] = max(below, default=-1) + 1

    # -- control registers ------------------------------------------------------------

    def configure(
        self, cr0: int, cr3: int, cr4: int, efer: int = 0, pdptes: Top = NO_PDPTES
    ) -> None:
        """Take new values of all of them; everything cached is dropped."""
        self.cr0, self.cr4, self.efer = cr0, cr4, efer
        self._bind()
        self._set_top(cr3, pdptes)
        self.reset()

    def _set_top(self, cr3: int, pdptes: Top) -> None:
        self.cr3 = cr3
        self.top = pdptes if self.format.in_registers else (cr3,)

    def _bind(self) -> None:
        """Bind what CR0 and CR4 choose, so that no access asks for it."""
        paging = self.format = format_of(self.cr0, self.cr4, self.efer)
        self.walk = paging.walk
        self.wp = bool(self.cr0 & x86.CR0_WP)
        self.engine.control[abi.WRITE_PROTECT] = self.wp
        self._global = x86.PTE_G if not paging.direct and self.cr4 & x86.CR4_PGE else 0
        self.engine.control[abi.GLOBAL_BIT] = self._global
        self._frame = paging.frame
        shared = self.engine.shared
        shared.wide = paging.entry_size == 8
        shared.frame = paging.frame
        shared.reserved, shared.reserved_page = paging.reserved, paging.reserved_page
        self.span_shift = paging.span_shift
        self.span_last = (1 << paging.span_shift - x86.PAGE_SHIFT) - 1
        self._gptes = self.ram.bytes.cast(paging.typecode)
        self._linear = paging.linear
        self._is_tree = len(paging.shifts) > _FLAT
        self.smep = bool(self.host_cr4 & x86.CR4_SMEP)
        self.smap = bool(self.host_cr4 & x86.CR4_SMAP)
        shared.no_user_code = x86.PTE_US if self.smep else 0
        shared.no_user_data = x86.PTE_US if self.smap else 0
        self._fetches = x86.PF_I if paging.nx or self.smep else 0
        shared.fetch_bit = self._fetches
        self._root_role = Role(
            paging.name, len(paging.shifts), RIGHTS, self.wp, direct=paging.direct
        )

    @property
    def host_cr4(self) -> int:
        """What the engine's CR4 needs for it to walk the root."""
        bits = x86.CR4_LA57 if self._is_tree else 0
        if not self.format.direct:  # without paging its entries are users', too
            bits |= self.cr4 & (x86.CR4_SMEP | x86.CR4_SMAP)
        return bits

    def switch(self, cr3: int, pdptes: Top = NO_PDPTES) -> None:
        """MOV to CR3: load the root for `cr3`, without what the guest has changed."""
        self.stats.switches += 1
        if self.format.direct:
            self._set_top(cr3, pdptes)
            return
        root = self._select(cr3, pdptes)
        if isinstance(root, FlatRoot):
            root.follow(self._directories())
        root.sync()
        self._load(root)
        self.engine.flush_tlb()
        self._tell_switched()

    def _tell_switched(self) -> None:
        self.engine.shared.held_count = 0  # who still holds a page says so
        for tell in self.listeners.flushed_nonglobal:
            tell()

    def hold(self, page: int, frame: int) -> None:
        """Have a compiled MOV to CR3 find out whether a linear page maps `frame` then.

        If not, Python does it. Until the listeners are told of a MOV to CR3, or of
        changes of global pages.
        """
        shared = self.engine.shared
        count = shared.held_count
        if self._is_tree:
            count = abi.HELD_MOST  # it does not look
        for i in range(min(count, abi.HELD_MOST)):
            if shared.held[i].page == page:
                shared.held[i].frame = frame
                return
        if count < abi.HELD_MOST:
            shared.held[count] = abi.Held(page, frame)
        shared.held_count = min(count, abi.HELD_MOST) + 1

    def _select(self, cr3: int, pdptes: Top) -> Root:
        """Make the root for `cr3`, perhaps a new one, the current one."""
        self._set_top(cr3, pdptes)
        key = cr3 & self.format.root, self._root_role
        if key not in self.roots:
            self.make_room(FlatRoot.PAGES)
        root = self.roots.get(key)  # a pool that was full has left this one alone
        self.root = self._new_root() if root is None else root
        return self.root

    def _new_root(self) -> Root:
        root: Root
        at = self.cr3 & self.format.root
        if self._is_tree:
            root = TreeRoot(self, at, self._roots[abi.root_slot(at)])
        else:
            root = FlatRoot(self, self._directories(), self._roots[abi.root_slot(at)])
        self.roots[at, self._root_role] = root
        return root

    def _directories(self) -> list[int]:
        """Return where the guest's directories are, by the registers; -1 for none."""
        frame = self._frame
        if not self.format.in_registers:
            return [self.cr3 & frame]
        return [one & frame if one & x86.PTE_P else -1 for one in self.top]

    def catch_up(self, behind: int, cr3: int, pdptes: Top) -> None:
        """Hear of what compiled handlers have done, by bits of `abi`."""
        if behind & abi.DROPPED:
            self._tell_dropped()
        if behind & abi.SWITCHED:
            self._select(cr3, pdptes)
            self._tell_switched()

    def reset(self) -> None:
        """Drop every shadow table and start again from the current registers."""
        self.stats.resets += 1
        self.roots.clear()
        self.drop_tables()
        self.forget_roots()
        self.root = self._new_root()
        self._load(self.root)
        self.engine.flush_tlb()
        self.tell_flushed_all()

    def drop_derived(self) -> None:
        """Forget the use of every page; `configure` does the rest."""
        self.engine.wraps = False
        self.engine.control[abi.BEHIND] = self.engine.control[abi.DROPPED_COUNT] = 0
        self.use.drop_derived()

    def _load(self, root: Root) -> None:
        """Have the engine, and its compiled INVLPG, walk `root`."""
        self.engine.q[_HOST_CR3] = root.hpa
        control, paging = self.engine.control, self.format
        control[abi.DIRECT] = paging.direct and not self.ram.is_gated
        if isinstance(root, TreeRoot):
            control[abi.SHADOW_PDES] = control[abi.TABLES_KNOWN] = 0
            root.publish()
            return
        assert isinstance(root, FlatRoot)
        # A page has two addresses where they wrap.
        walked = not (paging.direct or self.engine.wraps)
        pdes = self.vmm_memory.address + 8 * root.pdes if walked else 0
        control[abi.SHADOW_PDES] = pdes
        known = walked and all(
            gpa < 0 or self.ram.holds(gpa) for gpa in root.directories
        )
        control[abi.TABLES_KNOWN] = known
        if not known:
            return
        shared, at = self.engine.shared, self.cr3 & paging.root
        kept = root.record
        kept.at, kept.hpa, kept.shadow_pdes = at + 1, root.hpa, pdes
        shared.linked_pdes = kept.linked_pdes = root.runs
        kept.known_pdes = root.copy_address
        for i, gpa in enumerate(root.directories):
            kept.directories[i] = (gpa >> x86.PAGE_SHIFT) + 1
            shared.guest_pdes[i] = self.ram.address + gpa if gpa >= 0 else 0
            shared.known_pdes[i] = root.copy_address + (i << x86.PAGE_SHIFT)

    def invalidate(self, gva: int) -> None:
        """INVLPG: drop the translation of one page, and all links that have changed.

        A CPU drops all that it has cached of its paging structures, whatever the
        address (Vol. 3A 4.10.4.1).
        """
        root = self.root
        if not self.format.direct:
            if root.sync_directories():
                self.engine.flush_tlb()
                self.tell_flushed_all()  # and of 4 MiB, not of this page alone
            table = root.table_at(gva)
            if table is not None and table.page_table >= 0:
                index = table.base + (gva >> 12 & self.span_last)
                if self.sptes[index]:
                    self.sptes[index] = 0
                    self.stats.drops += 1
                    if len(table.starts) > 1:  # INVLPG of another finds no entry
                        self.flush([(index, table)])
                    else:
                        self.engine.flush_page(gva & ~0xFFF)
        for tell in self.listeners.flushed_page:
            tell(gva)

    def _tell_dropped(self) -> None:
        """Tell which pages the compiled INVLPG has dropped."""
        control = self.engine.control
        count = control[abi.DROPPED_COUNT]
        control[abi.DROPPED_COUNT] = 0
        for i in range(abi.DROPPED_PAGES, abi.DROPPED_PAGES + count):
            for tell in self.listeners.dropped_page:
                tell(control[i] << x86.PAGE_SHIFT)

    def keeps_out(self, *, explicit: bool) -> bool:
        """Tell whether SMAP keeps a supervisor from users' data (Vol. 3A 4.6.1).

        EFLAGS.AC lifts that of explicit accesses: not of those to tables and the TSS.
        """
        return self.smap and not (explicit and self.engine.q[RFLAGS] & x86.AC)

    # -- misses ------------------------------------------------------------------------

    def miss(self, gva: int, error: int) -> Miss:
        """Answer the hardware's #PF at `gva` with error code `error` (SDM 3A 4.7)."""
        write = error & x86.PF_W
        user = bool(error & x86.PF_U)
        fetch = bool(error & self._fetches)
        found = self.walk(self.ram, self.top, gva)
        if error & x86.PF_I:
            kept = self.smep
        else:
            kept = self.smap and self.keeps_out(explicit=True)
        code = denied(
            found, write=bool(write), user=user, wp=self.wp, fetch=fetch, kept=kept
        )
        if code is not None:
            self.fault = code
            return GUEST_FAULT
        _mapped, _fault, page, rights, pde, pte, _pde_at, _pte_at, _large, above = found
        wanted = x86.PTE_A | x86.PTE_D if write else x86.PTE_A
        if pte & wanted != wanted or not pde & x86.PTE_A or above:
            pde, pte = touch(self.ram, found, write=bool(write))
        table = self.root.leaf(gva, found, pde)
        at = gva >> 12 & self.span_last
        index = table.base + at
        rights &= RIGHTS
        if not pte & x86.PTE_D:
            rights &= ~x86.PTE_RW
        elif write and not rights & x86.PTE_RW:
            # CR0.WP is 0: the kernel may write, so no user may use this entry. With
            # SMEP the kernel may not execute what is a user's.
            never = _NX if self.smep and rights & x86.PTE_US else rights & _NX
            rights = x86.PTE_RW | never
        use = self.use
        if page < self.ram.pages and use.state[page] != UNBACKED:
            if use.state[page] == DATA and not error & x86.PF_I:
                entry = page << x86.PAGE_SHIFT | LEAF | rights | _NX
            else:
                entry = self._backed_spte(page, rights, index, error)
            self.rmap.add(page, index)
        else:
            entry = 0 if write else self._unbacked_spte(page)
            if entry == 0:
                return NO_BACKING
            entry |= rights & (x86.PTE_US | _NX)
        was = self.sptes[index]
        self.sptes[index] = entry
        if takes_away(was, entry):
            # What a switch of roots keeps in the TLB is what the shadow has.
            self.flush([(index, table)])
        self.stats.fills += 1
        self.rmap.make_room()
        if table.page_table >= 0:
            table.gptes[at] = pte
            if pte & self._global:
                table.has_global = True
            else:
                table.has_nonglobal = True
                self._fill_around(table, at)
        return FILLED

    def _fill_around(self, table: LeafTables, at: int) -> None:
        """Fill the neighbours of an entry that the guest has used before.

        Their accessed bit is set already, so that the guest sees nothing of it; a page
        not yet dirty stays read-only, and no page changes its use.
        """
        if not self.ram.holds(table.page_table):
            return
        sptes, base, copy = self.sptes, table.base, table.gptes
        gptes, mask = self._gptes, self._frame
        used = _USED | self.format.reserved_page
        state, pages = self.use.state, self.ram.pages
        add = self.rmap.add
        first = at & ~(_AROUND - 1)
        start = table.page_table // self.format.entry_size + first
        for j in range(first, first + _AROUND):
            pte = gptes[start + j - first]
            if sptes[base + j] or pte & used != _USED:
                continue
            frame = pte & mask
            page = frame >> x86.PAGE_SHIFT
            if page >= pages:
                continue
            use = state[page]
            if use == DATA:
                entry = frame | LEAF | _NX
                if pte & x86.PTE_D:
                    entry |= pte & table.rights & x86.PTE_RW
            elif use == CODE:
                entry = frame | LEAF | (pte | table.rights) & _NX
            else:
                continue
            sptes[base + j] = entry | pte & table.rights & x86.PTE_US
            add(page, base + j)
            copy[j] = pte
            if pte & self._global:
                table.has_global = True

    def fetch(self, gva: int, size: int) -> bytes:
        """Return `size` bytes of code at `gva` as the engine fetches them.

        By the shadow: the guest may have changed its tables without a word since.
        """
        out = b""
        while size:
            part = min(size, x86.PAGE_SIZE - (gva & 0xFFF))
            start = self.fetch_gpa(gva)
            ones = start >= self.ram.size
            out += b"\xff" * part if ones else self.ram.map[start : start + part]
            gva = (gva + part) & self._linear
            size -= part
        return out

    def fetch_gpa(self, gva: int) -> int:
        """Return the GPA that the engine fetches from at `gva`; beyond RAM for ones."""
        entry = self.sptes[self.spte_index(gva)] & x86.LONG_FRAME
        return entry | gva & 0xFFF

    def spte_index(self, gva: int) -> int:
        """Return the index of the shadow entry of a page whose table is linked."""
        table = self.root.table_at(gva)
        assert table is not None
        return table.base + (gva >> 12 & self.span_last)

    def lookup(self, gva: int) -> int | None:
        """Return the GPA that the guest's tables give, without effects; or None."""
        found = self.walk(self.ram, self.top, gva)
        return found.page << x86.PAGE_SHIFT | gva & 0xFFF if found.mapped else None

    def is_global(self, gva: int) -> bool:
        """Tell whether the translation of `gva` survives MOV to CR3."""
        if not self._global:
            return False
        return bool(self.walk(self.ram, self.top, gva).pte & self._global)

    def _unbacked_spte(self, page: int) -> int:
        """Return the entry for reading where no RAM is: a page of ones (0: trap it)."""
        if page in self.mmio_pages:
            return 0
        return _ONES

    def _backed_spte(self, page: int, rights: int, index: int, error: int) -> int:
        """Make the entry for a backed page, changing the page's use if it must."""
        use = self.use
        state = use.state[page]
        if state == CODE:
            if error & x86.PF_W:
                use.write(page)
        elif state == TABLE and error & x86.PF_W:
            use.unwatch(page)
        elif state in (DATA, TABLE) and error & x86.PF_I:
            use.execute(page)
        state = use.state[page]
        entry = page << x86.PAGE_SHIFT | LEAF | rights
        if state == DATA:
            return entry | _NX
        if state == CODE:
            return entry & ~x86.PTE_RW
        if state == TABLE:
            return (entry & ~x86.PTE_RW) | _NX
        if not error & (x86.PF_W | x86.PF_I) and self.is_mapped_elsewhere(page, index):
            return (entry & ~x86.PTE_RW) | _NX
        use.take_over(page, index)
        return entry

    # -- addresses that wrap -----------------------------------------------------------

    def wrap(self) -> None:
        """Let addresses from 4 GiB on be those from 0 on, as they are for the guest.

        The engine's go on: an access over the end, or a segment's base and an offset
        whose sum wraps. Few guests do that, so only once it is seen.
        """
        if not self.engine.wraps:
            self.engine.wraps = True
            self.engine.control[abi.SHADOW_PDES] = 0
            self.engine.control[abi.TABLES_KNOWN] = 0
            self.forget_roots()
            for root in self.roots.values():
                if isinstance(root, FlatRoot):
                    root.wrap()
