"""What an emulated instruction may touch: registers, segments, memory, and the VMM.

Handlers take a `Cpu` and an instruction. General registers, EIP and the segment
registers with their hidden parts are the hardware's own (`q` and `d`, see `cpu.state`);
control, table and debug registers are `vcpu`'s. What an instruction needs of the VMM
beyond that is `services`.

Segment registers are loaded by the rules of SDM Vol. 3A chapters 3 and 5. Where
descriptors come from, and how the hardware holds a loaded one, is each technique's own:
a subclass says.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, Protocol

from emu86.cpu import offsets
from emu86.cpu.clock import Clock
from emu86.cpu.state import (
    ATTRIBUTES,
    BASE,
    HFLAGS,
    LIMIT,
    RFLAGS,
    RIP,
    SELECTOR,
    CpuState,
)
from emu86.cpu.vcpu import VCpu
from emu86.mmu.paging import is_canonical
from emu86.rings.decode import Insn
from emu86.rings.descriptor import Descriptor
from emu86.rings.fault import GuestFault, gp
from emu86.rings.plans import Plans
from emu86.rings.protocols import LinearMemory
from emu86.spec import x86

_CS_SELECTOR: Final = SELECTOR[x86.CS]
_CS_BASE: Final = BASE[x86.CS]
_CS_LIMIT: Final = LIMIT[x86.CS]
_CS_ATTRIBUTES: Final = ATTRIBUTES[x86.CS]
_SS_SELECTOR: Final = SELECTOR[x86.SS]
_SS_BASE: Final = BASE[x86.SS]
_SS_LIMIT: Final = LIMIT[x86.SS]
_SS_ATTRIBUTES: Final = ATTRIBUTES[x86.SS]


# What of hflags a native segment load or far transfer changes.
MODE_BITS: Final = offsets.HF_CS32 | offsets.HF_SS32 | offsets.HF_CS64


class Mode(IntEnum):
    """Operating mode: SDM Vol. 3A section 2.2; the last two are IA-32e's."""

    REAL = 0
    VIRTUAL_8086 = 1
    PROTECTED = 2
    COMPATIBILITY = 3
    LONG = 4


# Enum members looked up by name cost more than the rest of a small exit.
_REAL: Final = Mode.REAL
_VIRTUAL_8086: Final = Mode.VIRTUAL_8086
_PROTECTED: Final = Mode.PROTECTED
_COMPATIBILITY: Final = Mode.COMPATIBILITY
_LONG: Final = Mode.LONG

# SS as it is while null, by CPL: SDM Vol. 3A section 5.4.1.1. The engine's CPL is what
# its DPL says.
_NULL_STACK: Final = tuple(
    Descriptor(
        0xFFFF,
        0xF0000 | x86.DESC_G | x86.DESC_B | x86.DESC_P | x86.DESC_S
        | x86.DESC_RW | x86.DESC_A | cpl << x86.DESC_DPL_SHIFT,
    )
    for cpl in range(3)
)  # fmt: skip
# System segments and gates of 16 bytes: Vol. 3A section 3.5.
_WIDE: Final = (x86.SYS_LDT, x86.SYS_TSS64, x86.SYS_TSS64_BUSY, x86.SYS_CALL64)
_WIDE_RESERVED: Final = 0x1F00  # of the fourth doubleword, where its type would be


class Services(Protocol):
    """What an emulated instruction needs of the VMM beyond its CPU.

    Under `bare` the engine itself does what nobody asks for: MOV to CR4, INVLPG, the
    checks of MOV to CR0.
    """

    def guest_flags(self) -> int:
        """Return the guest's EFLAGS, 32 bits."""
        ...

    def set_guest_flags(self, value: int) -> None:
        """Write the guest's EFLAGS; VM stays."""
        ...

    def write_cr0(self, value: int) -> None:
        """MOV to CR0, LMSW, CLTS: raises #GP(0)."""
        ...

    def write_cr3(self, value: int) -> None:
        """MOV to CR3: raises #GP(0) for PDPTEs with reserved bits."""
        ...

    def write_cr4(self, value: int) -> None:
        """MOV to CR4: raises #GP(0) for what the CPU model lacks."""
        ...

    def write_efer(self, value: int) -> None:
        """WRMSR of EFER, of bits that the CPU model has: raises #GP(0)."""
        ...

    def read_dr(self, number: int) -> int:
        """MOV from DR: raises #UD and #DB."""
        ...

    def write_dr(self, number: int, value: int) -> None:
        """MOV to DR, 64 bits: raises #UD, #GP(0) and #DB."""
        ...

    def invalidate(self, gva: int) -> None:
        """INVLPG."""
        ...

    def halt(self) -> None:
        """HLT: nothing runs until the next interrupt."""
        ...

    def port_read(self, port: int, width: int) -> int:
        """Read a port, `width` 1, 2 or 4 bytes."""
        ...

    def port_write(self, port: int, width: int, value: int) -> None:
        """Write a port."""
        ...

    def mmio_read(self, gpa: int, width: int) -> bytes:
        """Read device memory."""
        ...

    def mmio_write(self, gpa: int, data: bytes) -> None:
        """Write device memory."""
        ...

    def compile_site(self, insn: Insn, kind: int) -> None:
        """Have compiled code handle the instruction at CS:EIP from now on, if it can.

        kind: one of `native.abi`'s SITE_.
        """
        ...

    def delivered(self, vector: int, error: int | None) -> None:
        """Learn of an event that nothing keeps from the guest any more."""
        ...

    def failed(
        self,
        vector: int,
        error: int | None,
        second: int,
        code: int | None,
        instead: int | None,
    ) -> None:
        """Learn of an event that met a fault, `second` with its `code`, on its way.

        instead: the vector that is delivered then, None at a shutdown.
        """
        ...

    def unsupported(self, what: str) -> None:
        """End the run: the guest needs what emu86 does not have yet."""
        ...


class Cpu:
    """One virtual CPU as its instructions see it.

    mode, code_bits and stack_bits (16, 32 or 64), cpl (the guest's, 3 in virtual-8086
    mode) and address_mask (what RIP and linear addresses of the running code wrap at)
    follow the registers: `update_mode`. iopl: the guest's. kernel_ring: the
    engine's ring that runs the guest's ring 0. plans: of a technique that keeps checked
    transfers.
    """

    def __init__(
        self, state: CpuState, vcpu: VCpu, memory: LinearMemory, clock: Clock
    ) -> None:
        self.state = state
        self.q = state.q
        self.d = state.d
        self.vcpu = vcpu
        self.memory = memory
        self.clock = clock
        self.services: Services
        self.plans: Plans | None = None
        self.iopl = 0
        self.kernel_ring = 0
        self.raises_iopl = False
        self.known = 0, 0  # CS's selector and the bits of hflags at `update_mode`
        self.mode: Mode = _PROTECTED
        self.code_bits = self.stack_bits = 32
        self.address_mask = x86.MASK32
        self.cpl = 0

    def _read_descriptor(
        self, selector: int, base: int, limit: int, vector: int
    ) -> Descriptor:
        """Read a descriptor of the table at `base`; `vector`(selector) beyond it."""
        offset = selector & 0xFFF8
        if offset + 7 > limit:
            raise GuestFault(vector, selector & 0xFFFC)
        mask = x86.MASK32
        if self.state.ia32e:
            mask = x86.MASK64
            self.check_canonical(base + offset + 7 & mask)
        read32 = self.memory.read32
        low = read32(base + offset & mask)
        found = Descriptor(low, read32(base + offset + 4 & mask))
        if not (self.state.ia32e and found.system in _WIDE):
            return found
        if offset + 15 > limit or read32(base + offset + 12 & mask) & _WIDE_RESERVED:
            raise GuestFault(vector, selector & 0xFFFC)
        return Descriptor(low, found.high, read32(base + offset + 8 & mask))

    # -- what a technique does its own way ---------------------------------------------

    def descriptor(self, selector: int, vector: int = x86.VEC_GP) -> Descriptor:
        """Read a descriptor; `vector`(selector) if it lies beyond its table."""
        raise NotImplementedError

    def write_descriptor_high(self, selector: int, high: int) -> None:
        """Write the high doubleword of a descriptor in the guest's table."""
        raise NotImplementedError

    def load_gdt(self, base: int, limit: int) -> None:
        """LGDT."""
        raise NotImplementedError

    def load_idt(self, base: int, limit: int) -> None:
        """LIDT."""
        raise NotImplementedError

    def set_segment(self, index: int, selector: int, found: Descriptor) -> None:
        """Put a checked descriptor in a segment register.

        Then `enter_ring` (CS, SS of a transfer) or `sync_segments` (any other).
        """
        raise NotImplementedError

    def enter_ring(self) -> None:
        """Make the engine's CPL follow the guest's, which CS's selector tells."""
        raise NotImplementedError

    # -- mode and EIP ------------------------------------------------------------------

    def update_mode(self) -> None:
        """Work out mode, code_bits, stack_bits and cpl from what the registers hold.

        To be called by who changes CS, SS, CR0 or VM, and at each exit that asks for
        them: since the last one the hardware may have run far transfers of its own.
        """
        d = self.d
        self.known = d[_CS_SELECTOR], d[HFLAGS] & MODE_BITS
        self.address_mask = x86.MASK32
        self.code_bits = 32 if d[_CS_ATTRIBUTES] & x86.DESC_B else 16
        self.stack_bits = 32 if d[_SS_ATTRIBUTES] & x86.DESC_B else 16
        if self.vcpu.efer & x86.EFER_LMA:
            self.mode, self.cpl = _COMPATIBILITY, d[_CS_SELECTOR] & 3
            if d[_CS_ATTRIBUTES] & x86.DESC_L:
                self.mode, self.address_mask = _LONG, x86.MASK64
                self.code_bits = self.stack_bits = 64
        elif self.q[RFLAGS] & x86.VM:
            self.mode, self.cpl = _VIRTUAL_8086, x86.CPL_USER
        elif self.vcpu.cr0 & x86.CR0_PE:
            self.mode = _PROTECTED
            self.cpl = d[_CS_SELECTOR] & self.vcpu.cs_rpl
        else:
            self.mode, self.cpl = _REAL, 0

    @property
    def is_virtual_8086(self) -> bool:
        """Whether the guest is in virtual-8086 mode."""
        return self.mode is _VIRTUAL_8086

    @property
    def is_real(self) -> bool:
        """Whether the guest is in real mode."""
        return self.mode is _REAL

    @property
    def has_paragraphs(self) -> bool:
        """Whether a segment begins at 16 times its selector, without a descriptor."""
        return self.mode <= _VIRTUAL_8086

    @property
    def linear_eip(self) -> int:
        """The linear address of CS:EIP."""
        return (self.q[RIP] + self.q[_CS_BASE]) & self.address_mask

    def next_eip(self, length: int) -> int:
        """Return EIP behind an instruction of `length` bytes."""
        return (self.q[RIP] + length) & self.address_mask

    def advance(self, length: int) -> None:
        """Move EIP past an instruction of `length` bytes."""
        self.q[RIP] = self.next_eip(length)

    def check_canonical(self, linear: int, vector: int = x86.VEC_GP) -> None:
        """Raise #GP(0), or #SS(0), for a linear address of 64 bits that cannot be."""
        if not is_canonical(linear):
            raise GuestFault(vector, 0)

    # -- segment registers: SDM Vol. 3A chapters 3 and 5 -------------------------------

    def sync_segments(self) -> None:
        """Bring the engine's derived mode bits in line after a load."""
        self.state.sync_mode(self.d[HFLAGS] & offsets.HF_CPL)
        self.update_mode()

    def clear_segment(self, index: int, selector: int = 0) -> None:
        """Load a null selector."""
        self.state.set_segment(index, selector, 0, 0, 0)

    def enter_virtual_8086(self, selectors: Sequence[int]) -> None:
        """Enter virtual-8086 mode with these six selectors, in the registers' order.

        Source: SDM Vol. 3B section 20.2.
        """
        for index, selector in enumerate(selectors):
            self.load_paragraph(index, selector)
        self.q[RFLAGS] |= x86.VM
        self.enter_ring()

    def load_paragraph(self, index: int, selector: int) -> None:
        """Load a segment register by its selector alone.

        In real mode its limit and its rights stay: SDM Vol. 3B section 20.1.1.
        """
        if self.mode is _REAL:
            self.d[SELECTOR[index]] = selector
            self.q[BASE[index]] = selector << 4
            return
        self.state.set_segment(
            index, selector, selector << 4, x86.V86_LIMIT, x86.V86_ATTRIBUTES
        )

    def leave_virtual_8086(self) -> None:
        """Leave virtual-8086 mode; load CS and SS, then `enter_ring`."""
        self.q[RFLAGS] &= ~x86.VM
        for index in (x86.ES, x86.DS, x86.FS, x86.GS):
            self.clear_segment(index)

    def set_descriptor_bits(
        self, selector: int, descriptor: Descriptor, bits: int
    ) -> None:
        """Set bits (accessed, busy) in a descriptor's high doubleword in memory."""
        if descriptor.high & bits != bits:
            self.write_descriptor_high(selector, descriptor.high | bits)
            descriptor.high |= bits
            descriptor.attributes |= bits & x86.DESC_ATTRIBUTES

    def mark_accessed(self, selector: int, descriptor: Descriptor) -> None:
        """Set a descriptor's accessed bit, which may fault, before it is loaded."""
        self.set_descriptor_bits(selector, descriptor, x86.DESC_A)

    def load_segment(self, index: int, selector: int) -> None:
        """MOV, POP and LxS of a data segment register or SS: SDM Vol. 2B MOV.

        Raises #GP, #NP and #SS as the guest's CPU would.
        """
        if self.has_paragraphs:
            self.load_paragraph(index, selector)
            return
        if index == x86.SS:
            code64 = self.mode is _LONG
            found = self.check_stack(selector, self.cpl, x86.VEC_GP, code64=code64)
        elif selector & 0xFFFC == 0:
            self.clear_segment(index, selector)
            self.sync_segments()
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
        self.mark_accessed(selector, found)
        self.set_segment(index, selector, found)
        self.sync_segments()

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
            self.check_base(selector, found)
            ldtr.selector, ldtr.base, ldtr.limit = selector, found.base, found.limit
            ldtr.kind = x86.SYS_LDT

    def check_base(self, selector: int, found: Descriptor) -> None:
        """Raise #GP(selector) for an LDT or TSS whose base is not canonical."""
        if not is_canonical(found.base):
            raise gp(selector)

    def null_stack(self, cpl: int) -> Descriptor:
        """Return what SS holds in 64-bit code while it is null, at `cpl` 0 to 2."""
        return _NULL_STACK[cpl]

    def check_stack(
        self, selector: int, cpl: int, vector: int, *, code64: bool = False
    ) -> Descriptor:
        """Read a descriptor for SS at `cpl`; `vector`: #GP, or #TS for a new stack.

        code64: it is for 64-bit code, where it may be null but at CPL 3.
        """
        if selector & 0xFFFC == 0:
            if code64 and selector & 3 == cpl != x86.CPL_USER:
                return _NULL_STACK[cpl]
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
        self.check_size(selector, found)
        if not found.present:
            raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
        return found

    def is_code64(self, found: Descriptor) -> bool:
        """Tell whether a code segment is one of 64-bit code."""
        return self.state.ia32e and found.code64

    def check_size(self, selector: int, found: Descriptor) -> None:
        """Raise #GP(selector) for code of 64 bits and of 32, which is neither."""
        if self.is_code64(found) and found.high & x86.DESC_B:
            raise gp(selector)

    def check_target(self, found: Descriptor, rip: int) -> None:
        """Raise #GP(0) if RIP would lie beyond this code segment."""
        if self.is_code64(found):
            self.check_canonical(rip)
        elif rip > found.limit:
            raise gp(0)

    def load_code(self, selector: int, found: Descriptor, cpl: int) -> None:
        """Load CS for `cpl`; then `enter_ring`."""
        self.mark_accessed(selector, found)
        self.vcpu.cs_rpl = 3
        self.set_segment(x86.CS, selector & 0xFFFC | cpl, found)
        if self.is_code64(found):
            self.q[_CS_BASE] = 0  # whatever the descriptor says

    def load_stack(self, selector: int, found: Descriptor) -> None:
        """Load SS from a descriptor of `check_stack`; then `enter_ring`."""
        self.mark_accessed(selector, found)
        self.set_segment(x86.SS, selector, found)

    def loaded_dpl(self, index: int) -> int:
        """Return the DPL of the guest's descriptor that a register was loaded from."""
        return self.d[ATTRIBUTES[index]] >> x86.DESC_DPL_SHIFT & 3

    def drop_inner_segments(self, cpl: int) -> None:
        """Null the data segments that a return to `cpl` may not use (Vol. 3A 5.8.6)."""
        conforming = x86.DESC_CODE | x86.DESC_CE
        for index in (x86.ES, x86.DS, x86.FS, x86.GS):
            attributes = self.d[ATTRIBUTES[index]]
            if attributes & conforming == conforming:
                continue
            if self.state.ia32e and not attributes & x86.DESC_P:
                # It is null and becomes 0; FS and GS have bases all the same.
                self.d[SELECTOR[index]] = 0
            elif self.loaded_dpl(index) < cpl:
                self.clear_segment(index)

    def count_ring(self) -> None:
        """Have the performance counters go on at the CPL that has been entered."""
        pmu = self.vcpu.pmu
        if pmu.by_ring:
            pmu.turn(self.clock.now, self.cpl)
