import pytest

from emu86.devices.pit import Pit, tick_time
from emu86.devices.speaker import Speaker


@pytest.fixture
def pit():
    return Pit(lambda _: None)


@pytest.fixture
def port(pit):
    return Speaker(pit)


def test_linux_calibration_sees_out_2_rise_when_the_count_is_through(pit, port):
    port.write(0, 1, port.read(0, 1, 0) & ~2 | 1, 0)
    pit.write(3, 1, 0xB0, 0)
    pit.write(2, 1, 0xE8, 0)
    pit.write(2, 1, 0x03, 0)
    assert not port.read(0, 1, tick_time(1000)) & 0x20
    assert port.read(0, 1, tick_time(1001)) & 0x20


def test_without_the_gate_it_does_not_count(pit, port):
    pit.write(3, 1, 0xB0, 0)
    pit.write(2, 1, 0x10, 0)
    pit.write(2, 1, 0, 0)
    assert not port.read(0, 1, tick_time(100_000)) & 0x20
    port.write(0, 1, 1, tick_time(100_000))
    assert port.read(0, 1, tick_time(100_016)) & 0x20


def test_bits_that_are_kept_and_bits_that_are_not(port):
    port.write(0, 1, 0xFF, 0)
    assert port.read(0, 1, 0) & 0xDF == 0x0F
    port.write(0, 1, 0xF2, 0)
    assert port.read(0, 1, 0) & 0xDF == 0x02


def test_the_refresh_bit_toggles_every_18_pulses(port):
    seen = [port.read(0, 1, tick_time(t)) & 0x10 for t in (0, 17, 18, 35, 36)]
    assert seen == [0, 0, 0x10, 0x10, 0]


def test_save_and_restore(pit, port):
    port.write(0, 1, 0x0F, 0)
    other_pit = Pit(lambda _: None)
    other_pit.restore(pit.save())
    other = Speaker(other_pit)
    other.restore(port.save())
    assert other.read(0, 1, 99) == port.read(0, 1, 99)
