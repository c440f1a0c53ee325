"""Paging formats: how the guest's page tables are laid out, and their walks.

CR0, CR4 and EFER choose one `Format` (`format_of`), each with a walk of its own, so
that no access asks what mode it is in. No paging is a format too: its walk gives every
address itself. A walk reads guest RAM and changes nothing; accessed and dirty bits are
the caller's to set, with `touch`. A walk begins at CR3, or with PAE paging at the PDPTE
registers, which hold what MOV to CR3 has read: `top_of`. Source: SDM Vol. 3A chapter 4;
32-bit paging is section 4.3, PAE paging 4.4, 4-level paging 4.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from emu86.mmu.ram import Ram
from emu86.spec import x86

# Bits 12-21 of a PDE that maps a 4 MiB page: reserved without PSE-36 and PAT.
LARGE_RESERVED: Final = 0x003FF000
# Bits 12-20 of a PDE that maps a 2 MiB page: bit 12 without PAT.
LARGE_RESERVED_PAE: Final = 0x001FF000
# Bits 13-20 of a PDE that maps a 2 MiB page, 13-29 of a PDPTE that maps 1 GiB.
_RESERVED_2M: Final = 0x001FE000
_RESERVED_1G: Final = 0x3FFFE000

LEAF_SHIFT: Final = 21  # log2 of what one shadow leaf table spans: 512 pages

Top: TypeAlias = tuple[int, ...]
"""What walks begin at: CR3 alone, or the four PDPTE registers (section 4.4.1)."""
NO_PDPTES: Final[Top] = (0, 0, 0, 0)
_PDPT_SHIFT: Final = 30  # log2 of what a PDPTE spans
# Of CR3: where the PDPTEs are. They have no rights, and neither A nor XD.
_PDPT: Final = 0xFFFFFFE0
_PDPTE_RESERVED: Final = ~((1 << x86.MAXPHYADDR) - 1) & x86.MASK64 | 0x1E6


class Walk(NamedTuple):
    """What the tables say of one linear address; `fault` is PF_P, PF_RSVD or 0 bits.

    page: guest page number; rights: RW, US and NX of all entries combined (PDPTE
    registers have none); pde, pte: the last two entries (of a large page both are the
    one that maps it); pde_at, pte_at: their GPAs; large: log2 of a large page's size, 0
    of a small one; above: with 4-level paging the entries above the PDE, root first,
    each with its GPA. When the walk ends early, `mapped` is False and `fault` is the
    error code's part.
    """

    mapped: bool
    fault: int
    page: int = 0
    rights: int = 0
    pde: int = 0
    pte: int = 0
    pde_at: int = 0
    pte_at: int = 0
    large: int = 0
    above: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Format:
    """One layout of page tables.

    name: the SDM's; shifts: for each level, root first, the lowest of the linear
    address's bits that index its tables (none: there are no tables); entry_size: bytes;
    root: the bits of CR3 that are the root's address; frame: the bits of an entry that
    are one; large_shifts: of the levels whose entries may map a page themselves (PS
    set). Bits of an entry that must be clear: reserved, of one that refers to a table;
    reserved_large and reserved_page, of one that maps a large page (of the smaller
    kind) or a small one. nx: bit 63 forbids execution, and
    #PF tells of fetches; in_registers: the root's entries are the PDPTE registers.
    walk: by RAM, `top_of` and the linear address. linear: the bits of such an address.
    """

    name: str
    shifts: tuple[int, ...]
    entry_size: int
    root: int
    frame: int
    large_shifts: tuple[int, ...]
    reserved: int
    reserved_large: int
    reserved_page: int
    nx: bool
    in_registers: bool
    walk: Callable[[Ram, Top, int], Walk]
    linear: int = x86.MASK32

    @property
    def direct(self) -> bool:
        """Whether there are no tables: every linear address is guest-physical.

        But for what `Ram` says of gate A20 and of the ROM below 4 GiB.
        """
        return not self.shifts

    @property
    def span_shift(self) -> int:
        """Log2 of what one page table, or the PDE of a large page, maps."""
        return self.shifts[-2] if self.shifts else 22

    @property
    def directory_shift(self) -> int:
        """Log2 of what one table of PDEs spans."""
        return self.span_shift + (10 if self.entry_size == 4 else 9)

    @property
    def typecode(self) -> Literal["I", "Q"]:
        """What `memoryview.cast` calls one entry."""
        return "I" if self.entry_size == 4 else "Q"


_NOT_PRESENT: Final = Walk(mapped=False, fault=0)
_RESERVED: Final = Walk(mapped=False, fault=x86.PF_P | x86.PF_RSVD)
_RIGHTS: Final = x86.PTE_RW | x86.PTE_US
# The PDE of a large page that maps an address to itself, had it one.
_IDENTITY: Final = x86.PTE_P | _RIGHTS | x86.PTE_A | x86.PTE_D | x86.PDE_PS


def _walk_identity(ram: Ram, _top: Top, gva: int) -> Walk:
    page = gva >> x86.PAGE_SHIFT & ram.lines
    if page >= ram.rom_window:
        page -= ram.rom_shift
    return Walk(True, 0, page, _RIGHTS, _IDENTITY, _IDENTITY, 0, 0, 22)


def _walk_32(ram: Ram, top: Top, gva: int) -> Walk:
    pde_at = (top[0] & 0xFFFFF000) + (gva >> 20 & 0xFFC)
    pde = ram.words[pde_at >> 2] if pde_at < ram.low else 0xFFFFFFFF
    if not pde & 1:
        return _NOT_PRESENT
    return _page_table_32(ram, pde, pde_at, gva)


def _walk_32_pse(ram: Ram, top: Top, gva: int) -> Walk:
    pde_at = (top[0] & 0xFFFFF000) + (gva >> 20 & 0xFFC)
    pde = ram.words[pde_at >> 2] if pde_at < ram.low else 0xFFFFFFFF
    if not pde & 1:
        return _NOT_PRESENT
    if not pde & x86.PDE_PS:
        return _page_table_32(ram, pde, pde_at, gva)
    if pde & LARGE_RESERVED:
        return _RESERVED
    page = (pde >> 12 & 0xFFC00) | (gva >> 12 & 0x3FF)
    return Walk(True, 0, page, pde, pde, pde, pde_at, pde_at, 22)


def _page_table_32(ram: Ram, pde: int, pde_at: int, gva: int) -> Walk:
    """End a walk at the page table of `pde`; where there is no RAM, ones are read."""
    pte_at = (pde & 0xFFFFF000) + (gva >> 10 & 0xFFC)
    pte = ram.words[pte_at >> 2] if pte_at < ram.low else 0xFFFFFFFF
    if not pte & 1:
        return _NOT_PRESENT
    return Walk(True, 0, pte >> 12, pde & pte, pde, pte, pde_at, pte_at)


NO_PAGING: Final = Format(
    "no paging",
    shifts=(),
    entry_size=4,
    root=0,
    frame=0xFFFFF000,
    large_shifts=(),
    reserved=0,
    reserved_large=0,
    reserved_page=0,
    nx=False,
    in_registers=False,
    walk=_walk_identity,
)
PAGING_32: Final = Format(
    "32-bit paging",
    shifts=(22, 12),
    entry_size=4,
    root=0xFFFFF000,
    frame=0xFFFFF000,
    large_shifts=(),
    reserved=0,
    reserved_large=0,
    reserved_page=0,
    nx=False,
    in_registers=False,
    walk=_walk_32,
)
PAGING_32_PSE: Final = Format(
    "32-bit paging, CR4.PSE",
    shifts=(22, 12),
    entry_size=4,
    root=0xFFFFF000,
    frame=0xFFFFF000,
    large_shifts=(22,),
    reserved=0,
    reserved_large=LARGE_RESERVED,
    reserved_page=0,
    nx=False,
    in_registers=False,
    walk=_walk_32_pse,
)


def _directory_walk(
    frame: int, reserved: int, reserved_large: int, reserved_page: int
) -> Callable[[Ram, int, int, int, int, tuple[tuple[int, int], ...]], Walk]:
    """Return how walks of 64-bit entries end, from a page directory on.

    The parameters are the format's. What it returns takes the entry that refers to the
    directory, the address, RW and US of all entries above, NX of any, and `Walk.above`.
    """

    def walk(
        ram: Ram,
        pdpte: int,
        gva: int,
        both: int,
        either: int,
        above: tuple[tuple[int, int], ...],
    ) -> Walk:
        pde_at = (pdpte & frame) + (gva >> 18 & 0xFF8)
        pde = ram.read64(pde_at)
        if not pde & 1:
            return _NOT_PRESENT
        both, either = both & pde, either | pde
        if pde & x86.PDE_PS:
            if pde & reserved_large:
                return _RESERVED
            page = (pde & frame) >> 12 & ~0x1FF | gva >> 12 & 0x1FF
            rights = both & _RIGHTS | either & x86.PTE_NX
            return Walk(True, 0, page, rights, pde, pde, pde_at, pde_at, 21, above)
        if pde & reserved:
            return _RESERVED
        pte_at = (pde & frame) + (gva >> 9 & 0xFF8)
        pte = ram.read64(pte_at)
        if not pte & 1:
            return _NOT_PRESENT
        if pte & reserved_page:
            return _RESERVED
        rights = both & pte & _RIGHTS | (either | pte) & x86.PTE_NX
        page = (pte & frame) >> 12
        return Walk(True, 0, page, rights, pde, pte, pde_at, pte_at, 0, above)

    return walk


def _pae(name: str, *, nx: bool) -> Format:
    """Return a format of PAE paging: bit 63 is reserved unless EFER.NXE is set."""
    frame = (1 << x86.MAXPHYADDR) - x86.PAGE_SIZE
    reserved = ~((1 << x86.MAXPHYADDR) - 1) & x86.MASK64
    if nx:
        reserved &= ~x86.PTE_NX
    reserved_large = reserved | LARGE_RESERVED_PAE
    reserved_page = reserved | x86.PTE_PAT  # there is no PAT

    directory_walk = _directory_walk(frame, reserved, reserved_large, reserved_page)

    def walk(ram: Ram, top: Top, gva: int) -> Walk:
        pdpte = top[gva >> _PDPT_SHIFT]
        if not pdpte & 1:
            return _NOT_PRESENT
        return directory_walk(ram, pdpte, gva, _RIGHTS, 0, ())

    return Format(
        name,
        shifts=(_PDPT_SHIFT, 21, 12),
        entry_size=8,
        root=_PDPT,
        frame=frame,
        large_shifts=(21,),
        reserved=reserved,
        reserved_large=reserved_large,
        reserved_page=reserved_page,
        nx=nx,
        in_registers=True,
        walk=walk,
    )


PAGING_PAE: Final = _pae("PAE paging", nx=False)
PAGING_PAE_NX: Final = _pae("PAE paging, EFER.NXE", nx=True)


def _four_level(name: str, *, nx: bool) -> Format:
    """Return a format of 4-level paging: bit 63 is reserved unless EFER.NXE is set.

    Each CPU model with long mode has pages of 1 GiB, and PAT.
    """
    frame = (1 << x86.MAXPHYADDR) - x86.PAGE_SIZE
    reserved = ~((1 << x86.MAXPHYADDR) - 1) & (1 << 52) - 1
    if not nx:
        reserved |= x86.PTE_NX
    reserved_top = reserved | x86.PDE_PS
    reserved_1g, reserved_2m = reserved | _RESERVED_1G, reserved | _RESERVED_2M
    directory_walk = _directory_walk(frame, reserved, reserved_2m, reserved)

    def walk(ram: Ram, top: Top, gva: int) -> Walk:
        pml4e_at = (top[0] & frame) + (gva >> 36 & 0xFF8)
        pml4e = ram.read64(pml4e_at)
        if not pml4e & 1:
            return _NOT_PRESENT
        if pml4e & reserved_top:
            return _RESERVED
        pdpte_at = (pml4e & frame) + (gva >> 27 & 0xFF8)
        pdpte = ram.read64(pdpte_at)
        if not pdpte & 1:
            return _NOT_PRESENT
        both, either = pml4e & pdpte, pml4e | pdpte
        if pdpte & x86.PDE_PS:
            if pdpte & reserved_1g:
                return _RESERVED
            page = (pdpte & frame) >> 12 & ~0x3FFFF | gva >> 12 & 0x3FFFF
            rights = both & _RIGHTS | either & x86.PTE_NX
            above = ((pml4e_at, pml4e),)
            at = pdpte_at
            return Walk(True, 0, page, rights, pdpte, pdpte, at, at, 30, above)
        if pdpte & reserved:
            return _RESERVED
        pair = (pml4e_at, pml4e), (pdpte_at, pdpte)
        return directory_walk(ram, pdpte, gva, both, either, pair)

    return Format(
        name,
        shifts=(39, 30, 21, 12),
        entry_size=8,
        root=frame,
        frame=frame,
        large_shifts=(30, 21),
        reserved=reserved,
        reserved_large=reserved_2m,
        reserved_page=reserved,
        nx=nx,
        in_registers=False,
        walk=walk,
        linear=x86.MASK64,
    )


PAGING_4_LEVEL: Final = _four_level("4-level paging", nx=False)
PAGING_4_LEVEL_NX: Final = _four_level("4-level paging, EFER.NXE", nx=True)


def rights_text(entry: int) -> str:
    """Write what an entry allows as "urwx": US, P, RW and not NX; "-" for what not."""
    return "".join(
        letter if allowed else "-"
        for letter, allowed in (
            ("u", entry & x86.PTE_US),
            ("r", True),
            ("w", entry & x86.PTE_RW),
            ("x", not entry & x86.PTE_NX),
        )
    )


def is_canonical(gva: int) -> bool:
    """Tell whether bits 63 to 47 of a linear address are all alike (Vol. 1 3.3.7.1)."""
    return gva >> 47 in (0, (1 << 17) - 1)


class Registers(Protocol):
    """The registers that paging hangs on, and the PDPTE registers.

    CR3 has 64 bits in IA-32e mode, and 32 else.
    """

    @property
    def cr0(self) -> int:
        """PG and WP."""
        ...

    @property
    def cr3(self) -> int:
        """Where the root is."""
        ...

    @property
    def cr4(self) -> int:
        """PSE, PAE, PGE, SMEP and SMAP."""
        ...

    @property
    def efer(self) -> int:
        """NXE and LMA."""
        ...

    @property
    def pdptes(self) -> Top:
        """What they hold, if the format has them."""
        ...


def format_of(cr0: int, cr4: int, efer: int = 0) -> Format:
    """Return the format that these registers choose (section 4.1.1)."""
    if not cr0 & x86.CR0_PG:
        return NO_PAGING
    if efer & x86.EFER_LMA:
        return PAGING_4_LEVEL_NX if efer & x86.EFER_NXE else PAGING_4_LEVEL
    if cr4 & x86.CR4_PAE:
        return PAGING_PAE_NX if efer & x86.EFER_NXE else PAGING_PAE
    return PAGING_32_PSE if cr4 & x86.CR4_PSE else PAGING_32


def read_pdptes(ram: Ram, cr3: int) -> Top | None:
    """Read the four PDPTEs; None if one is present and has a reserved bit set.

    Of one that is not present nothing is kept.
    """
    first = cr3 & _PDPT
    found = [ram.read64(first + 8 * i) for i in range(4)]
    present = tuple(pdpte if pdpte & x86.PTE_P else 0 for pdpte in found)
    return None if any(pdpte & _PDPTE_RESERVED for pdpte in present) else present


def top_of(paging: Format, registers: Registers) -> Top:
    """Return what walks of a format begin at."""
    return registers.pdptes if paging.in_registers else (registers.cr3,)


def walk(ram: Ram, registers: Registers, gva: int) -> Walk:
    """Walk for `gva` by these registers: for who has no format at hand."""
    paging = format_of(registers.cr0, registers.cr4, registers.efer)
    return paging.walk(ram, top_of(paging, registers), gva)


def denied(
    found: Walk,
    *,
    write: bool,
    user: bool,
    wp: bool,
    fetch: bool = False,
    kept: bool = False,
) -> int | None:
    """Return the #PF error code that this access meets, or None if it is allowed.

    fetch: it is one of code, and error codes tell. kept: no supervisor may have such
    an access to a user's page, by CR4.SMEP or CR4.SMAP.
    """
    access = (x86.PF_W if write else 0) | (x86.PF_U if user else 0)
    if fetch:
        access |= x86.PF_I
    if not found.mapped:
        return found.fault | access
    if user and not found.rights & x86.PTE_US:
        return x86.PF_P | access
    if kept and not user and found.rights & x86.PTE_US:
        return x86.PF_P | access
    if write and not found.rights & x86.PTE_RW and (user or wp):
        return x86.PF_P | access
    if fetch and found.rights & x86.PTE_NX:
        return x86.PF_P | access
    return None


def touch(ram: Ram, found: Walk, *, write: bool) -> tuple[int, int]:
    """Set the accessed and dirty bits as the access does; return PDE and PTE."""
    for at, entry in found.above:
        if not entry & x86.PTE_A:
            ram.write32(at, (entry | x86.PTE_A) & x86.MASK32)
    pde, pte = found.pde, found.pte
    wanted = x86.PTE_A | x86.PTE_D if write else x86.PTE_A
    if found.pde_at == found.pte_at:  # a directory that maps itself has one for both
        if pde & wanted != wanted:
            pde |= wanted
            ram.write32(found.pde_at, pde & x86.MASK32)
        return pde, pde
    if not pde & x86.PTE_A:
        pde |= x86.PTE_A
        ram.write32(found.pde_at, pde & x86.MASK32)
    if pte & wanted != wanted:
        pte |= wanted
        ram.write32(found.pte_at, pte & x86.MASK32)
    return pde, pte
