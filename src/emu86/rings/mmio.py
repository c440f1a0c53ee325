"""Accesses to what is not RAM, one instruction at a time.

The page is mapped to a scratch page holding what the device answers, the guest's own
instruction runs once under TF, and what it wrote to the scratch page goes to the bus.
No instruction needs to be emulated, whatever it is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import capstone
from capstone import x86 as cs_x86

from emu86.cpu.engine import ATTRIBUTES, BASE, RFLAGS, RIP
from emu86.mmu.memory import PageFault
from emu86.mmu.ram import Hidden
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.vmm import Vmm

_ONES: Final = b"\xff" * x86.PAGE_SIZE
_ENTRY: Final = x86.PTE_P | x86.PTE_RW | x86.PTE_US | x86.PTE_A | x86.PTE_D | x86.PTE_NX


@dataclass(slots=True)
class _Window:
    """One page of the access: where it is, its scratch page, what is written there."""

    gva: int
    gpa: int
    index: int
    scratch: int
    width: int
    writes: bool


class Stepper:
    """The step in progress, if any."""

    def __init__(self, vmm: "Vmm") -> None:
        self.vmm = vmm
        self.windows: list[_Window] = []
        self.pages: list[int] = []  # mixed pages that the step has shared
        self._contender = -1  # EIP at the last contention
        self._resets = 0
        self._decoders = {
            wide: _detailed(mode)
            for wide, mode in (
                (True, capstone.CS_MODE_32),
                (False, capstone.CS_MODE_16),
            )
        }

    @property
    def active(self) -> bool:
        """Whether a step is in progress."""
        return bool(self.windows or self.pages)

    def contend(self) -> None:
        """One mapping of a mixed page has taken it from another.

        If it happens twice at one instruction, that needs both: it writes to the page
        it stands in by another address, say, and fetch and store would take it from
        each other for ever. So it is stepped with both.
        """
        vmm = self.vmm
        use, eip = vmm.mmu.use, vmm.q[RIP]
        page, use.contended = use.contended, -1
        if self._contender == eip:
            if not self.active:
                vmm.guest_tf = vmm.q[RFLAGS] & x86.TF
            self.pages.append(page)
            use.shared.add(page)
            vmm.q[RFLAGS] |= x86.TF
        self._contender = eip

    def start(self, gva: int, gpa: int, index: int, *, write: bool) -> bool:
        """Open a window on `gpa` for the instruction at EIP; False: too many.

        write: the access that missed is a store. An instruction that loads first and
        stores after misses on its load, and is known by its operand.
        """
        vmm = self.vmm
        if self._resets != vmm.mmu.stats.resets:
            self.windows.clear()  # they went with the shadow tables
            self._resets = vmm.mmu.stats.resets
        if len(self.windows) == Hidden.SCRATCHES:
            return False
        page = Hidden.SCRATCH + len(self.windows)
        start = page << x86.PAGE_SHIFT
        scratch = vmm.hidden.bytes
        scratch[start : start + x86.PAGE_SIZE] = _ONES
        width, writes = self._operand(write=write)
        width = min(width, x86.PAGE_SIZE - (gpa & 0xFFF))
        device = vmm.is_mmio(gpa >> x86.PAGE_SHIFT)
        if device and not write:
            at = start + (gpa & 0xFFF)
            scratch[at : at + width] = vmm.mmio_read(gpa, width)
        vmm.hidden.q[index] = Hidden.hpa(page) | _ENTRY
        vmm.engine.flush_page(gva & x86.PAGE_MASK)
        at = start + (gpa & 0xFFF)
        self.windows.append(_Window(gva, gpa, index, at, width, device and writes))
        vmm.q[RFLAGS] |= x86.TF
        return True

    def _operand(self, *, write: bool) -> tuple[int, bool]:
        """Return the width in bytes of EIP's memory access and whether it stores."""
        vmm = self.vmm
        linear = (vmm.q[RIP] + vmm.q[BASE[x86.CS]]) & x86.MASK32
        wide = bool(vmm.d[ATTRIBUTES[x86.CS]] & x86.DESC_B)
        try:
            code = vmm.memory.read_bytes(linear, 15)
        except PageFault:
            return 4, write
        wanted = capstone.CS_AC_WRITE if write else capstone.CS_AC_READ
        for insn in self._decoders[wide].disasm(code, 0, 1):
            for op in insn.operands:
                if op.type == cs_x86.X86_OP_MEM and op.access & wanted:
                    return op.size or 4, bool(op.access & capstone.CS_AC_WRITE)
        return 4, write

    def cancel(self) -> None:
        """Close the windows without effect: a fault came in between."""
        if self.active:
            self._close()

    def finish(self) -> None:
        """Give what the instruction wrote to the bus."""
        vmm = self.vmm
        scratch = vmm.hidden.bytes
        writes = [
            (window.gpa, bytes(scratch[window.scratch : window.scratch + window.width]))
            for window in self.windows
            if window.writes
        ]
        self._close()
        for gpa, data in writes:
            vmm.mmio_write(gpa, data)

    def _close(self) -> None:
        vmm = self.vmm
        if self._resets == vmm.mmu.stats.resets:
            for window in self.windows:
                vmm.hidden.q[window.index] = 0
                vmm.engine.flush_page(window.gva & x86.PAGE_MASK)
        self.windows.clear()
        for page in self.pages:
            vmm.mmu.use.unshare(page)
        self.pages.clear()
        if not vmm.guest_tf:
            vmm.q[RFLAGS] &= ~x86.TF


def _detailed(mode: int) -> capstone.Cs:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    decoder.detail = True
    return decoder
