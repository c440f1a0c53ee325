"""IRET, and events through the guest's IDT, where a plan says how they go.

A plan is what checking a transfer once has come to (`rings.plans`): Python does the
first of its kind, by all of the rules, and keeps the plan until a descriptor table
changes.
"""

from emu86.native import abi
from emu86.native.abi import Control, Cpu, EventFrame, Plan, ReturnFrame, Stack0
from emu86.native.flags import POPPED
from emu86.native.gdt import settle
from emu86.native.records import i64, u32, u64
from emu86.native.state import (
    NOWHERE,
    flags_of,
    host,
    knows_flags,
    leave,
    load_segment,
    set_flags,
    stack_top,
    sync_mode,
    waits,
)
from emu86.spec import x86

_CLEARED_BY_TRAP = x86.TF | x86.NT | x86.RF | x86.VM
_VECTORS = abi.GATES // 2
_DATA = (x86.ES, x86.DS, x86.FS, x86.GS)


def keeps_data_segments(cpu: Cpu) -> bool:
    """Tell whether a return to ring 3 leaves DS, ES, FS and GS as they are."""
    for i in range(4):
        segment = cpu.segments[_DATA[i]]
        is_outer = segment.attributes & x86.DESC_DPL == x86.DESC_DPL
        if segment.selector and not is_outer:
            return False
    return True


def return_by_plan(control: Control, cpu: Cpu, opens: bool) -> bool:
    """Do an IRETD from ring 0 to ring 0 or 3; False: nothing is done.

    opens: it may set IF.
    """
    stack = cpu.segments[x86.SS]
    if cpu.segments[x86.CS].selector & 3 or (control.stale and not settle(control)):
        return False
    if cpu.rflags & (x86.NT | x86.TF | x86.VM):
        return False
    at = stack_top(control, cpu, 12)
    if at == NOWHERE:
        return False
    frame = ReturnFrame.from_address(at)
    cs = frame[1] & 0xFFFF
    image = frame[2]
    rpl = cs & 3
    if rpl and stack_top(control, cpu, 20) == NOWHERE:
        return False
    key = abi.PLANNED | cs | (frame[4] & 0xFFFF if rpl else 0) << 16
    plan = control.returns[return_slot(key) & abi.RETURNS - 1]
    if plan.key != key or frame[0] > plan.cs.limit:
        return False
    if image & x86.IF and not opens:
        return False
    if image & (x86.VM | x86.TF):
        return False
    if not keeps_iopl(control, image):
        return False
    if rpl:
        if not keeps_data_segments(cpu):
            return False
        cpu.gpr[x86.ESP] = frame[3]
        load_segment(stack, plan.ss)
    else:
        cpu.gpr[x86.ESP] = cpu.gpr[x86.ESP] + 12 & x86.MASK32
    cpu.rip = frame[0]
    load_segment(cpu.segments[x86.CS], plan.cs)
    sync_mode(cpu, 3 if rpl else 1)
    set_flags(cpu, image & POPPED | iopl_in(control, rpl))
    return True


def return_slot(key: u64) -> u32:
    """Return where a plan of IRET is kept, by CS and SS."""
    return (key >> 3 ^ key >> 19) & abi.RETURNS - 1


def gate_slot(vector: u32, cpl: u32) -> u32:
    """Return where the plan of an event is kept.

    Exceptions and the interrupts of an 8259, in the kernel and in users' code, and
    Linux' INT 80h have a place each: none drops the other's plan.
    """
    return (vector ^ vector >> 2) & _VECTORS - 1 | (_VECTORS if cpl else 0)


def iopl_in(control: Control, cpl: u32) -> u32:
    """Return the engine's IOPL, in place, while the guest is at `cpl`."""
    iopl = control.iopl << 12 & x86.IOPL
    return iopl if cpl else max(iopl, control.kernel_iopl & x86.IOPL)


def keeps_iopl(control: Control, image: u64) -> bool:
    """Tell whether an IRET to ring 0 or 3 leaves IOPL as it is.

    It does where ring 0 has another in the engine than the guest's.
    """
    return control.kernel_iopl != 0 or (image >> 12 ^ control.iopl) & 3 == 0


def flags_in_image(control: Control, flags: u32) -> u32:
    """Return the guest's flags without RF, by those of the engine."""
    return flags & ~(x86.RF | x86.IOPL) | control.iopl << 12 & x86.IOPL


def flags_in_gate(control: Control, plan: Plan, flags: u32) -> u32:
    """Return the flags that an event's handler in ring 0 begins with."""
    kept = flags & ~(_CLEARED_BY_TRAP | x86.IOPL | (x86.IF if plan.masks_if else 0))
    return kept | iopl_in(control, 0)


def deliver_by_plan(
    control: Control, cpu: Cpu, vector: u32, error: i64, is_fault: bool, by_int: bool
) -> bool:
    """Deliver an event to ring 0; False: nothing is done.

    error: -1 for none; is_fault: RF is set in the image; by_int: INT n, for which the
    gate must allow the CPL.
    """
    if cpu.rflags & (x86.TF | x86.VM) or (control.stale and not settle(control)):
        return False
    if not knows_flags(control, cpu):
        return False
    cpl = cpu.segments[x86.CS].selector & 3
    plan = control.gates[gate_slot(vector, cpl) & abi.GATES - 1]
    if plan.key != abi.PLANNED | vector << 2 | cpl or (by_int and plan.dpl < cpl):
        return False
    old = cpu.segments[x86.SS]
    with_error = 1 if error >= 0 else 0
    size = 4 * (with_error + (5 if cpl else 3))
    top: u32 = cpu.gpr[x86.ESP] & x86.MASK32
    base: u64 = old.base
    if cpl:
        inner = Stack0.from_address(plan.stack)
        if inner.ss != plan.ss.selector:
            return False
        top = inner.esp
        base = plan.ss.base
    elif not old.attributes & x86.DESC_B or old.limit != x86.MASK32:
        return False
    esp = top - size & x86.MASK32
    linear = base + esp & x86.MASK32
    if linear & 0xFFF > x86.PAGE_SIZE - size:
        return False
    at = host(control, linear, True)
    if at == NOWHERE:
        return False
    flags = flags_in_image(control, flags_of(control, cpu))
    frame = EventFrame.from_address(at)
    if with_error:
        frame[0] = error
    frame[with_error] = cpu.rip
    frame[with_error + 1] = cpu.segments[x86.CS].selector
    frame[with_error + 2] = flags | x86.RF if is_fault else flags
    if cpl:
        frame[with_error + 3] = cpu.gpr[x86.ESP]
        frame[with_error + 4] = old.selector
        load_segment(old, plan.ss)
    cpu.gpr[x86.ESP] = esp
    cpu.rip = plan.offset & x86.MASK32
    load_segment(cpu.segments[x86.CS], plan.cs)
    sync_mode(cpu, 1)
    set_flags(cpu, flags_in_gate(control, plan, flags))
    return True


def note_ring(control: Control, cpu: Cpu, how: u32, cs: u32, eip: u64) -> None:
    """Keep where the guest was, if its ring has changed."""
    after = cpu.segments[x86.CS].selector
    if (cs ^ after) & 3:
        change = control.changes[control.change_count & abi.CHANGES_KEPT - 1]
        change.at = control.now
        change.how = how
        change.before = cs & 3
        change.cs = cs
        change.eip = eip
        change.after = after & 3
        change.to_cs = after
        change.to_eip = cpu.rip
        control.change_count += 1


def note_event(control: Control, vector: u32, error: i64, cs: u32, eip: u64) -> None:
    """Keep where the guest was at an exception; CR2 is written."""
    event = control.events[control.event_count & abi.CHANGES_KEPT - 1]
    event.at = control.now
    event.vector = vector
    event.error = error
    event.cs = cs
    event.eip = eip
    event.address = control.cr2
    control.event_count += 1


def iret(control: Control, cpu: Cpu, eip: u32) -> bool:
    """Handle an IRET, at `eip`, as an exit."""
    if control.told or control.by_ring:
        return False
    cs = cpu.segments[x86.CS].selector
    if not return_by_plan(control, cpu, control.pending == 0):
        return False
    note_ring(control, cpu, abi.BY_IRET, cs, eip)
    control.count_iret += 1
    leave(control, cpu, 0)
    return True


def has_data_segments(cpu: Cpu) -> bool:
    """Tell whether DS and ES are not null.

    Between a load of them and the block behind it, which has the guard, Python looks
    before there is an event.
    """
    present = cpu.segments[x86.DS].attributes & cpu.segments[x86.ES].attributes
    return bool(present & x86.DESC_P)


def external(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Deliver an interrupt, which the guest lets in; False: nothing is done."""
    if control.told or control.by_ring or not has_data_segments(cpu):
        return False
    cs = cpu.segments[x86.CS].selector
    eip = cpu.rip & x86.MASK32
    if not deliver_by_plan(control, cpu, vector, -1, False, False):
        return False
    note_ring(control, cpu, abi.BY_INTERRUPT | vector, cs, eip)
    return True


def interrupt(control: Control, cpu: Cpu, vector: u32) -> bool:
    """Handle an INT n as an exit; EIP is behind it."""
    if control.told or control.by_ring or waits(control, cpu):
        return False
    cs = cpu.segments[x86.CS].selector
    eip = cpu.rip - 2 & x86.MASK32
    if not deliver_by_plan(control, cpu, vector, -1, False, True):
        return False
    note_ring(control, cpu, vector, cs, eip)
    control.count_int[vector & 255] += 1
    leave(control, cpu, 0)
    return True
