"""Real mode: events go through the guest's own vector table, by the engine's function.

The engine's IDTR holds the guest's then. What the function meets on its way, such as a
page of the stack that may not be written yet, is an exit of its own: the function does
not return, and `delivering` tells Python what it was at.
"""

from typing import Final

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu
from emu86.native.records import u32, u64
from emu86.native.state import leave
from emu86.spec import x86

_IOPL_3: Final = x86.IOPL


def deliver(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Deliver INT n, INTO, #DE or #BR; False: it is Python's.

    An INT3 may be that of a patched site.
    """
    if control.delivering != abi.IDLE or control.told or control.patched:
        return False
    if cpu.rflags & x86.TF or cpu.is_int > 1:
        return False
    if cpu.is_int:
        if vector == x86.VEC_BP:
            return False
    elif vector not in (x86.VEC_DE, x86.VEC_BR):
        return False
    software = cpu.is_int
    control.delivering = abi.DELIVERED | software << 8 | vector & 0xFF
    control.do_interrupt(control.engine_cpu)
    control.delivering = abi.IDLE
    if software:
        control.count_int[vector & 0xFF] += 1
    else:
        control.count_exceptions[vector & 31] += 1
    leave(control, cpu, 0)
    return True


def has_low_iopl(cpu: Cpu) -> bool:
    """Tell whether an IRET has lowered IOPL, by which POPF would leave IF."""
    return not cpu.hflags & offsets.HF_PE and cpu.rflags & _IOPL_3 != _IOPL_3


def repair(uc: u64, control: Control, cpu: Cpu) -> None:
    """Raise IOPL before a block that was translated for a lower one, and stop there."""
    cpu.rflags |= _IOPL_3
    control.emu_stop(uc)
