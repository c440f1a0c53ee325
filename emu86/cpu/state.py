"""The CPU's state as two views, and what hangs on it: flags, segments, mode bits.

`q` is the state as 64-bit words, `d` as 32-bit words; the constants below are indices.
A `CpuState` over plain memory is a CPU that nothing runs, which is enough to emulate an
instruction on (`rings.cpu`); an `engine.Engine` is one whose memory is the hardware's.
"""

from typing import Final

from emu86.cpu import offsets
from emu86.spec import x86

RIP: Final = offsets.RIP // 8
RFLAGS: Final = offsets.RFLAGS // 8
CC_SRC: Final = offsets.CC_SRC // 8
CC_OP: Final = offsets.CC_OP // 4
DIRECTION: Final = offsets.DF // 4
HFLAGS: Final = offsets.HFLAGS // 4
SELECTOR: Final = tuple((offsets.SEGMENTS + 24 * i) // 4 for i in range(6))
BASE: Final = tuple((offsets.SEGMENTS + 24 * i + 8) // 8 for i in range(6))
LIMIT: Final = tuple((offsets.SEGMENTS + 24 * i + 16) // 4 for i in range(6))
ATTRIBUTES: Final = tuple((offsets.SEGMENTS + 24 * i + 20) // 4 for i in range(6))
CR: Final = offsets.CR // 8
ERROR_CODE: Final = offsets.ERROR_CODE // 4
IS_INT: Final = offsets.EXCEPTION_IS_INT // 4
OLD_EXCEPTION: Final = offsets.OLD_EXCEPTION // 4

_DERIVED: Final = (
    offsets.HF_CPL
    | offsets.HF_CS32
    | offsets.HF_SS32
    | offsets.HF_ADDSEG
    | offsets.HF_CS64
    | offsets.HF_PE
)

_STARTS: Final = (0, *(rubbish.stop for rubbish in offsets.RUBBISH))
_ENDS: Final = (*(rubbish.start for rubbish in offsets.RUBBISH), offsets.SIZE)
_OWN: Final = tuple(map(slice, _STARTS, _ENDS))


class CpuState:
    """One CPU's state over `view`, `offsets.SIZE` bytes."""

    def __init__(self, view: memoryview) -> None:
        self._bytes = view
        self.q = view.cast("Q")
        self.d = view.cast("I")
        self._mode = offsets.HF_PE | offsets.HF_LMA  # what of hflags is always set
        self.ia32e = False  # whether CS.L means 64-bit code: the guest's EFER.LMA

    def flags(self) -> int:
        """Return EFLAGS, 22 bits, whole."""
        return self.q[RFLAGS] & x86.FLAGS_DEFINED

    def set_flags(self, value: int) -> None:
        """Write EFLAGS, 32 bits."""
        self.q[RFLAGS] = value | x86.FLAGS_FIXED

    @property
    def ring(self) -> int:
        """The CPL of the engine itself."""
        return self.d[HFLAGS] & 3

    def set_segment(
        self, index: int, selector: int, base: int, limit: int, attributes: int
    ) -> None:
        """Write one segment register with its hidden part; then `sync_mode`."""
        d = self.d
        d[SELECTOR[index]] = selector
        self.q[BASE[index]] = base
        d[LIMIT[index]] = limit
        d[ATTRIBUTES[index]] = attributes

    def sync_mode(self, cpl: int) -> None:
        """Set the CPL and what the engine derives from the hidden CS, SS, DS and ES."""
        d, q = self.d, self.q
        mode = d[HFLAGS] & ~_DERIVED
        mode |= cpl | self._mode
        attributes = d[ATTRIBUTES[x86.CS]]
        if attributes & x86.DESC_L and self.ia32e:
            d[HFLAGS] = mode | offsets.HF_CODE64
            return
        if attributes & x86.DESC_B:
            mode |= offsets.HF_CS32
            # In real mode the engine's own loads do not look at the bases.
            bases = q[BASE[x86.DS]] or q[BASE[x86.ES]] or q[BASE[x86.SS]]
            if bases or not mode & offsets.HF_PE:
                mode |= offsets.HF_ADDSEG
        else:
            mode |= offsets.HF_ADDSEG
        if d[ATTRIBUTES[x86.SS]] & x86.DESC_B:
            mode |= offsets.HF_SS32
        d[HFLAGS] = mode

    def protect(self, *, on: bool) -> None:
        """Have the CPU in protected mode, or in real mode; then `sync_mode`."""
        self._mode = self._mode & ~offsets.HF_PE | (offsets.HF_PE if on else 0)

    def set_table(self, offset: int, base: int, limit: int) -> None:
        """Write GDTR, IDTR or LDTR (`offset` of it): base 64 bits, limit in bytes."""
        self.q[(offset + 8) // 8] = base
        self.d[(offset + 16) // 4] = limit

    def registers(self) -> bytes:
        """Return all that the CPU holds between two instructions."""
        return b"".join(self._bytes[place] for place in _OWN)

    def set_registers(self, registers: bytes) -> None:
        """Hold what another CPU held."""
        start = 0
        for place in _OWN:
            end = start + place.stop - place.start
            self._bytes[place] = registers[start:end]
            start = end
