import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.devices.rtc import Rtc, civil_from_days, days_from_civil

SECOND = 1_000_000_000
MS = 1_000_000
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
PIE, AIE, UIE = 0x40, 0x20, 0x10

UTC = dt.UTC
START = dt.datetime(2024, 2, 28, 23, 59, 50, tzinfo=UTC)  # a Wednesday


class Guest:
    """The clock as a guest has it: by index and data."""

    def __init__(self, start=START, **memory):
        self.lines = []
        self.rtc = Rtc(self.lines.append, int(start.timestamp()), **memory)
        self.now = 0

    def __getitem__(self, index):
        self.rtc.write(0, 1, index, self.now)
        return self.rtc.read(1, 1, self.now)

    def __setitem__(self, index, value):
        self.rtc.write(0, 1, index, self.now)
        self.rtc.write(1, 1, value, self.now)

    def to_deadline(self):
        self.now = self.rtc.deadline()
        self.rtc.advance(self.now - 1)
        assert not self.line
        self.rtc.advance(self.now)
        return self.now

    @property
    def line(self):
        return bool(self.lines) and self.lines[-1]

    @property
    def time(self):
        return [self[n] for n in (0x32, 9, 8, 7, 4, 2, 0, 6)]


@pytest.fixture
def cmos():
    return Guest()


@given(st.dates())
def test_calendar(date):
    days = (date - dt.date(1970, 1, 1)).days
    assert days_from_civil(date.year, date.month, date.day) == days
    assert civil_from_days(days) == (date.year, date.month, date.day)


@given(st.integers(-(10**7), 10**7))
def test_calendar_beyond_datetime(days):
    assert days_from_civil(*civil_from_days(days)) == days


def test_starts_as_a_bios_leaves_it(cmos):
    assert (cmos[A], cmos[B], cmos[C], cmos[D]) == (0x26, 0x02, 0, 0x80)
    assert cmos.time == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x50, 4]
    assert cmos.rtc.deadline() is None


def test_time_passes_over_midnight_and_leap_day(cmos):
    cmos.now = 10 * SECOND
    assert cmos.time == [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00, 5]
    cmos.now += 86_400 * SECOND
    assert cmos.time == [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00, 6]


def test_binary_and_12_hours(cmos):
    cmos[B] = 0x06
    assert cmos.time == [20, 24, 2, 28, 23, 59, 50, 4]
    cmos[B] = 0x04
    assert cmos[4] == 0x80 | 11
    cmos[B] = 0x00
    assert cmos[4] == 0x91
    cmos.now = 10 * SECOND
    assert cmos[4] == 0x12
    cmos.now += 12 * 3600 * SECOND
    assert cmos[4] == 0x92


def set_time(cmos, values):
    cmos[B] = cmos[B] | 0x80
    for index, value in values.items():
        cmos[index] = value
    cmos[B] = cmos[B] & 0x7F


def test_setting_the_time(cmos):
    cmos.now = 5 * SECOND + 300 * MS
    set_time(cmos, {0: 0x58, 2: 0x59, 4: 0x23, 6: 7, 7: 0x31, 8: 0x12, 9: 0x99})
    assert cmos.time == [0x20, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58, 7]
    cmos.now += 700 * MS  # the divider chain has gone on
    assert cmos[0] == 0x59
    cmos.now += SECOND
    assert cmos.time == [0x21, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 1]


def test_setting_12_hour_time(cmos):
    cmos[B] = 0x00
    set_time(cmos, {4: 0x92})
    cmos[B] = 0x02
    assert cmos[4] == 0x12
    cmos[B] = 0x00
    set_time(cmos, {4: 0x12})
    cmos[B] = 0x02
    assert cmos[4] == 0x00


def test_set_stops_updates_and_keeps_what_is_written(cmos):
    cmos[B] = 0x80 | UIE | 0x02
    assert cmos[B] == 0x82  # SET clears UIE
    cmos[8] = 0x7F
    cmos.now = 100 * SECOND
    assert (cmos[8], cmos[0]) == (0x7F, 0x50)
    assert cmos[A] & 0x80 == 0
    assert cmos[C] == PIE  # the divider chain goes on


def test_divider_reset_and_the_first_update_half_a_second_later(cmos):
    cmos[A] = 0x70
    cmos.now = 100 * SECOND
    assert cmos[0] == 0x50
    cmos[A] = 0x26
    cmos.now += 499 * MS
    assert cmos[0] == 0x50
    cmos.now += 1 * MS
    assert cmos[0] == 0x51


def test_update_in_progress(cmos):
    for left, uip in ((2_229_000, 0), (2_228_000, 1), (1, 1), (0, 0)):
        cmos.now = 3 * SECOND - left
        assert cmos[A] >> 7 == uip


def test_update_ended_interrupt(cmos):
    cmos.now = 400 * MS
    cmos[B] = 0x02 | UIE
    assert cmos.to_deadline() == SECOND
    assert cmos.line
    assert cmos.rtc.deadline() is None  # until register C is read
    cmos.now = 5 * SECOND
    assert cmos[C] == 0x80 | UIE | PIE
    assert not cmos.line
    assert cmos[C] == 0
    assert cmos.to_deadline() == 6 * SECOND


@pytest.mark.parametrize(
    ("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (13, 8), (15, 2)]
)
def test_periodic_interrupt(cmos, rate, hz):
    cmos[A] = 0x20 | rate
    cmos[B] = 0x02 | PIE
    for n in range(1, 20):
        assert cmos.to_deadline() == -(-n * SECOND // hz)
        assert cmos.line
        assert cmos[C] & 0xC0 == 0xC0


def test_periodic_rate_0_is_none(cmos):
    cmos[A] = 0x20
    cmos[B] = 0x02 | PIE
    assert cmos.rtc.deadline() is None


def test_flags_are_set_without_their_enables_and_cost_nothing(cmos):
    for index in (1, 3, 5):
        cmos[index] = 0xC0
    cmos.now = SECOND
    assert cmos.rtc.deadline() is None
    assert cmos[C] == PIE | AIE | UIE
    assert cmos.lines == []


def test_enabling_an_interrupt_whose_flag_is_set(cmos):
    cmos.now = SECOND
    cmos[B] = 0x02 | UIE
    assert cmos.line


def alarm(cmos, hour, minute, second):
    cmos[5], cmos[3], cmos[1] = hour, minute, second
    cmos[C]
    cmos[B] = cmos[B] | AIE


@pytest.mark.parametrize(
    ("setting", "due"),
    [
        ((0x00, 0x00, 0x05), 15),
        ((0x23, 0x59, 0x50), 86_400),  # now, so tomorrow
        ((0xC0, 0xFF, 0xC7), 1),
        ((0xFF, 0xFF, 0x50), 60),
        ((0xFF, 0x30, 0x00), 30 * 60 + 10),
        ((0x12, 0xFF, 0xFF), 12 * 3600 + 10),
    ],
)
def test_alarm(cmos, setting, due):
    alarm(cmos, *setting)
    assert cmos.to_deadline() == due * SECOND
    assert cmos[C] & 0xA0 == 0xA0


def test_alarm_of_a_time_that_is_none(cmos):
    alarm(cmos, 0x25, 0x00, 0x00)
    assert cmos.rtc.deadline() is None


def test_alarm_in_12_hours(cmos):
    cmos[B] = 0
    alarm(cmos, 0x81, 0, 0)
    assert cmos.to_deadline() == (13 * 3600 + 10) * SECOND


def test_alarm_that_passed_while_nobody_looked(cmos):
    alarm(cmos, 0xFF, 0xFF, 0x55)
    cmos.rtc.advance(59 * SECOND)
    assert cmos.line


def test_ram_and_memory_sizes():
    cmos = Guest(base_memory=639, extended_memory=127 * 1024)
    assert cmos[0x15] | cmos[0x16] << 8 == 639
    assert cmos[0x17] | cmos[0x18] << 8 == 0xFFFF
    assert cmos[0x30] | cmos[0x31] << 8 == 0xFFFF
    assert cmos[0x34] | cmos[0x35] << 8 == 112 * 16
    checksum = sum(cmos[n] for n in range(0x10, 0x2E))
    assert cmos[0x2E] << 8 | cmos[0x2F] == checksum
    plain = [n for n in range(0x0E, 0x80) if n not in (0x32, 0x37)]  # the century
    for n in plain:
        cmos[n] = n ^ 0x55
    for n in plain:
        assert cmos[n] == n ^ 0x55


def test_the_equipment_byte(cmos):
    """CMOS.LST 14h: the coprocessor alone; bits 7-6 and 0 would be diskette drives."""
    assert cmos[0x14] == 0x02


def test_the_century_of_a_ps2_is_the_same_register(cmos):
    """CMOS.LST 32h and 37h."""
    assert cmos[0x37] == 0x20
    cmos[0x37] = 0x19
    assert cmos[0x32] == cmos[0x37] == 0x19


def test_the_nmi_mask_is_no_part_of_the_index(cmos):
    assert cmos[0x80 | D] == 0x80
    assert cmos.rtc.read(0, 1, 0) == 0xFF


def test_registers_c_and_d_are_read_only(cmos):
    cmos[C], cmos[D] = 0xFF, 0
    assert (cmos[C], cmos[D]) == (0, 0x80)


def test_century_before_and_after_2000():
    old = Guest(dt.datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert old[0x32] == 0x19
    old.now = SECOND
    assert (old[0x32], old[9]) == (0x20, 0x00)


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2, 4, 6, 7, 8, 9, 0x32]), st.integers(0, 255)),
        max_size=20,
    ),
    st.sampled_from([0, 2, 4, 6]),
)
def test_any_rubbish_is_some_time(writes, mode):
    cmos = Guest()
    cmos[B] = mode
    for index, value in writes:
        cmos[index] = value
    before = cmos.time
    set_time(cmos, {})
    assert cmos.time == before
    cmos.now += 10**6 * SECOND
    assert all(0 <= byte <= 0xFF for byte in cmos.time)


def test_save_and_restore(cmos):
    cmos.now = 123 * MS
    cmos[B] = 0x02 | PIE | AIE
    other = Guest(dt.datetime(1980, 1, 1, tzinfo=UTC))
    other.rtc.restore(cmos.rtc.save())
    assert other.rtc.deadline() == cmos.rtc.deadline()
    other.now = cmos.now = 77 * SECOND
    assert other.time == cmos.time
    assert other[C] == cmos[C]
