"""Far transfers of control: JMP, CALL, RET and IRET between segments and rings.

Each checks everything before it changes anything, so that a fault leaves the guest at
the instruction. Source: SDM Vol. 2A/2B, operation sections; Vol. 3A section 5.8.
"""

from emu86.cpu.state import RIP, SELECTOR
from emu86.rings.cpu import Cpu
from emu86.rings.descriptor import Descriptor
from emu86.rings.fault import GuestFault, gp
from emu86.rings.insn.tasks import CALL, IRET, JUMP, switch_task
from emu86.rings.stack import Stack, tss64_stack, tss_stack
from emu86.spec import x86

# What IRET may change: at any CPL, at CPL <= IOPL, and at CPL 0 (SDM Vol. 2A IRET).
_ALWAYS = x86.ARITHMETIC_FLAGS | x86.TF | x86.DF | x86.NT | x86.RF | x86.AC | x86.ID
_FROM_RING0 = _ALWAYS | x86.IF | x86.IOPL
_BY_PARAGRAPH = _ALWAYS | x86.IF  # in real and virtual-8086 mode, with IOPL 3
_CS_SELECTOR = SELECTOR[x86.CS]
_CALL_GATES = (x86.SYS_CALL16, x86.SYS_CALL32)
_TSS = (x86.SYS_TSS16, x86.SYS_TSS32)


def far_jump(cpu: Cpu, selector: int, offset: int, next_eip: int) -> None:
    """JMP ptr16:32 and m16:32."""
    if cpu.has_paragraphs:
        _go_by_paragraph(cpu, selector, offset)
        return
    found = _target(cpu, selector)
    if found.system >= 0:
        _through_gate(cpu, selector, found, next_eip, call=False)
        return
    cpl = cpu.cpl
    cpu.check_code(selector, cpl)
    cpu.check_target(found, offset)
    cpu.load_code(selector, found, cpl)
    cpu.q[RIP] = offset
    cpu.enter_ring()


def far_call(cpu: Cpu, selector: int, offset: int, next_eip: int, size: int) -> None:
    """CALL ptr16:32 and m16:32; `size` is the operand size of what is pushed."""
    if cpu.has_paragraphs:
        if offset > x86.V86_LIMIT:
            raise gp(0)
        stack = Stack(cpu)
        stack.push(cpu.d[_CS_SELECTOR], size)
        stack.push(next_eip, size)
        stack.commit()
        _go_by_paragraph(cpu, selector, offset)
        return
    found = _target(cpu, selector)
    if found.system >= 0:
        _through_gate(cpu, selector, found, next_eip, call=True)
        return
    cpl = cpu.cpl
    cpu.check_code(selector, cpl)
    cpu.check_target(found, offset)
    stack = Stack(cpu)
    stack.push(cpu.d[SELECTOR[x86.CS]], size)
    stack.push(next_eip, size)
    cpu.load_code(selector, found, cpl)
    stack.commit()
    cpu.q[RIP] = offset
    cpu.enter_ring()


def _go_by_paragraph(cpu: Cpu, selector: int, offset: int) -> None:
    """Load CS:EIP in real or virtual-8086 mode; #GP(0) beyond 64 KiB."""
    if offset > x86.V86_LIMIT:
        raise gp(0)
    cpu.load_paragraph(x86.CS, selector)
    cpu.q[RIP] = offset


def _target(cpu: Cpu, selector: int) -> Descriptor:
    if selector & 0xFFFC == 0:
        raise gp(0)
    return cpu.descriptor(selector)


def _through_gate(
    cpu: Cpu, selector: int, gate: Descriptor, next_eip: int, *, call: bool
) -> None:
    """Go through a call gate, a task gate or a TSS."""
    cpl = cpu.cpl
    kind = gate.system
    kinds: tuple[int, ...] = (*_CALL_GATES, *_TSS, x86.SYS_TASK_GATE)
    if cpu.state.ia32e:
        kinds = (x86.SYS_CALL64,)
    if kind not in kinds:
        raise gp(selector)
    if gate.dpl < max(cpl, selector & 3):
        raise gp(selector)
    if not gate.present:
        raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
    how = CALL if call else JUMP
    if kind in _TSS:
        switch_task(cpu, selector, how, next_eip)
        return
    target = gate.low >> 16
    if kind == x86.SYS_TASK_GATE:
        switch_task(cpu, target, how, next_eip)
        return
    size = 4 if kind == x86.SYS_CALL32 else 2
    offset = gate.offset if size == 4 else gate.low & 0xFFFF
    found = _target(cpu, target)
    if not found.code or found.dpl > cpl:
        raise gp(target)
    if cpu.state.ia32e:
        if not found.code64 or found.high & x86.DESC_B:
            raise gp(target)
        size = 8
    inward = call and not found.conforming and found.dpl < cpl
    if not call and not found.conforming and found.dpl != cpl:
        raise gp(target)
    if not found.present:
        raise GuestFault(x86.VEC_NP, target & 0xFFFC)
    if inward:
        if size == 8:
            _call_inward64(cpu, target, found, offset, next_eip)
        else:
            _call_inward(cpu, target, found, offset, next_eip, size, gate.high & 31)
        return
    cpu.check_target(found, offset)
    if call:
        stack = Stack(cpu)
        if size == 8:
            stack = Stack.wide(cpu, _rsp(cpu), ring=cpl)
        stack.push(cpu.d[SELECTOR[x86.CS]], size)
        stack.push(next_eip, size)
        stack.commit()
    cpu.load_code(target, found, cpl)
    cpu.q[RIP] = offset
    cpu.enter_ring()


def _call_inward(
    cpu: Cpu, selector: int, found: Descriptor, offset: int, next_eip: int,
    size: int, parameters: int,
) -> None:  # fmt: skip
    level = found.dpl
    ss, esp = tss_stack(cpu, level)
    stack_segment = cpu.check_stack(ss, level, x86.VEC_TS)
    cpu.check_target(found, offset)
    outer = Stack(cpu)
    copied = [outer.peek(size * i, size) for i in range(parameters)]
    stack = Stack.inner(cpu, ss, stack_segment, esp)
    stack.push(cpu.d[SELECTOR[x86.SS]], size)
    stack.push(outer.esp, size)
    for value in reversed(copied):
        stack.push(value, size)
    stack.push(cpu.d[SELECTOR[x86.CS]], size)
    stack.push(next_eip, size)
    cpu.mark_accessed(ss, stack_segment)
    cpu.mark_accessed(selector, found)
    cpu.load_stack(ss, stack_segment)
    cpu.load_code(selector, found, level)
    stack.commit()
    cpu.q[RIP] = offset
    cpu.enter_ring()


def _rsp(cpu: Cpu) -> int:
    """Return RSP as 64-bit code will see it: compatibility mode has its low half."""
    return cpu.q[x86.ESP] & cpu.address_mask


def _call_inward64(
    cpu: Cpu, selector: int, found: Descriptor, offset: int, next_rip: int
) -> None:
    """Go through a 64-bit call gate: the new SS is null (SDM Vol. 3A 5.8.5.1)."""
    level = found.dpl
    stack = Stack.wide(cpu, tss64_stack(cpu, 4 + 8 * level))
    cpu.check_target(found, offset)
    for value in (cpu.d[SELECTOR[x86.SS]], _rsp(cpu), cpu.d[_CS_SELECTOR], next_rip):
        stack.push(value, 8)
    cpu.mark_accessed(selector, found)
    cpu.load_stack(level, cpu.null_stack(level))
    cpu.load_code(selector, found, level)
    stack.commit()
    cpu.q[RIP] = offset
    cpu.enter_ring()


def far_return(cpu: Cpu, size: int, release: int) -> None:
    """RET far, releasing `release` bytes of parameters."""
    stack = Stack(cpu)
    eip, selector = stack.peek(0, size), stack.peek(size, size) & 0xFFFF
    if cpu.has_paragraphs:
        _go_by_paragraph(cpu, selector, eip)
        stack.drop(2 * size + release)
        stack.commit()
        return
    found = return_target(cpu, selector)
    stack.drop(2 * size + release)
    if selector & 3 == cpu.cpl:
        cpu.check_target(found, eip)
        cpu.load_code(selector, found, selector & 3)
        stack.commit()
        cpu.q[RIP] = eip
        cpu.enter_ring()
        return
    esp, ss = stack.peek(0, size), stack.peek(size, size) & 0xFFFF
    _return_with_stack(cpu, selector, found, eip, ss, esp)
    if release:
        outer = Stack(cpu)
        outer.drop(release)
        outer.commit()


def return_target(cpu: Cpu, selector: int) -> Descriptor:
    """Check CS of a return: SDM Vol. 2B RET, return to same or outer level."""
    found = _target(cpu, selector)
    rpl = selector & 3
    if not found.code or rpl < cpu.cpl:
        raise gp(selector)
    if found.dpl > rpl or (not found.conforming and found.dpl != rpl):
        raise gp(selector)
    cpu.check_size(selector, found)
    if not found.present:
        raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
    return found


def _return_with_stack(
    cpu: Cpu, selector: int, found: Descriptor, eip: int, ss: int, esp: int
) -> None:
    rpl = selector & 3
    code64 = cpu.is_code64(found)
    stack_segment = cpu.check_stack(ss, rpl, x86.VEC_GP, code64=code64)
    cpu.check_target(found, eip)
    cpu.mark_accessed(ss, stack_segment)
    cpu.mark_accessed(selector, found)
    cpu.load_stack(ss, stack_segment)
    cpu.load_code(selector, found, rpl)
    if code64 or stack_segment.attributes & x86.DESC_B:
        cpu.q[x86.ESP] = esp
    else:  # SP alone: the kernel's upper half stays, whatever the operand size
        cpu.q[x86.ESP] = cpu.q[x86.ESP] & 0xFFFF0000 | esp & 0xFFFF
    cpu.q[RIP] = eip
    if rpl != cpu.cpl:
        cpu.drop_inner_segments(rpl)
    cpu.enter_ring()


def iret(cpu: Cpu, size: int, next_eip: int) -> None:
    """IRET, IRETD and IRETQ."""
    if cpu.state.ia32e:
        _iret_in_ia32e(cpu, size)
        return
    if cpu.has_paragraphs:
        _iret_by_paragraph(cpu, size)
        return
    if size == 4 and cpu.plans and cpu.plans.do_return():
        cpu.update_mode()
        cpu.count_ring()
        return
    flags = cpu.services.guest_flags()
    if flags & x86.NT:
        back = cpu.memory.read(cpu.vcpu.tr.base, 2)
        switch_task(cpu, back, IRET, next_eip)
        return
    stack = Stack(cpu)
    eip = stack.peek(0, size)
    selector = stack.peek(size, size) & 0xFFFF
    image = stack.peek(2 * size, size)
    cpl = cpu.cpl
    if image & x86.VM and size == 4 and cpl == 0:
        _iret_to_virtual_8086(cpu, stack)
        return
    found = return_target(cpu, selector)
    fresh = _fresh_flags(cpl, flags, image, size)
    rpl = selector & 3
    plans = cpu.plans
    wide = cpu.stack_bits == 32
    if rpl == cpl:
        cpu.check_target(found, eip)
        stack.drop(3 * size)
        cpu.load_code(selector, found, cpl)
        stack.commit()
        cpu.q[RIP] = eip
        cpu.enter_ring()
        if plans and cpl == 0 and plans.is_watched(selector):
            plans.keep_return(selector)
    else:
        esp = stack.peek(3 * size, size)
        ss = stack.peek(4 * size, size) & 0xFFFF
        _return_with_stack(cpu, selector, found, eip, ss, esp)
        wide &= cpu.stack_bits == 32
        if (
            plans
            and plans.is_watched(selector, ss)
            and cpl == 0
            and rpl == x86.CPL_USER
            and wide
        ):
            plans.keep_return(selector, ss)
    cpu.services.set_guest_flags(fresh)


def _fresh_flags(cpl: int, flags: int, image: int, size: int) -> int:
    """Return EFLAGS as IRET at `cpl` makes them of an image."""
    change = _ALWAYS if size != 2 else _ALWAYS & 0xFFFF
    if cpl <= (flags & x86.IOPL) >> 12:
        change |= x86.IF
    if cpl == 0:
        change |= x86.IOPL
    return flags & ~change | image & change


def _iret_in_ia32e(cpu: Cpu, size: int) -> None:
    """Return in IA-32e mode: 64-bit code always takes SS and RSP from the stack."""
    plans, wide = cpu.plans, cpu.code_bits == 64 and size == 8
    if wide and plans and plans.do_return():
        cpu.update_mode()
        cpu.count_ring()
        return
    flags = cpu.services.guest_flags()
    if flags & x86.NT:
        raise gp(0)
    stack = Stack(cpu)
    rip, selector, image = (stack.peek(size * i, size) for i in range(3))
    selector &= 0xFFFF
    found = return_target(cpu, selector)
    cpl = cpu.cpl
    fresh = _fresh_flags(cpl, flags, image, size)
    if selector & 3 != cpl or cpu.code_bits == 64:
        rsp, ss = stack.peek(3 * size, size), stack.peek(4 * size, size) & 0xFFFF
        _return_with_stack(cpu, selector, found, rip, ss, rsp)
        if (
            plans
            and wide
            and cpl == 0
            and cpu.cpl in (0, x86.CPL_USER)
            and cpu.stack_bits != 16
            and plans.is_watched(selector, ss)
        ):
            plans.keep_return(selector, ss)
    else:
        cpu.check_target(found, rip)
        stack.drop(3 * size)
        cpu.load_code(selector, found, cpl)
        stack.commit()
        cpu.q[RIP] = rip
        cpu.enter_ring()
    cpu.services.set_guest_flags(fresh)


def _iret_to_virtual_8086(cpu: Cpu, stack: Stack) -> None:
    """Enter virtual-8086 mode from ring 0: SDM Vol. 3B section 20.2.2."""
    eip, cs, image = (stack.peek(4 * i, 4) for i in range(3))
    if eip > x86.V86_LIMIT:
        raise gp(0)  # before the rest is read
    esp, *others = (stack.peek(4 * i, 4) for i in range(3, 9))
    ss, es, ds, fs, gs = (selector & 0xFFFF for selector in others)
    cpu.q[x86.ESP] = esp
    cpu.q[RIP] = eip
    cpu.enter_virtual_8086((es, cs & 0xFFFF, ss, ds, fs, gs))
    cpu.services.set_guest_flags(image & (_FROM_RING0 | x86.VM))


def _iret_by_paragraph(cpu: Cpu, size: int) -> None:
    """Return within real or virtual-8086 mode, where IOPL is 3, or it had trapped."""
    stack = Stack(cpu)
    eip, selector, image = (stack.peek(size * i, size) for i in range(3))
    _go_by_paragraph(cpu, selector & 0xFFFF, eip)
    stack.drop(3 * size)
    stack.commit()
    change = _BY_PARAGRAPH if size == 4 else _BY_PARAGRAPH & 0xFFFF
    flags = cpu.services.guest_flags()
    cpu.services.set_guest_flags(flags & ~change | image & change)
