"""The exit table: every instruction that the VMM handles, found by its opcode.

The dispatch, `emu86 exits`, `emu86 explain`, the documentation's page and the tests all
derive from it.
"""

from typing import Final

from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.insn import (
    code64,
    lazy_flags,
    msr,
    port_io,
    privileged,
    segment_loads,
    sensitive,
    system_calls,
)
from emu86.rings.insn.record import Record
from emu86.spec import x86
from emu86.spec.features import (
    FORMS,
    INTEL64,
    LATER,
    MMX,
    SSE,
    SSE2,
    STAC,
    TSC_AUX,
)
from emu86.spec.opcodes import OPERAND_SIZE

RECORDS: Final = (
    *privileged.RECORDS,
    *msr.RECORDS,
    *sensitive.RECORDS,
    *system_calls.RECORDS,
    *lazy_flags.RECORDS,
    *code64.RECORDS,
    *segment_loads.RECORDS,
    *port_io.RECORDS,
)

# MOVNTI and the fences, of what comes with SSE and SSE2, know no CR0 and CR4.
_MOVNTI, _GROUP15 = 0x0FC3, 0x0FAE
# CMPPS and SHUFPS; what else is above them and has no prefix is of MMX registers.
_OF_XMM: Final = (0x0FC2, 0x0FC6)
_FIRST_OF_MMX: Final = 0x0F60

_ANY: Final = 8  # stands for "whatever ModRM.reg" beside 0 to 7
_BY_OPCODE: Final = {
    (opcode, _ANY if record.reg < 0 else record.reg): record
    for record in RECORDS
    for opcode in record.opcodes
    if record.modrm < 0
}
_BY_MODRM: Final = {
    (opcode, record.modrm): record
    for record in RECORDS
    for opcode in record.opcodes
    if record.modrm >= 0
}
# CLAC, STAC, SWAPGS and RDTSCP, of forms with others: see `FORMS`.
_GROUP7: Final = 0x0F01
_BY_WHOLE_MODRM: Final = {0xCA: STAC, 0xCB: STAC, 0xF8: INTEL64, 0xF9: TSC_AUX}


# MOV to and from CR and DR, and the highest register that there is: REX.R names more.
_HIGHEST: Final = {0x0F20: 8, 0x0F21: 7, 0x0F22: 8, 0x0F23: 7}


def needs(insn: Insn) -> int:
    """Return the features that a CPU must have to run it: bits of `spec.features`."""
    if insn.invalid or insn.reg > _HIGHEST.get(insn.opcode, insn.reg):
        return LATER
    forms = FORMS.get(insn.opcode)
    if forms is None:
        return 0
    if insn.opcode == _GROUP7 and insn.modrm in _BY_WHOLE_MODRM:
        return _BY_WHOLE_MODRM[insn.modrm]
    form = insn.reg & 7 if insn.memory else insn.reg | 8
    if not insn.size_prefix:
        return forms[insn.rep][form]
    # To a CPU F2h and F3h come before 66h, to the engine behind it.
    return forms[OPERAND_SIZE][form] | forms[insn.rep][form] * bool(insn.rep)


def is_switched_off(cpu: Cpu, insn: Insn) -> bool:
    """Tell whether CR0.EM or CR4.OSFXSR makes it #UD, of MMX, SSE or SSE2.

    CR0.TS does not count then: SDM Vol. 3A tables 12-1 and 13-1. FXSAVE is #NM.
    """
    if not needs(insn) & (MMX | SSE | SSE2) or insn.opcode == _MOVNTI:
        return False
    if insn.opcode == _GROUP15 and not insn.memory:
        return False
    if cpu.vcpu.cr0 & x86.CR0_EM:
        return True
    prefixed = insn.size_prefix or insn.rep
    of_mmx = insn.opcode >= _FIRST_OF_MMX and insn.opcode not in _OF_XMM
    of_xmm = prefixed or not of_mmx or insn.opcode == _GROUP15
    return bool(of_xmm) and not cpu.vcpu.cr4 & x86.CR4_OSFXSR


def find(insn: Insn) -> Record | None:
    """Return the record of a decoded instruction, or None if the VMM has none."""
    found = _BY_MODRM.get((insn.opcode, insn.modrm))
    found = found or _BY_OPCODE.get((insn.opcode, insn.reg))
    found = found or _BY_OPCODE.get((insn.opcode, _ANY))
    if found is None or (found.memory and not insn.memory) or needs(insn) & LATER:
        return None
    if found.only is not None and not found.only(insn):
        return None
    return found
