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

import ctypes
from collections.abc import Callable
from typing import NamedTuple

from emu86.devices.saving import capture, reinstate
from emu86.native import abi
from emu86.native.abi import NONE
from emu86.native.pit import (
    count,
    latch,
    next_edge,
    read,
    sync,
    tick_time,
    ticks,
)


def from_bcd(value: int) -> int:
    """Value of four decimal digits."""
    return sum((value >> 4 * i & 15) * 10**i for i in range(4))


class ChannelState(NamedTuple):
    """The fields of one counter: see ``abi.Counter``."""

    mode: int
    access: int
    bcd: int
    gate: int
    out: int
    reload: int
    null_count: int
    period: int
    origin: int
    held: int
    expired: int
    load_at: int
    idle: int
    low_byte: int
    write_high: int
    read_high: int
    latched: int
    status: int


class PitState(NamedTuple):
    """Each counter, and the level that was last told of the interrupt line."""

    channels: tuple[ChannelState, ...]
    line: bool


class Channel(abi.Counter):
    """One counter. Time is in clock pulses here.

    ``native.pit`` has what compiled code does, too. All methods but ``sync`` expect the
    counter to have been brought to ``t`` by it.
    """

    def reset(self, *, gate: bool) -> None:
        """Do not count, OUT high.

        Args:
            gate: level of the GATE input.

        """
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))
        self.access = 3
        self.gate = gate
        self.out = self.null_count = 1
        self.held = self.load_at = self.latched = self.status = NONE

    def sync(self, t: int) -> bool:
        """Bring the counter to pulse ``t``; True if OUT rose on the way."""
        return sync(self, t)

    def program(self, control: int, t: int) -> None:
        """Take a control word (Control Word Format)."""
        self.idle = count(self, t)
        mode = control >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self.access = control >> 4 & 3
        self.bcd = bool(control & 1)
        self.out = self.mode != 0
        self.reload = self.period = 0
        self.held = self.load_at = self.latched = self.status = NONE
        self.null_count = 1
        self.expired = self.write_high = self.read_high = 0

    def latch_status(self) -> None:
        """Keep the status to be read; a latched one is kept (Read-Back)."""
        if self.status == NONE:
            self.status = (
                self.out << 7
                | self.null_count << 6
                | self.access << 4
                | self.mode << 1
                | self.bcd
            )

    def write(self, value: int, t: int) -> None:
        """Write a byte of a count."""
        if self.mode == 0:
            # OUT falls, and counting stops, with the first byte already (Mode 0).
            self.idle = count(self, t)
            self.period = 0
            self.load_at = NONE
            self.out = self.expired = 0
        if self.access == 3 and not self.write_high:
            self.low_byte = value
            self.write_high = 1
            return
        if self.access == 3:
            self.write_high = 0
            value = value << 8 | self.low_byte
        elif self.access == 2:
            value <<= 8
        if self.bcd:
            self.reload = from_bcd(value) or 10_000
        else:
            self.reload = value or 0x10000
        self.null_count = 1
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
            elif self.held != NONE:
                self.origin = t - self.held
                self.held = NONE
        elif self.mode not in (1, 5):
            if self.period and self.held == NONE:
                self.held = t - self.origin
            if self.mode in (2, 3):
                self.out = 1


class Pit:
    """The chip: three counters and a control word register (offset 3).

    The gates of channels 0 and 1 are tied high; that of channel 2 starts low.
    """

    def __init__(
        self,
        irq: Callable[[bool], None],
        counters: ctypes.Array[abi.Counter] | None = None,
    ) -> None:
        """Make a chip none of whose channels counts.

        Args:
            irq: told the level of OUT of channel 0 when it changes.
            counters: the memory of its three counters; None: its own.

        """
        memory = (abi.Counter * 3)() if counters is None else counters
        self._channels = list((Channel * 3).from_buffer(memory))
        for n, channel in enumerate(self._channels):
            channel.reset(gate=n != 2)
        self._irq = irq
        self._line = False
        self._due: int | None = None

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a counter (0..2); the control word register cannot be read."""
        n = offset & 3
        if n == 3:
            return 0xFF
        t = ticks(now)
        self._sync(n, t)
        return read(self._channels[n], t)

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
                latch(self._channels[n], t)
            self._written(n, out)

    def deadline(self) -> int | None:
        """Time of the next edge of the interrupt line."""
        return self._due

    def advance(self, now: int) -> None:
        """Move the interrupt line to where it is at ``now``."""
        self._sync(0, ticks(now))

    def changed(self) -> None:
        """Learn that compiled code has moved channel 0, whose OUT is or was high."""
        self._line = True
        self._find_deadline()

    def out(self, channel: int, now: int) -> bool:
        """Level of the OUT pin of ``channel`` (0..2)."""
        self._sync(channel, ticks(now))
        return bool(self._channels[channel].out)

    def gate(self, channel: int) -> bool:
        """Level of the GATE pin of ``channel`` (0..2)."""
        return bool(self._channels[channel].gate)

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
                    latch(channel, t)
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

    def _written(self, n: int, was_high: int) -> None:
        """Tell of the edge that an access itself made."""
        if n:
            return
        out = bool(self._channels[0].out)
        if out not in (was_high, self._line):
            self._line = out
            self._irq(out)
        self._find_deadline()

    def _find_deadline(self) -> None:
        edge = next_edge(self._channels[0])
        self._due = None if edge == abi.NEVER else tick_time(edge)
