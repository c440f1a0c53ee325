"""Motorola MC146818 real-time clock with the CMOS RAM of a PC.

Source: MC146818 data sheet (ADI-856), whose section names are cited below; the
layout of the RAM is that of the IBM PC/AT, with the century in byte 32h (and in 37h,
where a PS/2 has it: Ralf Brown's Interrupt List, CMOS.LST).

Time is worked out from ``now``: the registers are not counted up, and neither an
update nor a periodic edge costs anything unless its interrupt is enabled.

Known differences from the chip: the time base is 32.768 kHz, and the clock stands
still when the divider is programmed for another; daylight saving is stored but has
no effect; the century counts along; a date that does not exist, in a running clock,
is carried over to one that does.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

SECOND: Final = 1_000_000_000

UPDATE_NS: Final = 244_000 + 1_984_000
"""How long UIP is set before the time changes: its lead and the update cycle."""

# Addresses of the registers.
SECONDS: Final = 0x00
SECONDS_ALARM: Final = 0x01
MINUTES: Final = 0x02
MINUTES_ALARM: Final = 0x03
HOURS: Final = 0x04
HOURS_ALARM: Final = 0x05
WEEKDAY: Final = 0x06
DAY: Final = 0x07
MONTH: Final = 0x08
YEAR: Final = 0x09
REGISTER_A: Final = 0x0A
REGISTER_B: Final = 0x0B
REGISTER_C: Final = 0x0C
REGISTER_D: Final = 0x0D
CENTURY: Final = 0x32
CENTURY_PS2: Final = 0x37
"""Where a PS/2 has the century; here it is the same register."""

TIME: Final = frozenset(
    {SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY},
)
ALARM: Final = frozenset({SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM})

A_UIP: Final = 0x80
A_DIVIDER: Final = 0x70
A_32KHZ: Final = 0x20

B_SET: Final = 0x80
B_UIE: Final = 0x10
B_BINARY: Final = 0x04
B_24H: Final = 0x02

# Flags of register C; the enables of register B are the same bits.
PERIODIC: Final = 0x40
ALARMED: Final = 0x20
UPDATED: Final = 0x10
C_IRQF: Final = 0x80

D_VRT: Final = 0x80

EQUIPMENT: Final = 0x02
"""Byte 14h: a coprocessor, and a display that has a BIOS of its own."""


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a date of the Gregorian calendar.

    ``month`` is 1..12; ``year`` and ``day`` may be any, days being carried over.
    """
    # Years are counted from March, so that the leap day is their last.
    year -= month < 3
    leap_days = year // 4 - year // 100 + year // 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return year * 365 + leap_days + day_of_year - 719_468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """Year, month and day of ``days_from_civil``."""
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    month = (month + 2) % 12 + 1
    return era * 400 + year + (month < 3), month, day + 1


class RtcState(NamedTuple):
    """The 128 bytes, and what the registers do not show.

    ``clock`` is the time, in seconds since 1970, at which the divider chain was at
    ``origin`` (ns); None while the time registers stand still in ``ram``.
    """

    index: int  # type: ignore[assignment] # it hides a method of tuples
    ram: bytes
    clock: int | None
    origin: int
    weekday_shift: int
    flags: int
    synced: int
    line: bool


class Rtc:
    """The chip: an index register (offset 0) and a data register (1)."""

    def __init__(
        self,
        irq: Callable[[bool], None],
        epoch: float,
        base_memory: int = 640,
        extended_memory: int = 0,
        floppies: Sequence[int] = (),
        boot: Sequence[int] = (),
    ) -> None:
        """Make a running clock, as a BIOS leaves it: BCD, 24 hours, no interrupts.

        Args:
            irq: told the level of the interrupt line when it changes (True: the
                request is made; the chip's own pin is active low).
            epoch: what it shows at virtual time 0, in seconds since 1970-01-01; the
                next second comes with the fraction, if there is one.
            base_memory: memory below 1 MiB, in KiB, for bytes 15h and 16h.
            extended_memory: memory above 1 MiB, in KiB, for bytes 17h and 18h, 30h
                and 31h, and 34h and 35h (that above 16 MiB, in 64 KiB units).
            floppies: types of the diskette drives, two at most, for byte 10h.
            boot: what is booted from, 1 floppies, 2 disks, 3 CDs, three at most, for
                bytes 3Dh and 38h; none: the BIOS decides.

        """
        self._irq = irq
        self.index = 0
        self._ram = bytearray(128)
        self._ram[REGISTER_A] = A_32KHZ | 0x06
        self._ram[REGISTER_B] = B_24H
        first, second = (*floppies, 0, 0)[:2]
        self._ram[0x10] = first << 4 | second
        drives = len(floppies) and 1 | len(floppies) - 1 << 6
        self._ram[0x14] = EQUIPMENT | drives
        self._ram[0x15:0x17] = min(base_memory, 0xFFFF).to_bytes(2, "little")
        extended = min(extended_memory, 0xFFFF).to_bytes(2, "little")
        self._ram[0x17:0x19] = extended
        self._ram[0x30:0x32] = extended
        above_16m = max(extended_memory - 15 * 1024, 0) // 64
        self._ram[0x34:0x36] = min(above_16m, 0xFFFF).to_bytes(2, "little")
        self._ram[0x2E:0x30] = sum(self._ram[0x10:0x2E]).to_bytes(2, "big")
        first, second, third = (*boot, 0, 0, 0)[:3]
        self._ram[0x3D], self._ram[0x38] = second << 4 | first, third << 4
        self.clock: int | None = int(epoch)
        self.origin = -int(epoch % 1 * SECOND)
        self.weekday_shift = 0
        self.flags = 0
        self.synced = 0
        """Up to when ``flags`` holds what has happened."""
        self.line = False
        self._due: int | None = None

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the register of the index; the index itself cannot be read."""
        if not offset & 1:
            return 0xFF
        index = self.index
        if index in TIME and self.clock is not None:
            return self._encode(self._time(now))[index]
        if index == REGISTER_A:
            return self._ram[REGISTER_A] | (A_UIP if self._updating(now) else 0)
        if index == REGISTER_C:
            return self._read_flags(now)
        if index == REGISTER_D:
            return D_VRT
        return self._ram[index]

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Set the index (0), whose bit 7 masks NMI, or write its register (1)."""
        value &= 0xFF
        if not offset & 1:
            value &= 0x7F
            self.index = CENTURY if value == CENTURY_PS2 else value
            return
        index = self.index
        if index in TIME:
            self._sync(now)
            self._write_time(index, value, now)
        elif index in ALARM:
            self._sync(now)
            self._ram[index] = value
        elif index == REGISTER_A:
            self._sync(now)
            self._control(value & 0x7F, self._ram[REGISTER_B], now)
        elif index == REGISTER_B:
            self._sync(now)
            if value & B_SET:
                value &= ~B_UIE
            self._control(self._ram[REGISTER_A], value, now)
        elif index > REGISTER_D:
            self._ram[index] = value
            return
        self._update()

    def deadline(self) -> int | None:
        """Time of the next interrupt, of those that are enabled."""
        return self._due

    def advance(self, now: int) -> None:
        """Note what has happened up to ``now`` and move the interrupt line."""
        self._sync(now)
        self._update()

    def save(self) -> RtcState:
        """Return the registers, the RAM and the clock."""
        return capture(RtcState, self)

    def restore(self, state: RtcState) -> None:
        """Become the chip that was saved."""
        reinstate(self, state)
        self._due = self._next_interrupt()

    def seconds_of_day(self, now: int) -> int:
        """Return the seconds since midnight that a running clock shows."""
        return self._time(now) % 86_400

    @property
    def ram(self) -> bytes:
        """The 128 bytes; those of a running clock's time are stale."""
        return bytes(self._ram)

    @ram.setter
    def ram(self, data: bytes) -> None:
        self._ram[:] = data

    def _chain(self, now: int) -> int:
        """Whole seconds that the divider chain has counted."""
        return (now - self.origin) // SECOND

    def _counting(self) -> bool:
        """Whether the divider chain runs (Register A, DV)."""
        return self._ram[REGISTER_A] & A_DIVIDER == A_32KHZ

    def _time(self, now: int) -> int:
        """Seconds since 1970 that a running clock shows."""
        return (self.clock or 0) + self._chain(now)

    def _updating(self, now: int) -> bool:
        left = SECOND - (now - self.origin) % SECOND
        return self.clock is not None and left <= UPDATE_NS

    def _number(self, value: int) -> int:
        """Encode a number as a register holds it (Register B, DM)."""
        if self._ram[REGISTER_B] & B_BINARY:
            return value & 0xFF
        return value // 10 % 10 << 4 | value % 10

    def _value(self, byte: int) -> int:
        """Decode a number; rubbish has a value, too."""
        if self._ram[REGISTER_B] & B_BINARY:
            return byte
        return (byte >> 4) * 10 + (byte & 15)

    def _hour(self, hour: int) -> int:
        """Encode an hour: 0..23, or 1..12 with bit 7 for PM (Register B, 24/12)."""
        if self._ram[REGISTER_B] & B_24H:
            return self._number(hour)
        return self._number(hour % 12 or 12) | (0x80 if hour >= 12 else 0)

    def _encode(self, time: int) -> dict[int, int]:
        """Return the time registers at ``time`` (seconds since 1970)."""
        days, seconds = divmod(time, 86_400)
        year, month, day = civil_from_days(days)
        return {
            SECONDS: self._number(seconds % 60),
            MINUTES: self._number(seconds // 60 % 60),
            HOURS: self._hour(seconds // 3600),
            WEEKDAY: self._number((days + 4 + self.weekday_shift) % 7 + 1),
            DAY: self._number(day),
            MONTH: self._number(month),
            YEAR: self._number(year % 100),
            CENTURY: self._number(year // 100),
        }

    def _decode(self, registers: dict[int, int]) -> int:
        """Return the time that the registers show; take over the day of the week."""
        hours = registers[HOURS]
        if self._ram[REGISTER_B] & B_24H:
            hour = self._value(hours)
        else:
            hour = self._value(hours & 0x7F) % 12 + (12 if hours & 0x80 else 0)
        value = {index: self._value(byte) for index, byte in registers.items()}
        days = days_from_civil(
            value[CENTURY] * 100 + value[YEAR],
            (value[MONTH] - 1) % 12 + 1,
            value[DAY],
        )
        time = days * 86_400 + hour * 3600 + value[MINUTES] * 60 + value[SECONDS]
        # The chip counts the days of the week by themselves, from 1, Sunday.
        self.weekday_shift = (value[WEEKDAY] - 1 - (time // 86_400 + 4)) % 7
        return time

    def _write_time(self, index: int, value: int, now: int) -> None:
        if self.clock is None:
            self._ram[index] = value
        else:
            registers = self._encode(self._time(now))
            registers[index] = value
            self.clock = self._decode(registers) - self._chain(now)

    def _control(self, a: int, b: int, now: int) -> None:
        """Set registers A and B: stop or start the divider chain and the clock."""
        counted = self._counting()
        counts = a & A_DIVIDER == A_32KHZ
        runs = counts and not b & B_SET
        if self.clock is not None and not runs:
            for index, value in self._encode(self._time(now)).items():
                self._ram[index] = value
            self.clock = None
        self._ram[REGISTER_A] = a
        self._ram[REGISTER_B] = b
        if counts and not counted:
            # The first update comes half a second after (Divider Control).
            self.origin = now - SECOND // 2
        if runs and self.clock is None:
            registers = {index: self._ram[index] for index in TIME}
            self.clock = self._decode(registers) - self._chain(now)

    def _period(self) -> int | None:
        """Return log2 of the periodic rate in cycles of 32.768 kHz (Register A)."""
        rate = self._ram[REGISTER_A] & 0x0F
        if rate == 0 or not self._counting():
            return None
        return rate - 1 if rate > 2 else rate + 6

    def _cycles(self, now: int) -> int:
        return (now - self.origin) * 32_768 // SECOND

    def _next_alarm(self, time: int) -> int | None:
        """Return the first time after ``time`` that matches the alarm registers."""
        ram = self._ram
        hours, minutes, seconds = (
            [n for n in range(count) if byte >= 0xC0 or encode(n) == byte]
            for byte, count, encode in (
                (ram[HOURS_ALARM], 24, self._hour),
                (ram[MINUTES_ALARM], 60, self._number),
                (ram[SECONDS_ALARM], 60, self._number),
            )
        )
        if not (hours and minutes and seconds):
            return None

        def first(start: int) -> int | None:
            for hour in hours:
                if hour * 3600 + 3599 < start:
                    continue
                for minute in minutes:
                    base = hour * 3600 + minute * 60
                    if base + seconds[-1] < start:
                        continue
                    return base + next(s for s in seconds if base + s >= start)
            return None

        days, now = divmod(time, 86_400)
        found = first(now + 1)
        if found is None:
            days, found = days + 1, first(0)
            assert found is not None
        return days * 86_400 + found

    def _sync(self, now: int) -> None:
        """Note in ``flags`` what has happened since the last time."""
        if self.clock is not None:
            before, after = self._time(self.synced), self._time(now)
            if after > before:
                self.flags |= UPDATED
                alarm = self._next_alarm(before)
                if alarm is not None and alarm <= after:
                    self.flags |= ALARMED
        period = self._period()
        if period is not None and (
            self._cycles(now) >> period > self._cycles(self.synced) >> period
        ):
            self.flags |= PERIODIC
        self.synced = now

    def _read_flags(self, now: int) -> int:
        """Read register C, which clears it and takes the interrupt away."""
        self._sync(now)
        enabled = self.flags & self._ram[REGISTER_B]
        value = self.flags | (C_IRQF if enabled else 0)
        self.flags = 0
        self._update()
        return value

    def _update(self) -> None:
        line = bool(self.flags & self._ram[REGISTER_B])
        if line != self.line:
            self.line = line
            self._irq(line)
        self._due = self._next_interrupt()

    def _next_interrupt(self) -> int | None:
        if self.line:
            return None  # nothing new until register C is read
        enabled = self._ram[REGISTER_B]
        times = []
        period = self._period()
        if enabled & PERIODIC and period is not None:
            cycle = (self._cycles(self.synced) >> period) + 1 << period
            times.append(self.origin - (-cycle * SECOND // 32_768))
        if self.clock is not None:
            if enabled & UPDATED:
                times.append(self.origin + (self._chain(self.synced) + 1) * SECOND)
            if enabled & ALARMED:
                alarm = self._next_alarm(self._time(self.synced))
                if alarm is not None:
                    times.append(self.origin + (alarm - self.clock) * SECOND)
        return min(times, default=None)
