"""Virtual time, without an engine: over a control block of its own."""

import threading

import pytest

from emu86.cpu.clock import Clock
from emu86.native import abi


@pytest.fixture
def control():
    return memoryview(bytearray(8 * abi.WORDS)).cast("q")


@pytest.fixture
def clock(control):
    return Clock(control)


def test_time_passes_in_nanoseconds(control, clock):
    clock.advance(10)
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
    clock.advance(5)
    assert clock.tsc() == 5
    clock.set_tsc(100)
    clock.advance(5)
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
    clock.advance(49)
    assert not clock.is_due
    clock.advance(1)
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
    clock.advance(1)
    clock.set_tsc(0)
    clock.set_costs(rdtsc=1, other=1)
    clock.restore(state)
    assert control.tolist() == words
    assert clock.save() == state
