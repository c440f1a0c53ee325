"""Performance counters: what they count while compiled code has the CPU halted."""

import pytest

from emu86.cpu.pmu import Pmu
from emu86.native import abi

EVERYWHERE = 1 << 22 | 3 << 16 | 0x79  # EN, OS and USR; CPU_CLK_UNHALTED


@pytest.fixture
def control():
    return memoryview(bytearray(8 * abi.WORDS)).cast("q")


def test_what_compiled_code_sleeps_is_not_counted(control):
    pmu = Pmu(control)
    pmu.choose(100, 0, EVERYWHERE)
    control[abi.RESTED] += 700
    assert pmu.read(1100, 0) == 300
    assert pmu.read(1200, 0) == 400
    pmu.turn(1300, None)
    pmu.turn(2300, 0)
    control[abi.RESTED] += 50
    assert pmu.read(2400, 0) == 550


def test_what_it_has_slept_is_known_to_who_is_restored(control):
    pmu = Pmu(control)
    pmu.choose(0, 0, EVERYWHERE)
    control[abi.RESTED] += 700
    other = Pmu()
    other.restore(pmu.save())
    assert other.read(1000, 0) == 300
