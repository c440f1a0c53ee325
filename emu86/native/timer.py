"""The timer's interrupt of a CPU that is halted: all of it in one call."""

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Counter, Cpu, Pic
from emu86.native.pic import requested
from emu86.native.pit import elapsed, sync, ticks
from emu86.native.records import i64, u64
from emu86.native.transfers import external
from emu86.spec import x86


def rises(counter: Counter, t: i64) -> bool:
    """Tell whether OUT of a counter in mode 2 has risen up to pulse `t`."""
    if counter.mode != 2 or not counter.period:
        return False
    if counter.load_at != abi.NONE or counter.held != abi.NONE:
        return False
    return elapsed(counter, t) >= counter.period


def is_plain(chip: Pic) -> bool:
    """Tell whether an 8259A requests nothing, and IR0 would be as PCs have it.

    By edges, in 8086 mode, without automatic ends and special masks.
    """
    by_level = chip.elcr & 1
    return not (chip.intr or chip.special_mask or by_level) and chip.icw4 & 3 == 1


def tick(control: Control, cpu: Cpu, now: u64) -> bool:
    """Have counter 0 raise IR0 at time `now` (ns), and deliver that interrupt.

    What `devices.pit`, `devices.pic` and `rings.technique` do one by one. False:
    nothing is done.
    """
    counter = control.pit[0]
    master = control.pics[0]
    t = ticks(now)
    if not rises(counter, t) or not is_plain(master):
        return False
    if control.efer & x86.EFER_LMA:
        return False
    if not cpu.rflags & x86.IF or cpu.hflags & offsets.HF_INHIBIT_IRQ:
        return False
    irr = master.irr
    master.irr = irr | 1
    if requested(master) or not external(control, cpu, master.icw2 & 0xF8):
        master.irr = irr
        return False
    sync(counter, t)
    master.irr = irr & ~1
    master.isr |= 1
    master.lines |= 1
    return True
