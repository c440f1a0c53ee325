"""The 8254 against its data sheet, and against a model clocked pulse by pulse."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu86.devices.pit import Pit, from_bcd, tick_time
from emu86.native import abi
from emu86.native.pit import ticks

CONTROL = 3
SECOND = 1_000_000_000


def to_bcd(n):
    return int(str(n), 16)


class Model:
    """One counter, moved by each clock pulse, as the data sheet tells it."""

    def __init__(self):
        self.mode, self.gate, self.out = 0, False, True
        self.bcd = False
        self.cr = self.ce = 0
        self.loaded = self.load = self.strobe = self.done = False

    def program(self, mode, *, bcd):
        self.mode, self.bcd = mode, bcd
        self.out = mode != 0
        self.cr = 0
        self.loaded = self.load = False

    def write(self, count):
        self.cr = count or (10_000 if self.bcd else 0x10000)
        if self.mode == 0:
            self.out = self.loaded = False
        if self.mode in (0, 4) or (self.mode in (2, 3) and not self.loaded):
            self.load = True

    def set_gate(self, level):
        rising, falling = level and not self.gate, self.gate and not level
        self.gate = level
        if rising and self.mode in (1, 2, 3, 5) and self.cr:
            self.load = True
        if falling and self.mode in (2, 3):
            self.out = True

    def clock(self):
        if self.load:
            self.load = False
            self.loaded = True
            self.out = self.mode not in (0, 1)
            self.done = False
            self._reload()
            return
        if not self.loaded or (not self.gate and self.mode not in (1, 5)):
            return
        if self.mode in (0, 1):
            self.ce -= 1
            if self.ce == 0 and not self.done:
                self.out = self.done = True
        elif self.mode in (4, 5):
            self.out = True
            self.ce -= 1
            if self.ce == 0 and not self.done:
                self.out, self.done = False, True
        elif self.mode == 2:
            self.ce -= 1
            if self.ce == 0:
                self.out = True
                self._reload()
            elif self.ce == 1:
                self.out = False
        elif self.odd and self.out and self.ce == 0:
            self._toggle()
        else:
            self.ce -= 2
            if self.ce == 0 and not (self.odd and self.out):
                self._toggle()
        modulus = 10_000 if self.bcd else 0x10000
        if self.ce < 0:
            self.ce += modulus

    def _toggle(self):
        self.out = not self.out
        self._reload()

    def _reload(self):
        self.ce = self.cr
        self.odd = False
        if self.mode in (2, 3):
            self.ce = max(self.ce, 2)
        if self.mode == 3:
            self.odd = bool(self.ce & 1)
            self.ce -= self.ce & 1

    @property
    def count(self):
        return to_bcd(self.ce % 10_000) if self.bcd else self.ce & 0xFFFF


class Lines:
    def __init__(self):
        self.log = []

    def __call__(self, level):
        self.log.append(level)

    @property
    def rises(self):
        return self.log.count(True)


@pytest.fixture
def irq():
    return Lines()


@pytest.fixture
def pit(irq):
    return Pit(irq)


def program(pit, channel, mode, count, now=0, *, bcd=False):
    pit.write(CONTROL, 1, channel << 6 | 0x30 | mode << 1 | bcd, now)
    pit.write(channel, 1, count & 0xFF, now)
    pit.write(channel, 1, count >> 8, now)


def count(pit, channel, now):
    """Read the live count through a read-back latch."""
    pit.write(CONTROL, 1, 0xD0 | 2 << channel, now)
    low = pit.read(channel, 1, now)
    return low | pit.read(channel, 1, now) << 8


def test_pulses_fall_on_the_first_nanosecond():
    for tick in (0, 1, 2, 11_931, 1_193_182, 10**12 + 7):
        now = tick_time(tick)
        assert ticks(now) == tick
        assert tick == 0 or ticks(now - 1) == tick - 1
    assert tick_time(1_193_182) == SECOND


@given(st.integers(0, 9999))
def test_bcd(n):
    assert from_bcd(to_bcd(n)) == n


gates = st.tuples(st.just("gate"), st.booleans())
waits = st.tuples(st.just("wait"), st.integers(0, 40))
long_waits = st.tuples(st.just("wait"), st.integers(41, 3000))
counts = st.tuples(
    st.just("count"), st.one_of(st.integers(1, 12), st.integers(13, 120), st.just(0))
)
programs = st.tuples(st.just("program"), st.tuples(st.integers(0, 5), st.booleans()))


@settings(deadline=None)
@given(
    programs,
    st.lists(st.one_of(waits, counts, gates, waits, long_waits, programs), max_size=25),
)
def test_channel_2_is_the_clocked_model(first, actions):
    pit, model = Pit(Lines()), Model()
    tick = 100
    for action, value in [first, *actions]:
        now = tick_time(tick)
        if action == "program":
            mode, bcd = value
            pit.write(CONTROL, 1, 0xB0 | mode << 1 | bcd, now)
            model.program(mode, bcd=bcd)
        elif action == "count":
            raw = to_bcd(value) if model.bcd else value
            pit.write(2, 1, raw & 0xFF, now)
            pit.write(2, 1, raw >> 8, now)
            model.write(value)
        elif action == "gate":
            pit.set_gate(2, value, now)
            model.set_gate(value)
        else:
            for _ in range(value):
                model.clock()
            tick += value
            now = tick_time(tick)
        assert pit.out(2, now) == model.out
        if model.loaded:
            assert count(pit, 2, now) == model.count


@settings(deadline=None)
@given(
    st.sampled_from([0, 2, 3, 4]),
    st.integers(1, 300),
    st.integers(0, 2_000_000),
    st.one_of(st.none(), st.integers(1, 300)),
)
def test_the_deadline_is_the_very_nanosecond_of_each_edge(mode, first, start, second):
    irq = Lines()
    pit, model = Pit(irq), Model()
    model.set_gate(True)
    model.program(mode, bcd=False)
    program(pit, 0, mode, first, start)
    model.write(first)
    tick = ticks(start)
    if second is not None:
        now = tick_time(tick + 5)
        for _ in range(5):
            model.clock()
        pit.advance(now)
        pit.write(0, 1, second & 0xFF, now)
        pit.write(0, 1, second >> 8, now)
        model.write(second)
        tick += 5
    irq.log.clear()
    for _ in range(4):
        due = pit.deadline()
        # The clocked model finds the edges: rises, and in mode 3 falls, too.
        while True:
            before = model.out
            model.clock()
            tick += 1
            if model.out and not before:
                break
            if before and not model.out and mode == 3:
                break
            if tick > ticks(start) + 5000:
                assert due is None
                return
        assert due == tick_time(tick)
        pit.advance(due - 1)
        assert True not in irq.log  # the low pulse of mode 2 or 4 may be seen
        irq.log.clear()
        pit.advance(due)
        assert irq.log[-1:] == [True] if model.out else True not in irq.log
        irq.log.clear()


def test_periodic_interrupts_do_not_drift(pit, irq):
    program(pit, 0, 2, 11_932)
    for n in range(1, 1001):
        due = pit.deadline()
        assert due == tick_time(1 + n * 11_932)
        pit.advance(due + n)  # always late
    assert irq.rises == 1000


@pytest.mark.parametrize("mode", [2, 3])
def test_periods_that_passed_at_once_are_one_edge(pit, irq, mode):
    program(pit, 0, mode, 1000)
    pit.advance(tick_time(50_777))
    assert irq.log == [True]
    assert pit.deadline() > tick_time(50_777)
    pit.advance(tick_time(50_778))
    assert irq.log == [True]  # not taken back
    pit.advance(tick_time(60_777))
    assert irq.log[1:] == [False, True]


def test_reading_the_count_loses_no_edge(pit, irq):
    program(pit, 0, 2, 1000)
    pit.read(0, 1, tick_time(1001))
    assert irq.log == [True]
    assert pit.deadline() == tick_time(2001)


def test_one_shot_rises_once_and_falls_with_a_new_count(pit, irq):
    program(pit, 0, 0, 100)
    assert pit.deadline() == tick_time(101)
    pit.advance(tick_time(101))
    assert irq.log == [True]
    assert pit.deadline() is None
    pit.write(0, 1, 50, tick_time(200))
    assert irq.log == [True, False]
    assert pit.deadline() is None  # half a count
    pit.write(0, 1, 0, tick_time(300))
    assert pit.deadline() == tick_time(351)


def test_a_control_word_that_raises_out_is_an_edge(pit, irq):
    program(pit, 0, 0, 100)
    pit.write(CONTROL, 1, 0x34, tick_time(10))
    assert irq.log == [True]


def test_count_0_is_65536_or_10000(pit):
    program(pit, 0, 2, 0)
    assert pit.deadline() == tick_time(65_537)
    program(pit, 0, 2, 0, bcd=True)
    assert pit.deadline() == tick_time(10_001)


def test_access_low_or_high_byte_only(pit):
    pit.write(CONTROL, 1, 0x14, 0)
    pit.write(0, 1, 0x80, 0)
    assert pit.deadline() == tick_time(0x81)
    assert pit.read(0, 1, tick_time(3)) == 0x7E
    assert pit.read(0, 1, tick_time(4)) == 0x7D
    pit.write(CONTROL, 1, 0x24, tick_time(10))
    pit.write(0, 1, 0x80, tick_time(10))
    assert pit.deadline() == tick_time(11 + 0x8000)
    assert pit.read(0, 1, tick_time(12)) == 0x7F


def test_counter_latch(pit):
    program(pit, 0, 2, 0x1234)
    pit.write(CONTROL, 1, 0x00, tick_time(1))
    pit.write(CONTROL, 1, 0x00, tick_time(500))  # ignored: one is latched
    assert pit.read(0, 1, tick_time(600)) == 0x34
    assert pit.read(0, 1, tick_time(700)) == 0x12
    live = 0x1234 - 799
    assert pit.read(0, 1, tick_time(800)) == live & 0xFF


def test_read_back_gives_status_before_count(pit):
    program(pit, 2, 3, 0x0102, bcd=False)
    pit.write(CONTROL, 1, 0xC8, 0)
    assert pit.read(2, 1, 0) == 0x80 | 0x40 | 0x30 | 3 << 1
    pit.read(2, 1, 0)
    pit.read(2, 1, 0)
    pit.set_gate(2, True, 0)
    pit.write(CONTROL, 1, 0xE8, tick_time(5))
    pit.write(CONTROL, 1, 0xE8, tick_time(200))
    assert pit.read(2, 1, tick_time(200)) == 0x80 | 0x30 | 3 << 1


def test_read_back_of_several_counters(pit):
    program(pit, 0, 2, 0x1111)
    program(pit, 1, 2, 0x2222)
    pit.write(CONTROL, 1, 0xD6, tick_time(1))
    assert [pit.read(n, 1, SECOND) for n in (0, 0, 1, 1)] == [0x11, 0x11, 0x22, 0x22]


def test_modes_6_and_7_are_2_and_3(pit):
    pit.write(CONTROL, 1, 0x3E, 0)
    pit.write(CONTROL, 1, 0xE2, 0)
    assert pit.read(0, 1, 0) & 0x0E == 3 << 1


def test_hardware_triggered_channel_0_never_interrupts(pit):
    for mode in (1, 5):
        program(pit, 0, mode, 100)
        assert pit.deadline() is None


def test_the_control_word_register_cannot_be_read(pit):
    assert pit.read(CONTROL, 1, 0) == 0xFF


def test_a_state_names_what_it_holds(pit):
    program(pit, 0, 3, 1001)
    found = pit.save().channels[0]
    assert (found.mode, found.access, found.reload) == (3, 3, 1001)
    assert len(found) == len(abi.Counter._fields_)


def test_saved_in_the_middle_of_a_count(pit, irq):
    program(pit, 0, 3, 1001)
    program(pit, 2, 0, 500)
    pit.write(2, 1, 0x55, tick_time(100))
    pit.read(0, 1, tick_time(200))
    twin_irq = Lines()
    twin = Pit(twin_irq)
    twin.restore(pit.save())
    irq.log.clear()
    for _, now in zip(range(20), itertools.count(tick_time(300), 777_777)):
        assert twin.deadline() == pit.deadline()
        assert twin.read(0, 1, now) == pit.read(0, 1, now)
        assert twin.save() == pit.save()
    assert twin_irq.log == irq.log != []
