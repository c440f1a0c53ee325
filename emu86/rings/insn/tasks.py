"""Hardware task switches: SDM Vol. 3A chapter 7. Linux enters #DF through one."""

from typing import Final

from emu86.cpu.state import RIP, SELECTOR
from emu86.rings.cpu import Cpu
from emu86.rings.descriptor import Descriptor
from emu86.rings.fault import GuestFault, gp
from emu86.spec import x86

JUMP: Final = 0
CALL: Final = 1  # CALL, an interrupt or an exception: the old task is nested
IRET: Final = 2

_TSS32: Final = (x86.SYS_TSS32, x86.SYS_TSS32_BUSY)
_BUSY: Final = 2  # the type's busy bit
# Byte offsets in a TSS (Vol. 3A figures 7-2 and 7-10): EIP, EFLAGS, eight general
# registers, then the segment registers from ES on; 4 bytes apart, or 2 in a 16-bit TSS.
_EIP32: Final = 0x20
_SEGMENTS32: Final = 0x48
_LDT32: Final = 0x60
_CR3: Final = 0x1C
_EIP16: Final = 0x0E
_SEGMENTS16: Final = 0x22
_LDT16: Final = 0x2A
_LIMIT32: Final = 0x67
_LIMIT16: Final = 0x2B


def switch_task(cpu: Cpu, selector: int, how: int, next_eip: int) -> None:
    """Leave the current task and enter the one whose TSS `selector` names."""
    vcpu, memory = cpu.vcpu, cpu.memory
    vector = x86.VEC_TS if how == IRET else x86.VEC_GP
    if selector & 4 or selector & 0xFFFC == 0:
        raise GuestFault(vector, selector & 0xFFFC)
    found = cpu.descriptor(selector, vector)
    kind = found.system
    wanted = (3, 11) if how == IRET else (1, 9)
    if kind not in wanted:
        raise GuestFault(vector, selector & 0xFFFC)
    if not found.present:
        raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
    wide = kind in _TSS32
    if found.limit < (_LIMIT32 if wide else _LIMIT16):
        raise GuestFault(x86.VEC_TS, selector & 0xFFFC)
    old = vcpu.tr
    old_selector = old.selector
    flags = cpu.services.guest_flags()
    if how == IRET:
        flags &= ~x86.NT
    _save(cpu, next_eip, flags)
    if how != CALL:
        _set_busy(cpu, old.selector, busy=False)
    state = _read(cpu, found.base, wide=wide)
    if how == CALL:
        memory.write(found.base, old_selector, 2)
        state["flags"] |= x86.NT
    if how != IRET:
        _set_busy(cpu, selector, busy=True)
    vcpu.tr.selector, vcpu.tr.base = selector, found.base
    vcpu.tr.limit, vcpu.tr.kind = found.limit, kind | _BUSY
    if cpu.plans:
        cpu.plans.forget_gates()
    vcpu.dr[7] &= ~x86.DR7_LOCAL
    cpu.services.write_cr0(vcpu.cr0 | x86.CR0_TS)
    if wide and vcpu.cr0 & x86.CR0_PG:
        cpu.services.write_cr3(state["cr3"])
    _enter(cpu, state)


def _set_busy(cpu: Cpu, selector: int, *, busy: bool) -> None:
    if selector & 0xFFFC == 0:
        return
    where = cpu.vcpu.gdt_base + (selector & 0xFFF8) + 4
    high = cpu.memory.read32(where)
    bit = _BUSY << 8
    cpu.memory.write32(where, high | bit if busy else high & ~bit)


def _save(cpu: Cpu, eip: int, flags: int) -> None:
    """Write the old task's state to its TSS."""
    tr, memory, q = cpu.vcpu.tr, cpu.memory, cpu.q
    wide = tr.kind in _TSS32
    size, at = (4, _EIP32) if wide else (2, _EIP16)
    mask = (1 << 8 * size) - 1
    for value in (eip, flags, *(q[i] for i in range(8))):
        memory.write(tr.base + at, value & mask, size)
        at += size
    count = 6 if wide else 4
    for i in range(count):
        memory.write(tr.base + at, cpu.d[SELECTOR[i]], size)
        at += size


def _read(cpu: Cpu, base: int, *, wide: bool) -> dict[str, int]:
    """Read the new task's state from its TSS."""
    memory = cpu.memory
    size = 4 if wide else 2
    at = base + (_EIP32 if wide else _EIP16)
    names = ("eip", "flags", *x86.GPR_NAMES)
    state = {name: memory.read(at + size * i, size) for i, name in enumerate(names)}
    if not wide:
        for name in x86.GPR_NAMES:
            state[name] |= 0xFFFF0000
    at = base + (_SEGMENTS32 if wide else _SEGMENTS16)
    for i, name in enumerate(x86.SEGMENT_NAMES):
        inside = wide or i < 4
        state[name] = memory.read(at + size * i, 2) if inside else 0
    state["ldt"] = memory.read(base + (_LDT32 if wide else _LDT16), 2)
    state["cr3"] = memory.read32(base + _CR3) if wide else 0
    return state


def _enter(cpu: Cpu, state: dict[str, int]) -> None:
    """Load the new task; faults from here on are taken in its context."""
    q = cpu.q
    for i, name in enumerate(x86.GPR_NAMES):
        q[i] = state[name]
    q[RIP] = state["eip"]
    cpu.leave_virtual_8086()
    selectors = [state[name] for name in x86.SEGMENT_NAMES]
    for i, selector in enumerate(selectors):
        cpu.clear_segment(i, selector)
    cpu.enter_ring()
    cpu.services.set_guest_flags(state["flags"] & ~x86.VM)
    try:
        cpu.load_ldt(state["ldt"])
    except GuestFault as fault:
        raise GuestFault(x86.VEC_TS, state["ldt"] & 0xFFFC) from fault
    if state["flags"] & x86.VM:
        cpu.enter_virtual_8086(selectors)
        return
    cpl = state["cs"] & 3
    code = _code(cpu, state["cs"])
    cpu.load_code(state["cs"], code, cpl)
    stack = cpu.check_stack(state["ss"], cpl, x86.VEC_TS)
    cpu.load_stack(state["ss"], stack)
    cpu.enter_ring()
    for i in (x86.ES, x86.DS, x86.FS, x86.GS):
        try:
            cpu.load_segment(i, selectors[i])
        except GuestFault as fault:
            if fault.vector == x86.VEC_GP:
                raise GuestFault(x86.VEC_TS, fault.error) from fault
            raise


def _code(cpu: Cpu, selector: int) -> Descriptor:
    if selector & 0xFFFC == 0:
        raise GuestFault(x86.VEC_TS, 0)
    found = cpu.descriptor(selector, x86.VEC_TS)
    rpl = selector & 3
    wrong = found.dpl > rpl if found.conforming else found.dpl != rpl
    if not found.code or wrong:
        raise GuestFault(x86.VEC_TS, selector & 0xFFFC)
    if not found.present:
        raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
    return found


def load_tr(cpu: Cpu, selector: int) -> None:
    """LTR: raises #GP(selector) or #NP(selector)."""
    if selector & 0xFFFC == 0:
        raise gp(0)
    if selector & 4:
        raise gp(selector)
    found = cpu.descriptor(selector)
    kinds = (x86.SYS_TSS64,) if cpu.state.ia32e else (x86.SYS_TSS16, x86.SYS_TSS32)
    if found.system not in kinds:
        raise gp(selector)
    if not found.present:
        raise GuestFault(x86.VEC_NP, selector & 0xFFFC)
    cpu.check_base(selector, found)
    cpu.set_descriptor_bits(selector, found, _BUSY << 8)
    tr = cpu.vcpu.tr
    tr.selector, tr.base, tr.limit = selector, found.base, found.limit
    tr.kind = found.system | _BUSY
    if cpu.plans:
        cpu.plans.forget_gates()
