"""Operands of SSE that a CPU refuses and the engine takes: #GP(0).

They are those that are not at a multiple of 16 bytes, and what would set a reserved bit
of MXCSR (SDM Vol. 1 section 11.4.1, Vol. 2A LDMXCSR and FXRSTOR). The engine's FXSAVE
tells an MXCSR_MASK of FFFFh, on every CPU model.

Compiled code looks at them (`handlers.on_look`), told by a word for each instruction;
`check` does the same.
"""

from emu86.native import abi
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import gp
from emu86.spec import x86
from emu86.spec.opcodes import OPCODES, OPERAND_SIZE

OPCODES_LOOKED_AT = frozenset(
    opcode
    for opcode, group in OPCODES.items()
    if any(member.aligned or member.mxcsr >= 0 for member in group)
)
_NEITHER = x86.CR0_EM | x86.CR0_TS  # #UD or #NM comes first
_FXSAVE = 0x0FAE, (0, 1)  # and FXRSTOR: they need no CR4.OSFXSR


def _is_aligned(insn: Insn) -> bool:
    """Tell whether the operand must be at a multiple of 16 bytes."""
    prefix = insn.rep or (OPERAND_SIZE if insn.size_prefix else 0)
    return prefix in insn.spec.aligned


def _is_fxsave(insn: Insn) -> bool:
    opcode, regs = _FXSAVE
    return insn.opcode == opcode and insn.reg in regs


def is_looked_at(insn: Insn) -> bool:
    """Tell whether a CPU may refuse the operand."""
    if insn.opcode not in OPCODES_LOOKED_AT or not insn.memory:
        return False
    return insn.spec.mxcsr >= 0 or _is_aligned(insn)


def check(cpu: Cpu, insn: Insn) -> None:
    """Raise #GP(0) for an operand that a CPU refuses."""
    if not is_looked_at(insn) or cpu.has_paragraphs:
        return
    has_sse = cpu.vcpu.cr4 & x86.CR4_OSFXSR
    if cpu.vcpu.cr0 & _NEITHER or not (has_sse or _is_fxsave(insn)):
        return
    linear = operand.linear_address(cpu, insn)
    if _is_aligned(insn) and linear & 15:
        raise gp(0)
    mxcsr = insn.spec.mxcsr
    if mxcsr >= 0 and has_sse and operand.read(cpu, linear + mxcsr, 4) >> 16:
        raise gp(0)


def word(insn: Insn) -> int:
    """Return what compiled code is told of an instruction: `native.abi`'s LOOK_."""
    spec = insn.spec
    base = abi.NO_REGISTER if insn.base < 0 else insn.base
    index = abi.NO_REGISTER if insn.index < 0 else insn.index
    found = insn.displacement & x86.MASK32
    found |= base << abi.LOOK_BASE | index << abi.LOOK_INDEX
    found |= insn.scale << abi.LOOK_SCALE | insn.segment << abi.LOOK_SEGMENT
    if insn.address_size == 2:
        found |= 1 << abi.LOOK_16
    if _is_aligned(insn):
        found |= 1 << abi.LOOK_ALIGNED
    if spec.memory == "w":
        found |= 1 << abi.LOOK_WRITTEN
    if _is_fxsave(insn):
        found |= 1 << abi.LOOK_FXSAVE
    return found | spec.mxcsr + 1 << abi.LOOK_MXCSR
