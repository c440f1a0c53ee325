"""Accesses to what is not RAM, one instruction at a time.

The page is mapped to one of the VMM's holding what the device answers, the guest's own
instruction runs once under TF, and what it wrote there goes to the bus. No instruction
needs to be emulated, whatever it is. A page that is only read is mapped read-only, so
that the hardware itself tells of a store.
"""

from dataclasses import dataclass, field
from typing import Final

from emu86.cpu.state import RIP
from emu86.mmu.memory import PageFault
from emu86.mmu.shadow import ShadowMmu
from emu86.mmu.vmm_memory import VmmMemory
from emu86.rings.cpu import Cpu
from emu86.rings.decode import decode
from emu86.rings.events.accesses import memory_operands
from emu86.rings.events.breakpoints import Breakpoints
from emu86.rings.events.single_step import SingleStep
from emu86.rings.technique.instruction_cache import InstructionCache
from emu86.spec import x86

_ONES: Final = b"\xff" * x86.PAGE_SIZE


@dataclass(slots=True)
class _Window:
    """One page of the access: where it is, and the VMM's page that stands for it.

    rest: how much of the operand lies beyond the end of the page; read, written: where
    (GPA) and how many bytes.
    """

    gva: int
    index: int
    page: int
    device: bool
    rest: int = 0
    read: list[tuple[int, int]] = field(default_factory=list)
    written: list[tuple[int, int]] = field(default_factory=list)


class MmioStep:
    """The step in progress, if any."""

    def __init__(
        self,
        cpu: Cpu,
        mmu: ShadowMmu,
        instructions: InstructionCache,
        single_step: SingleStep,
        breakpoints: Breakpoints,
    ) -> None:
        self._cpu = cpu
        self._mmu = mmu
        self._instructions = instructions
        self._single_step = single_step
        self._breakpoints = breakpoints
        self.windows: list[_Window] = []
        self.pages: list[int] = []  # mixed pages that the step has shared
        self._contender = -1  # EIP at the last contention
        self._resets = 0

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
        use, eip = self._mmu.use, self._cpu.q[RIP]
        page, use.taken_over = use.taken_over, -1
        if self._contender == eip:
            self.pages.append(page)
            use.allow_aliases(page)
            self._single_step.force()
        self._contender = eip

    def start(self, gva: int, gpa: int, index: int, *, write: bool) -> bool:
        """Open a window on `gpa` for the instruction at EIP; False: too many.

        write: the access that missed is a store. A store to what has been loaded misses
        once more.
        """
        if self._resets != self._mmu.stats.resets:
            self.windows.clear()  # they went with the shadow tables
            self._resets = self._mmu.stats.resets
        width, loads = self._operand(write=write)
        offset = gpa & 0xFFF
        for other in self.windows:
            if other.rest and (other.gva | 0xFFF) + 1 == gva:
                width = other.rest
        found = [other for other in self.windows if other.index == index]
        if found:
            window = found[0]
        else:
            if len(self.windows) == len(VmmMemory.WINDOWS):
                return False
            page = VmmMemory.WINDOWS[len(self.windows)]
            window = _Window(
                gva, index, page, gpa >> x86.PAGE_SHIFT in self._mmu.mmio_pages
            )
            self.windows.append(window)
            self._mmu.vmm_memory.page(page)[:] = _ONES
        window.rest = max(0, offset + width - x86.PAGE_SIZE)
        width -= window.rest
        access = gpa, width
        if window.device and (loads or not write) and access not in window.read:
            shown = self._mmu.vmm_memory.page(window.page)
            shown[offset : offset + width] = self._cpu.services.mmio_read(gpa, width)
            window.read.append(access)
        if write:
            window.written.append(access)
        write = bool(window.written)
        self._mmu.open_window(index, gva, window.page, write=write)
        self._single_step.force()
        return True

    def _operand(self, *, write: bool) -> tuple[int, bool]:
        """Return the width in bytes of EIP's memory access and whether it loads."""
        bits = self._cpu.code_bits
        try:
            code = self._instructions.code_at_eip()
        except PageFault:
            return 4, False
        other = 0
        for op in memory_operands(code, bits):
            if op.write if write else op.read:
                return op.size or 4, op.read
            other = op.size
        if other:
            return other, False
        pushed = decode(code, bits)  # the stack, which is no operand
        return (4 if pushed is None else pushed.size), False

    def cancel(self) -> None:
        """Close the windows without effect: a fault came in between."""
        if self.active:
            self._close()

    def drop_derived(self) -> None:
        """Forget where pages were contended for."""
        self._contender = -1

    def finish(self) -> None:
        """Give what the instruction wrote to the bus."""
        writes = []
        for window in self.windows:
            stored = self._mmu.vmm_memory.page(window.page)
            for gpa, width in window.written:
                at = gpa & 0xFFF
                writes.append((gpa, bytes(stored[at : at + width])))
        self._close()
        for gpa, data in writes:
            self._cpu.services.mmio_write(gpa, data)

    def _close(self) -> None:
        if self._resets == self._mmu.stats.resets:
            for window in self.windows:
                self._mmu.close_window(window.index, window.gva)
        self.windows.clear()
        for page in self.pages:
            self._mmu.use.end_aliases(page)
        self.pages.clear()
        if not self._breakpoints.armed:
            self._single_step.release()
            self._breakpoints.resume = 0
