"""What the VMM remembers of its shadow page tables: what each was made from."""

import ctypes
from typing import Final, NamedTuple

from emu86.mmu.paging import LEAF_SHIFT, Format
from emu86.native import abi
from emu86.spec import x86

LEAF_LEVEL: Final = 1  # levels, from the bottom, as KVM counts them


class Role(NamedTuple):
    """What a shadow table depends on besides the guest memory it is made from.

    With that memory's address it is the key of the caches (KVM's word). format: its
    name; level: LEAF_LEVEL, or the number of the format's levels for a root; rights:
    RW, US and NX of the entries above; wp: CR0.WP; direct: made from no guest table,
    but for a run of guest-physical memory (a large page, or no paging); dirty: that
    page's dirty bit.
    """

    format: str
    level: int
    rights: int
    wp: bool
    direct: bool
    dirty: bool = False


class LeafTables:
    """The shadow leaf tables of one guest page table, or of one large page.

    A leaf table has 512 entries, which span 2 MiB. A page table of 1024 entries (32-bit
    paging) has two, one of 512 has one; their entries follow each other.

    base: index of the first entry; size: number of entries; page_table: GPA of the
    guest's page table, or -1 for a large page (or no paging); frame: first guest page
    then; rights: RW, US and NX of the PDE; copy: the page table when last compared;
    gptes: its entries; starts: linear addresses at which they are linked. What the
    compiled handlers need of it too is in `record`.
    """

    __slots__ = (
        "_record", "base", "copy", "frame", "gptes", "page_table", "rights", "size",
        "starts",
    )  # fmt: skip

    def __init__(
        self,
        base: int,
        paging: Format,
        page_table: int,
        frame: int,
        rights: int,
        record: abi.Leaf,
    ) -> None:
        self.base = base
        self.size = 1 << paging.span_shift - x86.PAGE_SHIFT
        self.page_table = page_table
        self.frame = frame
        self.rights = rights
        self.starts: set[int] = set()
        self._record = record
        record.page_table = page_table
        record.rights = rights
        record.has_global = record.has_nonglobal = record.is_shared = 0
        self.copy = bytearray(x86.PAGE_SIZE if page_table >= 0 else 0)
        self.gptes = memoryview(self.copy).cast(paging.typecode)
        if self.copy:
            record.copy.contents = abi.GuestTable.from_buffer(self.copy)

    @property
    def has_global(self) -> bool:
        """Whether entries of global pages were made."""
        return bool(self._record.has_global)

    @has_global.setter
    def has_global(self, value: bool) -> None:
        self._record.has_global = value

    @property
    def has_nonglobal(self) -> bool:
        """Whether entries of other pages were made."""
        return bool(self._record.has_nonglobal)

    @has_nonglobal.setter
    def has_nonglobal(self, value: bool) -> None:
        self._record.has_nonglobal = value

    def link(self, start: int) -> None:
        """Learn that they are linked at a linear address, too."""
        self.starts.add(start)
        self._record.is_shared = len(self.starts) > 1

    def unlink(self, start: int) -> None:
        """Learn that they are linked there no longer; what the TLB has is dropped."""
        self.starts.discard(start)
        self._record.is_shared = len(self.starts) > 1

    @property
    def pages(self) -> range:
        """The numbers of the leaf tables' pages in the VMM's memory."""
        first = self.base >> LEAF_SHIFT - x86.PAGE_SHIFT
        return range(first, first + (self.size >> LEAF_SHIFT - x86.PAGE_SHIFT))


class Root:
    """A shadow root: one guest CR3 (or none, without paging).

    hpa: of its PML4; pdes: index of its 2048 shadow PDEs, of 2 MiB each; directories:
    GPAs of the guest's tables of PDEs, one (32-bit paging, or none) or one for each
    PDPTE, -1 where there is none. What is linked goes by the number of the guest's PDE,
    counted through all directories. tables: what there is; paged: what of it is made
    from a guest page table; copy: the directories as they were when it was linked, or
    later; gptes: their entries; runs: a bit for each 32 PDEs of which some have been.
    """

    __slots__ = (
        "copy", "copy_address", "directories", "gptes", "hpa", "paged", "pdes", "runs",
        "tables",
    )  # fmt: skip

    def __init__(
        self, hpa: int, pdes: int, paging: Format, directories: list[int]
    ) -> None:
        self.hpa = hpa
        self.pdes = pdes
        self.directories = directories
        self.tables: dict[int, LeafTables] = {}
        self.paged: dict[int, LeafTables] = {}
        self.runs = 0
        self.copy = bytearray(len(directories) * x86.PAGE_SIZE)
        self.gptes = memoryview(self.copy).cast(paging.typecode)
        self.copy_address = ctypes.addressof(ctypes.c_char.from_buffer(self.copy))
