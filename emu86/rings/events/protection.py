"""What segments and alignment forbid an instruction: SDM Vol. 3A 5.3 to 5.5 and 6.15.

The engine looks at no limit and no right of a segment that is loaded, nor whether one
is loaded at all, nor at alignment. So an instruction that may come to harm is looked at
before it runs: of a deprivileged guest where `technique.segment_checks` says so.
"""

from collections.abc import Iterator

from emu86.cpu.state import ATTRIBUTES, BASE, LIMIT, RFLAGS, RIP
from emu86.native.setcc import holds
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.descriptor import exceeds, is_flat
from emu86.rings.events.accesses import XLAT, Access, accesses
from emu86.rings.fault import GuestFault, gp
from emu86.rings.stack import Stack
from emu86.spec import x86

_CALL, _JMP_RM, _INDIRECT = 0xE8, 4, 0xFF
_CALL_RM = 2
_RETURNS = (0xC2, 0xC3)
_JCC, _JCC_NEAR = range(0x70, 0x80), range(0x0F80, 0x0F90)
_LOOPNE, _LOOPE, _LOOP, _JCXZ = range(0xE0, 0xE4)
_ALWAYS = (_CALL, 0xE9, 0xEB)


def segments(insn: Insn) -> Iterator[int]:
    """Tell of the segment registers that an instruction reaches memory by."""
    spec = insn.spec
    if (
        spec.source
        or (insn.memory and spec.memory)
        or spec.immediate == "o"
        or insn.opcode == XLAT
    ):
        yield insn.segment
    if spec.target:
        yield x86.ES
    if spec.pushes or spec.pops:
        yield x86.SS


def stores_to_code(insn: Insn) -> bool:
    """Tell whether an instruction writes by CS, which protected mode never allows."""
    by_cs = insn.segment == x86.CS and (insn.memory or insn.spec.immediate == "o")
    return by_cs and "w" in insn.spec.memory


def is_direct(insn: Insn) -> bool:
    """Tell whether it is a near JMP, CALL, Jcc, LOOP or JCXZ with its target in it."""
    opcode = insn.opcode
    kinds = (_JCC, _JCC_NEAR, range(_LOOPNE, _JCXZ + 1))
    return opcode in _ALWAYS or any(opcode in kind for kind in kinds)


def is_indirect(insn: Insn) -> bool:
    """Tell whether it is a near RET, JMP or CALL whose target only its run tells."""
    if insn.opcode == _INDIRECT:
        return insn.reg in (_CALL_RM, _JMP_RM)
    return insn.opcode in _RETURNS


def direct_target(insn: Insn, eip: int) -> int:
    """Return where a direct branch at `eip` goes if it is taken."""
    bits = 8 * (min(insn.size, 4) if insn.spec.immediate == "z" else 1)
    distance = insn.immediate - (insn.immediate >> bits - 1 << bits)
    return eip + insn.length + distance & (1 << 8 * insn.size) - 1


def checks_alignment(cpu: Cpu) -> bool:
    """Tell whether #AC is on: CR0.AM, EFLAGS.AC, CPL 3."""
    on = cpu.q[RFLAGS] & x86.AC and cpu.vcpu.cr0 & x86.CR0_AM
    return bool(on) and cpu.cpl == x86.CPL_USER


def check(cpu: Cpu, insn: Insn) -> None:
    """Raise #GP(0), #SS(0) or #AC(0), if `insn`, at CS:EIP, has one coming.

    Of a repeated string instruction it is its next round.
    """
    if insn.lock and not insn.spec.lock:
        return  # #UD
    d = cpu.d
    by_segment = not cpu.has_paragraphs and cpu.code_bits != 64
    if by_segment and d[LIMIT[x86.CS]] != x86.MASK32:
        _check_code(cpu, insn)
    by_segment = by_segment and (
        stores_to_code(insn)
        or any(not is_flat(d[LIMIT[i]], d[ATTRIBUTES[i]]) for i in segments(insn))
    )
    aligned = checks_alignment(cpu)
    if not (by_segment or aligned):
        return
    found = [*accesses(cpu, insn)]
    if by_segment:
        for access in found:
            _check_segment(cpu, access)
    if aligned and any(access.linear % access.aligned for access in found):
        raise GuestFault(x86.VEC_AC, 0)


def _check_segment(cpu: Cpu, access: Access) -> None:
    index = access.segment
    limit, attributes = cpu.d[LIMIT[index]], cpu.d[ATTRIBUTES[index]]
    if index == x86.SS and not attributes & x86.DESC_P:
        return  # where a task switch has failed: see `Stack`
    offset = access.linear - cpu.q[BASE[index]] & x86.MASK32
    if access.write:
        needed = x86.DESC_P | x86.DESC_RW
        allowed = attributes & (needed | x86.DESC_CODE) == needed
    else:
        allowed = bool(attributes & x86.DESC_P)
        if attributes & x86.DESC_CODE:
            allowed &= bool(attributes & x86.DESC_RW)
    if not allowed or exceeds(limit, attributes, offset, access.size):
        raise GuestFault(x86.VEC_SS if index == x86.SS else x86.VEC_GP, 0)


def _check_code(cpu: Cpu, insn: Insn) -> None:
    """Look at the code's limit: the instruction lies within, and where it goes."""
    limit = cpu.d[LIMIT[x86.CS]]
    eip = cpu.q[RIP] & x86.MASK32
    if eip + insn.length - 1 > limit:
        raise gp(0)
    if is_direct(insn):
        target = direct_target(insn, eip)
        if target > limit and _is_taken(cpu, insn):
            raise gp(0)
    elif is_indirect(insn) and _indirect_target(cpu, insn) > limit:
        raise gp(0)


def _is_taken(cpu: Cpu, insn: Insn) -> bool:
    opcode = insn.opcode
    if opcode in _ALWAYS:
        return True
    flags = cpu.services.guest_flags()
    if opcode in _JCC or opcode in _JCC_NEAR:
        return holds(opcode & 15, flags)
    count = cpu.q[x86.ECX] & (1 << 8 * insn.address_size) - 1
    if opcode == _JCXZ:
        return not count
    if count == 1:
        return False
    return opcode == _LOOP or bool(flags & x86.ZF) == (opcode == _LOOPE)


def _indirect_target(cpu: Cpu, insn: Insn) -> int:
    if insn.opcode in _RETURNS:
        return Stack(cpu).peek(0, insn.size)
    return operand.read_rm(cpu, insn, insn.size)
