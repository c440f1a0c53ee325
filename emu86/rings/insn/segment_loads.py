"""Instructions that load segment registers: they trap when the shadow tables refuse.

Most loads run natively from the shadow tables. Those that a compressed ring would get
wrong (SS with RPL 1, far transfers that store the real CPL in CS, IRET that loses IF)
are patched in the guest's kernel.
"""

from emu86.native import abi
from emu86.rings import operand
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.fault import undefined
from emu86.rings.insn.privileged import after_shadow
from emu86.rings.insn.record import Record
from emu86.rings.insn.transfer import far_call, far_jump, far_return, iret
from emu86.rings.stack import Stack
from emu86.spec import x86

_POP = {0x07: x86.ES, 0x17: x86.SS, 0x1F: x86.DS, 0x0FA1: x86.FS, 0x0FA9: x86.GS}
_LXS = {0xC4: x86.ES, 0xC5: x86.DS, 0x0FB2: x86.SS, 0x0FB4: x86.FS, 0x0FB5: x86.GS}

_MOV = 0x8E


def loads_ss(insn: Insn) -> bool:
    """Tell of MOV to SS and POP SS: they hold off what comes after an instruction."""
    if insn.opcode == _MOV:
        return insn.reg == x86.SS
    return _POP.get(insn.opcode) == x86.SS


def loaded_by(insn: Insn) -> int:
    """Return the segment register that MOV, POP or LxS loads; -1: it loads none."""
    opcode = insn.opcode
    if opcode == _MOV:
        return insn.reg if insn.reg <= x86.GS else -1
    if opcode in _LXS:
        return _LXS[opcode] if insn.memory else -1
    return _POP.get(opcode, -1)


def is_wide_pointer(insn: Insn) -> bool:
    """Tell of LSS, LFS and LGS with REX.W, where the engine reads m16:32.

    So do AMD's CPUs. Intel's read m16:64.
    """
    return insn.size == 8 and insn.memory and insn.opcode in _LXS


def _mov(cpu: Cpu, insn: Insn) -> None:
    if insn.reg == x86.CS or insn.reg > x86.GS:
        raise undefined()
    cpu.load_segment(insn.reg, operand.read_rm(cpu, insn, 2))
    if insn.reg == x86.SS:
        after_shadow(cpu)


def _pop(cpu: Cpu, insn: Insn) -> None:
    index = _POP[insn.opcode]
    stack = Stack(cpu)
    selector = stack.peek(0, insn.size) & 0xFFFF  # all of the operand can fault
    stack.drop(insn.size)
    cpu.load_segment(index, selector)
    # The new ESP counts in the new stack segment's size for SS itself.
    stack.commit()
    if index == x86.SS:
        after_shadow(cpu)


def load_far_pointer(cpu: Cpu, insn: Insn) -> None:
    """LDS, LES, LSS, LFS, LGS."""
    if not insn.memory:
        raise undefined()
    selector, offset = far_pointer(cpu, insn)
    cpu.load_segment(_LXS[insn.opcode], selector)
    operand.set_register(cpu, insn.reg, offset, insn.size)


def far_pointer(cpu: Cpu, insn: Insn) -> tuple[int, int]:
    """Return selector and offset of a far pointer in memory."""
    where = operand.address(cpu, insn, insn.size + 2)
    offset = operand.read(cpu, where, insn.size)
    return operand.read(cpu, where + insn.size & cpu.address_mask, 2), offset


def _jump_direct(cpu: Cpu, insn: Insn) -> bool:
    far_jump(cpu, insn.selector, insn.immediate, cpu.next_eip(insn.length))
    return True


def _jump_indirect(cpu: Cpu, insn: Insn) -> bool:
    if not insn.memory:
        raise undefined()
    far_jump(cpu, *far_pointer(cpu, insn), cpu.next_eip(insn.length))
    return True


def _call_direct(cpu: Cpu, insn: Insn) -> bool:
    far_call(cpu, insn.selector, insn.immediate, cpu.next_eip(insn.length), insn.size)
    return True


def _call_indirect(cpu: Cpu, insn: Insn) -> bool:
    if not insn.memory:
        raise undefined()
    far_call(cpu, *far_pointer(cpu, insn), cpu.next_eip(insn.length), insn.size)
    return True


def _return(cpu: Cpu, insn: Insn) -> bool:
    far_return(cpu, insn.size, insn.immediate)
    return True


def _iret(cpu: Cpu, insn: Insn) -> bool:
    if insn.size == 4:
        cpu.services.compile_site(insn, abi.SITE_IRET)
    iret(cpu, insn.size, cpu.next_eip(insn.length))
    return True


_SHADOW = "a trap, if the shadow table refuses the selector"
_KERNEL = (1,)

RECORDS = (
    Record(
        "MOV to Sreg", "8E /r", (0x8E,), "segment", _SHADOW, _mov, "Vol. 2B MOV",
        "The VMM loads it from the guest's own descriptor table, by the guest's CPL.",
    ),
    Record(
        "MOV to SS", "8E /2", (0x8E,), "segment", "#GP for RPL 0, else a patch", _mov,
        "Vol. 2B MOV",
        "SS takes only a selector whose RPL is the CPL. At CPL 1 the guest's RPL of 0"
        " traps. An RPL of 1 is wrong for a kernel in ring 0 and would not trap, so it"
        " is patched. In 64-bit code a null selector is no fault, and would take the"
        " engine's CPL to 0; there `trap` patches it, too.",
        reg=2, patched=_KERNEL,
    ),
    Record(
        "POP Sreg", "07, 1F, 0F A1, 0F A9", (0x07, 0x1F, 0x0FA1, 0x0FA9), "segment",
        _SHADOW, _pop, "Vol. 2B POP",
        "The VMM loads it from the guest's own descriptor table, by the guest's CPL.",
    ),
    Record(
        "POP SS", "17", (0x17,), "segment", "#GP for RPL 0, else a patch", _pop,
        "Vol. 2B POP", "As MOV to SS.", patched=_KERNEL,
    ),
    Record(
        "LDS, LES, LFS, LGS", "C5 /r, C4 /r, 0F B4 /r, 0F B5 /r",
        (0xC4, 0xC5, 0x0FB4, 0x0FB5), "segment", _SHADOW, load_far_pointer,
        "Vol. 2A LDS/LES/LFS/LGS/LSS",
        "The VMM loads it from the guest's own descriptor table, by the guest's CPL.",
    ),
    Record(
        "LSS", "0F B2 /r", (0x0FB2,), "segment", "#GP for RPL 0, else a patch",
        load_far_pointer, "Vol. 2A LDS/LES/LFS/LGS/LSS", "As MOV to SS.",
        patched=_KERNEL,
    ),
    Record(
        "JMP far", "EA cp", (0xEA,), "segment",
        "a patch: it may not trap", _jump_direct,
        "Vol. 2A JMP",
        "Natively it would leave an RPL of 1, the engine's CPL, in the CS that the"
        " guest reads.",
        patched=_KERNEL,
    ),
    Record(
        "JMP far, indirect", "FF /5", (0xFF,), "segment", "as JMP far", _jump_indirect,
        "Vol. 2A JMP", "As JMP far.", reg=5, patched=_KERNEL,
    ),
    Record(
        "CALL far", "9A cp", (0x9A,), "segment", "as JMP far", _call_direct,
        "Vol. 2A CALL",
        "As JMP far. Call gates are done here, too. The engine writes a user's stack"
        " with the kernel's rights, so it is patched at CPL 3 as well.", patched=(1, 3),
    ),
    Record(
        "CALL far, indirect", "FF /3", (0xFF,), "segment", "as JMP far", _call_indirect,
        "Vol. 2A CALL", "As CALL far.", reg=3, patched=(1, 3),
    ),
    Record(
        "RET far", "CB, CA iw", (0xCB, 0xCA), "segment",
        "#GP(selector) for RPL 0, else a patch", _return,
        "Vol. 2B RET",
        "Done by the guest's tables and its own CPL. At CPL 3 the engine would read"
        " the stack with the kernel's rights.",
        patched=(1, 3),
    ),
    Record(
        "IRET", "CF", (0xCF,), "sensitive",
        "#GP(selector) for RPL 0, else a patch", _iret,
        "Vol. 2A IRET/IRETD",
        "At CPL 1 with IOPL 0 a return to user code would leave IF as the kernel has"
        " it. At CPL 3 the engine takes VM = 1 from the stack, which a CPU ignores."
        " Patched in both.",
        patched=(1, 3),
    ),
)  # fmt: skip
