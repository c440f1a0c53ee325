"""Virtual time: each engine has one clock, in words that compiled hooks count up too.

Time is a function of the work done: a quarter nanosecond for each byte of code run, and
what exits, port accesses and RDTSC take. The words hold work, in quarter nanoseconds;
what is said and asked here is in whole ones. The TSC counts nanoseconds, so it runs at
1 GHz. In real time (`machine.realtime`) a unit of work takes more or less than that
quarter: the rate.
"""

from typing import Final, NamedTuple

from emu86.native import abi
from emu86.spec import x86

_SIGN: Final = 1 << 63
_ONE: Final = 1 << abi.RATE_SHIFT
USUAL: Final = 1 / abi.QUARTERS
"""The rate of virtual time: nanoseconds for a unit of work."""
# The words of a ClockState, in the order of its fields.
_SAVED: Final = (
    abi.NOW, abi.SINCE, abi.NS, abi.RATE, abi.TSC_OFFSET, abi.TSC_COST, abi.EXIT_COST,
)  # fmt: skip


class ClockState(NamedTuple):
    """What a clock holds.

    work, since, tsc_cost, exit_cost: units of work; ns, tsc_offset: nanoseconds; rate:
    as the word. When `since` had been done, it was `ns`.
    """

    work: int
    since: int
    ns: int
    rate: int
    tsc_offset: int
    tsc_cost: int
    exit_cost: int


class Clock:
    """Virtual time and the TSC over an engine's control block.

    When the engine next has to stop is asked for anew before each slice of the guest,
    so it is no part of the state. Nor are samples: while they are taken STOP_AT is when
    the next one is due, if that comes first. sample_at: when, in work; NEVER for none.
    """

    def __init__(self, control: memoryview) -> None:
        self._control = control
        self.sample_at = abi.NEVER
        self._every = 0  # work between two samples
        control[abi.STOP_AT] = control[abi.STOP_FOR] = abi.NEVER
        control[abi.EXIT_COST] = abi.EXIT_TIME
        control[abi.RATE] = int(USUAL * _ONE)

    @property
    def now(self) -> int:
        """Virtual time in nanoseconds."""
        control = self._control
        work = control[abi.NOW] - control[abi.SINCE]
        return control[abi.NS] + (work * control[abi.RATE] >> abi.RATE_SHIFT)

    def _work_at(self, ns: int) -> int:
        """Return how much work is done at a moment."""
        control = self._control
        ahead = ns - control[abi.NS] << abi.RATE_SHIFT
        return control[abi.SINCE] - -ahead // control[abi.RATE]

    def advance_to(self, ns: int) -> int:
        """Let time pass until a moment that may have been already; return the work."""
        control = self._control
        skipped = max(self._work_at(ns) - control[abi.NOW], 0)
        control[abi.NOW] += skipped
        self.sample_at += skipped
        return skipped

    @property
    def work(self) -> int:
        """The work done, in its units; what time was let pass for counts, too."""
        return self._control[abi.NOW]

    @property
    def zero(self) -> int:
        """The host's monotonic clock (ns) at virtual time 0, for who sleeps by it."""
        return self._control[abi.ZERO]

    @zero.setter
    def zero(self, ns: int) -> None:
        self._control[abi.ZERO] = ns

    @property
    def rested(self) -> int:
        """How long (virtual ns) compiled code has slept in all."""
        return self._control[abi.RESTED]

    @property
    def rate(self) -> float:
        """How many nanoseconds a unit of work takes from now on."""
        return self._control[abi.RATE] / _ONE

    @rate.setter
    def rate(self, ns: float) -> None:
        control, rate = self._control, min(max(int(ns * _ONE), 1), abi.RATE_MOST)
        if rate != control[abi.RATE]:
            control[abi.NS], control[abi.SINCE] = self.now, control[abi.NOW]
            control[abi.RATE] = rate

    def count_exit(self) -> None:
        """Let pass what a VM exit takes."""
        self._control[abi.NOW] += self._control[abi.EXIT_COST]

    def set_costs(self, *, rdtsc: int | None = None, other: int | None = None) -> None:
        """Set what one RDTSC, or any other exit, takes in nanoseconds."""
        if rdtsc is not None:
            self._control[abi.TSC_COST] = rdtsc * abi.QUARTERS
        if other is not None:
            self._control[abi.EXIT_COST] = other * abi.QUARTERS

    # -- the guest's time stamp counter ------------------------------------------------

    @property
    def tsc_offset(self) -> int:
        """What the TSC is ahead of virtual time, in nanoseconds; may be negative."""
        return self._control[abi.TSC_OFFSET]

    @tsc_offset.setter
    def tsc_offset(self, ns: int) -> None:
        self._control[abi.TSC_OFFSET] = ns

    def tsc(self) -> int:
        """Return the TSC, not cut to 64 bits."""
        return self.now + self._control[abi.TSC_OFFSET]

    def set_tsc(self, value: int) -> None:
        """Make the TSC `value`, 64 bits, now."""
        offset = value - self.now
        # The word is a signed one.
        self._control[abi.TSC_OFFSET] = (offset + _SIGN & x86.MASK64) - _SIGN

    # -- how long the engine runs ------------------------------------------------------

    def run_for(self, ns: int) -> None:
        """Have the engine stop once that many nanoseconds have passed, as usual."""
        self.run_on(ns * abi.QUARTERS)

    def run_on(self, work: int) -> None:
        """Have the engine stop once that much work is done."""
        control = self._control
        control[abi.LOOK_FOR] = work
        until = control[abi.LOOK_AT] = control[abi.STOP_FOR] = control[abi.NOW] + work
        self._stop_when(min(until, self.sample_at))

    def stop_by(self, ns: int) -> None:
        """Have the engine stop at that time, if it does not sooner."""
        control, at = self._control, self._work_at(ns)
        if control[abi.STOP_AT]:
            control[abi.STOP_FOR] = min(control[abi.STOP_FOR], at)
        self._stop_when(min(control[abi.STOP_AT], at))

    def stop_soon(self) -> None:
        """Have the engine stop at its next block; from any thread.

        From another thread it may be a later one, if the engine sets LIMIT meanwhile.
        """
        self._control[abi.STOP_FOR] = 0
        self._stop_when(0)

    def _stop_when(self, work: int) -> None:
        self._control[abi.STOP_AT] = work
        self._control[abi.LIMIT] = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time for the engine to stop, and not for a sample alone."""
        now, stop_at = self._control[abi.NOW], self._control[abi.STOP_AT]
        if self._every and stop_at:
            stop_at = self._control[abi.STOP_FOR]
        return bool(now >= stop_at)

    # -- samples -----------------------------------------------------------------------

    def sample(self, every: int) -> None:
        """Have a sample be due each time that so much work is done, from now on."""
        control = self._control
        self._every = every
        until = control[abi.STOP_FOR] = control[abi.STOP_AT]
        self.sample_at = control[abi.NOW] + every
        self._stop_when(min(until, self.sample_at))

    def take_samples(self) -> int:
        """Return how many samples have become due; they are due no longer."""
        control = self._control
        late = control[abi.NOW] - self.sample_at
        count = late // self._every + 1 if late >= 0 else 0
        self.sample_at += count * self._every
        if control[abi.STOP_AT]:
            control[abi.STOP_AT] = self.sample_at
            # Last: another thread may ask for a stop in between.
            if control[abi.STOP_FOR] < self.sample_at:
                control[abi.STOP_AT] = control[abi.STOP_FOR]
        return count

    # -- its state ---------------------------------------------------------------------

    def save(self) -> ClockState:
        """Return the time, to the unit of work, and what takes how long."""
        return ClockState(*(self._control[word] for word in _SAVED))

    def restore(self, state: ClockState) -> None:
        """Become the clock that was saved."""
        for word, value in zip(_SAVED, state, strict=True):
            self._control[word] = value
