"""HLT, and the timer's interrupt that ends it: all of it in one call."""

import ctypes

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, Pic
from emu86.native.pic import requested
from emu86.native.pit import SECOND, next_edge, sync, tick_time, ticks
from emu86.native.records import u32, u64
from emu86.native.state import leave, stop_by, virtual_time
from emu86.native.transfers import external
from emu86.native.transfers64 import external64
from emu86.spec import x86

_AGREES = 1_000_000  # ns: so late a sleep may end, and virtual time is still the host's
_MONOTONIC = 1  # CLOCK_MONOTONIC of Linux, which Python's `monotonic_ns` reads


def is_plain(chip: Pic) -> bool:
    """Tell whether an 8259A requests nothing, and IR0 would be as PCs have it.

    By edges, in 8086 mode, without automatic ends and special masks.
    """
    by_level = chip.elcr & 1
    return not (chip.intr or chip.special_mask or by_level) and chip.icw4 & 3 == 1


def interrupts(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Deliver an interrupt, which the guest lets in; False: nothing is done."""
    if control.efer & x86.EFER_LMA:
        return external64(control, cpu, vector)
    return external(control, cpu, vector)


def tick(control: Control, cpu: Cpu, now: u64) -> bool:
    """Have counter 0 raise IR0, as it does at time `now` (ns), and deliver that.

    What `devices.pit`, `devices.pic` and `rings.technique` do one by one. False:
    nothing is done.
    """
    master = control.pics[0]
    if not is_plain(master) or cpu.hflags & offsets.HF_INHIBIT_IRQ:
        return False
    irr = master.irr
    master.irr = irr | 1
    if requested(master) or not interrupts(control, cpu, master.icw2 & 0xF8):
        master.irr = irr
        return False
    sync(control.pit[0], ticks(now))
    master.irr = irr & ~1
    master.isr |= 1
    master.lines |= 1
    control.count_interrupt += 1
    control.behind |= abi.TIMER
    return True


def sleep(control: Control, due: u64) -> bool:
    """Sleep until virtual time `due` (ns), or a kick; tell whether it is that now.

    Virtual time is then the host's, but not beyond `due`: it passes without work.
    """
    until = control.zero + due & x86.MASK64
    at = control.host_time
    at.seconds = until // SECOND
    at.nanoseconds = until % SECOND
    kick = ctypes.addressof(control.kick)
    failed = control.sem_clockwait(kick, _MONOTONIC, ctypes.addressof(at))
    control.clock_gettime(_MONOTONIC, ctypes.addressof(at))
    now = min(at.seconds * SECOND + at.nanoseconds - control.zero & x86.MASK64, due)
    before = virtual_time(control, control.now & x86.MASK64)
    if now > before:
        control.ns += now - before & x86.MASK64
        control.rested += now - before & x86.MASK64
    return failed != 0 and now == due


def rest(control: Control, cpu: Cpu) -> bool:
    """Sleep until the timer is due, and deliver its interrupt.

    False: the CPU is still halted, and Python goes on. Some time may have passed.
    """
    counter = control.pit[0]
    if control.now >= control.stop_at or control.behind & abi.SENT:
        return False
    if not control.sem_clockwait:
        return False
    edge = next_edge(counter)
    if edge == abi.NEVER or counter.mode == 3:
        return False
    due = tick_time(edge)
    if due >= min(control.rests, control.others) or not sleep(control, due):
        return False
    if not tick(control, cpu, due):
        return False
    woke = control.host_time
    late = woke.seconds * SECOND + woke.nanoseconds - control.zero - due & x86.MASK64
    if late < _AGREES:
        control.look_at = control.now + control.look_for
    control.stop_at = control.look_at
    control.stop_for = control.look_at
    after = next_edge(counter)
    later = control.others if after == abi.NEVER else tick_time(after)
    stop_by(control, min(later, control.others))
    return True


def hlt(control: Control, cpu: Cpu) -> bool:
    """Halt to the timer's interrupt, or end the engine's run; see `rest`.

    False: an interrupt waits, or none can come.
    """
    if control.pending or not cpu.rflags & x86.IF:
        return False
    cpu.hflags &= ~offsets.HF_INHIBIT_IRQ
    control.count_hlt += 1
    leave(control, cpu, 1)
    if rest(control, cpu):
        return True
    control.behind |= abi.HALTED
    control.limit = 0  # the next block looks whether to stop
    control.emu_stop(control.uc)
    return True
