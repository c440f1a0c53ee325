"""Virtual time, without an engine: over a control block of its own."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.cpu.clock import USUAL, Clock
from emu86.native import abi


@pytest.fixture
def control():
    return memoryview(bytearray(8 * abi.WORDS)).cast("q")


@pytest.fixture
def clock(control):
    return Clock(control)


def test_time_passes_in_nanoseconds(control, clock):
    clock.advance_to(clock.now + 10)
    control[abi.NOW] += 7  # what code of 7 bytes takes
    assert clock.now == 11
    clock.advance_to(9)
    assert control[abi.NOW] == 47
    clock.advance_to(12)
    assert control[abi.NOW] == 48


def test_an_exit_takes_time(clock):
    clock.count_exit()
    assert clock.now == 1000
    clock.set_costs(other=30, rdtsc=1)
    clock.count_exit()
    assert clock.now == 1030


def test_the_tsc_counts_nanoseconds(clock):
    clock.advance_to(clock.now + 5)
    assert clock.tsc() == 5
    clock.set_tsc(100)
    clock.advance_to(clock.now + 5)
    assert clock.tsc() == 105
    assert clock.tsc_offset == 95
    clock.tsc_offset = -10
    assert clock.tsc() == 0


def test_the_engine_is_stopped_by_the_earliest(control, clock):
    assert control[abi.STOP_AT] == abi.NEVER
    control[abi.NOW] = 2  # half a nanosecond is not lost
    clock.run_for(100)
    assert control[abi.STOP_AT] == 402
    clock.stop_by(200)
    assert control[abi.STOP_AT] == 402
    clock.stop_by(50)
    assert control[abi.STOP_AT] == 200
    clock.advance_to(clock.now + 49)
    assert not clock.is_due
    clock.advance_to(clock.now + 1)
    assert clock.is_due
    clock.run_for(100)
    thread = threading.Thread(target=clock.stop_soon)
    thread.start()
    thread.join()
    assert clock.is_due


def test_a_restored_clock_is_the_saved_one(control, clock):
    clock.set_costs(rdtsc=500, other=0)
    control[abi.NOW] = 4321
    clock.set_tsc(7)
    state = clock.save()
    words = control.tolist()
    clock.advance_to(clock.now + 1)
    clock.set_tsc(0)
    clock.set_costs(rdtsc=1, other=1)
    clock.restore(state)
    assert control.tolist() == words
    assert clock.save() == state


def test_the_rate_may_change_and_time_goes_on(control, clock):
    clock.advance_to(100)
    clock.rate = 2.5
    assert (clock.now, clock.rate) == (100, 2.5)
    control[abi.NOW] += 10
    assert clock.now == 125
    clock.stop_by(150)
    assert control[abi.STOP_AT] == control[abi.NOW] + 10
    clock.rate = 0.001
    assert clock.now == 125
    clock.advance_to(127)
    assert control[abi.NOW] >= 400 + 10 + 2000
    assert clock.now == 127
    clock.rate = USUAL
    assert clock.now == 127
    clock.run_for(3)
    control[abi.NOW] = control[abi.STOP_AT]
    assert clock.now == 130


@given(st.lists(st.tuples(st.floats(1e-9, 100), st.integers(0, 1 << 30)), max_size=9))
def test_a_moment_has_come_when_its_work_is_done(steps):
    """At any rate, and not an instant sooner."""
    control = memoryview(bytearray(8 * abi.WORDS)).cast("q")
    clock = Clock(control)
    for rate, ns in steps:
        clock.rate = rate
        due = clock.now + ns
        clock.run_on(1 << 60)
        clock.stop_by(due)
        if ns:
            control[abi.NOW] = control[abi.STOP_AT] - 1
            assert clock.now < due
        control[abi.NOW] = control[abi.STOP_AT]
        assert clock.now >= due


def test_samples_come_before_the_stop_and_do_not_move_it():
    control = memoryview(bytearray(8 * abi.WORDS)).cast("q")
    clock = Clock(control)
    clock.run_on(1000)
    clock.sample(300)
    assert control[abi.STOP_AT] == 300
    control[abi.NOW] = 299
    assert clock.take_samples() == 0
    control[abi.NOW] = 650
    assert not clock.is_due
    assert clock.take_samples() == 2
    assert control[abi.STOP_AT] == 900
    clock.stop_by(200)  # ns: 800 units
    assert control[abi.STOP_AT] == 800
    control[abi.NOW] = 950
    assert clock.is_due
    assert clock.take_samples() == 1
    assert control[abi.STOP_AT] == 800
    clock.advance_to(1000)  # what is skipped is no work
    clock.run_on(10_000)
    assert control[abi.STOP_AT] == 4000 + 250
    control[abi.NOW] += 300
    clock.stop_soon()
    assert clock.take_samples() == 1
    assert control[abi.STOP_AT] == 0
    assert clock.is_due


def test_a_stop_asked_for_while_a_sample_is_taken():
    control = memoryview(bytearray(8 * abi.WORDS)).cast("q")

    class Asked:
        """The control block, while another thread asks for a stop."""

        def __getitem__(self, word):
            return control[word]

        def __setitem__(self, word, value):
            if word == abi.STOP_AT and value == 2 * 300 + 300:
                clock._control = control
                clock.stop_soon()
            control[word] = value

    clock = Clock(control)
    clock.run_on(5000)
    clock.sample(300)
    control[abi.NOW] = 650
    clock._control = Asked()
    assert clock.take_samples() == 2
    assert control[abi.STOP_AT] == 0
