"""Intel 8254 programmable interval timer.

Source: Intel 8254 data sheet (order 231164-005), whose section names are cited below.

The chip's clock is 1.193182 MHz: its pulse k falls on the first nanosecond at which
k / 1193182 s have passed since time 0, so that no period drifts. Nothing runs between
the accesses: a channel keeps where it started and works out where it is.

Known differences from the chip: a count of 1 in modes 2 and 3, which is illegal, is
taken as 2; the decimal value of a digit above 9 is carried over. OUT of channel 0
reaches the interrupt line without the low pulses of one clock that end modes 2 and 4;
when time comes late, a rising edge that was passed is reported, once, in preference
to a falling one, so that no tick is lost but several become one. A gate that falls
during the strobe of mode 4 holds the strobe as well as the count.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

FREQUENCY: Final = 1_193_182
"""Clock of the chip in Hz: a third of the 3.579545 MHz of the NTSC colour carrier."""

SECOND: Final = 1_000_000_000


def ticks(now: int) -> int:
    """Number of clock pulses up to time ``now`` (ns)."""
    return now * FREQUENCY // SECOND


def tick_time(tick: int) -> int:
    """Return the first time (ns) at which ``ticks`` gives ``tick``."""
    return -(-tick * SECOND // FREQUENCY)


def from_bcd(value: int) -> int:
    """Value of four decimal digits."""
    return sum((value >> 4 * i & 15) * 10**i for i in range(4))


def to_bcd(value: int) -> int:
    """Four decimal digits of ``value`` (0..9999)."""
    return sum(value // 10**i % 10 << 4 * i for i in range(4))


class ChannelState(NamedTuple):
    """One counter: what was programmed, and where it started (in clock pulses)."""

    mode: int
    access: int
    bcd: bool
    gate: bool
    out: bool
    reload: int
    null_count: bool
    period: int
    origin: int
    held: int | None
    expired: bool
    load_at: int | None
    idle: int
    low_byte: int
    write_high: bool
    read_high: bool
    latched: int | None
    status: int | None


class PitState(NamedTuple):
    """The three counters and the level that was last told of the interrupt line."""

    channels: tuple[ChannelState, ...]
    line: bool


class Channel:
    """One counter. Time is in clock pulses here.

    The counting element was last loaded with ``period`` at pulse ``origin`` (in mode
    3: at the start of the half cycle); ``held`` pulses of it have passed when the
    gate has stopped it, and ``t - origin`` when ``held`` is None. All methods but
    ``sync`` expect the counter to have been brought to ``t`` by it.
    """

    def __init__(self, *, gate: bool) -> None:
        """Make a counter that does not count, its output high.

        Args:
            gate: level of the GATE input.

        """
        self.mode = 0
        self.access = 3
        """Bytes of a count: 1 low only, 2 high only, 3 low then high."""
        self.bcd = False
        self.gate = gate
        self.out = True
        self.reload = 0
        """The count register, decoded: 1..65536; 0 before the first count."""
        self.null_count = True
        self.period = 0
        """The count last loaded; 0: none since the control word."""
        self.origin = 0
        self.held: int | None = None
        self.expired = False
        """The count of a mode that counts once (0, 1, 4, 5) has run out."""
        self.load_at: int | None = None
        """Pulse at which the count register goes to the counting element."""
        self.idle = 0
        """What the counting element shows while nothing is loaded."""
        self.low_byte = 0
        self.write_high = False
        self.read_high = False
        self.latched: int | None = None
        self.status: int | None = None

    def sync(self, t: int) -> bool:
        """Bring the counter to pulse ``t``; True if OUT rose on the way."""
        rose = False
        if self.load_at is not None and self.load_at <= t:
            was_high = self.out
            self._load(self.load_at)
            rose = self.out and not was_high  # a strobe ended
        if not self.period or self.held is not None:
            return rose
        if self.mode == 2:
            return self._sync_rate(t) or rose
        if self.mode == 3:
            return self._sync_square(t) or rose
        if self.expired:
            return rose
        elapsed = t - self.origin
        if elapsed >= self._length(self.period):
            self.expired = self.out = True
            return True
        self.out = self.mode >= 4 and elapsed != self.period
        return rose

    def next_edge(self) -> int | None:
        """Pulse of the next edge of OUT, None if it stays.

        The falling edges of the low pulses of modes 2, 4 and 5 are left out.
        """
        if self.load_at is not None:
            if not self.gate and self.mode not in (1, 5):
                return None
            if self.mode >= 4 and not self.out:
                return self.load_at  # it ends the strobe of the count before
            count, high = self._effective_reload(), True
            start = self.load_at
        elif not self.period or self.held is not None or self.expired:
            return None
        else:
            start, count, high = self.origin, self.period, self.out
        if self.mode == 2:
            return start + count
        if self.mode == 3:
            return start + (count + high) // 2
        return start + self._length(count)

    def count(self, t: int) -> int:
        """Return the counting element as it is read: 16 bits, binary or BCD."""
        if not self.period:
            return self.idle
        elapsed = t - self.origin if self.held is None else self.held
        if self.mode == 3:  # by twos, from the even number below
            value = max(self.period // 2 - elapsed, 0) * 2
        else:
            value = self.period - elapsed
        return to_bcd(value % 10_000) if self.bcd else value & 0xFFFF

    def program(self, control: int, t: int) -> None:
        """Take a control word (Control Word Format)."""
        self.idle = self.count(t)
        mode = control >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self.access = control >> 4 & 3
        self.bcd = bool(control & 1)
        self.out = self.mode != 0
        self.reload = self.period = 0
        self.held = self.load_at = self.latched = self.status = None
        self.null_count = True
        self.expired = self.write_high = self.read_high = False

    def latch(self, t: int) -> None:
        """Keep the count to be read; a latched one is kept (Counter Latch)."""
        if self.latched is None:
            self.latched = self.count(t)

    def latch_status(self) -> None:
        """Keep the status to be read; a latched one is kept (Read-Back)."""
        if self.status is None:
            self.status = (
                self.out << 7
                | self.null_count << 6
                | self.access << 4
                | self.mode << 1
                | self.bcd
            )

    def read(self, t: int) -> int:
        """Read a byte: of the latched status, the latched count or the count."""
        if self.status is not None:
            status, self.status = self.status, None
            return status
        value = self.count(t) if self.latched is None else self.latched
        if self.access == 3 and not self.read_high:
            self.read_high = True
            return value & 0xFF
        self.read_high = False
        self.latched = None
        return value & 0xFF if self.access == 1 else value >> 8

    def write(self, value: int, t: int) -> None:
        """Write a byte of a count."""
        if self.mode == 0:
            # OUT falls, and counting stops, with the first byte already (Mode 0).
            self.idle = self.count(t)
            self.period = 0
            self.load_at = None
            self.out = self.expired = False
        if self.access == 3 and not self.write_high:
            self.low_byte = value
            self.write_high = True
            return
        if self.access == 3:
            self.write_high = False
            value = value << 8 | self.low_byte
        elif self.access == 2:
            value <<= 8
        if self.bcd:
            self.reload = from_bcd(value) or 10_000
        else:
            self.reload = value or 0x10000
        self.null_count = True
        # Modes 2 and 3 take a new count at the end of the cycle, 1 and 5 when
        # triggered, all others at the next pulse.
        if self.mode in (0, 4) or (self.mode in (2, 3) and not self.period):
            self.load_at = t + 1

    def set_gate(self, level: bool, t: int) -> None:
        """Put the GATE input to ``level`` (Gate Pin Operations Summary)."""
        if level == self.gate:
            return
        self.gate = level
        if level:
            if self.mode not in (0, 4):
                if self.reload:
                    self.load_at = t + 1
            elif self.held is not None:
                self.origin = t - self.held
                self.held = None
        elif self.mode not in (1, 5):
            if self.period and self.held is None:
                self.held = t - self.origin
            if self.mode in (2, 3):
                self.out = True

    def _length(self, count: int) -> int:
        """Pulses from loading ``count`` to OUT going high, in modes 0, 1, 4, 5."""
        return count + 1 if self.mode >= 4 else count

    def _effective_reload(self) -> int:
        return max(self.reload, 2) if self.mode in (2, 3) else self.reload

    def _load(self, t: int) -> None:
        self.load_at = None
        self.origin = t
        self.held = None if self.gate or self.mode in (1, 5) else 0
        self.expired = False
        self.out = self.mode > 1
        self._take_reload()

    def _take_reload(self) -> None:
        self.period = self._effective_reload()
        self.null_count = False

    def _sync_rate(self, t: int) -> bool:
        """Mode 2: low for the last pulse of each cycle."""
        rose = t - self.origin >= self.period
        if rose:
            self.origin += self.period
            self._take_reload()
            self.origin += (t - self.origin) // self.period * self.period
        self.out = t - self.origin != self.period - 1
        return rose

    def _sync_square(self, t: int) -> bool:
        """Mode 3: high for half of the cycle, and for the odd pulse."""
        rose = False
        while t - self.origin >= (half := (self.period + self.out) // 2):
            self.origin += half
            self.out = not self.out
            self._take_reload()
            cycles = (t - self.origin) // self.period
            self.origin += cycles * self.period
            rose = rose or self.out or cycles > 0
        return rose


class Pit:
    """The chip: three counters and a control word register (offset 3).

    The gates of channels 0 and 1 are tied high; that of channel 2 starts low.
    """

    def __init__(self, irq: Callable[[bool], None]) -> None:
        """Make a chip none of whose channels counts.

        Args:
            irq: told the level of OUT of channel 0 when it changes.

        """
        self._irq = irq
        self._line = False
        self._due: int | None = None
        self._channels = [Channel(gate=n != 2) for n in range(3)]

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a counter (0..2); the control word register cannot be read."""
        n = offset & 3
        if n == 3:
            return 0xFF
        t = ticks(now)
        self._sync(n, t)
        return self._channels[n].read(t)

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a byte of a count (0..2) or a control word (3)."""
        n, t, value = offset & 3, ticks(now), value & 0xFF
        if n < 3:
            self._sync(n, t)
            out = self._channels[n].out
            self._channels[n].write(value, t)
            self._written(n, out)
        elif value >> 6 == 3:
            self._read_back(value, t)
        else:
            n = value >> 6
            self._sync(n, t)
            out = self._channels[n].out
            if value & 0x30:
                self._channels[n].program(value, t)
            else:
                self._channels[n].latch(t)
            self._written(n, out)

    def deadline(self) -> int | None:
        """Time of the next edge of the interrupt line."""
        return self._due

    def advance(self, now: int) -> None:
        """Move the interrupt line to where it is at ``now``."""
        self._sync(0, ticks(now))

    def out(self, channel: int, now: int) -> bool:
        """Level of the OUT pin of ``channel`` (0..2)."""
        self._sync(channel, ticks(now))
        return self._channels[channel].out

    def gate(self, channel: int) -> bool:
        """Level of the GATE pin of ``channel`` (0..2)."""
        return self._channels[channel].gate

    def set_gate(self, channel: int, level: bool, now: int) -> None:
        """Put the GATE pin of ``channel`` (0..2) to ``level``."""
        t = ticks(now)
        self._sync(channel, t)
        out = self._channels[channel].out
        self._channels[channel].set_gate(level, t)
        self._written(channel, out)

    def save(self) -> PitState:
        """Return the counters and the level of the line."""
        return PitState(
            tuple(capture(ChannelState, channel) for channel in self._channels),
            self._line,
        )

    def restore(self, state: PitState) -> None:
        """Become the chip that was saved."""
        for channel, saved in zip(self._channels, state.channels, strict=True):
            reinstate(channel, saved)
        self._line = state.line
        self._find_deadline()

    def _read_back(self, command: int, t: int) -> None:
        for n, channel in enumerate(self._channels):
            if command & 2 << n:
                self._sync(n, t)
                if not command & 0x20:
                    channel.latch(t)
                if not command & 0x10:
                    channel.latch_status()

    def _sync(self, n: int, t: int) -> None:
        channel = self._channels[n]
        was_high = channel.out
        rose = channel.sync(t)
        if n:
            return
        if rose:
            if self._line:
                self._irq(False)
            self._line = True
            self._irq(True)
        elif was_high and not channel.out and self._line:
            self._line = False
            self._irq(False)
        self._find_deadline()

    def _written(self, n: int, was_high: bool) -> None:
        """Tell of the edge that an access itself made."""
        if n:
            return
        out = self._channels[0].out
        if out not in (was_high, self._line):
            self._line = out
            self._irq(out)
        self._find_deadline()

    def _find_deadline(self) -> None:
        edge = self._channels[0].next_edge()
        self._due = None if edge is None else tick_time(edge)
