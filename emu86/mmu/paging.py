"""Paging formats: how the guest's page tables are laid out, and their walks.

CR0 and CR4 choose one `Format` (`format_of`), each with a walk of its own, so that no
access asks what mode it is in. No paging is a format too: its walk gives every address
itself. A walk reads guest RAM and changes nothing; accessed and dirty bits are the
caller's to set, with `touch`. Source: SDM Vol. 3A chapter 4; 32-bit paging is section
4.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from emu86.mmu.ram import Ram
from emu86.spec import x86

# Bits 12-21 of a PDE that maps a 4 MiB page: reserved without PSE-36 and PAT.
LARGE_RESERVED: Final = 0x003FF000

LEAF_SHIFT: Final = 21  # log2 of what one shadow leaf table spans: 512 pages


class Walk(NamedTuple):
    """What the tables say of one linear address; `fault` is PF_P, PF_RSVD or 0 bits.

    page: guest page number; rights: RW and US bits of the PDE and the PTE combined;
    pde, pte: the entries (pte is the PDE again for a large page); pde_at, pte_at: their
    GPAs; large: the PDE maps the page itself. When the walk ends early, `mapped` is
    False and `fault` is the error code's part.
    """

    mapped: bool
    fault: int
    page: int = 0
    rights: int = 0
    pde: int = 0
    pte: int = 0
    pde_at: int = 0
    pte_at: int = 0
    large: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Format:
    """One layout of page tables.

    name: the SDM's; shifts: for each level, root first, the lowest of the linear
    address's bits that index its tables (none: there are no tables); entry_size: bytes;
    frame: the bits of an entry that are an address; large_shifts: of the levels whose
    entries may map a page themselves (PS set); reserved: the bits of such an entry that
    must be clear; nx: bit 63 forbids execution (for PAE and 4-level paging);
    compiled_invlpg: the compiled INVLPG knows its directories. walk: by RAM, CR3 and
    the linear address.
    """

    name: str
    shifts: tuple[int, ...]
    entry_size: int
    frame: int
    large_shifts: tuple[int, ...]
    reserved: int
    nx: bool
    compiled_invlpg: bool
    walk: Callable[[Ram, int, int], Walk]

    @property
    def direct(self) -> bool:
        """Whether there are no tables: every linear address is guest-physical."""
        return not self.shifts

    @property
    def span_shift(self) -> int:
        """Log2 of what one page table, or the PDE of a large page, maps."""
        return self.shifts[-2] if self.shifts else 22

    @property
    def typecode(self) -> Literal["I", "Q"]:
        """What `memoryview.cast` calls one entry."""
        return "I" if self.entry_size == 4 else "Q"


_NOT_PRESENT: Final = Walk(mapped=False, fault=0)
_RESERVED: Final = Walk(mapped=False, fault=x86.PF_P | x86.PF_RSVD)
_RIGHTS: Final = x86.PTE_RW | x86.PTE_US
# The PDE of a large page that maps an address to itself, had it one.
_IDENTITY: Final = x86.PTE_P | _RIGHTS | x86.PTE_A | x86.PTE_D | x86.PDE_PS


def _walk_identity(_ram: Ram, _cr3: int, gva: int) -> Walk:
    page = gva >> x86.PAGE_SHIFT
    return Walk(True, 0, page, _RIGHTS, _IDENTITY, _IDENTITY, 0, 0, True)


def _walk_32(ram: Ram, cr3: int, gva: int) -> Walk:
    pde_at = (cr3 & 0xFFFFF000) + (gva >> 20 & 0xFFC)
    pde = ram.words[pde_at >> 2] if pde_at < ram.size else 0xFFFFFFFF
    if not pde & 1:
        return _NOT_PRESENT
    return _page_table_32(ram, pde, pde_at, gva)


def _walk_32_pse(ram: Ram, cr3: int, gva: int) -> Walk:
    pde_at = (cr3 & 0xFFFFF000) + (gva >> 20 & 0xFFC)
    pde = ram.words[pde_at >> 2] if pde_at < ram.size else 0xFFFFFFFF
    if not pde & 1:
        return _NOT_PRESENT
    if not pde & x86.PDE_PS:
        return _page_table_32(ram, pde, pde_at, gva)
    if pde & LARGE_RESERVED:
        return _RESERVED
    page = (pde >> 12 & 0xFFC00) | (gva >> 12 & 0x3FF)
    return Walk(True, 0, page, pde, pde, pde, pde_at, pde_at, True)


def _page_table_32(ram: Ram, pde: int, pde_at: int, gva: int) -> Walk:
    """End a walk at the page table of `pde`; where there is no RAM, ones are read."""
    pte_at = (pde & 0xFFFFF000) + (gva >> 10 & 0xFFC)
    pte = ram.words[pte_at >> 2] if pte_at < ram.size else 0xFFFFFFFF
    if not pte & 1:
        return _NOT_PRESENT
    return Walk(True, 0, pte >> 12, pde & pte, pde, pte, pde_at, pte_at)


NO_PAGING: Final = Format(
    "no paging",
    shifts=(),
    entry_size=4,
    frame=0xFFFFF000,
    large_shifts=(),
    reserved=0,
    nx=False,
    compiled_invlpg=False,
    walk=_walk_identity,
)
PAGING_32: Final = Format(
    "32-bit paging",
    shifts=(22, 12),
    entry_size=4,
    frame=0xFFFFF000,
    large_shifts=(),
    reserved=0,
    nx=False,
    compiled_invlpg=True,
    walk=_walk_32,
)
PAGING_32_PSE: Final = Format(
    "32-bit paging, CR4.PSE",
    shifts=(22, 12),
    entry_size=4,
    frame=0xFFFFF000,
    large_shifts=(22,),
    reserved=LARGE_RESERVED,
    nx=False,
    compiled_invlpg=True,
    walk=_walk_32_pse,
)


def format_of(cr0: int, cr4: int) -> Format:
    """Return the format that these control registers choose (section 4.1.1)."""
    if not cr0 & x86.CR0_PG:
        return NO_PAGING
    return PAGING_32_PSE if cr4 & x86.CR4_PSE else PAGING_32


def walk(ram: Ram, cr0: int, cr3: int, cr4: int, gva: int) -> Walk:
    """Walk for `gva` (32 bits) by these registers: for who has no format at hand."""
    return format_of(cr0, cr4).walk(ram, cr3, gva)


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
    if found.pde_at == found.pte_at:  # a directory that maps itself has one for both
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
