"""The guest's stack as the emulation pushes and pops it."""

from emu86.cpu.state import ATTRIBUTES, BASE, LIMIT
from emu86.mmu.paging import is_canonical
from emu86.rings.cpu import Cpu
from emu86.rings.descriptor import Descriptor, exceeds
from emu86.rings.fault import GuestFault
from emu86.spec import x86


class Stack:
    """A stack pointer over a stack segment; `commit` makes it the guest's ESP.

    A 16-bit stack segment (B clear) moves only SP, as SDM Vol. 1 section 6.2.3 says. So
    it is, too, where a transfer loads ESP: the upper half stays what it was (Linux's
    "espfix" is about that; the SDM's operation sections do not tell).
    64-bit code has a stack without base and limit, whose addresses are canonical.
    error: of the #SS beyond its limit.
    """

    __slots__ = (
        "attributes", "base", "cpu", "error", "esp", "limit", "mask", "memory", "user",
        "wraps",
    )  # fmt: skip

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.memory = cpu.memory
        self.base = cpu.q[BASE[x86.SS]]
        self.wraps = x86.MASK32  # what linear addresses do so at
        self.mask = x86.MASK32 if cpu.stack_bits == 32 else 0xFFFF
        self.limit, self.attributes = cpu.d[LIMIT[x86.SS]], cpu.d[ATTRIBUTES[x86.SS]]
        # Limits of real and virtual-8086 mode are looked at nowhere. SS holds no
        # segment where a task switch fails before it is loaded; then there is no limit,
        # as in QEMU.
        if cpu.has_paragraphs or not self.attributes & x86.DESC_P:
            self.limit = x86.MASK32
        self.error = 0
        self.esp = cpu.q[x86.ESP] & x86.MASK32
        self.user: bool | None = cpu.cpl == x86.CPL_USER
        if cpu.stack_bits == 64:
            self._widen(cpu.q[x86.ESP])

    def _widen(self, rsp: int) -> None:
        self.base, self.esp = 0, rsp
        self.mask = self.wraps = x86.MASK64
        self.limit = 0  # no access passes without `_check`

    @classmethod
    def inner(cls, cpu: Cpu, selector: int, found: Descriptor, esp: int) -> "Stack":
        """Return the new stack of a transfer inward, not yet loaded into SS."""
        stack = cls(cpu)
        stack.base, stack.limit = found.base, found.limit
        stack.attributes = found.attributes
        stack.error = selector & 0xFFFC
        stack.mask = x86.MASK32 if found.attributes & x86.DESC_B else 0xFFFF
        stack.esp = stack.esp & ~stack.mask | esp & stack.mask
        stack._enter(ring=0)
        return stack

    def _enter(self, ring: int) -> None:
        """Be used by a transfer to `ring`, which is not CPL yet.

        What a supervisor pushes while CPL is 3 EFLAGS.AC lets not through SMAP.
        """
        if self.user and ring != x86.CPL_USER:
            self.user = None

    @classmethod
    def wide(cls, cpu: Cpu, rsp: int, *, ring: int = 0) -> "Stack":
        """Return the stack at RSP of 64-bit code, of a transfer to `ring`."""
        stack = cls(cpu)
        stack._widen(rsp)
        stack._enter(ring)
        return stack

    def push(self, value: int, size: int) -> None:
        """Push 2, 4 or 8 bytes."""
        pointer = (self.esp - size) & self.mask
        if self.limit != x86.MASK32:
            self._check(pointer, size)
        where = (self.base + pointer) & self.wraps
        self.memory.write(where, value & (1 << 8 * size) - 1, size, user=self.user)
        self.esp = self.esp & ~self.mask | pointer

    def peek(self, offset: int, size: int) -> int:
        """Read what stands `offset` bytes above the top."""
        pointer = self.esp + offset & self.mask
        if self.limit != x86.MASK32:
            self._check(pointer, size)
        where = (self.base + pointer) & self.wraps
        return self.memory.read(where, size, user=self.user)

    def _check(self, pointer: int, size: int) -> None:
        if self.mask == x86.MASK64:
            if not (is_canonical(pointer) and is_canonical(pointer + size - 1)):
                raise GuestFault(x86.VEC_SS, self.error)
        elif exceeds(self.limit, self.attributes, pointer, size):
            raise GuestFault(x86.VEC_SS, self.error)

    def drop(self, count: int) -> None:
        """Release `count` bytes."""
        self.esp = self.esp & ~self.mask | (self.esp + count & self.mask)

    def commit(self) -> None:
        """Make it the guest's."""
        self.cpu.q[x86.ESP] = self.esp


def tss_stack(cpu: Cpu, cpl: int) -> tuple[int, int]:
    """Read SS and ESP for `cpl` (0 to 2) from the guest's TSS: SDM Vol. 3A 7.2.1."""
    tr = cpu.vcpu.tr
    wide = tr.kind in (x86.SYS_TSS32, x86.SYS_TSS32_BUSY)
    offset, last = (4 + 8 * cpl, 5) if wide else (2 + 4 * cpl, 3)
    if offset + last > tr.limit:
        raise GuestFault(x86.VEC_TS, tr.selector & 0xFFFC)
    size = 4 if wide else 2
    esp = cpu.memory.read(tr.base + offset, size)
    return cpu.memory.read(tr.base + offset + size, 2), esp


def tss64_stack(cpu: Cpu, offset: int) -> int:
    """Read an RSP at `offset` of the guest's 64-bit TSS: SDM Vol. 3A section 7.7."""
    tr = cpu.vcpu.tr
    if offset + 7 > tr.limit:
        raise GuestFault(x86.VEC_TS, tr.selector & 0xFFFC)
    cpu.check_canonical(tr.base + offset)
    return cpu.memory.read(tr.base + offset, 8)
