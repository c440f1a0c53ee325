"""Deliver interrupts and exceptions through the guest's IDT: SDM Vol. 3A chapter 6."""

from emu86.cpu.state import RIP, SELECTOR
from emu86.mmu.memory import PageFault
from emu86.mmu.paging import is_canonical
from emu86.rings.cpu import Cpu
from emu86.rings.descriptor import Descriptor
from emu86.rings.fault import GuestFault, TripleFault
from emu86.rings.insn.tasks import CALL, switch_task
from emu86.rings.stack import Stack, tss64_stack, tss_stack
from emu86.spec import x86

_EXT = 1
_IDT = 2
_INTERRUPT_GATES = (x86.SYS_INT16, x86.SYS_INT32)
_CS_SELECTOR = SELECTOR[x86.CS]
_SS_SELECTOR = SELECTOR[x86.SS]
_CLEARED_BY_TRAP = x86.TF | x86.NT | x86.RF | x86.VM
_GATES64 = (x86.SYS_INT64, x86.SYS_TRAP64)
_IST1 = 0x24  # offset in a 64-bit TSS
_GATES = (*_INTERRUPT_GATES, x86.SYS_TRAP16, x86.SYS_TRAP32, x86.SYS_TASK_GATE)


def inject(
    cpu: Cpu, vector: int, error: int | None = None, *, interrupt: bool = False
) -> None:
    """Deliver an exception or a hardware interrupt, with what comes of failing.

    A second fault on the way is delivered instead, or as #DF where table 6-5 of SDM
    Vol. 3A says so; a third raises TripleFault.
    """
    while True:
        try:
            deliver(cpu, vector, error, fault=not interrupt and vector in x86.FAULTS)
        except (GuestFault, PageFault) as raised:
            second, code = as_fault(cpu, raised)
            instead = _instead(vector, second, interrupt=interrupt)
            cpu.services.failed(vector, error, second, code, instead)
            if instead is None:
                raise TripleFault from raised
            vector, error = instead, code if instead == second else 0
            interrupt = False
        else:
            return


def _instead(vector: int, second: int, *, interrupt: bool) -> int | None:
    """Return what is delivered instead of an event that met a second fault.

    None is a shutdown. Source: SDM Vol. 3A tables 6-4 and 6-5.
    """
    if interrupt:  # benign, whatever its vector
        return second
    if vector == x86.VEC_DF:
        return None
    first_contributes = vector in x86.CONTRIBUTORY or vector == x86.VEC_PF
    doubles = second in x86.CONTRIBUTORY or vector == second == x86.VEC_PF
    return x86.VEC_DF if first_contributes and doubles else second


def as_fault(cpu: Cpu, raised: GuestFault | PageFault) -> tuple[int, int | None]:
    """Return vector and error code, putting a page fault's address in CR2."""
    if isinstance(raised, PageFault):
        cpu.vcpu.cr2 = raised.gva
        return x86.VEC_PF, raised.error
    return raised.vector, raised.error


def software(cpu: Cpu, vector: int, start: int) -> None:
    """INT n, INT3, INTO: like `deliver`, with the gate's DPL checked against the CPL.

    start: EIP of the instruction, where a fault of the delivery leaves the guest.
    """
    try:
        deliver(cpu, vector, None, software=True)
    except (GuestFault, PageFault):
        cpu.q[RIP] = start
        raise


def deliver(
    cpu: Cpu,
    vector: int,
    error: int | None,
    *,
    fault: bool = False,
    software: bool = False,
) -> None:
    """Go through gate `vector`; if it fails only memory below the stack changed.

    fault: the saved EFLAGS has RF set (SDM Vol. 3B 17.3.1.1); software: INT n, whose
    gate must allow the CPL and whose error codes have EXT clear.
    """
    plans = cpu.plans
    if plans and plans.deliver(vector, error, fault=fault, software=software):
        cpu.update_mode()
        cpu.count_ring()
        cpu.services.delivered(vector, error)
        return
    ext = 0 if software else _EXT
    where = vector << 3 | _IDT | ext
    vcpu = cpu.vcpu
    if cpu.state.ia32e:
        _deliver_in_ia32e(cpu, vector, error, ext, fault=fault)
        return
    if cpu.is_real:
        _deliver_in_real_mode(cpu, vector, ext)
        return
    if vector * 8 + 7 > vcpu.idt_limit:
        raise GuestFault(x86.VEC_GP, where)
    read32 = cpu.memory.read32
    base = vcpu.idt_base + 8 * vector
    gate = Descriptor(read32(base), read32(base + 4))
    kind = gate.system
    cpl = cpu.cpl
    virtual_8086 = cpu.is_virtual_8086
    if kind not in _GATES or (software and gate.dpl < cpl):
        raise GuestFault(x86.VEC_GP, where)
    if not gate.present:
        raise GuestFault(x86.VEC_NP, where)
    selector = gate.low >> 16
    if kind == x86.SYS_TASK_GATE:
        try:
            switch_task(cpu, selector, CALL, cpu.q[RIP])
        except GuestFault as bad:
            raise GuestFault(bad.vector, (bad.error or 0) | ext) from bad
        if error is not None:
            stack = Stack(cpu)
            stack.push(error, 4 if vcpu.tr.kind & 8 else 2)
            stack.commit()
        cpu.services.delivered(vector, error)
        return
    found = _handler(cpu, selector, ext)
    if virtual_8086 and (found.conforming or found.dpl):
        raise GuestFault(x86.VEC_GP, (selector & 0xFFFC) | ext)
    size = 4 if kind & 8 else 2
    offset = gate.low & 0xFFFF | (gate.high & 0xFFFF0000 if size == 4 else 0)
    level = cpl if found.conforming else found.dpl
    flags = cpu.services.guest_flags()
    image = flags | x86.RF if fault else flags
    if level < cpl:
        try:
            ss, esp = tss_stack(cpu, level)
            stack_segment = cpu.check_stack(ss, level, x86.VEC_TS)
        except GuestFault as bad:
            raise GuestFault(bad.vector, (bad.error or 0) | ext) from bad
        stack = Stack.inner(cpu, ss, stack_segment, esp)
    else:
        stack_segment = None
        ss = 0
        stack = Stack(cpu)
    stack.error |= ext
    if offset > found.limit:
        raise GuestFault(x86.VEC_GP, ext)
    if virtual_8086:
        for index in (x86.GS, x86.FS, x86.DS, x86.ES):
            stack.push(cpu.d[SELECTOR[index]], size)
    if stack_segment is not None:
        stack.push(cpu.d[SELECTOR[x86.SS]], size)
        stack.push(cpu.q[x86.ESP], size)
    stack.push(image, size)
    stack.push(cpu.d[SELECTOR[x86.CS]], size)
    stack.push(cpu.q[RIP], size)
    if error is not None:
        stack.push(error, size)
    if stack_segment is not None:
        cpu.mark_accessed(ss, stack_segment)
    cpu.mark_accessed(selector, found)
    cpu.services.delivered(vector, error)
    if virtual_8086:
        cpu.leave_virtual_8086()
    if stack_segment is not None:
        cpu.load_stack(ss, stack_segment)
    cpu.load_code(selector, found, level)
    stack.commit()
    cpu.q[RIP] = offset
    cpu.enter_ring()
    if (
        plans
        and size == 4
        and not virtual_8086
        and level == 0
        and cpl in (0, x86.CPL_USER)
        and cpu.stack_bits == 32
        and plans.is_watched(selector, ss)
        and plans.watch_gate(base)
    ):
        masks = kind in _INTERRUPT_GATES
        plans.keep_gate(vector, cpl, offset, gate.dpl, masks=masks)
    clear = _CLEARED_BY_TRAP
    if kind in _INTERRUPT_GATES:
        clear |= x86.IF
    cpu.services.set_guest_flags(flags & ~clear)


def _deliver_in_real_mode(cpu: Cpu, vector: int, ext: int) -> None:
    """Go through the vector table at IDTR: SDM Vol. 3B section 20.1.4.

    No error code is pushed.
    """
    vcpu = cpu.vcpu
    if 4 * vector + 3 > vcpu.idt_limit:
        raise GuestFault(x86.VEC_GP, vector << 3 | _IDT | ext)
    entry = cpu.memory.read(vcpu.idt_base + 4 * vector & x86.MASK32, 4)
    flags = cpu.services.guest_flags()
    stack = Stack(cpu)
    for value in (flags, cpu.d[_CS_SELECTOR], cpu.q[RIP]):
        stack.push(value, 2)
    cpu.services.delivered(vector, None)
    cpu.load_paragraph(x86.CS, entry >> 16)
    stack.commit()
    cpu.q[RIP] = entry & 0xFFFF
    cpu.services.set_guest_flags(flags & ~(x86.IF | x86.TF | x86.AC | x86.RF))


def _handler(cpu: Cpu, selector: int, ext: int) -> Descriptor:
    """Check the code segment that a gate leads to."""
    if selector & 0xFFFC == 0:
        raise GuestFault(x86.VEC_GP, ext)
    try:
        found = cpu.descriptor(selector)
    except GuestFault as beyond:
        raise GuestFault(x86.VEC_GP, (selector & 0xFFFC) | ext) from beyond
    wrong = not found.code or found.dpl > cpu.cpl
    if cpu.state.ia32e:
        wrong = wrong or not found.code64 or bool(found.high & x86.DESC_B)
    if wrong:
        raise GuestFault(x86.VEC_GP, (selector & 0xFFFC) | ext)
    if not found.present:
        raise GuestFault(x86.VEC_NP, (selector & 0xFFFC) | ext)
    return found


def _deliver_in_ia32e(
    cpu: Cpu, vector: int, error: int | None, ext: int, *, fault: bool
) -> None:
    """Go through a gate of 16 bytes: SDM Vol. 3A section 6.14.

    SS and RSP are always pushed, below a multiple of 16; a new SS is null.
    """
    vcpu, read32, cpl = cpu.vcpu, cpu.memory.read32, cpu.cpl
    where = vector << 3 | _IDT | ext
    if vector * 16 + 15 > vcpu.idt_limit:
        raise GuestFault(x86.VEC_GP, where)
    base = vcpu.idt_base + 16 * vector & x86.MASK64
    cpu.check_canonical(base + 15 & x86.MASK64)
    gate = Descriptor(read32(base), read32(base + 4), read32(base + 8))
    if gate.system not in _GATES64 or (not ext and gate.dpl < cpl):
        raise GuestFault(x86.VEC_GP, where)
    if not gate.present:
        raise GuestFault(x86.VEC_NP, where)
    selector = gate.low >> 16
    found = _handler(cpu, selector, ext)
    level = cpl if found.conforming else found.dpl
    flags = cpu.services.guest_flags()
    rsp = cpu.q[x86.ESP] & cpu.address_mask
    ist = gate.high & 7
    try:
        if ist:
            top = tss64_stack(cpu, _IST1 + 8 * (ist - 1))
        else:
            top = tss64_stack(cpu, 4 + 8 * level) if level < cpl else rsp
    except GuestFault as bad:
        raise GuestFault(bad.vector, (bad.error or 0) | ext) from bad
    stack = Stack.wide(cpu, top & ~15, ring=level)
    stack.error = ext
    if not is_canonical(gate.offset):
        raise GuestFault(x86.VEC_GP, ext)
    image = flags | x86.RF if fault else flags
    d = cpu.d
    for value in (d[_SS_SELECTOR], rsp, image, d[_CS_SELECTOR], cpu.q[RIP]):
        stack.push(value, 8)
    if error is not None:
        stack.push(error, 8)
    cpu.mark_accessed(selector, found)
    cpu.services.delivered(vector, error)
    if level < cpl:
        cpu.load_stack(level, cpu.null_stack(level))
    cpu.load_code(selector, found, level)
    stack.commit()
    cpu.q[RIP] = gate.offset
    cpu.enter_ring()
    plans = cpu.plans
    if (
        plans
        and not ist
        and level == 0
        and cpl in (0, x86.CPL_USER)
        and plans.is_watched(selector)
        and plans.watch_gate(base)
    ):
        masks = gate.system == x86.SYS_INT64
        plans.keep_gate(vector, cpl, gate.offset, gate.dpl, masks=masks)
    clear = _CLEARED_BY_TRAP
    if gate.system == x86.SYS_INT64:
        clear |= x86.IF
    cpu.services.set_guest_flags(flags & ~clear)
