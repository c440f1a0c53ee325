"""Exits in 64-bit code of a guest in IA-32e mode.

There are no sites: an instruction is read where the engine has just fetched it, by the
shadow tables. So nothing that is known of it can be out of date.
"""

import ctypes

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, Segment
from emu86.native.faults import PREFIXES, page_fault_64
from emu86.native.flags import cli, sti
from emu86.native.gdt import open_gdt
from emu86.native.records import i32, u32, u64
from emu86.native.state import (
    NOWHERE,
    flags_of,
    is_canonical,
    knows_flags,
    leave,
    set_flags,
    split,
    virtual_time,
)
from emu86.native.timer import hlt
from emu86.native.transfers import note_ring
from emu86.native.transfers64 import code_at, interrupt64, iretq, popfq
from emu86.native.tree import fill_64, invlpg_64, write_cr3_64
from emu86.spec import x86
from emu86.spec.features import RDTSCP

_MODE = (
    offsets.HF_CPL | offsets.HF_CS32 | offsets.HF_SS32 | offsets.HF_ADDSEG
    | offsets.HF_CS64 | offsets.HF_INHIBIT_IRQ
)  # fmt: skip
# Flat and accessed: what SYSCALL and SYSRET load.
_FLAT = x86.DESC_P | x86.DESC_S | x86.DESC_G | x86.DESC_RW | x86.DESC_A | 0xF0000
_ATTRIBUTES = _FLAT & x86.DESC_ATTRIBUTES
_CODE = _ATTRIBUTES | x86.DESC_CODE | x86.DESC_L
_DATA = _ATTRIBUTES | x86.DESC_B
_PREFIXES = 3  # of CMPXCHG16B, which Linux has behind LOCK, or GS, and REX
_NOT_A_REGISTER = (4, 5)  # as ModRM.rm of an operand without displacement
_RETURNED = 0x3C7FD7  # what SYSRET takes of R11
_NOT_HELD = x86.RF | x86.VM | x86.VIF | x86.VIP  # of RFLAGS, by the engine


def load_flat(to: Segment, selector: u32, attributes: u32, ring: u32) -> None:
    """Load a segment register with what stands in no table; ring: the engine's."""
    to.selector = selector & 0xFFFF
    to.base = 0
    to.limit = x86.MASK32
    to.attributes = attributes | ring << x86.DESC_DPL_SHIFT


def enter(cpu: Cpu, ring: u32, cs: u32, ss: u32) -> None:
    """Go on in 64-bit code at a ring of the engine's."""
    load_flat(cpu.segments[x86.CS], cs, _CODE, ring)
    load_flat(cpu.segments[x86.SS], ss, _DATA, ring)
    cpu.hflags = cpu.hflags & ~_MODE | ring | offsets.HF_CODE64


def is_unusual(control: Control, cpu: Cpu) -> bool:
    """Tell of what Python has to know of when the ring changes."""
    limits = cpu.segments[x86.CS].limit & cpu.segments[x86.SS].limit
    return bool(control.told or control.by_ring or limits != x86.MASK32)


def syscall(control: Control, cpu: Cpu) -> bool:
    """Do a SYSCALL of ring 3; RIP is at it, and the engine moves it behind 2 bytes.

    Not of who has an IOPL: it would go with FMASK, and Python keeps the guest's.
    """
    if cpu.rflags & (x86.TF | x86.VM | x86.IOPL) or control.patched:
        return False
    if not control.efer & x86.EFER_LMA or not control.efer & x86.EFER_SCE:
        return False
    if cpu.hflags & (offsets.HF_CPL | offsets.HF_CS64) != 3 | offsets.HF_CS64:
        return False
    if is_unusual(control, cpu) or not knows_flags(control, cpu):
        return False
    rip = cpu.rip
    at = code_at(control, rip, 2)
    if at == NOWHERE or ctypes.c_uint16.from_address(at).value != 0x050F:
        return False
    flags = flags_of(control, cpu) & ~x86.RF
    cs = cpu.segments[x86.CS].selector
    cpu.gpr[x86.ECX] = rip + 2 & x86.MASK64
    cpu.gpr[x86.R11] = flags
    selector = control.star >> 32 & 0xFFFF
    cpu.rip = control.lstar - 2 & x86.MASK64
    enter(cpu, 1, selector & 0xFFFC, selector + 8 & 0xFFFF)
    set_flags(cpu, flags & ~control.fmask & x86.MASK32 | control.kernel_iopl)
    note_ring(control, cpu, abi.BY_SYSCALL, cs, rip)
    control.count_syscall += 1
    leave(control, cpu, 0)
    return True


def on_syscall(uc: u64, control: Control) -> i32:
    """Do a SYSCALL here, or have Python do it."""
    if not syscall(control, control.cpu.contents):
        control.on_syscall(uc, 0)
    return 0


def sysret(control: Control, cpu: Cpu) -> bool:
    """Do a SYSRET to 64-bit code."""
    rip = cpu.gpr[x86.ECX]
    image = cpu.gpr[x86.R11] & _RETURNED
    if not is_canonical(rip):
        return False
    if not control.efer & x86.EFER_SCE or image & (x86.TF | x86.IOPL):
        return False
    if (cpu.rflags ^ control.kernel_iopl) & x86.IOPL or is_unusual(control, cpu):
        return False
    if image & x86.IF and control.pending:
        return False
    selector = control.star >> 48
    cs = cpu.segments[x86.CS].selector
    start = cpu.rip
    cpu.rip = rip
    enter(cpu, 3, selector + 16 | 3, selector + 8 | 3)
    set_flags(cpu, image & ~_NOT_HELD)
    note_ring(control, cpu, abi.BY_SYSRET, cs, start)
    control.count_sysret += 1
    leave(control, cpu, 0)
    return True


def swapgs(control: Control, cpu: Cpu) -> bool:
    """Exchange the base of GS and KERNEL_GS_BASE."""
    base = cpu.segments[x86.GS].base
    cpu.segments[x86.GS].base = control.kernel_gs_base
    control.kernel_gs_base = base
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_swapgs += 1
    leave(control, cpu, 3)
    return True


def read_cr_64(
    control: Control, cpu: Cpu, number: u32, register: u32, length: u32
) -> bool:
    """Do a MOV from a control register; False: there is none of this number."""
    if number not in (0, 2, 3, 4):
        return False
    low = control.cr0 if number == 0 else control.cr2
    high = control.cr3 if number == 3 else control.cr4
    cpu.gpr[register & 15] = low if number < 3 else high
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_read_cr += 1
    leave(control, cpu, length)
    return True


def write_cr2(control: Control, cpu: Cpu, register: u32) -> bool:
    """Do a MOV to CR2."""
    control.cr2 = cpu.gpr[register & 15]
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_write_cr += 1
    leave(control, cpu, 3)
    return True


def wrmsr(control: Control, cpu: Cpu) -> bool:
    """Write FS_BASE, GS_BASE or KERNEL_GS_BASE."""
    number = cpu.gpr[x86.ECX] & x86.MASK32
    high = cpu.gpr[x86.EDX] & x86.MASK32
    value = high << 32 | cpu.gpr[x86.EAX] & x86.MASK32
    if not is_canonical(value):
        return False
    if number == x86.MSR_FS_BASE:
        cpu.segments[x86.FS].base = value
    elif number == x86.MSR_GS_BASE:
        cpu.segments[x86.GS].base = value
    elif number == x86.MSR_KERNEL_GS_BASE:
        control.kernel_gs_base = value
    else:
        return False
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_wrmsr += 1
    leave(control, cpu, 2)
    return True


def rdmsr(control: Control, cpu: Cpu) -> bool:
    """Read FS_BASE, GS_BASE or KERNEL_GS_BASE."""
    number = cpu.gpr[x86.ECX] & x86.MASK32
    if number not in (x86.MSR_FS_BASE, x86.MSR_GS_BASE, x86.MSR_KERNEL_GS_BASE):
        return False
    base = cpu.segments[x86.FS if number == x86.MSR_FS_BASE else x86.GS].base
    value = control.kernel_gs_base if number == x86.MSR_KERNEL_GS_BASE else base
    cpu.gpr[x86.EAX] = value & x86.MASK32
    cpu.gpr[x86.EDX] = value >> 32
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_rdmsr += 1
    leave(control, cpu, 2)
    return True


def privileged(control: Control, cpu: Cpu) -> bool:
    """Handle #GP(0) at an instruction of the guest's ring 0."""
    at = code_at(control, cpu.rip, 1)
    if at == NOWHERE:
        return False
    first = ctypes.c_uint8.from_address(at).value
    if first == 0xFA:
        return cli(control, cpu)
    if first == 0xFB:
        return sti(control, cpu)
    if first == 0xF4:
        return hlt(control, cpu)
    start = code_at(control, cpu.rip, 4)
    if start == NOWHERE:
        return False
    word = ctypes.c_uint32.from_address(start).value
    if word & 0xF8FFFF == 0x38010F and word >> 16 & 7 not in _NOT_A_REGISTER:
        return invlpg_64(control, cpu, word >> 16 & 7, 3)
    if word & 0xF8FFFF == 0xD8220F:
        return write_cr3_64(control, cpu, word >> 16 & 7, 3)
    if word & 0xF8FFFFFF == 0x38010F41 and word >> 24 & 7 not in _NOT_A_REGISTER:
        return invlpg_64(control, cpu, word >> 24 & 7 | 8, 4)
    if word & 0xF8FFFFFF == 0xD8220F41:
        return write_cr3_64(control, cpu, word >> 24 & 7 | 8, 4)
    if word & 0xFFFFFF == 0xF8010F:
        return swapgs(control, cpu)
    if word & 0xFFFFFF == 0x070F48:
        return sysret(control, cpu)
    if word & 0xC0FFFF == 0xC0200F:
        return read_cr_64(control, cpu, word >> 19 & 7, word >> 16 & 7, 3)
    if word & 0xC0FFFFFF == 0xC0200F41:
        return read_cr_64(control, cpu, word >> 27 & 7, word >> 24 & 7 | 8, 4)
    if word & 0xF8FFFF == 0xD0220F:
        return write_cr2(control, cpu, word >> 16 & 7)
    if word & 0xFFFF == 0x300F:
        return wrmsr(control, cpu)
    return word & 0xFFFF == 0x320F and rdmsr(control, cpu)


def byte_at(at: u64, offset: u32) -> u32:
    """Return a byte of code."""
    return ctypes.c_uint8.from_address(at + offset & x86.MASK64).value


def set_ac(control: Control, cpu: Cpu, value: u32) -> bool:
    """Do a STAC or CLAC, while there is SMAP; RIP is behind its first byte."""
    if not control.no_user_data:
        return False
    if value:
        cpu.rflags |= x86.AC
        control.count_stac += 1
    else:
        cpu.rflags &= ~x86.AC
        control.count_clac += 1
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    leave(control, cpu, 2)
    return True


def rdtscp(control: Control, cpu: Cpu) -> bool:
    """Do an RDTSCP; RIP is behind its first byte."""
    if not control.cpuid[abi.CPUID_80000001].edx & RDTSCP or control.cr4 & x86.CR4_TSD:
        return False
    now = virtual_time(control, control.now + control.exit_cost & x86.MASK64)
    tsc = now + control.tsc_offset & x86.MASK64
    cpu.gpr[x86.EAX] = tsc & x86.MASK32
    cpu.gpr[x86.EDX] = tsc >> 32
    cpu.gpr[x86.ECX] = control.tsc_aux
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_rdtscp += 1
    leave(control, cpu, 2)
    return True


def patched(control: Control, cpu: Cpu) -> bool:
    """Handle what stands in RAM where an INT3 has run: the scanner has patched it.

    RIP is behind the INT3. All but CMPXCHG8B, CMPXCHG16B and RDTSCP are the guest's
    ring 0's.
    """
    if not cpu.hflags & offsets.HF_CS64:
        return False
    at = code_at(control, cpu.rip - 1 & x86.MASK64, _PREFIXES + 3)
    if at == NOWHERE:
        return False
    first = byte_at(at, 0)
    skip: u32 = 0
    for i in range(_PREFIXES):
        if byte_at(at, i) in PREFIXES or byte_at(at, i) & 0xF0 == 0x40:
            skip = i + 1
        else:
            break
    if byte_at(at, skip) == 0x0F and byte_at(at, skip + 1 & 7) == 0xC7:
        return byte_at(at, skip + 2 & 7) >> 3 & 7 == 1 and split(control, cpu)
    if first == 0x0F and byte_at(at, 1) == 0x01 and byte_at(at, 2) == 0xF9:
        return rdtscp(control, cpu)
    kernel = cpu.hflags & offsets.HF_CPL == 1
    if not kernel or cpu.segments[x86.CS].selector & 3:
        return False
    if first == 0x9D:
        return popfq(control, cpu)
    if first == 0x0F and byte_at(at, 1) == 0x01 and byte_at(at, 2) & 0xFE == 0xCA:
        return set_ac(control, cpu, byte_at(at, 2) & 1)
    return first == 0x48 and byte_at(at, 1) == 0xCF and iretq(control, cpu)


def handled64(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Handle an exception or an INT n in IA-32e mode here, if that can be."""
    if vector == x86.VEC_PF and not cpu.is_int:
        if fill_64(control, cpu) or open_gdt(control, cpu):
            return True
        return page_fault_64(control, cpu)
    if control.told or cpu.is_int > 1:
        return False
    if cpu.is_int and vector != x86.VEC_BP:
        return vector != x86.VEC_OF and interrupt64(control, cpu, vector)
    if vector == x86.VEC_BP:
        return cpu.is_int == 1 and patched(control, cpu)
    if vector != x86.VEC_GP or cpu.error_code:
        return False
    mode = cpu.hflags & (offsets.HF_CPL | offsets.HF_CS64)
    if mode != 1 | offsets.HF_CS64 or cpu.segments[x86.CS].selector & 3:
        return False
    return privileged(control, cpu)
