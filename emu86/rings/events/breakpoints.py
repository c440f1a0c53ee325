"""Debug registers and their breakpoints: SDM Vol. 3B chapter 17.

The engine's own are not used: its breakpoints on data never fire, and none would where
the VMM emulates. While one is enabled every instruction is looked at before it runs.
"""

from typing import Final

from emu86.cpu.state import RIP
from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn
from emu86.rings.events.accesses import accesses
from emu86.rings.fault import GuestFault, gp, undefined
from emu86.spec import x86

ENABLED: Final = 0xFF  # L0 to G3 of DR7
_GD: Final = 1 << 13  # of DR7: no access to debug registers; BD of DR6 tells of one
_BS: Final = 1 << 14  # of DR6: a single step
_HITS: Final = 0xF  # of DR6
_FREE: Final = {6: 0xE00F, 7: 0xFFFF23FF}  # bits that are not fixed
_SET: Final = {6: 0xFFFF0FF0, 7: 0x400}
_EXECUTED, _WRITTEN, _PORT = 0, 1, 2  # R/W of DR7; 3: data read or written
_SIZES: Final = (1, 2, 8, 4)  # by LEN of DR7


def held(number: int, value: int) -> int:
    """Return what a debug register holds that has been given a value, 64 bits."""
    return value & _FREE.get(number, x86.MASK64) | _SET.get(number, 0)


class Breakpoints:
    """Those of one virtual CPU.

    hits: what of DR6 the instruction under way sets when it is done; resume: RF, if the
    next instruction does not break (a return to it had the flag set, or it repeats);
    stepped: a debugger steps the guest, which needs the same looks.
    """

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self.hits = 0
        self.resume = 0
        self.stepped = False
        self._repeated = -1  # EIP of the string instruction under way

    @property
    def armed(self) -> bool:
        """Whether each instruction is looked at: some breakpoint is enabled, or so."""
        return self.stepped or bool(self._cpu.vcpu.dr[7] & ENABLED)

    # -- debug registers ---------------------------------------------------------------

    def read(self, number: int) -> int:
        """MOV from DR: raises #UD, and #DB if they are guarded."""
        return self._cpu.vcpu.dr[self._meant(number)]

    def write(self, number: int, value: int) -> None:
        """MOV to DR, 64 bits: raises what `read` does, and #GP(0): Vol. 3B 17.2.6."""
        number = self._meant(number)
        if number in _FREE and value > x86.MASK32:
            raise gp(0)
        self._cpu.vcpu.dr[number] = held(number, value)

    def _meant(self, number: int) -> int:
        """Return the register meant: DR4 and DR5 are DR6 and DR7 unless CR4.DE."""
        vcpu = self._cpu.vcpu
        if number >= len(vcpu.dr):  # by a REX prefix
            raise undefined()
        if number in (4, 5):
            if vcpu.cr4 & x86.CR4_DE:
                raise undefined()
            number += 2
        if vcpu.dr[7] & _GD:
            vcpu.dr[7] &= ~_GD
            vcpu.dr[6] |= _GD
            raise GuestFault(x86.VEC_DB)
        return number

    # -- the guest comes by ------------------------------------------------------------

    def before(self) -> bool:
        """Look at CS:EIP, before what stands there is fetched: Vol. 3A table 6-2.

        Returns True if it breaks there: `report` its #DB, which is a fault.
        """
        linear = self._cpu.linear_eip
        hits = 0 if self.resume else self._matches(linear, 1, (_EXECUTED,))
        self.hits |= hits
        return bool(hits)

    def reach(self, insn: Insn) -> None:
        """Look at what the instruction at CS:EIP is about to access."""
        cpu = self._cpu
        eip = cpu.q[RIP] & x86.MASK32
        repeats = insn.rep and insn.spec.is_string
        self._repeated = eip if repeats else -1
        for access in accesses(cpu, insn):
            kinds = (_WRITTEN, 3) if access.write else (3,)
            self.hits |= self._matches(access.linear, access.size, kinds)

    def port(self, port: int, width: int) -> None:
        """Take an access to a port, `width` bytes."""
        if self._cpu.vcpu.cr4 & x86.CR4_DE:
            self.hits |= self._matches(port, width, (_PORT,))

    def done(self) -> None:
        """Learn that an instruction, or a round of a repeated one, is done."""
        same = self._cpu.q[RIP] & x86.MASK32 == self._repeated
        self.resume = x86.RF if same else 0

    def hold(self) -> None:
        """Learn that a load of SS is done: no #DB is next, but after the next.

        As if RF were set: Vol. 3B 17.3.1.1, and Vol. 3A 6.8.3.
        """
        self.resume = x86.RF

    def report(self, *, stepped: bool = False) -> None:
        """Tell in DR6 of the hits, and of a single step, as #DB begins."""
        dr = self._cpu.vcpu.dr
        dr[6] = dr[6] & ~_HITS | self.hits | (_BS if stepped else 0)
        dr[7] &= ~_GD
        self.hits = 0

    def save(self) -> tuple[int, int, int]:
        """Return `hits`, `resume`, and what tells of a repeated instruction."""
        return self.hits, self.resume, self._repeated

    def restore(self, state: tuple[int, int, int]) -> None:
        """Become what was saved."""
        self.hits, self.resume, self._repeated = state

    def _matches(self, start: int, size: int, kinds: tuple[int, ...]) -> int:
        """Return the enabled breakpoints of some kinds in an access, as bits of DR6."""
        dr = self._cpu.vcpu.dr
        found = 0
        for i in range(4):
            control = dr[7] >> 16 + 4 * i
            if not dr[7] >> 2 * i & 3 or control & 3 not in kinds:
                continue
            length = 1 if control & 3 == _EXECUTED else _SIZES[control >> 2 & 3]
            first = dr[i] & -length
            if first < start + size and start < first + length:
                found |= 1 << i
        return found
