"""CLI, STI and POPF: the guest's IF is the engine's."""

from emu86.cpu import offsets
from emu86.native.abi import Control, Cpu
from emu86.native.records import u32, u64
from emu86.native.state import leave, set_flags
from emu86.spec import x86

# What IRET and POPF at CPL 0 may change; IOPL and VM are not changed here.
POPPED = x86.ARITHMETIC_FLAGS | x86.DF | x86.NT | x86.AC | x86.ID | x86.IF


def cli(control: Control, cpu: Cpu) -> bool:
    """Clear IF."""
    cpu.rflags &= ~x86.IF
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_cli += 1
    leave(control, cpu, 1)
    return True


def sti(control: Control, cpu: Cpu) -> bool:
    """Set IF; if it was clear, for the instruction behind the next.

    So an interrupt that waits comes in at a later block, if not at once.
    """
    open_ = cpu.hflags & ~offsets.HF_INHIBIT_IRQ
    begins = not cpu.rflags & x86.IF and open_ == cpu.hflags
    if control.pending and not begins:
        return False
    if control.pending:
        control.limit = 0
    cpu.hflags = open_ | offsets.HF_INHIBIT_IRQ if begins else open_
    cpu.rflags |= x86.IF
    control.count_sti += 1
    leave(control, cpu, 1)
    return True


def pop_flags(control: Control, cpu: Cpu, image: u32, top: u64) -> bool:
    """Take flags from a POPF's image, all but IOPL, VM and RF; RIP is behind it.

    top: the stack pointer then.
    """
    if image & x86.TF or (image ^ cpu.rflags) & x86.IOPL:
        return False
    if image & x86.IF and control.pending:
        return False
    cpu.gpr[x86.ESP] = top
    set_flags(cpu, image & POPPED | cpu.rflags & x86.IOPL)
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_popf += 1
    leave(control, cpu, 0)
    return True
