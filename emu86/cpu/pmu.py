"""Performance counters of the P6 family: SDM Vol. 3B section 19.6.8 (P6 processors).

One event is counted, CPU_CLK_UNHALTED: virtual time has clocks. A counter of any other
event stands still, as on a CPU where that event never comes.
"""

from typing import Final, NamedTuple

from emu86.native import abi

COUNTERS: Final = 2
_MASK: Final = (1 << 40) - 1

# PerfEvtSel: SDM Vol. 3B figure "PerfEvtSel0 and PerfEvtSel1 MSRs"
_EVENT: Final = 0xFF
_CPU_CLK_UNHALTED: Final = 0x79
_USR: Final = 1 << 16
_OS: Final = 1 << 17
_EN: Final = 1 << 22  # of PerfEvtSel0: for both


class PmuState(NamedTuple):
    """What the counters count and have counted, and since when they count where."""

    select: tuple[int, ...]
    counted: tuple[int, ...]
    where: int
    since: int


class Pmu:
    """Two counters of 40 bits and what they count."""

    def __init__(self, control: memoryview | None = None) -> None:
        # Compiled handlers read there whether each change of ring is to be told.
        if control is None:
            control = memoryview(bytearray(8 * abi.WORDS)).cast("q")
        self._control = control
        self.select = [0] * COUNTERS
        self._count = [0] * COUNTERS
        self._where = _OS  # which of _USR and _OS time passes for now; 0: for neither
        self._since = 0
        self._rested = control[abi.RESTED]  # when that was settled

    @property
    def by_ring(self) -> bool:
        """Whether something counts at some CPLs only: each change is told."""
        return bool(self._control[abi.BY_RING])

    def turn(self, now: int, where: int | None) -> None:
        """Go on at CPL `where` from virtual time `now` (ns), or halted if None."""
        if self.select[0] & _EN:
            self._settle(now)
        self._where = 0 if where is None else _USR if where else _OS

    def read(self, now: int, counter: int) -> int:
        """RDPMC, and RDMSR of a PerfCtr: 40 bits."""
        self._settle(now)
        return self._count[counter]

    def write(self, now: int, counter: int, value: int) -> None:
        """WRMSR to a PerfCtr: bit 31 is extended to the upper eight bits."""
        self._settle(now)
        value &= 0xFFFFFFFF
        self._count[counter] = (value ^ 1 << 31) - (1 << 31) & _MASK

    def choose(self, now: int, counter: int, select: int) -> None:
        """WRMSR to a PerfEvtSel, 32 bits; it runs at CPL 0."""
        self._settle(now)
        self._where = _OS
        self.select[counter] = select
        self._count_by_ring()

    def save(self) -> PmuState:
        """Return what it holds."""
        self._let_rest_pass()
        return PmuState(
            tuple(self.select), tuple(self._count), self._where, self._since
        )

    def restore(self, state: PmuState) -> None:
        """Become the counters that were saved."""
        self.select[:] = state.select
        self._count[:] = state.counted
        self._where, self._since = state.where, state.since
        self._rested = self._control[abi.RESTED]
        self._count_by_ring()

    def _count_by_ring(self) -> None:
        by_ring = any(bool(s & _USR) != bool(s & _OS) for s in self.select)
        self._control[abi.BY_RING] = by_ring

    def _let_rest_pass(self) -> None:
        """Leave out the time for which compiled code has had the CPU halted."""
        rested = self._control[abi.RESTED]
        self._since += rested - self._rested
        self._rested = rested

    def _settle(self, now: int) -> None:
        self._let_rest_pass()
        passed = now - self._since
        self._since = now
        if not self.select[0] & _EN:
            return
        for i, select in enumerate(self.select):
            if select & self._where and select & _EVENT == _CPU_CLK_UNHALTED:
                self._count[i] = (self._count[i] + passed) & _MASK
