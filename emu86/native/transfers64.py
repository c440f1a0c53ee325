"""IRETQ, POPFQ, and events through the guest's IDT, in IA-32e mode.

By plans, as in `transfers`, whose slots they have, too.
"""

import ctypes

from emu86.cpu import offsets
from emu86.native import abi
from emu86.native.abi import Control, Cpu, EventFrame64, ReturnFrame64
from emu86.native.flags import POPPED, pop_flags
from emu86.native.gdt import settle
from emu86.native.records import i64, u32, u64
from emu86.native.state import (
    NOWHERE,
    flags_of,
    host_of,
    is_canonical,
    knows_flags,
    leave,
    load_segment,
    set_flags,
    spte_of_64,
    sync_mode,
    waits,
)
from emu86.native.transfers import (
    flags_in_gate,
    flags_in_image,
    gate_slot,
    iopl_in,
    keeps_iopl,
    note_ring,
    return_slot,
)
from emu86.spec import x86

_DATA = (x86.ES, x86.DS, x86.FS, x86.GS)


def host64(control: Control, linear: u64, size: u32, write: bool) -> u64:
    """Return where in this process `size` bytes of one page are, or NOWHERE.

    By the shadow tables, for ring 0. Code is written at the engine's slow path alone.
    """
    offset = linear & 0xFFF
    if offset > x86.PAGE_SIZE - size or not is_canonical(linear):
        return NOWHERE
    entry = spte_of_64(control, linear)
    if entry & control.no_user_data:
        return NOWHERE  # SMAP, or AC lifts it
    return host_of(control, entry, offset, write)


def code_at(control: Control, linear: u64, size: u32) -> u64:
    """Return where in this process `size` bytes of code are, or NOWHERE."""
    offset = linear & 0xFFF
    if offset > x86.PAGE_SIZE - size:
        return NOWHERE
    return host_of(control, spte_of_64(control, linear), offset, False)


def enter(cpu: Cpu, ring: u32) -> None:
    """Go on at a ring of the engine's, in the code that CS has."""
    sync_mode(cpu, ring)
    if cpu.segments[x86.CS].attributes & x86.DESC_L:
        cpu.hflags = cpu.hflags & ~offsets.HF_ADDSEG | offsets.HF_CODE64


def keeps_data_segments(cpu: Cpu) -> bool:
    """Tell whether a return to ring 3 leaves DS, ES, FS and GS as they are.

    One that is null keeps its base.
    """
    for i in range(4):
        rights = cpu.segments[_DATA[i]].attributes & (x86.DESC_P | x86.DESC_DPL)
        if rights & x86.DESC_P and rights & x86.DESC_DPL != x86.DESC_DPL:
            return False
    return True


def return64(control: Control, cpu: Cpu, opens: bool) -> bool:
    """Do an IRETQ of 64-bit code in ring 0; False: nothing is done.

    opens: it may set IF.
    """
    if cpu.segments[x86.CS].selector & 3 or (control.stale and not settle(control)):
        return False
    if cpu.rflags & (x86.NT | x86.TF) or not cpu.hflags & offsets.HF_CS64:
        return False
    at = host64(control, cpu.gpr[x86.ESP], 40, False)
    if at == NOWHERE:
        return False
    frame = ReturnFrame64.from_address(at)
    rip = frame[0]
    cs = frame[1] & 0xFFFF
    image = frame[2]
    key = abi.PLANNED | cs | (frame[4] & 0xFFFF) << 16
    plan = control.returns[return_slot(key) & abi.RETURNS - 1]
    if plan.key != key or image & x86.TF:
        return False
    wide = bool(plan.cs.attributes & x86.DESC_L)
    if not (is_canonical(rip) if wide else rip <= plan.cs.limit):
        return False
    if image & x86.IF and not opens:
        return False
    if not keeps_iopl(control, image):
        return False
    if cs & 3 and not keeps_data_segments(cpu):
        return False
    cpu.gpr[x86.ESP] = frame[3]
    cpu.rip = rip
    load_segment(cpu.segments[x86.SS], plan.ss)
    load_segment(cpu.segments[x86.CS], plan.cs)
    enter(cpu, 3 if cs & 3 else 1)
    set_flags(cpu, image & POPPED | iopl_in(control, cs & 3))
    return True


def iretq(control: Control, cpu: Cpu) -> bool:
    """Handle an IRETQ as an exit; RIP is behind the INT3 that stands for it."""
    if control.by_ring:
        return False
    cs = cpu.segments[x86.CS].selector
    rip = cpu.rip - 1 & x86.MASK64
    if not return64(control, cpu, control.pending == 0):
        return False
    note_ring(control, cpu, abi.BY_IRET, cs, rip)
    control.count_iret += 1
    leave(control, cpu, 0)
    return True


def popfq(control: Control, cpu: Cpu) -> bool:
    """Take RFLAGS from the stack, all but IOPL and RF; RIP is behind the POPFQ."""
    at = host64(control, cpu.gpr[x86.ESP], 8, False)
    if at == NOWHERE:
        return False
    image = ctypes.c_uint32.from_address(at).value
    return pop_flags(control, cpu, image, cpu.gpr[x86.ESP] + 8 & x86.MASK64)


def deliver64(
    control: Control, cpu: Cpu, vector: u32, error: i64, is_fault: bool, by_int: bool
) -> bool:
    """Deliver an event to 64-bit code in ring 0; False: nothing is done.

    The parameters are those of `transfers.deliver_by_plan`.
    """
    if cpu.rflags & x86.TF or (control.stale and not settle(control)):
        return False
    if not knows_flags(control, cpu):
        return False
    cpl = cpu.segments[x86.CS].selector & 3
    plan = control.gates[gate_slot(vector, cpl) & abi.GATES - 1]
    if plan.key != abi.PLANNED | vector << 2 | cpl or (by_int and plan.dpl < cpl):
        return False
    wide = bool(cpu.hflags & offsets.HF_CS64)
    rsp = cpu.gpr[x86.ESP] & (x86.MASK64 if wide else x86.MASK32)
    top = ctypes.c_uint64.from_address(plan.stack).value if cpl else rsp
    with_error = 1 if error >= 0 else 0
    size = 40 + 8 * with_error
    new = (top & ~15 & x86.MASK64) - size & x86.MASK64
    at = host64(control, new, size, True)
    if at == NOWHERE:
        return False
    flags = flags_in_image(control, flags_of(control, cpu))
    stack = cpu.segments[x86.SS]
    frame = EventFrame64.from_address(at)
    if with_error:
        frame[0] = error
    frame[with_error] = cpu.rip
    frame[with_error + 1] = cpu.segments[x86.CS].selector
    frame[with_error + 2] = flags | x86.RF if is_fault else flags
    frame[with_error + 3] = rsp
    frame[with_error + 4] = stack.selector
    if cpl:
        load_segment(stack, plan.ss)
    cpu.gpr[x86.ESP] = new
    cpu.rip = plan.offset
    load_segment(cpu.segments[x86.CS], plan.cs)
    enter(cpu, 1)
    set_flags(cpu, flags_in_gate(control, plan, flags))
    return True


def external64(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Deliver an interrupt, which the guest lets in; False: nothing is done."""
    if control.told or control.by_ring:
        return False
    cs = cpu.segments[x86.CS].selector
    rip = cpu.rip
    if not deliver64(control, cpu, vector, -1, False, False):
        return False
    note_ring(control, cpu, abi.BY_INTERRUPT | vector, cs, rip)
    return True


def interrupt64(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Handle an INT n as an exit; RIP is behind it."""
    if control.by_ring or waits(control, cpu):
        return False
    wide = bool(cpu.hflags & offsets.HF_CS64)
    cs = cpu.segments[x86.CS].selector
    rip = cpu.rip - 2 & (x86.MASK64 if wide else x86.MASK32)
    if not deliver64(control, cpu, vector, -1, False, True):
        return False
    note_ring(control, cpu, vector, cs, rip)
    control.count_int[vector & 255] += 1
    leave(control, cpu, 0)
    return True
