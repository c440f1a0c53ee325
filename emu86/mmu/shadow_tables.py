"""What the VMM remembers of its shadow page tables: what each was made from."""

import ctypes

from emu86.spec import x86


class LeafTable:
    """1024 shadow entries, for one 4 MiB of linear space under one guest PDE.

    base: index of its first entry; page_table: GPA of the guest's page table, or -1 if
    a 4 MiB page (or no paging) maps the range; frame: first guest page then; rights: RW
    and US of the PDE; copy: the page table when last compared; slots: PDE indices at
    which it is linked; has_global, has_nonglobal: what kinds of entries it holds.
    """

    __slots__ = (
        "base", "copy", "copy32", "frame", "has_global", "has_nonglobal", "page_table",
        "rights", "slots",
    )  # fmt: skip

    def __init__(self, base: int, page_table: int, frame: int, rights: int) -> None:
        self.base = base
        self.page_table = page_table
        self.frame = frame
        self.rights = rights
        self.slots: set[int] = set()
        self.has_global = self.has_nonglobal = False
        self.copy = bytearray(x86.PAGE_SIZE if page_table >= 0 else 0)
        self.copy32 = memoryview(self.copy).cast("I")


class Root:
    """A shadow root: one guest CR3 (or none, without paging).

    hpa: of its PML4; directory: index of its 2048 shadow PDEs; tables: what is linked
    there, by guest PDE index; paged: those made from a guest page table; copy: the
    guest's page directory as it was when they were linked, or later.
    """

    __slots__ = (
        "copy", "copy32", "copy_address", "directory", "hpa", "paged", "tables",
    )  # fmt: skip

    def __init__(self, hpa: int, directory: int) -> None:
        self.hpa = hpa
        self.directory = directory
        self.tables: dict[int, LeafTable] = {}
        self.paged: dict[int, LeafTable] = {}
        self.copy = bytearray(x86.PAGE_SIZE)
        self.copy32 = memoryview(self.copy).cast("I")
        self.copy_address = ctypes.addressof(ctypes.c_char.from_buffer(self.copy))
