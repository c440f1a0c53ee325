"""Operands of an instruction being emulated."""

from typing import TYPE_CHECKING

from emu86.cpu.state import BASE
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.decode import Insn
    from emu86.rings.technique.base import Technique


def address(vmm: "Technique", insn: "Insn") -> int:
    """Return the linear address of the memory operand."""
    q = vmm.q
    offset = insn.displacement
    if insn.base >= 0:
        offset += q[insn.base]
    if insn.index >= 0:
        offset += q[insn.index] << insn.scale
    offset &= 0xFFFF if insn.address_size == 2 else x86.MASK32
    return (vmm.q[BASE[insn.segment]] + offset) & x86.MASK32


def read(vmm: "Technique", linear: int, size: int) -> int:
    """Read guest memory with the rights of the guest's CPL."""
    return vmm.memory.read(linear, size, user=vmm.segments.cpl == x86.CPL_USER)


def translate(vmm: "Technique", linear: int, size: int, *, write: bool) -> None:
    """Raise what an access of `size` bytes by the guest would; set the pages' A and D.

    What reads before it writes faults like this on a CPU, and before it reads.
    """
    user = vmm.segments.cpl == x86.CPL_USER
    vmm.memory.translate(linear, write=write, user=user)
    rest = x86.PAGE_SIZE - (linear & 0xFFF)
    if rest < size:
        vmm.memory.translate(linear + rest & x86.MASK32, write=write, user=user)


def write(vmm: "Technique", linear: int, value: int, size: int) -> None:
    """Write guest memory with the rights of the guest's CPL."""
    vmm.memory.write(linear, value, size, user=vmm.segments.cpl == x86.CPL_USER)


def read_rm(vmm: "Technique", insn: "Insn", size: int) -> int:
    """Read the r/m operand, 2 or 4 bytes."""
    if insn.memory:
        return read(vmm, address(vmm, insn), size)
    return vmm.q[insn.rm] & (1 << 8 * size) - 1


def set_register(vmm: "Technique", number: int, value: int, size: int) -> None:
    """Write a general register: 1 (low byte), 2 or 4 bytes of it."""
    keep = ~((1 << 8 * size) - 1) & x86.MASK32
    vmm.q[number] = vmm.q[number] & keep | value & ~keep & x86.MASK32


def write_rm16(vmm: "Technique", insn: "Insn", value: int) -> None:
    """Write a 16-bit result: 2 bytes of memory, or a register of the operand's size.

    A 32-bit register gets it zero-extended, as on the P6 and later.
    """
    if insn.memory:
        write(vmm, address(vmm, insn), value & 0xFFFF, 2)
    else:
        set_register(vmm, insn.rm, value, insn.size)
