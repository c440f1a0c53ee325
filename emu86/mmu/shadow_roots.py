"""Shadow roots of guests without paging, with 32-bit and with PAE paging.

Their addresses have 32 bits, so 2048 shadow PDEs, one behind the other, are enough for
all of them. Compiled handlers know such roots (`native.abi.Root`).
"""

import ctypes

from emu86.mmu.paging import LEAF_SHIFT, Walk
from emu86.mmu.shadow_leaves import LINK, RIGHTS, ShadowLeaves
from emu86.mmu.shadow_tables import LeafTables
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.spec import x86


class FlatRoot:
    """A shadow root: one guest CR3 (or none, without paging).

    hpa: of its PML4; pdes: index of its 2048 shadow PDEs, of 2 MiB each; directories:
    GPAs of the guest's tables of PDEs, one (32-bit paging, or none) or one for each
    PDPTE, -1 where there is none. What is linked goes by the number of the guest's PDE,
    counted through all directories. tables: what there is; paged: what of it is made
    from a guest page table; copy: the directories as they were when it was linked, or
    later; gptes: their entries; runs: a bit for each 32 PDEs of which some have been.
    """

    PAGES = 6  # of the pool

    __slots__ = (
        "_shadow", "_slot_bits", "copy", "copy_address", "directories", "gptes", "hpa",
        "paged", "pdes", "record", "runs", "tables",
    )  # fmt: skip

    def __init__(
        self, shadow: ShadowLeaves, directories: list[int], record: abi.Root
    ) -> None:
        base = shadow.allocate(self.PAGES)
        sptes, hpa = shadow.sptes, VmmMemory.hpa
        sptes[base * 512] = hpa(base + 1) | LINK
        top = hpa(VmmMemory.PDPT) | x86.PTE_P | x86.PTE_RW | x86.PTE_A
        sptes[base * 512 + VmmMemory.PML4_SLOT] = top
        for i in range(4):
            sptes[(base + 1) * 512 + i] = hpa(base + 2 + i) | LINK
        paging = shadow.format
        self._shadow = shadow
        self._slot_bits = paging.directory_shift - paging.span_shift
        self.hpa = hpa(base)
        self.pdes = (base + 2) * 512
        self.directories = directories
        self.record = record
        self.tables: dict[int, LeafTables] = {}
        self.paged: dict[int, LeafTables] = {}
        self.runs = 0
        self.copy = bytearray(len(directories) * x86.PAGE_SIZE)
        self.gptes = memoryview(self.copy).cast(paging.typecode)
        self.copy_address = ctypes.addressof(ctypes.c_char.from_buffer(self.copy))
        if shadow.engine.wraps:
            self.wrap()

    def wrap(self) -> None:
        """Let addresses from 4 GiB on be those from 0 on."""
        pointers, sptes = self.pdes - 512, self._shadow.sptes
        for i in range(4):
            sptes[pointers + 4 + i] = sptes[pointers + i]

    def table_at(self, gva: int) -> LeafTables | None:
        """Return the leaf tables that are linked at an address."""
        return self.tables.get(gva >> self._shadow.span_shift)

    def leaf(self, gva: int, found: Walk, pde: int) -> LeafTables:
        """Return the leaf tables for an address, which are linked if need be.

        pde: the walk's, with the bits that it has been given since.
        """
        slot = gva >> self._shadow.span_shift
        table = self.tables.get(slot)
        if table is not None and self.gptes[slot] == pde:
            return table
        shadow = self._shadow
        if table is not None:
            self._unlink(slot)
            shadow.engine.flush_tlb()
        large = bool(found.large)
        rights = (found.rights if large else pde) & RIGHTS
        # Two addresses of a page, as of the ROM, have no paging to tell them apart.
        page = gva >> x86.PAGE_SHIFT if shadow.format.direct else found.page
        table = shadow.leaf_tables(pde, page, rights, large=large)
        root = shadow.root  # a new one, if the pool was full
        assert isinstance(root, FlatRoot)
        root.put(slot, pde, table)
        return table

    def put(self, slot: int, pde: int, table: LeafTables) -> None:
        """Link leaf tables, made from an entry `pde`, at a slot that is empty."""
        shadow = self._shadow
        start = slot << shadow.span_shift
        table.link(start)
        self.tables[slot] = table
        if table.page_table >= 0:
            self.paged[slot] = table
        self.gptes[slot] = pde
        self.runs |= 1 << (slot >> 5 & 63)
        shadow.engine.shared.linked_pdes = self.runs
        if self.record.hpa == self.hpa:
            self.record.linked_pdes = self.runs
        at = self.pdes + (start >> LEAF_SHIFT)
        for i, leaf in enumerate(table.pages):
            shadow.sptes[at + i] = VmmMemory.hpa(leaf) | LINK

    def _unlink(self, slot: int) -> None:
        shadow = self._shadow
        table = self.tables.pop(slot)
        self.paged.pop(slot, None)
        start = slot << shadow.span_shift
        at = self.pdes + (start >> LEAF_SHIFT)
        for i in range(len(table.pages)):
            shadow.sptes[at + i] = 0
        shadow.stats.drops += 1
        if table.has_global:
            shadow.tell_flushed_all()
        table.unlink(start)

    def follow(self, directories: list[int]) -> None:
        """Be the root of these directories, by other PDPTEs than before."""
        for number, gpa in enumerate(directories):
            if self.directories[number] != gpa:
                for slot in self._slots(number):
                    if slot in self.tables:
                        self._unlink(slot)
                self.directories[number] = gpa

    def sync(self) -> None:
        """Drop the links and entries that differ from the guest's tables."""
        for number in range(len(self.directories)):
            self._sync_directory(number)
        for table in self.paged.values():
            if table.has_nonglobal:
                self._shadow.sync_table(table)

    def sync_directories(self) -> bool:
        """Drop the links that differ from the guest's; tell whether there were any."""
        dropped = False
        for number in range(len(self.directories)):
            dropped |= self._sync_directory(number)
        return dropped

    def _sync_directory(self, number: int) -> bool:
        """Drop the links whose PDE has changed; tell whether there were any."""
        start, ram = self.directories[number], self._shadow.ram
        if start < 0 or not ram.holds(start):
            return False
        at = number << x86.PAGE_SHIFT
        now = ram.map[start : start + x86.PAGE_SIZE]
        known = self.copy[at : at + x86.PAGE_SIZE]
        if now == known:
            return False
        slots = self._slots(number)
        entries = self.gptes[slots.start : slots.stop]
        stale = self._shadow.changed(now, known, entries)
        linked = [slots[i] for i in stale if slots[i] in self.tables]
        for slot in linked:
            self._unlink(slot)
        self.copy[at : at + x86.PAGE_SIZE] = now
        return bool(linked)

    def _slots(self, number: int) -> range:
        """Return the numbers of a directory's PDEs."""
        return range(number << self._slot_bits, number + 1 << self._slot_bits)
