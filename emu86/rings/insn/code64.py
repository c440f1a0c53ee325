"""Instructions that the engine has wrong in 64-bit code alone; patched there.

On a CPU none of them is sensitive. Compilers make hardly any of them. Where the engine
is right for AMD's CPUs, and wrong for Intel's, the CPU models are Intel's.
"""

from typing import Final

from emu86.cpu.state import RIP
from emu86.native.setcc import holds
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.insn.record import Record
from emu86.rings.stack import Stack
from emu86.spec import x86
from emu86.spec.opcodes import REX_W

_AH: Final = 0xFF00
_IN_AH: Final = x86.CF | x86.PF | x86.AF | x86.ZF | x86.SF
_SAHF: Final = 0x9E
_SHLD, _SHRD = (0x0FA4,), (0x0FAC,)
_CMPXCHG: Final = 0x0FB1
_CALL, _CALL_RM, _INDIRECT, _RET_IW = 0xE8, 2, 0xFF, 0xC2
_RETURNS: Final = (_RET_IW, 0xC3)
_LOOP, _JCXZ = 0xE2, 0xE3
_JCC, _JCC_NEAR = range(0x70, 0x80), range(0x0F80, 0x0F90)


def _has_rex(insn: Insn) -> bool:
    return bool(insn.rex)


def _lahf(cpu: Cpu, insn: Insn) -> None:
    q, flags = cpu.q, cpu.state.flags()
    if insn.opcode == _SAHF:
        cpu.state.set_flags(flags & ~_IN_AH | q[x86.EAX] >> 8 & _IN_AH)
    else:
        q[x86.EAX] = q[x86.EAX] & ~_AH | (flags & _IN_AH | x86.FLAGS_FIXED) << 8


def _is_relative(insn: Insn) -> bool:
    return insn.memory and insn.base == x86.RIP


def _shift_double(cpu: Cpu, insn: Insn) -> None:
    size = insn.size
    bits = 8 * size
    mask = (1 << bits) - 1
    linear = operand.address(cpu, insn, size)
    operand.translate(cpu, linear, size, write=True)
    count = insn.immediate & (0x3F if size == 8 else 0x1F)
    if not count:
        return
    before, source = operand.read(cpu, linear, size), cpu.q[insn.reg] & mask
    # Of more than 16 bits by more than 16 all is undefined; here it comes round.
    if insn.opcode in _SHLD:
        whole = (before << bits | source) << bits | before
        after = whole << count >> 2 * bits & mask
        carry = whole >> 3 * bits - count & 1
    else:
        whole = (before << bits | source) << bits | before
        after = whole >> count & mask
        carry = whole >> count - 1 & 1
    operand.write(cpu, linear, after, size)
    flags = cpu.state.flags() & ~(_IN_AH | x86.OF) | carry * x86.CF
    if (before ^ after) >> bits - 1:
        flags |= x86.OF  # undefined but for a count of 1
    cpu.state.set_flags(flags | _of_result(after, size))


def _of_result(value: int, size: int) -> int:
    """Return ZF, SF and PF of a result."""
    flags = 0 if value else x86.ZF
    if value >> 8 * size - 1:
        flags |= x86.SF
    return flags if (value & 0xFF).bit_count() & 1 else flags | x86.PF


def _is_of_registers(insn: Insn) -> bool:
    return insn.code64 and insn.size == 4 and not insn.memory


def _compare_exchange(cpu: Cpu, insn: Insn) -> None:
    q = cpu.q
    one, other = q[x86.EAX] & x86.MASK32, q[insn.rm] & x86.MASK32
    result = one - other & x86.MASK32
    flags = cpu.state.flags() & ~(_IN_AH | x86.OF) | _of_result(result, 4)
    flags |= x86.CF if one < other else 0
    flags |= (one ^ other ^ result) & x86.AF
    flags |= x86.OF if ((one ^ other) & (one ^ result)) >> 31 else 0
    if result:
        q[x86.EAX] = other
    else:
        q[insn.rm] = q[insn.reg] & x86.MASK32
    cpu.state.set_flags(flags)


def _is_of_16_bits(insn: Insn) -> bool:
    return insn.code64 and insn.size == 2


def _move_16(cpu: Cpu, insn: Insn) -> None:
    operand.set_register(cpu, insn.reg, operand.read_rm(cpu, insn, 2), 2)


def is_narrowed(insn: Insn) -> bool:
    """Tell of near branches that to the engine have 16 bits."""
    near = insn.code64 and insn.spec.operands64 == "f64"
    return near and insn.size_prefix and not insn.rex & REX_W and insn.spec.transfers


def _branch(cpu: Cpu, insn: Insn) -> bool:
    after = cpu.next_eip(insn.length)
    opcode, stack = insn.opcode, Stack(cpu)
    if opcode in _RETURNS:
        target = stack.peek(0, 8)
        stack.drop(8 + (insn.immediate if opcode == _RET_IW else 0))
    elif opcode == _INDIRECT:
        target = operand.read_rm(cpu, insn, 8)
    else:
        bits = 32 if insn.spec.immediate == "z" else 8
        distance = insn.immediate - (insn.immediate >> bits - 1 << bits)
        target = after + distance & x86.MASK64
    count = cpu.q[x86.ECX] & (1 << 8 * insn.address_size) - 1
    if not _is_taken(cpu, opcode, count):
        target = after
    operand.check_canonical(cpu, target, 1, x86.CS)
    if opcode == _CALL or (opcode == _INDIRECT and insn.reg == _CALL_RM):
        stack.push(after, 8)
    if opcode == _LOOP:
        operand.set_register(cpu, x86.ECX, count - 1, insn.address_size)
    stack.commit()
    cpu.q[RIP] = target
    return True


def _is_taken(cpu: Cpu, opcode: int, count: int) -> bool:
    if opcode in _JCC or opcode in _JCC_NEAR:
        return holds(opcode & 15, cpu.state.flags())
    if opcode == _JCXZ:
        return not count
    return opcode != _LOOP or count != 1


_PATCH: Final = "a patch in 64-bit code: it does not trap"
_BOTH: Final = (1, 3)
_64: Final = (64,)

RECORDS: Final = (
    Record(
        "LAHF/SAHF with REX", "REX 9F, REX 9E", (0x9E, 0x9F), "sensitive", _PATCH,
        _lahf, "Vol. 2A LAHF",
        "Not sensitive on a CPU. Behind a REX prefix the engine takes SPL for AH.",
        patched=_BOTH, only=_has_rex, modes=_64,
    ),
    Record(
        "SHLD/SHRD relative to RIP", "0F A4 /r ib, 0F AC /r ib", (*_SHLD, *_SHRD),
        "sensitive", _PATCH, _shift_double, "Vol. 2B SHLD",
        "Not sensitive on a CPU. With an immediate and an operand relative to RIP the"
        " engine is one byte too low.",
        patched=_BOTH, memory=True, only=_is_relative, modes=_64,
    ),
    Record(
        "CMPXCHG of registers", "0F B1 /r", (_CMPXCHG,), "sensitive", _PATCH,
        _compare_exchange, "Vol. 2A CMPXCHG",
        "Not sensitive on a CPU. Of two registers of 32 bits, in 64-bit code, the"
        " engine clears the upper half of one that it does not write.",
        patched=_BOTH, registers=True, only=_is_of_registers, modes=_64,
    ),
    Record(
        "MOVSXD of 16 bits", "66 63 /r", (0x63,), "sensitive", _PATCH, _move_16,
        "Vol. 2B MOVSX/MOVSXD",
        "Not sensitive on a CPU. The engine reads 32 bits of memory, as AMD's CPUs do;"
        " Intel's read 16.",
        patched=_BOTH, narrow=True, only=_is_of_16_bits, modes=_64,
    ),
    Record(
        "near branch with 66h", "66 E8, 66 E9, 66 0F 8x and others",
        (
            *_JCC, *_JCC_NEAR, *_RETURNS, _LOOP, _JCXZ, _CALL, 0xE9, 0xEB,
            _INDIRECT,
        ),
        "sensitive", _PATCH, _branch, "Vol. 2D table A-2 (f64)",
        "Not sensitive on a CPU. In 64-bit code the engine goes to 16 bits of an"
        " address, as AMD's CPUs do; Intel's ignore the prefix.",
        patched=_BOTH, narrow=True, only=is_narrowed, modes=_64,
    ),
)  # fmt: skip
