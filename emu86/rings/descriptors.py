"""Descriptors, and the rules by which segment registers are loaded from them.

Source: SDM Vol. 3A chapters 3 and 5. Where descriptors come from, and how the hardware
holds a loaded one, is each technique's own.
"""

from collections.abc import Sequence
from typing import Final

from emu86.cpu import offsets
from emu86.cpu.engine import Engine
from emu86.cpu.state import ATTRIBUTES, HFLAGS, RFLAGS, SELECTOR
from emu86.cpu.vcpu import VCpu
from emu86.rings.fault import GuestFault, gp
from emu86.spec import x86

_CS_SELECTOR: Final = SELECTOR[x86.CS]


class Descriptor:
    """One 8-byte descriptor: base 32 bits, limit in bytes, attributes in place."""

    __slots__ = ("attributes", "base", "high", "limit", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high
        self.base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000
        limit = low & 0xFFFF | high & 0xF0000
        self.limit = limit << 12 | 0xFFF if high & x86.DESC_G else limit
        self.attributes = high & x86.DESC_ATTRIBUTES & ~x86.DESC_L

    @property
    def dpl(self) -> int:
        """Descriptor privilege level, 0 to 3."""
        return self.high >> x86.DESC_DPL_SHIFT & 3

    @property
    def present(self) -> bool:
        """The P bit."""
        return bool(self.high & x86.DESC_P)

    @property
    def system(self) -> int:
        """The system type (0 to 15), or -1 for a code or data segment."""
        return -1 if self.high & x86.DESC_S else self.high >> 8 & 15

    @property
    def code(self) -> bool:
        """Whether it is a code segment."""
        both = x86.DESC_S | x86.DESC_CODE
        return self.high & both == both

    @property
    def conforming(self) -> bool:
        """Whether it is a conforming code segment."""
        return self.code and bool(self.high & x86.DESC_CE)

    @property
    def readable(self) -> bool:
        """Whether data can be read through it."""
        return self.system < 0 and (not self.code or bool(self.high & x86.DESC_RW))

    def check_limit(self, eip: int) -> None:
        """Raise #GP(0) if EIP would lie beyond this code segment."""
        if eip > self.limit:
            raise gp(0)

    @property
    def writable(self) -> bool:
        """Whether it is a data segment that can be written."""
        return self.system < 0 and not self.code and bool(self.high & x86.DESC_RW)


class SegmentRegisters:
    """The segment registers of one virtual CPU, loaded as the SDM has it."""

    def __init__(self, engine: Engine, vcpu: VCpu) -> None:
        self.engine = engine
        self.vcpu = vcpu
        self.d = engine.d
        self.q = engine.q

    # -- what a technique does its own way ---------------------------------------------

    def descriptor(self, selector: int, vector: int = x86.VEC_GP) -> Descriptor:
        """Read a descriptor; `vector`(selector) if it lies beyond its table."""
        raise NotImplementedError

    def write_high(self, selector: int, high: int) -> None:
        """Write the high doubleword of a descriptor in the guest's table."""
        raise NotImplementedError

    def load_gdt(self, base: int, limit: int) -> None:
        """LGDT."""
        raise NotImplementedError

    def hold(self, index: int, selector: int, found: Descriptor) -> None:
        """Put a checked descriptor in a segment register; then `enter` or `settle`."""
        raise NotImplementedError

    def enter(self) -> None:
        """Make the engine's CPL follow the guest's, which CS's selector tells."""
        raise NotImplementedError

    # -- the rules ---------------------------------------------------------------------

    @property
    def cpl(self) -> int:
        """The guest's CPL, 3 in virtual-8086 mode."""
        return 3 if self.q[RFLAGS] & x86.VM else self.d[_CS_SELECTOR] & 3

    def settle(self) -> None:
        """Bring the engine's derived mode bits in line after a load."""
        self.engine.sync_mode(self.d[HFLAGS] & offsets.HF_CPL)

    def clear(self, index: int, selector: int = 0) -> None:
        """Load a null selector."""
        self.engine.set_segment(index, selector, 0, 0, 0)

    def load_virtual_8086(self, selectors: Sequence[int]) -> None:
        """Enter virtual-8086 mode with these six selectors, in the registers' order.

        Source: SDM Vol. 3B section 20.2.
        """
        for index, selector in enumerate(selectors):
            self._load_paragraph(index, selector)
        self.q[RFLAGS] |= x86.VM
        self.enter()

    def load_code_virtual_8086(self, selector: int) -> None:
        """Load CS by a far transfer in virtual-8086 mode."""
        self._load_paragraph(x86.CS, selector)

    def _load_paragraph(self, index: int, selector: int) -> None:
        self.engine.set_segment(
            index, selector, selector << 4, x86.V86_LIMIT, x86.V86_ATTRIBUTES
        )

    def leave_virtual_8086(self) -> None:
        """Leave virtual-8086 mode; CS and SS are the caller's to load, then `enter`."""
        self.q[RFLAGS] &= ~x86.VM
        for index in (x86.ES, x86.DS, x86.FS, x86.GS):
            self.clear(index)

    def set_high(self, selector: int, descriptor: Descriptor, bits: int) -> None:
        """Set bits (accessed, busy) in a descriptor's high doubleword in memory."""
        if descriptor.high & bits != bits:
            self.write_high(selector, descriptor.high | bits)
            descriptor.high |= bits
            descriptor.attributes |= bits & x86.DESC_ATTRIBUTES

    def mark(self, selector: int, descriptor: Descriptor) -> None:
        """Set a descriptor's accessed bit, which may fault, before it is loaded."""
        self.set_high(selector, descriptor, x86.DESC_A)

    def load(self, index: int, selector: int) -> None:
        """MOV, POP and LxS of a data segment register or SS: SDM Vol. 2B MOV.

        Raises #GP, #NP and #SS as the guest's CPU would.
        """
        if index == x86.SS:
            found = self.check_stack(selector, self.cpl, x86.VEC_GP)
        elif selector & 0xFFFC == 0:
            self.clear(index, selector)
            self.settle()
            return
        else:
            found = self.descriptor(selector)
            if not found.readable:
                raise gp(selector)
            level = max(selector & 3, self.cpl)
            if not found.conforming and found.dpl < level:
                raise gp(selector)
            if not found.present:
                raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
        self.mark(selector, found)
        self.hold(index, selector, found)
        self.settle()

    def load_ldt(self, selector: int) -> None:
        """LLDT: raises #GP(selector) or #NP(selector)."""
        ldtr = self.vcpu.ldtr
        if selector & 0xFFFC == 0:
            ldtr.selector, ldtr.base, ldtr.limit, ldtr.kind = selector, 0, -1, 0
        else:
            if selector & 4:
                raise gp(selector)
            found = self.descriptor(selector)
            if found.system != x86.SYS_LDT:
                raise gp(selector)
            if not found.present:
                raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
            ldtr.selector, ldtr.base, ldtr.limit = selector, found.base, found.limit
            ldtr.kind = x86.SYS_LDT

    def check_stack(self, selector: int, cpl: int, vector: int) -> Descriptor:
        """Read a descriptor for SS at `cpl`; `vector`: #GP, or #TS for a new stack."""
        if selector & 0xFFFC == 0:
            raise GuestFault(vector, 0)
        found = self.descriptor(selector, vector)
        if selector & 3 != cpl or not found.writable or found.dpl != cpl:
            raise GuestFault(vector, selector & 0xFFFC)
        if not found.present:
            raise GuestFault(x86.VEC_SS, selector & 0xFFFC)
        return found

    def check_code(self, selector: int, cpl: int) -> Descriptor:
        """Read a descriptor for CS, for a jump or call that stays at `cpl`."""
        found = self.descriptor(selector)
        if not found.code:
            raise gp(selector)
        if found.conforming:
            if found.dpl > cpl:
                raise gp(selector)
        elif selector & 3 > cpl or found.dpl != cpl:
            raise gp(selector)
        if not found.present:
            raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
        return found

    def load_code(self, selector: int, found: Descriptor, cpl: int) -> None:
        """Load CS for `cpl`, and follow it."""
        self.mark(selector, found)
        self.hold(x86.CS, selector & 0xFFFC | cpl, found)

    def load_stack(self, selector: int, found: Descriptor) -> None:
        """Load SS from a descriptor of `check_stack`."""
        self.mark(selector, found)
        self.hold(x86.SS, selector, found)

    def held_dpl(self, index: int) -> int:
        """Return the DPL of the guest's descriptor that a register was loaded from."""
        return self.d[ATTRIBUTES[index]] >> x86.DESC_DPL_SHIFT & 3

    def drop_outer(self, cpl: int) -> None:
        """Null the data segments that a return to `cpl` may not use (Vol. 3A 5.8.6)."""
        conforming = x86.DESC_CODE | x86.DESC_CE
        for index in (x86.ES, x86.DS, x86.FS, x86.GS):
            if self.d[ATTRIBUTES[index]] & conforming == conforming:
                continue
            if self.held_dpl(index) < cpl:
                self.clear(index)
