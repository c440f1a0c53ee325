"""The guest of technique `bare`: its memory, by its own tables, and its CPU."""

from emu86.cpu import offsets
from emu86.cpu.state import RFLAGS, CpuState
from emu86.cpu.vcpu import VCpu
from emu86.mmu.memory import PageFault
from emu86.mmu.paging import denied, is_canonical, touch, walk
from emu86.mmu.ram import Ram
from emu86.rings.cpu import Cpu
from emu86.rings.descriptor import Descriptor
from emu86.spec import x86


class BareMemory:
    """Guest memory by linear address, walked afresh at every access."""

    def __init__(self, state: CpuState, vcpu: VCpu, ram: Ram) -> None:
        self.ram = ram
        self._q = state.q
        self.bytes = ram.bytes
        self._vcpu = vcpu

    def translate(
        self, gva: int, *, write: bool = False, user: bool | None = None
    ) -> int:
        """Return the GPA of `gva`, setting accessed and dirty bits as accesses do."""
        vcpu = self._vcpu
        found = walk(self.ram, vcpu, gva)
        wp = bool(vcpu.cr0 & x86.CR0_WP)
        lifted = user is not None and self._q[RFLAGS] & x86.AC
        kept = bool(vcpu.cr4 & x86.CR4_SMAP and vcpu.cr0 & x86.CR0_PG and not lifted)
        code = denied(found, write=write, user=bool(user), wp=wp, kept=kept)
        if code is not None:
            raise PageFault(gva, code)
        touch(self.ram, found, write=write)
        return found.page << 12 | gva & 0xFFF

    def lookup(self, gva: int) -> int | None:
        """Return the GPA that the guest's tables give, without effects; or None."""
        if not is_canonical(gva):
            return None
        found = walk(self.ram, self._vcpu, gva)
        return found.page << 12 | gva & 0xFFF if found.mapped else None

    def page_to_write(
        self,
        _gva: int,
        *,
        user: bool | None = None,  # noqa: ARG002 (as in `GuestMemory`)
    ) -> int:
        """Return -1: use `write`."""
        return -1

    def _where(
        self, gva: int, size: int, *, write: bool, user: bool | None
    ) -> list[int]:
        """Translate every byte before any is touched."""
        mask = x86.MASK64 if self._vcpu.efer & x86.EFER_LMA else x86.MASK32
        gva &= mask
        first = self.translate(gva, write=write, user=user)
        if (gva & 0xFFF) + size <= x86.PAGE_SIZE:
            return [first + i for i in range(size)]
        split = x86.PAGE_SIZE - (gva & 0xFFF)
        after = self.translate(gva + split & mask, write=write, user=user)
        return [first + i if i < split else after + i - split for i in range(size)]

    def read(self, gva: int, size: int, *, user: bool | None = None) -> int:
        """Read `size` bytes."""
        value = 0
        places = self._where(gva, size, write=False, user=user)
        for i, gpa in enumerate(places):
            byte = self.ram.bytes[gpa] if self.ram.backed(gpa >> 12) else 0xFF
            value |= byte << 8 * i
        return value

    def read32(self, gva: int) -> int:
        """Read a doubleword with supervisor rights."""
        return self.read(gva, 4)

    def write(
        self, gva: int, value: int, size: int, *, user: bool | None = None
    ) -> None:
        """Write `size` bytes."""
        places = self._where(gva, size, write=True, user=user)
        for i, gpa in enumerate(places):
            if self.ram.backed(gpa >> 12):
                self.ram.bytes[gpa] = value >> 8 * i & 0xFF

    def write32(self, gva: int, value: int) -> None:
        """Write a doubleword with supervisor rights."""
        self.write(gva, value, 4)


class BareCpu(Cpu):
    """A CPU whose segment registers hold what the guest's own tables say."""

    def _table(self, selector: int) -> tuple[int, int]:
        vcpu = self.vcpu
        if selector & 4:
            return vcpu.ldtr.base, vcpu.ldtr.limit
        return vcpu.gdt_base, vcpu.gdt_limit

    def descriptor(self, selector: int, vector: int = x86.VEC_GP) -> Descriptor:
        """Read a descriptor; `vector`(selector) if it lies beyond its table."""
        return self._read_descriptor(selector, *self._table(selector), vector)

    def load_gdt(self, base: int, limit: int) -> None:
        """LGDT."""
        self.vcpu.gdt_base, self.vcpu.gdt_limit = base, limit
        self.state.set_table(offsets.GDTR, base, limit)

    def load_idt(self, base: int, limit: int) -> None:
        """LIDT."""
        self.vcpu.idt_base, self.vcpu.idt_limit = base, limit
        self.state.set_table(offsets.IDTR, base, limit)

    def write_descriptor_high(self, selector: int, high: int) -> None:
        """Write the high doubleword of a descriptor in the guest's table."""
        base, _ = self._table(selector)
        self.memory.write32(base + (selector & 0xFFF8) + 4, high)

    def set_segment(self, index: int, selector: int, found: Descriptor) -> None:
        """Put a checked descriptor in a segment register."""
        attributes = found.attributes | x86.DESC_A
        self.state.set_segment(index, selector, found.base, found.limit, attributes)

    def enter_ring(self) -> None:
        """Make the engine's CPL follow the guest's, which CS's selector tells."""
        self.update_mode()
        self.state.sync_mode(self.cpl)
