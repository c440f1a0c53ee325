"""Where the engine differs from a CPU: here the oracle does it right.

Each erratum says at which opcodes to look, what is wrong, and what to do instead. What
concerns a deprivileged guest, too, is decided for it by the VMM, not here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from emu86.cpu import offsets
from emu86.cpu.state import HFLAGS, RFLAGS, RIP, SELECTOR
from emu86.mmu.shadow import RELOADING_CR0, RELOADING_CR4
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.events.protection import check
from emu86.rings.fault import GuestFault, gp, undefined
from emu86.rings.insn import (
    code64,
    lazy_flags,
    msr,
    port_io,
    segment_loads,
    sse_operands,
)
from emu86.rings.insn.flag_states import SETCC
from emu86.rings.insn.privileged import read_dr, write_dr
from emu86.rings.insn.segment_loads import is_wide_pointer, loaded_by
from emu86.rings.insn.system_calls import RECORDS as CALLS
from emu86.rings.insn.table import RECORDS, find, is_switched_off, needs
from emu86.rings.insn.transfer import return_target
from emu86.rings.stack import Stack
from emu86.rings.technique.base import (
    check_cr0,
    check_cr4,
    efer_by_cr0,
    load_pdptes,
)
from emu86.spec import x86
from emu86.spec.features import FORMS
from emu86.spec.opcodes import OPCODES

_PORTS: Final = frozenset({*range(0x6C, 0x70), *range(0xE4, 0xE8), *range(0xEC, 0xF0)})


@dataclass(frozen=True, slots=True)
class Erratum:
    """One difference.

    act: called with the guest at the instruction; raises the guest's fault, or returns
    True if it has done the instruction, False to have the engine do it.
    """

    opcodes: frozenset[int]
    engine: str
    cpu: str
    sdm: str
    act: Callable[[Cpu, Insn], bool]


def _port(cpu: Cpu, insn: Insn) -> bool:
    port_io.check(cpu, insn)
    return False


def _msr(cpu: Cpu, insn: Insn) -> bool:
    if cpu.cpl and insn.opcode != _RDPMC:
        raise gp(0)
    {_RDMSR: msr.rdmsr, _WRMSR: msr.wrmsr, _RDPMC: msr.rdpmc}[insn.opcode](cpu, insn)
    return _done(cpu, insn)


_WRMSR, _RDMSR, _RDPMC = 0x0F30, 0x0F32, 0x0F33


def _smsw(cpu: Cpu, insn: Insn) -> bool:
    if insn.reg != _SMSW or insn.memory or insn.size == 2:
        return False
    operand.set_register(cpu, insn.rm, cpu.vcpu.cr0, 4)
    return _done(cpu, insn)


_SMSW: Final = 4


def _newer(cpu: Cpu, insn: Insn) -> bool:
    record = find(insn)
    if record is None or insn.modrm not in _NEWER:
        return False
    record.handler(cpu, insn)
    return _done(cpu, insn)


_NEWER: Final = (0xCA, 0xCB, 0xF9)  # CLAC, STAC, RDTSCP


def _ltr(cpu: Cpu, insn: Insn) -> bool:
    loads = insn.reg == _LTR and not (cpu.cpl or cpu.is_real)
    if loads and not operand.read_rm(cpu, insn, 2) & 0xFFFC:
        raise gp(0)
    return False


_LTR: Final = 3


def _to_cr(cpu: Cpu, insn: Insn) -> bool:
    value = cpu.q[insn.rm] & cpu.address_mask
    vcpu = cpu.vcpu
    if cpu.cpl:
        return False
    efer = vcpu.efer
    if insn.reg == 0:
        if value > x86.MASK32:
            raise gp(0)
        check_cr0(value)
        efer = efer_by_cr0(cpu, value)
    elif insn.reg == _CR3 and value >> x86.MAXPHYADDR:
        raise gp(0)
    elif insn.reg == _CR4:
        check_cr4(vcpu, value)
    _load_pdptes(cpu, insn.reg, value, efer)
    if insn.reg != _CR4 or not (value | vcpu.cr4) & (x86.CR4_SMEP | x86.CR4_SMAP):
        return False
    cpu.services.write_cr4(value)
    return _done(cpu, insn)


def _load_pdptes(cpu: Cpu, number: int, value: int, efer: int) -> None:
    """Do what a write to a control register does to the PDPTE registers."""
    vcpu = cpu.vcpu
    now = {0: vcpu.cr0, 3: vcpu.cr3, 4: vcpu.cr4}
    changed = now.get(number, 0) ^ value
    reloads = RELOADING_CR0 if number == 0 else RELOADING_CR4
    if number == _CR3 or (number in now and changed & reloads):
        now[number] = value
        load_pdptes(vcpu, cpu.memory.ram, now[0], now[3], now[4], efer)


def _from_cr(cpu: Cpu, insn: Insn) -> bool:
    if cpu.cpl or insn.reg != _CR3:
        return False
    operand.set_register(cpu, insn.rm, cpu.vcpu.cr3, 8 if cpu.code_bits == 64 else 4)
    return _done(cpu, insn)


_CR3, _CR4 = 3, 4


def _dr(cpu: Cpu, insn: Insn) -> bool:
    if cpu.cpl:
        return False
    {_FROM_DR: read_dr, _TO_DR: write_dr}[insn.opcode](cpu, insn)
    return _done(cpu, insn)


_FROM_DR, _TO_DR = 0x0F21, 0x0F23


def _locked(_cpu: Cpu, insn: Insn) -> bool:
    if insn.lock and not insn.spec.lock and find(insn) is not None:
        raise undefined()
    return False


def _far_return(cpu: Cpu, insn: Insn) -> bool:
    if insn.immediate & 0x8000:
        cpu.services.unsupported("RET far that releases 8000h bytes or more")
        return True
    # In real and virtual-8086 mode the engine's two words do not wrap with SP.
    top = cpu.q[x86.ESP] & 0xFFFF
    if cpu.has_paragraphs and top + 2 * insn.size > 1 << 16:
        cpu.services.unsupported("RET far over the end of the stack segment")
        return True
    return False


def _written(cpu: Cpu, insn: Insn) -> bool:
    record = find(insn)
    if record is not None and record.memory:
        size = lazy_flags.width(insn)
        operand.translate(cpu, operand.address(cpu, insn, size), size, write=True)
    return False


def _user_return(cpu: Cpu, insn: Insn) -> bool:
    virtual_8086 = cpu.is_virtual_8086
    nested = insn.opcode == _IRET and cpu.q[RFLAGS] & x86.NT and not virtual_8086
    traps = insn.opcode == _IRET and virtual_8086 and cpu.iopl < x86.CPL_USER
    # VM is taken at any CPL; the stack's rights are the kernel's at CPL 1 and 2 anyhow.
    if cpu.cpl and not nested and not traps:
        stack = Stack(cpu)
        for i in range(3 if insn.opcode == _IRET else 2):
            image = stack.peek(i * insn.size, insn.size)
        if insn.opcode == _IRET and image & x86.VM and not virtual_8086:
            cpu.services.unsupported("IRET of a user with VM set")
            return True
    return False


_IRET: Final = 0xCF


def _return_beyond(cpu: Cpu, insn: Insn) -> bool:
    """Look at the limit where the engine's returns do not."""
    by_paragraph = cpu.has_paragraphs
    is_iret = insn.opcode == _IRET
    traps = cpu.is_virtual_8086 and cpu.iopl < x86.CPL_USER
    nested = not by_paragraph and cpu.q[RFLAGS] & x86.NT
    if is_iret and (traps or nested):
        return False
    stack = Stack(cpu)
    size = insn.size
    eip, selector = stack.peek(0, size), stack.peek(size, size) & 0xFFFF
    if by_paragraph:
        if eip > x86.V86_LIMIT:
            raise gp(0)
        return False
    if is_iret and size == 4 and stack.peek(8, 4) & x86.VM and not cpu.cpl:
        return False
    try:
        found = return_target(cpu, selector)
        if selector & 3 > cpu.cpl:
            at = size * (3 if is_iret else 2) + insn.immediate
            ss = stack.peek(at + size, size) & 0xFFFF
            cpu.check_stack(ss, selector & 3, x86.VEC_GP)
    except GuestFault:
        return False  # the engine finds it, too
    cpu.check_target(found, eip)
    return False


def _to_virtual_8086(cpu: Cpu, insn: Insn) -> bool:
    if cpu.cpl or cpu.is_real or insn.size == 2 or cpu.q[RFLAGS] & x86.NT:
        return False
    stack = Stack(cpu)
    if stack.peek(8, 4) & x86.VM and stack.peek(0, 4) > x86.V86_LIMIT:
        raise gp(0)
    return False


def _pushfd(cpu: Cpu, insn: Insn) -> bool:
    virtual_8086 = cpu.is_virtual_8086
    if not virtual_8086 or insn.size == 2 or cpu.iopl < x86.CPL_USER:
        return False
    stack = Stack(cpu)
    stack.push(cpu.services.guest_flags() & ~(x86.VM | x86.RF), 4)
    stack.commit()
    return _done(cpu, insn)


def _user_call(cpu: Cpu, insn: Insn) -> bool:
    pointer = far_pointer(cpu, insn)
    jumps = insn.opcode == _JMP or (insn.opcode == _INDIRECT and insn.reg == _JMP_REG)
    if pointer is None or cpu.cpl != x86.CPL_USER or jumps:
        return False
    if cpu.is_virtual_8086:
        if pointer[1] > x86.V86_LIMIT:
            raise gp(0)
    else:
        try:
            found = cpu.check_code(pointer[0], x86.CPL_USER)
            cpu.check_target(found, pointer[1])
        except GuestFault:
            return False  # the engine finds it, too, and first
    stack = Stack(cpu)
    # As the engine, which pushes both again if both can be.
    stack.push(cpu.d[SELECTOR[x86.CS]], insn.size)
    stack.push(cpu.q[RIP] + insn.length, insn.size)
    return False


_CALL, _JMP, _INDIRECT = 0x9A, 0xEA, 0xFF
_CALL_REG, _JMP_REG = 3, 5  # ModRM.reg


def is_far_jump(insn: Insn) -> bool:
    """Tell whether it is a far JMP or CALL."""
    if insn.opcode == _INDIRECT:
        return insn.memory and insn.reg in (_CALL_REG, _JMP_REG)
    return insn.opcode in (_CALL, _JMP)


def far_pointer(cpu: Cpu, insn: Insn) -> tuple[int, int] | None:
    """Return selector and offset of a far JMP or CALL; None if it is none."""
    if not is_far_jump(insn):
        return None
    if insn.opcode != _INDIRECT:
        return insn.selector, insn.immediate
    return segment_loads.far_pointer(cpu, insn)


def _denied(cpu: Cpu, insn: Insn) -> bool:
    if needs(insn) & cpu.vcpu.model.lacks or is_switched_off(cpu, insn):
        raise undefined()
    return False


def _sse_operand(cpu: Cpu, insn: Insn) -> bool:
    sse_operands.check(cpu, insn)
    return False


def _wide_pointer(cpu: Cpu, insn: Insn) -> bool:
    if not is_wide_pointer(insn):
        return False
    segment_loads.load_far_pointer(cpu, insn)
    return _done(cpu, insn)


def _code64(cpu: Cpu, insn: Insn) -> bool:
    record = find(insn)
    loops = code64.is_narrowed(insn)  # LOOPE and LOOPNE, which have a record already
    if record is None or not (loops or record in code64.RECORDS):
        return False
    if record.handler(cpu, insn):
        cpu.d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ
        return True
    return _done(cpu, insn)


def _null_stack(cpu: Cpu, insn: Insn) -> bool:
    record = find(insn)
    if record is None or cpu.code_bits != 64 or loaded_by(insn) != x86.SS:
        return False
    if insn.opcode == _LSS:
        selector = segment_loads.far_pointer(cpu, insn)[0]
    else:
        selector = operand.read_rm(cpu, insn, 2)
    if selector & 0xFFFC:
        return False
    cpu.d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ
    record.handler(cpu, insn)
    cpu.advance(insn.length)
    return True


_LSS: Final = 0x0FB2


def _icebp(cpu: Cpu, insn: Insn) -> bool:
    _done(cpu, insn)
    raise GuestFault(x86.VEC_DB)


def _system_call(cpu: Cpu, insn: Insn) -> bool:
    record = find(insn)
    if record is None or record not in CALLS:
        return False
    return record.handler(cpu, insn) or _done(cpu, insn)


def _cr8(cpu: Cpu, insn: Insn) -> bool:
    record = find(insn)
    if record is None or insn.reg != _CR8 or cpu.cpl:
        return False
    record.handler(cpu, insn)
    return _done(cpu, insn)


_CR8: Final = 8


def _done(cpu: Cpu, insn: Insn) -> bool:
    cpu.d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ  # the shadow of the STI before it
    cpu.advance(insn.length)
    return True


def _forbidden(cpu: Cpu, insn: Insn) -> bool:
    check(cpu, insn)
    return False


ERRATA: Final = (
    Erratum(
        frozenset(OPCODES),
        "limits and rights of segments are not looked at, nor is alignment",
        "#GP(0), #SS(0), #AC(0)", "Vol. 3A 5.3", _forbidden,
    ),
    Erratum(
        frozenset(opcode for record in RECORDS for opcode in record.opcodes),
        "some take a LOCK prefix, or look at the privilege first", "#UD",
        "Vol. 2A LOCK", _locked,
    ),
    Erratum(
        frozenset(opcode for record in CALLS for opcode in record.opcodes),
        "SYSCALL, SYSENTER do nothing; SYSRET, SYSEXIT, SWAPGS go by its own MSRs",
        "as the CPU model's MSRs say, or #UD", "Vol. 2B SYSCALL", _system_call,
    ),
    Erratum(
        frozenset({0x0F20, 0x0F22}), "CR8 is not the virtual CPU's", "it is kept",
        "Vol. 2B MOV", _cr8,
    ),
    Erratum(
        frozenset({0xCA, 0xCB}), "RET iw releases a signed number of bytes",
        "an unsigned one", "Vol. 2B RET", _far_return,
    ),
    Erratum(
        frozenset({*lazy_flags.ROTATES, *SETCC}),
        "RCL, RCR, SETcc: a fault loses flags, or is that of a read",
        "#PF of a write, before all", "Vol. 3A 4.7", _written,
    ),
    Erratum(
        frozenset({0xCA, 0xCB, 0xCF}),
        "far returns read the stack as the kernel; any IRET takes VM",
        "#PF of a user", "Vol. 3A 4.7", _user_return,
    ),
    Erratum(
        frozenset({0xCA, 0xCB, 0xCF}), "far returns do not look at the limit",
        "#GP(0)", "Vol. 2B RET", _return_beyond,
    ),
    Erratum(
        frozenset({_IRET}), "to virtual-8086 mode half of EIP is taken",
        "#GP(0) above FFFFh", "Vol. 2A IRET", _to_virtual_8086,
    ),
    Erratum(
        frozenset({0x9C}), "PUSHFD in virtual-8086 mode shows VM", "VM is 0",
        "Vol. 2B PUSHF", _pushfd,
    ),
    Erratum(
        frozenset({0x9A, 0xFF}), "far calls write the stack as the kernel",
        "#PF of a user", "Vol. 3A 4.7", _user_call,
    ),
    Erratum(
        frozenset({*FORMS, *range(0x0F20, 0x0F24)}),
        "CMOV, MMX, SSE and later run on any model; TS is before EM; MOV CR9 is #GP",
        "#UD, unless CPUID tells of them; CR0.EM is before TS",
        "Vol. 2A CPUID", _denied,
    ),
    Erratum(
        frozenset({_LSS, 0x0FB4, 0x0FB5}), "with REX.W a pointer is m16:32, as on AMD",
        "m16:64, on Intel", "Vol. 2A LDS/LES/LFS/LGS/LSS", _wide_pointer,
    ),
    Erratum(
        frozenset({0x8E, _LSS}),
        "64-bit code at CPL 0 to 2 takes a null SS of any RPL, and has CPL 0 then",
        "#GP(0) if RPL is not CPL", "Vol. 2B MOV", _null_stack,
    ),
    Erratum(
        frozenset(
            opcode
            for record in (*code64.RECORDS, *lazy_flags.RECORDS)
            for opcode in record.opcodes
        ),
        "in 64-bit code some do what a CPU does not: see `rings.insn.code64`", "",
        "Vol. 2", _code64,
    ),
    Erratum(
        frozenset({0xF1}), "INT1 is #UD", "#DB, as a trap", "Vol. 2A INT n", _icebp,
    ),
    Erratum(
        sse_operands.OPCODES_LOOKED_AT,
        "SSE takes operands that are not aligned, and any MXCSR", "#GP(0)",
        "Vol. 1 11.4.1", _sse_operand,
    ),
    Erratum(
        _PORTS, "port I/O never faults", "#GP(0) by IOPL and the TSS's bitmap",
        "Vol. 1 19.5", _port,
    ),
    Erratum(
        frozenset({_WRMSR, _RDMSR, _RDPMC}), "unknown MSRs read as 0; no RDPMC",
        "#GP(0) for what the model does not have", "Vol. 2B RDMSR", _msr,
    ),
    Erratum(
        frozenset({0x0F01}), "no CLAC and STAC; RDTSCP runs on any model",
        "as CPUID says", "Vol. 2A CLAC", _newer,
    ),
    Erratum(
        frozenset({0x0F01}), "SMSW r32 writes 16 bits",
        "undefined; here, as on the P6, all of CR0", "Vol. 2B SMSW", _smsw,
    ),
    Erratum(
        frozenset({0x0F00}), "LTR takes a null selector", "#GP(0)", "Vol. 2A LTR",
        _ltr,
    ),
    Erratum(
        frozenset({_FROM_DR, _TO_DR}), "breakpoints on data do not fire",
        "#DB, as a trap", "Vol. 3B 17.3.1.2", _dr,
    ),
    Erratum(
        frozenset({0x0F22}), "MOV to CR takes any value",
        "#GP(0): PG without PE, NW without CD, reserved bits of CR4 and of PDPTEs",
        "Vol. 2B MOV to CR", _to_cr,
    ),
    Erratum(
        frozenset({0x0F20}), "PDPTEs are read at each walk, from where CR3 says",
        "they are in registers, which MOV to CR loads", "Vol. 3A 4.4.1", _from_cr,
    ),
)  # fmt: skip
