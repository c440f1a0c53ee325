"""The guest's own page tables, walked without effects.

Only 32-bit paging (2-level, with 4 MiB pages when CR4.PSE): SDM Vol. 3A section 4.3.
Accessed and dirty bits are the caller's to set, with `touch`.
"""

from typing import NamedTuple

from emu86.mmu.ram import Ram
from emu86.spec import x86

# Bits 12-21 of a PDE that maps a 4 MiB page: reserved without PSE-36 and PAT.
LARGE_RESERVED = 0x003FF000


class Walk(NamedTuple):
    """What the tables say of one linear address; `fault` is PF_P, PF_RSVD or 0 bits.

    page: guest page number; rights: RW and US bits of the PDE and the PTE combined;
    pde, pte: the entries (pte is the PDE again for a 4 MiB page); pde_at, pte_at: their
    GPAs. When the walk ends early, `mapped` is False and `fault` is the error code's
    part.
    """

    mapped: bool
    fault: int
    page: int = 0
    rights: int = 0
    pde: int = 0
    pte: int = 0
    pde_at: int = 0
    pte_at: int = 0

    @property
    def large(self) -> bool:
        """Whether a 4 MiB page maps the address."""
        return self.pde_at == self.pte_at


_NOT_PRESENT = Walk(mapped=False, fault=0)
_RESERVED = Walk(mapped=False, fault=x86.PF_P | x86.PF_RSVD)


def walk(ram: Ram, cr3: int, cr4: int, gva: int) -> Walk:
    """Walk the tables at `cr3` for `gva` (all 32 bits), reading RAM only."""
    pde_at = (cr3 & x86.PAGE_MASK) + (gva >> 20 & 0xFFC)
    pde = ram.read32(pde_at)
    if not pde & x86.PTE_P:
        return _NOT_PRESENT
    if pde & x86.PDE_PS and cr4 & x86.CR4_PSE:
        if pde & LARGE_RESERVED:
            return _RESERVED
        page = (pde >> 12 & 0xFFC00) | (gva >> 12 & 0x3FF)
        return Walk(True, 0, page, pde, pde, pde, pde_at, pde_at)
    pte_at = (pde & x86.PAGE_MASK) + (gva >> 10 & 0xFFC)
    pte = ram.read32(pte_at)
    if not pte & x86.PTE_P:
        return _NOT_PRESENT
    return Walk(True, 0, pte >> 12, pde & pte, pde, pte, pde_at, pte_at)


def denied(found: Walk, *, write: bool, user: bool, wp: bool) -> int | None:
    """Return the #PF error code that this access meets, or None if it is allowed."""
    access = (x86.PF_W if write else 0) | (x86.PF_U if user else 0)
    if not found.mapped:
        return found.fault | access
    if user and not found.rights & x86.PTE_US:
        return x86.PF_P | access
    if write and not found.rights & x86.PTE_RW and (user or wp):
        return x86.PF_P | access
    return None


def touch(ram: Ram, found: Walk, *, write: bool) -> tuple[int, int]:
    """Set the accessed and dirty bits as the access does; return PDE and PTE."""
    pde, pte = found.pde, found.pte
    wanted = x86.PTE_A | x86.PTE_D if write else x86.PTE_A
    if found.pde_at == found.pte_at:
        if pde & wanted != wanted:
            pde |= wanted
            ram.write32(found.pde_at, pde)
        return pde, pde
    if not pde & x86.PTE_A:
        pde |= x86.PTE_A
        ram.write32(found.pde_at, pde)
    if pte & wanted != wanted:
        pte |= wanted
        ram.write32(found.pte_at, pte)
    return pde, pte
