"""Virtual time: each engine has one clock, in words that compiled hooks count up too.

Time is a function of the work done: a quarter nanosecond for each byte of code run, and
what exits, port accesses and RDTSC take. The words hold quarter nanoseconds; what is
said and asked here is in whole ones. The TSC counts nanoseconds, so it runs at 1 GHz.
"""

from dataclasses import dataclass

from emu86.native import abi


@dataclass(frozen=True, slots=True)
class ClockState:
    """What a clock holds: quarter nanoseconds, but for `tsc_offset` in nanoseconds."""

    now: int
    tsc_offset: int
    tsc_cost: int
    exit_cost: int


class Clock:
    """Virtual time and the TSC over an engine's control block.

    When the engine next has to stop is asked for anew before each slice of the guest,
    so it is no part of the state.
    """

    def __init__(self, control: memoryview) -> None:
        self._control = control
        control[abi.STOP_AT] = abi.NEVER
        control[abi.EXIT_COST] = abi.EXIT_TIME

    @property
    def now(self) -> int:
        """Virtual time in nanoseconds."""
        return self._control[abi.NOW] // abi.QUARTERS

    def advance(self, ns: int) -> None:
        """Let nanoseconds pass."""
        self._control[abi.NOW] += ns * abi.QUARTERS

    def advance_to(self, ns: int) -> None:
        """Let time pass until a moment that may have been already."""
        control = self._control
        control[abi.NOW] = max(control[abi.NOW], ns * abi.QUARTERS)

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
        """Make the TSC `value` now."""
        self._control[abi.TSC_OFFSET] = value - self.now

    # -- how long the engine runs ------------------------------------------------------

    def run_for(self, ns: int) -> None:
        """Have the engine stop once that many nanoseconds have passed."""
        self._control[abi.STOP_AT] = self._control[abi.NOW] + ns * abi.QUARTERS

    def stop_by(self, ns: int) -> None:
        """Have the engine stop at that time, if it does not sooner."""
        control = self._control
        control[abi.STOP_AT] = min(control[abi.STOP_AT], ns * abi.QUARTERS)

    def stop_soon(self) -> None:
        """Have the engine stop at its next block; from any thread."""
        self._control[abi.STOP_AT] = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time for the engine to stop."""
        return bool(self._control[abi.NOW] >= self._control[abi.STOP_AT])

    # -- its state ---------------------------------------------------------------------

    def save(self) -> ClockState:
        """Return the time, to the quarter nanosecond, and what takes how long."""
        words = abi.NOW, abi.TSC_OFFSET, abi.TSC_COST, abi.EXIT_COST
        return ClockState(*(self._control[word] for word in words))

    def restore(self, state: ClockState) -> None:
        """Become the clock that was saved."""
        control = self._control
        control[abi.NOW] = state.now
        control[abi.TSC_OFFSET] = state.tsc_offset
        control[abi.TSC_COST] = state.tsc_cost
        control[abi.EXIT_COST] = state.exit_cost
