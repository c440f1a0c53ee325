"""Guest memory as it is written from outside of the CPU: by DMA, and by a user."""

from emu86.mmu.ram import Ram
from emu86.rings.technique.base import Technique
from emu86.spec import x86


class PhysicalMemory:
    """Guest-physical memory: the VMM hears of each write before it (a `DmaMemory`).

    So what it has made of a page is dropped: translated code, shadow page tables.
    """

    def __init__(self, vmm: Technique, ram: Ram) -> None:
        self._vmm = vmm
        self._ram = ram

    def read(self, address: int, size: int) -> bytes:
        """Read bytes; FFh where there is no RAM."""
        return self._ram.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes; those where there is no RAM are lost."""
        while data:
            page = address >> x86.PAGE_SHIFT
            size = min(len(data), x86.PAGE_SIZE - (address & x86.PAGE_SIZE - 1))
            if self._ram.backed(page):
                self._vmm.before_write(page)
                self._ram.bytes[address : address + size] = data[:size]
            address, data = address + size, data[size:]
