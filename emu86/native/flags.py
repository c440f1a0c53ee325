"""CLI and STI: the guest's IF is the engine's."""

from emu86.cpu import offsets
from emu86.native.abi import Control, Cpu
from emu86.native.state import leave
from emu86.spec import x86


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
    cpu.hflags = open_ | offsets.HF_INHIBIT_IRQ if begins else open_
    cpu.rflags |= x86.IF
    control.count_sti += 1
    leave(control, cpu, 1)
    return True
