"""What the engine does otherwise than a CPU, so that the oracle does it right.

Each erratum says at which opcodes to look, what is wrong, and what to do instead. What
concerns a deprivileged guest, too, is decided for it by the VMM, not here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from emu86.cpu import offsets
from emu86.cpu.state import HFLAGS, RFLAGS, RIP, SELECTOR
from emu86.rings import operand
from emu86.rings.fault import GuestFault, gp, undefined
from emu86.rings.insn import lazy_flags, msr, port_io
from emu86.rings.insn.flag_states import SETCC
from emu86.rings.insn.privileged import read_dr, write_dr
from emu86.rings.insn.table import RECORDS, find, of_later_cpus
from emu86.rings.insn.transfer import return_target
from emu86.rings.stack import Stack
from emu86.rings.technique.base import check_cr0
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.rings.decode import Insn
    from emu86.rings.technique.bare import Bare

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
    act: "Callable[[Bare, Insn], bool]"


def _port(bare: "Bare", insn: "Insn") -> bool:
    port_io.check(bare, insn)
    return False


def _msr(bare: "Bare", insn: "Insn") -> bool:
    if bare.segments.cpl and insn.opcode != _RDPMC:
        raise gp(0)
    {_RDMSR: msr.rdmsr, _WRMSR: msr.wrmsr, _RDPMC: msr.rdpmc}[insn.opcode](bare, insn)
    return _done(bare, insn)


_WRMSR, _RDMSR, _RDPMC = 0x0F30, 0x0F32, 0x0F33


def _smsw(bare: "Bare", insn: "Insn") -> bool:
    if insn.reg != _SMSW or insn.memory or insn.size == 2:
        return False
    operand.set_register(bare, insn.rm, bare.vcpu.cr0, 4)
    return _done(bare, insn)


_SMSW: Final = 4


def _ltr(bare: "Bare", insn: "Insn") -> bool:
    loads = insn.reg == _LTR and not bare.segments.cpl
    if loads and not operand.read_rm(bare, insn, 2) & 0xFFFC:
        raise gp(0)
    return False


_LTR: Final = 3


def _to_cr(bare: "Bare", insn: "Insn") -> bool:
    value = bare.q[insn.rm] & x86.MASK32
    if bare.segments.cpl:
        return False
    if insn.reg == 0:
        check_cr0(value)
        if not value & x86.CR0_PE:
            bare.unsupported("real mode (CR0.PE cleared)")
            return True
    elif insn.reg == 4 and value & ~bare.vcpu.model.cr4_defined:
        raise gp(0)
    return False


def _dr(bare: "Bare", insn: "Insn") -> bool:
    if bare.segments.cpl:
        return False
    {_FROM_DR: read_dr, _TO_DR: write_dr}[insn.opcode](bare, insn)
    return _done(bare, insn)


_FROM_DR, _TO_DR = 0x0F21, 0x0F23


def _undefined(_bare: "Bare", _insn: "Insn") -> bool:
    raise undefined()


def _locked(_bare: "Bare", insn: "Insn") -> bool:
    record = find(insn)
    if insn.lock and record is not None and not record.lock:
        raise undefined()
    return False


def _with_register(_bare: "Bare", insn: "Insn") -> bool:
    if not insn.memory:
        raise undefined()
    return False


def _far_return(bare: "Bare", insn: "Insn") -> bool:
    if insn.immediate & 0x8000:
        bare.unsupported("RET far that releases 8000h bytes or more")
        return True
    # In virtual-8086 mode the engine's two words do not wrap with SP.
    top = bare.q[x86.ESP] & 0xFFFF
    if bare.q[RFLAGS] & x86.VM and top + 2 * insn.size > 1 << 16:
        bare.unsupported("RET far over the end of the stack segment")
        return True
    return False


def _written(bare: "Bare", insn: "Insn") -> bool:
    record = find(insn)
    if record is not None and record.memory:
        linear = operand.address(bare, insn)
        operand.translate(bare, linear, lazy_flags.width(insn), write=True)
    return False


def _user_return(bare: "Bare", insn: "Insn") -> bool:
    virtual_8086 = bare.q[RFLAGS] & x86.VM
    nested = insn.opcode == _IRET and bare.q[RFLAGS] & x86.NT and not virtual_8086
    traps = insn.opcode == _IRET and virtual_8086 and bare.iopl < x86.CPL_USER
    # VM is taken at any CPL; the stack's rights are the kernel's at CPL 1 and 2 anyhow.
    if bare.segments.cpl and not nested and not traps:
        stack = Stack(bare)
        for i in range(3 if insn.opcode == _IRET else 2):
            image = stack.peek(i * insn.size, insn.size)
        if insn.opcode == _IRET and image & x86.VM and not virtual_8086:
            bare.unsupported("IRET of a user with VM set")
            return True
    return False


_IRET: Final = 0xCF


def _return_beyond(bare: "Bare", insn: "Insn") -> bool:
    """Look at the limit where the engine's returns do not."""
    virtual_8086 = bare.q[RFLAGS] & x86.VM
    is_iret = insn.opcode == _IRET
    traps, nested = bare.iopl < x86.CPL_USER, bare.q[RFLAGS] & x86.NT
    if is_iret and (traps if virtual_8086 else nested):
        return False
    stack = Stack(bare)
    size = insn.size
    eip, selector = stack.peek(0, size), stack.peek(size, size) & 0xFFFF
    if virtual_8086:
        if eip > x86.V86_LIMIT:
            raise gp(0)
        return False
    if is_iret and size == 4 and stack.peek(8, 4) & x86.VM and not bare.segments.cpl:
        return False
    try:
        found = return_target(bare, selector)
        if selector & 3 > bare.segments.cpl:
            at = size * (3 if is_iret else 2) + insn.immediate
            ss = stack.peek(at + size, size) & 0xFFFF
            bare.segments.check_stack(ss, selector & 3, x86.VEC_GP)
    except GuestFault:
        return False  # the engine finds it, too
    found.check_limit(eip)
    return False


def _to_virtual_8086(bare: "Bare", insn: "Insn") -> bool:
    if bare.segments.cpl or insn.size == 2 or bare.q[RFLAGS] & x86.NT:
        return False
    stack = Stack(bare)
    if stack.peek(8, 4) & x86.VM and stack.peek(0, 4) > x86.V86_LIMIT:
        raise gp(0)
    return False


def _pushfd(bare: "Bare", insn: "Insn") -> bool:
    virtual_8086 = bare.q[RFLAGS] & x86.VM
    if not virtual_8086 or insn.size == 2 or bare.iopl < x86.CPL_USER:
        return False
    stack = Stack(bare)
    stack.push(bare.guest_flags() & ~(x86.VM | x86.RF), 4)
    stack.commit()
    return _done(bare, insn)


def _user_call(bare: "Bare", insn: "Insn") -> bool:
    pointer = far_pointer(bare, insn)
    jumps = insn.opcode == _JMP or (insn.opcode == _INDIRECT and insn.reg == _JMP_REG)
    if pointer is None or bare.segments.cpl != x86.CPL_USER or jumps:
        return False
    if bare.q[RFLAGS] & x86.VM:
        if pointer[1] > x86.V86_LIMIT:
            raise gp(0)
    else:
        try:
            found = bare.segments.check_code(pointer[0], x86.CPL_USER)
            found.check_limit(pointer[1])
        except GuestFault:
            return False  # the engine finds it, too, and first
    stack = Stack(bare)
    # As the engine, which pushes both again if both can be.
    stack.push(bare.d[SELECTOR[x86.CS]], insn.size)
    stack.push(bare.q[RIP] + insn.length, insn.size)
    return False


_CALL, _JMP, _INDIRECT = 0x9A, 0xEA, 0xFF
_CALL_REG, _JMP_REG = 3, 5  # ModRM.reg


def is_far_jump(insn: "Insn") -> bool:
    """Tell whether it is a far JMP or CALL."""
    if insn.opcode == _INDIRECT:
        return insn.memory and insn.reg in (_CALL_REG, _JMP_REG)
    return insn.opcode in (_CALL, _JMP)


def far_pointer(bare: "Bare", insn: "Insn") -> tuple[int, int] | None:
    """Return selector and offset of a far JMP or CALL; None if it is none."""
    if not is_far_jump(insn):
        return None
    if insn.opcode != _INDIRECT:
        return insn.selector, insn.immediate
    where = operand.address(bare, insn)
    offset = operand.read(bare, where, insn.size)
    return operand.read(bare, where + insn.size, 2), offset


def _later(_bare: "Bare", insn: "Insn") -> bool:
    if of_later_cpus(insn):
        raise undefined()
    return False


def _icebp(bare: "Bare", insn: "Insn") -> bool:
    _done(bare, insn)
    raise GuestFault(x86.VEC_DB)


def _done(bare: "Bare", insn: "Insn") -> bool:
    bare.d[HFLAGS] &= ~offsets.HF_INHIBIT_IRQ  # the shadow of the STI before it
    bare.q[RIP] = (bare.q[RIP] + insn.length) & x86.MASK32
    return True


ERRATA: Final = (
    Erratum(
        frozenset(opcode for record in RECORDS for opcode in record.opcodes),
        "some take a LOCK prefix, or look at the privilege first", "#UD",
        "Vol. 2A LOCK", _locked,
    ),
    Erratum(
        frozenset({0x0F05, 0x0F07, 0x0F34, 0x0F35}),
        "SYSCALL, SYSRET, SYSENTER, SYSEXIT are there, or skipped",
        "#UD: in no CPU model", "Vol. 2B SYSENTER", _undefined,
    ),
    Erratum(
        frozenset({0xC4, 0xC5}), "LES and LDS of a register are VEX prefixes", "#UD",
        "Vol. 2A LDS", _with_register,
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
        frozenset({0x0F01}), "MONITOR, XGETBV, SWAPGS and others are there", "#UD",
        "Vol. 2D XGETBV", _later,
    ),
    Erratum(
        frozenset({0x0FC7}), "RDRAND and RDSEED give what the host has", "#UD",
        "Vol. 2B RDRAND", _later,
    ),
    Erratum(
        frozenset({0xF1}), "INT1 is #UD", "#DB, as a trap", "Vol. 2A INT n", _icebp,
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
        "#GP(0): PG without PE, NW without CD, reserved bits of CR4",
        "Vol. 2B MOV to CR", _to_cr,
    ),
)  # fmt: skip
