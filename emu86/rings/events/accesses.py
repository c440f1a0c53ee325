"""Which memory an instruction is about to read or write: SDM Vol. 2.

Data breakpoints ask for it (`breakpoints`), because the engine's own never fire. It is
what the instruction itself does: what the delivery of an event, a segment load or a
far transfer to another stack reads and writes besides is not told. Nor is MASKMOVQ.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import capstone
from capstone import x86 as cs_x86

from emu86.cpu.state import BASE
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.insn.flag_states import is_read_to_write
from emu86.spec import x86

_ANY: Final = frozenset(range(8))  # of ModRM.reg
# What writes its memory operand without reading it, by opcode: ModRM.reg.
_STORES: Final = {
    **dict.fromkeys((0x63, 0x88, 0x89, 0x8C, 0x8F, 0xC6, 0xC7), _ANY),
    **dict.fromkeys((*range(0x0F90, 0x0FA0), 0x0F11, 0x0F13, 0x0F17, 0x0F29), _ANY),
    **dict.fromkeys((0x0F2B, 0x0F7E, 0x0F7F, 0x0FC3, 0x0FD6, 0x0FE7), _ANY),
    0xD9: {2, 3, 6, 7}, 0xDB: {1, 2, 3, 7}, 0xDD: {1, 2, 3, 6, 7},
    0xDF: {1, 2, 3, 6, 7}, 0x0F00: {0, 1}, 0x0F01: {0, 1, 4}, 0x0FAE: {0, 3},
}  # fmt: skip
# What has a memory operand and leaves it alone: LEA, prefetches, INVLPG, CLFLUSH.
_UNTOUCHED: Final = {
    0x8D: _ANY, 0x0F0D: _ANY, **dict.fromkeys(range(0x0F18, 0x0F20), _ANY),
    0x0F01: {7}, 0x0FAE: {5, 6, 7},
}  # fmt: skip
_OFFSETS: Final = range(0xA0, 0xA4)  # MOV from and to an address in the code
_POINTERS: Final = {0xC4: _ANY, 0xC5: _ANY, 0xFF: {3, 5}} | dict.fromkeys(
    (0x0FB2, 0x0FB4, 0x0FB5), _ANY
)
_BIT_TESTS: Final = (0x0FA3, 0x0FAB, 0x0FB3, 0x0FBB)  # by a register: any bit string
_XLAT: Final = 0xD7
_MOVD: Final = 0x0F7E
_REPE: Final = 0xF3
# Strings: whether the source is read, and whether the destination is written, if used.
_SOURCE, _READ, _WRITTEN = 1, 2, 4
STRINGS: Final = {
    0x6C: _WRITTEN, 0x6E: _SOURCE, 0xA4: _SOURCE | _WRITTEN, 0xA6: _SOURCE | _READ,
    0xAA: _WRITTEN, 0xAC: _SOURCE, 0xAE: _READ,
}  # fmt: skip
# The stack, in operands of the instruction's size.
_PUSHED: Final = {
    **dict.fromkeys((*range(0x50, 0x58), 0x06, 0x0E, 0x16, 0x1E, 0x68, 0x6A), 1),
    **dict.fromkeys((0x9C, 0xE8, 0x0FA0, 0x0FA8), 1), 0x9A: 2, 0x60: 8,
}  # fmt: skip
_PUSHED_FF: Final = {2: 1, 3: 2, 6: 1}  # by ModRM.reg
_POPPED: Final = {
    **dict.fromkeys((*range(0x58, 0x60), 0x07, 0x17, 0x1F, 0x8F, 0x9D), 1),
    **dict.fromkeys((0xC2, 0xC3, 0x0FA1, 0x0FA9), 1), 0xCA: 2, 0xCB: 2, 0xCF: 3,
}  # fmt: skip
_POPA, _ENTER, _LEAVE, _POP_RM = 0x61, 0xC8, 0xC9, 0x8F
# Sizes that Capstone does not tell: of the FPU's environment and state, by operand
# size, and of FXSAVE.
_ENVIRONMENT, _STATE = {2: 14, 4: 28}, {2: 94, 4: 108}
_FXSAVE: Final = 512


class Access(NamedTuple):
    """Bytes of memory: linear address, how many, whether they are written."""

    linear: int
    size: int
    write: bool


def accesses(cpu: Cpu, insn: Insn, code: bytes) -> Iterator[Access]:
    """Tell of the accesses of `insn`, which stands at CS:EIP as `code`.

    Of a repeated one, those of the round that comes next.
    """
    opcode = insn.opcode
    if opcode & ~1 in STRINGS:
        yield from _string(cpu, insn)
        return
    if opcode in _OFFSETS:
        where = cpu.q[BASE[insn.segment]] + insn.immediate
        yield _access(where, insn.size if opcode & 1 else 1, write=bool(opcode & 2))
    elif opcode == _XLAT:
        mask = _mask(insn.address_size)
        at = (cpu.q[x86.EBX] + (cpu.q[x86.EAX] & 0xFF)) & mask
        yield _access(cpu.q[BASE[insn.segment]] + at, 1, write=False)
    elif insn.memory and insn.reg not in _UNTOUCHED.get(opcode, ()):
        where = operand.address(cpu, insn)
        if opcode in _BIT_TESTS:
            bit = cpu.q[insn.reg] & _mask(insn.size)
            bit -= (bit >> 8 * insn.size - 1) << 8 * insn.size
            where += bit // (8 * insn.size) * insn.size
        elif opcode == _POP_RM and insn.base == x86.ESP:
            where += insn.size  # it is computed after the pop
        stores = insn.reg in _STORES.get(opcode, ())
        if opcode == _MOVD and insn.rep == _REPE:
            stores = False  # MOVQ to an XMM register
        write = stores or is_read_to_write(insn)
        yield _access(where, _size(insn, code, cpu.code_bits), write=write)
    yield from _stack(cpu, insn)


def _access(linear: int, size: int, *, write: bool) -> Access:
    return Access(linear & x86.MASK32, size, write)


def _mask(size: int) -> int:
    return (1 << 8 * size) - 1


def _string(cpu: Cpu, insn: Insn) -> Iterator[Access]:
    q, mask = cpu.q, _mask(insn.address_size)
    if insn.rep and not q[x86.ECX] & mask:
        return
    size = insn.size if insn.opcode & 1 else 1
    what = STRINGS[insn.opcode & ~1]
    if what & _SOURCE:
        where = q[BASE[insn.segment]] + (q[x86.ESI] & mask)
        yield _access(where, size, write=False)
    if what & (_READ | _WRITTEN):
        where = q[BASE[x86.ES]] + (q[x86.EDI] & mask)
        yield _access(where, size, write=bool(what & _WRITTEN))


def _stack(cpu: Cpu, insn: Insn) -> Iterator[Access]:
    q, size, opcode = cpu.q, insn.size, insn.opcode
    mask, base, esp = _mask(cpu.stack_bits // 8), q[BASE[x86.SS]], q[x86.ESP]
    pushed = _PUSHED.get(opcode, 0)
    if opcode == 0xFF:
        pushed = _PUSHED_FF.get(insn.reg, 0)
    elif opcode == _ENTER:
        level = insn.immediate >> 16 & 31
        pushed = level + 1
        for i in range(1, level):
            yield _access(base + (q[x86.EBP] - size * i & mask), size, write=False)
    elif opcode == _LEAVE:
        yield _access(base + (q[x86.EBP] & mask), size, write=False)
    for i in range(1, pushed + 1):
        yield _access(base + (esp - size * i & mask), size, write=True)
    popped = range(_POPPED.get(opcode, 0))
    for i in popped if opcode != _POPA else (0, 1, 2, 4, 5, 6, 7):
        yield _access(base + (esp + size * i & mask), size, write=False)


def _detailed(mode: int) -> capstone.Cs:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    decoder.detail = True
    return decoder


# Decoders that tell of operands, by the size of the code.
DETAILED: Final = {
    32: _detailed(capstone.CS_MODE_32), 16: _detailed(capstone.CS_MODE_16)
}  # fmt: skip


def _size(insn: Insn, code: bytes, bits: int) -> int:
    """Return the bytes of the operand in memory."""
    opcode, reg = insn.opcode, insn.reg
    if reg in _POINTERS.get(opcode, ()):
        return insn.size + 2
    if opcode == 0xD9 and reg in (4, 6):
        return _ENVIRONMENT[insn.size]
    if opcode == 0xDD and reg in (4, 6):
        return _STATE[insn.size]
    if opcode == 0x0FAE and reg < 2:
        return _FXSAVE
    for found in DETAILED[bits].disasm(code, 0, 1):
        for op in found.operands:
            if op.type == cs_x86.X86_OP_MEM:
                return int(op.size)
    return insn.size
