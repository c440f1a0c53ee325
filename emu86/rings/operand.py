"""Operands of an instruction being emulated."""

from emu86.cpu.state import BASE
from emu86.mmu.paging import is_canonical
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import GuestFault
from emu86.spec import x86


def base(cpu: Cpu, segment: int) -> int:
    """Return the base of a segment register for the running code's data.

    In 64-bit code only FS and GS have one: SDM Vol. 1 section 3.3.4.
    """
    if segment < x86.FS and cpu.code_bits == 64:
        return 0
    return cpu.q[BASE[segment]]


def check_canonical(cpu: Cpu, linear: int, size: int, segment: int) -> None:
    """Raise #GP(0), or #SS(0) by SS, if an access of 64-bit code is not canonical.

    Source: SDM Vol. 1 section 3.3.7.1.
    """
    if cpu.code_bits == 64 and not (
        is_canonical(linear) and is_canonical(linear + size - 1 & x86.MASK64)
    ):
        raise GuestFault(x86.VEC_SS if segment == x86.SS else x86.VEC_GP, 0)


def address(cpu: Cpu, insn: Insn, size: int) -> int:
    """Return the linear address of the memory operand, which has `size` bytes.

    In 64-bit code raises what `check_canonical` does.
    """
    linear = linear_address(cpu, insn)
    if cpu.code_bits == 64:
        check_canonical(cpu, linear, size, insn.segment)
    return linear


def linear_address(cpu: Cpu, insn: Insn) -> int:
    """Return the linear address of the memory operand, canonical or not."""
    q = cpu.q
    offset = insn.displacement
    if insn.base >= 0:
        offset += q[insn.base]
    if insn.index >= 0:
        offset += q[insn.index] << insn.scale
    if cpu.code_bits == 64:
        if insn.address_size == 4:
            offset &= x86.MASK32
        return (base(cpu, insn.segment) + offset) & x86.MASK64
    offset &= 0xFFFF if insn.address_size == 2 else x86.MASK32
    return (q[BASE[insn.segment]] + offset) & x86.MASK32


def read(cpu: Cpu, linear: int, size: int) -> int:
    """Read guest memory with the rights of the guest's CPL."""
    return cpu.memory.read(linear, size, user=cpu.cpl == x86.CPL_USER)


def translate(cpu: Cpu, linear: int, size: int, *, write: bool) -> None:
    """Raise what an access of `size` bytes by the guest would; set the pages' A and D.

    What reads before it writes faults like this on a CPU, and before it reads.
    """
    user = cpu.cpl == x86.CPL_USER
    cpu.memory.translate(linear, write=write, user=user)
    rest = x86.PAGE_SIZE - (linear & 0xFFF)
    if rest < size:
        linear = linear + rest & cpu.address_mask
        cpu.memory.translate(linear, write=write, user=user)


def write(cpu: Cpu, linear: int, value: int, size: int) -> None:
    """Write guest memory with the rights of the guest's CPL."""
    cpu.memory.write(linear, value, size, user=cpu.cpl == x86.CPL_USER)


def read_rm(cpu: Cpu, insn: Insn, size: int) -> int:
    """Read the r/m operand, 2, 4 or 8 bytes."""
    if insn.memory:
        return read(cpu, address(cpu, insn, size), size)
    return cpu.q[insn.rm] & (1 << 8 * size) - 1


def set_register(cpu: Cpu, number: int, value: int, size: int) -> None:
    """Write a general register: 1 (the low byte), 2, 4 or 8 bytes of it.

    4 bytes leave 0 above them: SDM Vol. 1 section 3.4.1.1.
    """
    mask = (1 << 8 * size) - 1
    kept = cpu.q[number] & ~mask if size < 4 else 0
    cpu.q[number] = kept | value & mask


def write_rm16(cpu: Cpu, insn: Insn, value: int) -> None:
    """Write a 16-bit result: 2 bytes of memory, or a register of the operand's size.

    A register of 32 or 64 bits gets it zero-extended, as on the P6 and later.
    """
    if insn.memory:
        write(cpu, address(cpu, insn, 2), value & 0xFFFF, 2)
    else:
        set_register(cpu, insn.rm, value, insn.size)
