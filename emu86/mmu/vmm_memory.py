"""The VMM's own physical memory: shadow page tables and shadow descriptor tables.

It stands at 1 << 39, half way up the engine's physical space, of which an address has
40 bits: a page-table entry with any of bits 40 to 51 set is a fault (reserved bits;
`docs/maintainers/hardware.md`). So guest-physical addresses have the lower 39 bits to
themselves, more than any guest here is given, and no entry made from one of them can be
mistaken for one of the VMM's. Technique `bare`, whose guest walks tables of its own,
has none of this memory.
"""

from typing import Final

from emu86.cpu.engine import Engine
from emu86.mmu.ram import address_of, allocate
from emu86.native import abi
from emu86.spec import x86

_TABLE_PAGES: Final = 16  # that a full descriptor table takes: 64 KiB


class VmmMemory:
    """Fixed pages, then a pool that shadow page tables are made from.

    Pages are numbered from BASE. sptes: all of it as shadow page-table entries (64-bit
    words; the first of a page has index page number * 512). `mmu.shadow` alone writes
    them, but for the fixed pages, made here, and the descriptor tables (`descriptors`).
    """

    BASE: Final = abi.VMM_BASE  # host-physical address of page 0
    ONES: Final = 0  # what is read where no RAM is
    WINDOWS: Final = range(8, 12)  # stand for devices' memory, for one instruction
    # The tables that map the descriptor tables for the engine.
    PML4: Final = 1
    PDPT: Final = 2
    PD: Final = 3
    PT: Final = 4
    GDT: Final = 16
    LDT: Final = 32
    POOL: Final = 64
    PAGES: Final = 16384  # 64 MiB of address space; the host backs what is touched

    # Where the engine itself reads the shadow GDT (at page GDT) and LDT: linear. In
    # IA-32e mode it has addresses of 57 bits; this is none that the guest may use.
    LINEAR: Final = 0xFFFF800000000000
    PML4_SLOT: Final = 256
    HIDDEN: Final = 1 << 55
    PML5_SLOT: Final = HIDDEN >> 48

    def __init__(self, engine: Engine) -> None:
        memory = allocate(self.PAGES << x86.PAGE_SHIFT)
        self.bytes = memoryview(memory)
        self.sptes = self.bytes.cast("Q")
        self.address = address_of(memory)  # of page 0, in this process
        engine.map(self.BASE, self.bytes)
        self.page(self.ONES)[:] = b"\xff" * x86.PAGE_SIZE
        present = x86.PTE_P | x86.PTE_RW | x86.PTE_A
        fixed = self.sptes
        fixed[self.PML4 * 512] = self.hpa(self.PDPT) | present
        fixed[self.PDPT * 512] = self.hpa(self.PD) | present
        fixed[self.PD * 512] = self.hpa(self.PT) | present
        for page in range(self.GDT, self.LDT + _TABLE_PAGES):
            entry = self.hpa(page) | x86.PTE_P | x86.PTE_A | x86.PTE_D | x86.PTE_NX
            fixed[self.PT * 512 + page] = entry

    @classmethod
    def hpa(cls, page: int) -> int:
        """Return the host-physical address of one of these pages."""
        return cls.BASE + (page << x86.PAGE_SHIFT)

    @classmethod
    def linear(cls, page: int, *, ia32e: bool) -> int:
        """Return the linear address of a shadow descriptor table's page.

        ia32e: the guest has EFER.LMA set.
        """
        return (cls.HIDDEN if ia32e else cls.LINEAR) + (page << x86.PAGE_SHIFT)

    def page(self, number: int) -> memoryview:
        """Return the bytes of one page."""
        start = number << x86.PAGE_SHIFT
        return self.bytes[start : start + x86.PAGE_SIZE]

    def descriptors(self, page: int) -> memoryview:
        """Return the 8192 descriptors (64-bit words) of a table: page GDT or LDT."""
        return self.sptes[page * 512 : (page + _TABLE_PAGES) * 512]
