"""Operands of an instruction being emulated."""

from emu86.cpu.state import BASE
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.spec import x86


def address(cpu: Cpu, insn: Insn) -> int:
    """Return the linear address of the memory operand."""
    q = cpu.q
    offset = insn.displacement
    if insn.base >= 0:
        offset += q[insn.base]
    if insn.index >= 0:
        offset += q[insn.index] << insn.scale
    offset &= 0xFFFF if insn.address_size == 2 else x86.MASK32
    return (cpu.q[BASE[insn.segment]] + offset) & x86.MASK32


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
        cpu.memory.translate(linear + rest & x86.MASK32, write=write, user=user)


def write(cpu: Cpu, linear: int, value: int, size: int) -> None:
    """Write guest memory with the rights of the guest's CPL."""
    cpu.memory.write(linear, value, size, user=cpu.cpl == x86.CPL_USER)


def read_rm(cpu: Cpu, insn: Insn, size: int) -> int:
    """Read the r/m operand, 2 or 4 bytes."""
    if insn.memory:
        return read(cpu, address(cpu, insn), size)
    return cpu.q[insn.rm] & (1 << 8 * size) - 1


def set_register(cpu: Cpu, number: int, value: int, size: int) -> None:
    """Write a general register: 1 (low byte), 2 or 4 bytes of it."""
    keep = ~((1 << 8 * size) - 1) & x86.MASK32
    cpu.q[number] = cpu.q[number] & keep | value & ~keep & x86.MASK32


def write_rm16(cpu: Cpu, insn: Insn, value: int) -> None:
    """Write a 16-bit result: 2 bytes of memory, or a register of the operand's size.

    A 32-bit register gets it zero-extended, as on the P6 and later.
    """
    if insn.memory:
        write(cpu, address(cpu, insn), value & 0xFFFF, 2)
    else:
        set_register(cpu, insn.rm, value, insn.size)
