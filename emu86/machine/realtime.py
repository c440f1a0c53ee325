"""Guest time beside the host's: what `realtime` means.

An anchor says which moment of the host's monotonic clock is virtual time 0. From then
on both should show the same. A guest that computes is never made to wait. Instead, its
work is given as much time as it takes the CPU, more while virtual time is behind, less
while it is ahead. So time never jumps: a guest that measures one clock with another
finds nothing. Idle time is slept until the host's clock is there.

Where the host has too little CPU time for the guest, virtual time falls behind until
the guest is idle. If it did not, the guest would have time for its timer alone.
"""

from time import monotonic_ns, thread_time_ns
from typing import Final

from emu86.cpu.clock import Clock

_MS: Final = 1_000_000  # ns
_LOOK: Final = 2 * _MS  # CPU time between looks at the clocks
_MOST: Final = 8 * _MS  # work between them; 2 ms of virtual time at the usual rate
_HORIZON: Final = 10 * _MS  # a lag of this much makes time run twice as fast
_SLOWEST: Final = 0.5  # virtual time for CPU time
_FASTEST: Final = 3.0
_MEMORY: Final = 0.75  # of what was seen, at each look


class RealTime:
    """Keeps a clock's virtual time at the pace of the host's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._zero = 0  # the host's time (ns) at virtual time 0
        self._seen = 0, 0  # CPU time, and work, at the last look
        # What units of work have cost in ns lately; the first guess fades soon.
        self._cost, self._work = clock.rate * _MS, float(_MS)

    def start(self) -> None:
        """Have virtual time go on from now, in this thread."""
        self._zero = self._clock.zero = monotonic_ns() - self._clock.now
        self._seen = thread_time_ns(), self._clock.work

    def pace(self) -> None:
        """Set how fast time runs, and have the engine stop for the next look."""
        clock = self._clock
        cpu, work = thread_time_ns(), clock.work
        spent, done = cpu - self._seen[0], work - self._seen[1]
        cost = self._cost / self._work
        if done and (spent >= _LOOK // 2 or done >= min(_LOOK / cost, _MOST) / 2):
            self._seen = cpu, work
            self._cost = self._cost * _MEMORY + spent
            self._work = self._work * _MEMORY + done
            cost = self._cost / self._work
            lag = monotonic_ns() - self._zero - clock.now
            clock.rate = cost * min(max(1 + lag / _HORIZON, _SLOWEST), _FASTEST)
        clock.run_on(int(min(_LOOK / cost, _MOST)) + 1)

    def left(self, due: int) -> int:
        """Return how long (ns of the host) it is to virtual time `due`; or 0."""
        return max(self._zero + due - monotonic_ns(), 0)

    def slept(self, due: int | None) -> None:
        """Let the time pass that was slept, up to virtual time `due` at most."""
        now = monotonic_ns() - self._zero
        passed = self._clock.advance_to(now if due is None or now < due else due)
        cpu, work = self._seen
        self._seen = cpu, work + passed  # that was no work
