"""What the VMM remembers of its shadow page tables: what each was made from."""

from typing import Any, Final, NamedTuple

from emu86.mmu.paging import LEAF_SHIFT, Format
from emu86.native import abi
from emu86.spec import x86

LEAF_LEVEL: Final = 1  # levels, from the bottom, as KVM counts them
PD_LEVEL: Final = 2
PML4_LEVEL: Final = 4
# Of a table, addresses that are known one by one. More than that are flushed with all
# others, and a guest of four tables can have 134 million.
MOST_STARTS: Final = 64
_UPPER_HALF: Final = 256  # the first entry of a PML4 that is in it
_SIGN: Final = -(1 << 48) & x86.MASK64  # of linear addresses in the upper half


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
    gptes: its entries; starts: linear addresses at which they are linked, with how many
    links are there; once there are more than `MOST_STARTS`, no others are learnt, and
    none goes. What the compiled handlers need of it too is in `record`.
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
        self.starts: dict[int, int] = {}
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
        """Learn of one more link at a linear address."""
        if len(self.starts) > MOST_STARTS:
            return
        self.starts[start] = self.starts.get(start, 0) + 1
        self._record.is_shared = len(self.starts) > 1

    def unlink(self, start: int) -> None:
        """Learn that such a link is gone; what the TLB has is dropped."""
        if len(self.starts) > MOST_STARTS:
            return
        count = self.starts.pop(start) - 1
        if count:
            self.starts[start] = count
        self._record.is_shared = len(self.starts) > 1

    @property
    def pages(self) -> range:
        """The numbers of the leaf tables' pages in the VMM's memory."""
        first = self.base >> LEAF_SHIFT - x86.PAGE_SHIFT
        return range(first, first + (self.size >> LEAF_SHIFT - x86.PAGE_SHIFT))


class UpperTable:
    """A shadow PML4, PDPT or page directory.

    base: index of its first entry; level: 4, 3 or 2; page_table: GPA of the guest's, or
    -1 for the directory of a page of 1 GiB; rights: RW, US and NX of the entries above;
    children: the tables that are linked, by the number of the entry; paged: of a
    directory's those that are made from a guest page table; copy: the guest's table as
    it was when last compared; gptes: its entries; starts: as of `LeafTables`, where the
    table begins.
    """

    __slots__ = (
        "_record", "base", "children", "copy", "gptes", "level", "page_table", "paged",
        "rights", "shift", "starts",
    )  # fmt: skip

    def __init__(
        self, base: int, level: int, page_table: int, rights: int, record: abi.Leaf
    ) -> None:
        self.base = base
        self._record = record
        record.level, record.page_table, record.runs = level, page_table, 0
        self.level = level
        self.shift = 3 + 9 * level  # the lowest bit of an address that is its index's
        self.page_table = page_table
        self.rights = rights
        self.children: dict[int, Any] = {}
        self.paged: dict[int, LeafTables] = {}
        self.starts: dict[int, int] = {}
        self.copy = bytearray(x86.PAGE_SIZE)
        self.gptes = memoryview(self.copy).cast("Q")
        record.copy.contents = abi.GuestTable.from_buffer(self.copy)

    def put(self, i: int, entry: int, child: "UpperTable | LeafTables") -> None:
        """Learn that entry `i`, which is `entry` in the guest's, leads to a table."""
        self.children[i] = child
        self.gptes[i] = entry
        if isinstance(child, LeafTables) and child.page_table >= 0:
            self.paged[i] = child
            self._record.runs |= 1 << (i >> 3)

    def place(self, i: int) -> int:
        """Return the index of the shadow entry for the guest's entry `i`."""
        halves = self.level == PML4_LEVEL and i >= _UPPER_HALF
        return self.base + i + (512 if halves else 0)

    def start(self, first: int, i: int) -> int:
        """Return where what entry `i` leads to begins, if the table does at `first`."""
        sign = _SIGN if self.level == PML4_LEVEL and i >= _UPPER_HALF else 0
        return first + (i << self.shift) | sign

    def link(self, start: int) -> None:
        """Learn of one more link by which the table begins at a linear address."""
        if len(self.starts) > MOST_STARTS:
            return  # and so it is with its children
        count = self.starts.get(start, 0)
        self.starts[start] = count + 1
        if not count:
            for i, child in self.children.items():
                child.link(self.start(start, i))

    def unlink(self, start: int) -> None:
        """Learn that such a link is gone; what the TLB has is dropped."""
        if len(self.starts) > MOST_STARTS:
            return
        count = self.starts.pop(start) - 1
        if count:
            self.starts[start] = count
            return
        for i, child in self.children.items():
            child.unlink(self.start(start, i))
