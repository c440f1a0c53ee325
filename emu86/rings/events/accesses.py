"""Which memory an instruction is about to read or write: SDM Vol. 2.

Data breakpoints ask for it (`breakpoints`), because the engine's own never fire. It is
what the instruction itself does: what the delivery of an event, a segment load or a
far transfer to another stack reads and writes besides is not told. Nor is MASKMOVQ.
"""

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from emu86.mmu.paging import is_canonical
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.spec import x86
from emu86.spec.opcodes import REP

XLAT: Final = 0xD7
_MOVD: Final = 0x0F7E
_POPA, _ENTER, _LEAVE, _POP_RM = 0x61, 0xC8, 0xC9, 0x8F
_BOUND, _GROUP7 = 0x62, 0x0F01
_FXSAVE: Final = (512, 512)
_EXTENDED: Final = 10  # bytes
_WIDEST: Final = 16  # bytes of a plain operand
_NOT_ESP: Final = (0, 1, 2, 4, 5, 6, 7)  # of the eight registers that POPA pops


class Access(NamedTuple):
    """Bytes of memory: linear address, how many, whether they are written; by what.

    segment: the register that they are reached by; aligned: what their address must be
    a multiple of where alignment is checked (Vol. 3A table 6-7).
    """

    linear: int
    size: int
    write: bool
    segment: int
    aligned: int


def accesses(cpu: Cpu, insn: Insn) -> Iterator[Access]:
    """Tell of the accesses of `insn`, which stands at CS:EIP.

    Of a repeated one, those of the round that comes next.
    """
    opcode, spec = insn.opcode, insn.spec
    if spec.is_string:
        yield from _string(cpu, insn)
        return
    if spec.immediate == "o":
        where = operand.base(cpu, insn.segment) + insn.immediate
        size = insn.size if opcode & 1 else 1
        yield _access(cpu, insn.segment, where, size, write=spec.memory == "w")
    elif opcode == XLAT:
        mask = _mask(insn.address_size)
        at = (cpu.q[x86.EBX] + (cpu.q[x86.EAX] & 0xFF)) & mask
        where = operand.base(cpu, insn.segment) + at
        yield _access(cpu, insn.segment, where, 1, write=False)
    elif insn.memory and spec.memory:
        where = operand.linear_address(cpu, insn)
        if spec.bit_string:
            bit = cpu.q[insn.reg] & _mask(insn.size)
            bit -= (bit >> 8 * insn.size - 1) << 8 * insn.size
            where += bit // (8 * insn.size) * insn.size
        elif opcode == _POP_RM and insn.base == x86.ESP:
            where += insn.size  # it is computed after the pop
        to_xmm = opcode == _MOVD and insn.rep == REP  # MOVQ
        write = "w" in spec.memory and not to_xmm
        size = _size(insn, cpu.code_bits)
        found = _access(cpu, insn.segment, where, size, write=write)
        yield found._replace(aligned=_alignment(insn, size))
    yield from _stack(cpu, insn)


def check_canonical(cpu: Cpu, insn: Insn) -> None:
    """Raise #GP(0) or #SS(0) for the first access of 64-bit code that needs it."""
    for access in accesses(cpu, insn):
        operand.check_canonical(cpu, access.linear, access.size, access.segment)


def may_not_be_canonical(linear: int) -> bool:
    """Tell whether an access at a linear address may have bytes that are not canonical.

    Such an access is no page fault, wherever its first bytes are.
    """
    last = linear + _FXSAVE[0] & x86.MASK64
    return not (is_canonical(linear) and is_canonical(last))


def _access(cpu: Cpu, segment: int, linear: int, size: int, *, write: bool) -> Access:
    return Access(linear & cpu.address_mask, size, write, segment, size)


def _alignment(insn: Insn, size: int) -> int:
    """Return what the address of a ModRM operand must be a multiple of."""
    if insn.opcode == _GROUP7 or size > _WIDEST:
        return 1 if insn.spec.sizes == _FXSAVE or insn.opcode == _GROUP7 else insn.size
    if insn.spec.sizes or insn.opcode == _BOUND:
        return insn.size
    return 8 if size == _EXTENDED else size


def _mask(size: int) -> int:
    return (1 << 8 * size) - 1


def _string(cpu: Cpu, insn: Insn) -> Iterator[Access]:
    q, mask = cpu.q, _mask(insn.address_size)
    if insn.rep and not q[x86.ECX] & mask:
        return
    size = insn.size if insn.opcode & 1 else 1
    if insn.spec.source:
        where = operand.base(cpu, insn.segment) + (q[x86.ESI] & mask)
        yield _access(cpu, insn.segment, where, size, write=False)
    if insn.spec.target:
        where = operand.base(cpu, x86.ES) + (q[x86.EDI] & mask)
        yield _access(cpu, x86.ES, where, size, write=insn.spec.target == "w")


def _stack(cpu: Cpu, insn: Insn) -> Iterator[Access]:
    q, size, opcode = cpu.q, insn.size, insn.opcode
    mask, base = _mask(cpu.stack_bits // 8), operand.base(cpu, x86.SS)
    pushed, popped = insn.spec.pushes, insn.spec.pops
    top = q[x86.EBP] if opcode == _LEAVE else q[x86.ESP]
    if opcode == _ENTER:
        level = insn.immediate >> 16 & 31
        pushed += level
        for i in range(1, level):
            where = base + (q[x86.EBP] - size * i & mask)
            yield _access(cpu, x86.SS, where, size, write=False)
    for i in range(1, pushed + 1):
        where = base + (top - size * i & mask)
        yield _access(cpu, x86.SS, where, size, write=True)
    for i in range(popped) if opcode != _POPA else _NOT_ESP:
        where = base + (top + size * i & mask)
        yield _access(cpu, x86.SS, where, size, write=False)


class MemoryOperand(NamedTuple):
    """An operand in memory as Capstone tells of it: bytes, and what is done to it."""

    size: int
    read: bool
    write: bool


@cache
def _disassembler(bits: int) -> Any:  # noqa: ANN401 - Capstone has no types
    import capstone  # noqa: PLC0415 - it takes long, and few guests need it

    modes = {
        16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64,
    }  # fmt: skip
    made = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    made.detail = True
    return made


def memory_operands(code: bytes, bits: int) -> Iterator[MemoryOperand]:
    """Tell of the operands in memory of the instruction at the start of `code`."""
    import capstone  # noqa: PLC0415 - as above

    for insn in _disassembler(bits).disasm(code, 0, 1):
        for op in insn.operands:
            if op.type == capstone.x86.X86_OP_MEM:
                read = bool(op.access & capstone.CS_AC_READ)
                write = bool(op.access & capstone.CS_AC_WRITE)
                yield MemoryOperand(op.size, read, write)


def _size(insn: Insn, bits: int) -> int:
    """Return the bytes of the operand in memory."""
    if insn.spec.sizes:
        return insn.spec.sizes[insn.size >> 2]
    return _told_size(insn.code, bits) or insn.size


@lru_cache(4096)
def _told_size(code: bytes, bits: int) -> int:
    return next((found.size for found in memory_operands(code, bits)), 0)
