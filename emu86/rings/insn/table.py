"""The exit table: every instruction that the VMM handles, found by its opcode.

The dispatch, `emu86 exits`, `emu86 explain`, the documentation's page and the tests all
derive from it.
"""

from typing import Final

from emu86.rings.decode import Insn
from emu86.rings.insn import (
    lazy_flags,
    msr,
    port_io,
    privileged,
    segment_loads,
    sensitive,
)
from emu86.rings.insn.record import Record

RECORDS: Final = (
    *privileged.RECORDS,
    *msr.RECORDS,
    *sensitive.RECORDS,
    *lazy_flags.RECORDS,
    *segment_loads.RECORDS,
    *port_io.RECORDS,
)

_ANY: Final = 8  # stands for "whatever ModRM.reg" beside 0 to 7
_BY_OPCODE: Final = {
    (opcode, _ANY if record.reg < 0 else record.reg): record
    for record in RECORDS
    for opcode in record.opcodes
}


def of_later_cpus(insn: Insn) -> bool:
    """Tell whether it is one of later CPUs' that the engine runs and no model has."""
    return not insn.memory and insn.spec.later


def find(insn: Insn) -> Record | None:
    """Return the record of a decoded instruction, or None if the VMM has none."""
    if of_later_cpus(insn):
        return None
    found = _BY_OPCODE.get((insn.opcode, insn.reg))
    found = found or _BY_OPCODE.get((insn.opcode, _ANY))
    if found is not None and found.memory and not insn.memory:
        return None
    return found
