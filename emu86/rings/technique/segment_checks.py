"""Which segment registers are looked at before an access, because they are not flat.

The engine enforces nothing of a loaded segment. Nearly all segments are flat: 4 GiB,
with every right. Others are left out of the shadow tables, so a load of one traps;
from then on (*armed*) all accesses by that register are patched, in code that is
scanned anew, and looked at (`events.protection`) before they run. (A guest that has
been in real mode loads segments of 64 KiB each time that it goes back there: its own of
that size are left alone.) A flat segment that
is loaded into the register again need not trap: the accesses are found to be right, and
after some of them the register is left alone again.

A null selector is loaded without a trap, and kernels do so all the time: FS and GS are
null for many programs. So it is the use of one that is seen (`scan`: guards).

Derived: what the registers hold says which are armed.
"""

from typing import Final

from emu86.cpu.engine import Engine
from emu86.cpu.state import ATTRIBUTES, LIMIT, SELECTOR
from emu86.mmu.listeners import Listeners
from emu86.native import abi
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.descriptor import is_flat
from emu86.rings.events.accesses import XLAT, accesses
from emu86.rings.events.protection import (
    direct_target,
    is_direct,
    is_indirect,
    segments,
)
from emu86.spec import x86

_ALL: Final = (x86.ES, x86.CS, x86.SS, x86.DS, x86.FS, x86.GS)
_DATA: Final = (x86.ES, x86.DS, x86.FS, x86.GS)
_ODD: Final = (XLAT, 0xC8, 0xC9)  # and ENTER, LEAVE
_WIDEST: Final = 16  # bytes
_PATIENCE: Final = 256  # accesses found to be right


def compiled_access(cpu: Cpu, insn: Insn) -> int:
    """Return what compiled code needs to look at an access, or 0: it cannot.

    It can at one access by a data segment that has a limit, no more, with an address of
    32 bits, in 32-bit code.
    """
    spec = insn.spec
    found = [*accesses(cpu, insn)]
    if len(found) != 1 or insn.address_size == 2 or spec.is_string or spec.bit_string:
        return 0
    if cpu.code_bits != 32:
        return 0
    access = found[0]
    segment = access.segment
    limit, attributes = cpu.d[LIMIT[segment]], cpu.d[ATTRIBUTES[segment]]
    has_limit = not attributes & (x86.DESC_CODE | x86.DESC_CE) and limit != x86.MASK32
    if not has_limit or access.size > _WIDEST or insn.opcode in _ODD:
        return 0
    base, index, scale = insn.base, insn.index, insn.scale
    displacement = insn.displacement
    if spec.immediate == "o":
        displacement = insn.immediate
    elif spec.pushes or spec.pops:
        if cpu.stack_bits != 32:
            return 0
        base, index, displacement = x86.ESP, -1, -access.size if spec.pushes else 0
    return abi.access_kind(
        segment, access.size, base, index, scale, displacement, write=access.write
    )


class SegmentChecks:
    """Those of one virtual CPU.

    enabled: whether anything is looked at at all; spares_64k: segments of 64 KiB are
    not, for the guest has been in real mode;
    armed: by the ring that blocks are scanned for (1 or 3), the registers, as bits;
    code_limit: the lowest limit of CS there, since CS has been armed.
    """

    def __init__(self, engine: Engine, listeners: Listeners, *, enabled: bool) -> None:
        self.enabled = enabled
        self.spares_64k = False
        self._d = engine.d
        self._listeners = listeners
        self.armed = engine.control[abi.ARMED : abi.ARMED + 4]
        self.code_limit = {1: x86.MASK32, 3: x86.MASK32}
        self._patience = {1: _PATIENCE, 3: _PATIENCE}
        self._right = {1: 0, 3: 0}

    def is_free(self, limit: int, attributes: int) -> bool:
        """Tell whether nothing of a segment is looked at."""
        if limit == x86.V86_LIMIT and self.spares_64k:
            limit = x86.MASK32
        return is_flat(limit, attributes)

    def loaded(self, index: int, selector: int, limit: int, attributes: int) -> None:
        """Learn what is about to be loaded into a segment register."""
        if not self.enabled or self.is_free(limit, attributes):
            return
        rings: tuple[int, ...] = (1, 3)
        if index in (x86.CS, x86.SS):
            rings = (3,) if selector & 3 else (1,)
        for ring in rings:
            if index == x86.CS:
                limit = min(limit, self.code_limit[ring])
                known = limit == self.code_limit[ring]
                self.code_limit[ring] = limit
            else:
                known = True
            if not known or not self.armed[ring] & 1 << index:
                self.armed[ring] |= 1 << index
                self._changed()
            self._right[ring] = 0

    def null_used(self, registers: tuple[int, ...] = _DATA) -> None:
        """Arm those that are null: one may be about to be used."""
        for index in registers:
            if not self._d[ATTRIBUTES[index]] & x86.DESC_P:
                self.loaded(index, 0, 0, 0)

    def wants(self, insn: Insn, eip: int, ring: int) -> bool:
        """Tell whether an instruction at `eip` has to be looked at before it runs."""
        armed = self.armed[ring]
        if any(armed >> index & 1 for index in segments(insn)):
            return True
        if not armed >> x86.CS & 1:
            return False
        limit = self.code_limit[ring]
        if eip + insn.length - 1 > limit:
            return True
        if is_indirect(insn):
            return insn.size != 2 or limit < x86.V86_LIMIT
        return is_direct(insn) and direct_target(insn, eip) > limit

    def limits_code(self, *rings: int) -> bool:
        """Tell whether code in one of these rings is looked at for its own limit."""
        return any(self.armed[ring] >> x86.CS & 1 for ring in rings)

    def passed(self, ring: int) -> None:
        """Learn that an access has been found to be right."""
        d, armed = self._d, self.armed[ring]
        for index in _ALL:
            attributes = d[ATTRIBUTES[index]]
            flat = self.is_free(d[LIMIT[index]], attributes)
            guarded = index in (x86.FS, x86.GS) and not attributes & x86.DESC_P
            if armed >> index & 1 and not flat and not guarded:
                self._right[ring] = 0
                return
        self._right[ring] += 1
        if armed and self._right[ring] > self._patience[ring]:
            self._patience[ring] *= 2  # a guest that goes to and fro
            self.armed[ring] = 0
            self.code_limit[ring] = x86.MASK32
            self._changed()

    def drop_derived(self) -> None:
        """Arm what the registers hold, and no more."""
        d = self._d
        for ring in (1, 3):
            self.armed[ring], self.code_limit[ring] = 0, x86.MASK32
            self._patience[ring], self._right[ring] = _PATIENCE, 0
        for index in _ALL:
            attributes = d[ATTRIBUTES[index]]
            if attributes & x86.DESC_P or index in (x86.ES, x86.DS):
                self.loaded(index, d[SELECTOR[index]], d[LIMIT[index]], attributes)

    def _changed(self) -> None:
        for tell in self._listeners.checks_changed:
            tell()
