import pytest

from emu86.devices.bus import Bus
from emu86.devices.ports import (
    Coprocessor,
    DebugConsole,
    DebugExit,
    PostCode,
    PowerControl,
    SystemControlA,
)


def test_post_code_keeps_the_last_value():
    port = PostCode()
    port.write(0, 1, 0x12, 0)
    port.write(0, 1, 0x1AB, 0)
    assert port.read(0, 1, 0) == port.value == 0xAB


def test_port_92_a20():
    a20 = []
    port = SystemControlA(lambda: None, a20.append)
    assert port.read(0, 1, 0) == 0x02
    for value in (0x02, 0x00, 0x00, 0x02):
        port.write(0, 1, value, 0)
    assert a20 == [False, True]


def test_port_92_resets_on_the_rising_bit():
    resets = []
    port = SystemControlA(lambda: resets.append(1), lambda _: None)
    for value in (0x02, 0x03, 0x03, 0x02, 0x03):
        port.write(0, 1, value, 0)
    assert len(resets) == 2


def test_the_coprocessor_asks_until_its_latch_is_cleared():
    irq = []
    latch = Coprocessor(irq.append)
    latch.write(0, 1, 0, 0)
    assert irq == []
    latch.fail()
    latch.fail()
    assert irq == [True]
    assert latch.read(0, 1, 0) == 0xFF
    latch.write(0, 1, 0, 0)
    assert irq == [True, False]


@pytest.mark.parametrize(("width", "seen"), [(1, 0x78), (2, 0x5678), (4, 0x12345678)])
def test_debug_exit(width, seen):
    left, bus = [], Bus()
    bus.attach(range(0xF4, 0xF8), DebugExit(left.append), "exit")
    bus.write(0xF4, width, 0x12345678, 0)
    assert left == [seen]
    assert bus.read(0xF4, width, 0) == (1 << 8 * width) - 1


def test_the_debug_console_is_found_by_what_it_reads():
    said = []
    port = DebugConsole(said.append)
    port.write(0, 1, 0x141, 0)
    port.write(0, 1, 0x0A, 0)
    assert said == [b"A", b"\n"]
    assert port.read(0, 1, 0) == 0xE9


@pytest.fixture
def power():
    off, bus = [], Bus()
    bus.attach(range(0x604, 0x606), PowerControl(lambda: off.append(1)), "power")
    return bus, off


def test_soft_off(power):
    bus, off = power
    bus.write(0x604, 2, 0x2000, 0)
    assert off == [1]


def test_soft_off_by_bytes_and_with_other_bits(power):
    bus, off = power
    bus.write(0x604, 1, 0x01, 0)
    assert off == []
    bus.write(0x605, 1, 0x20, 0)
    assert off == [1]
    assert bus.read(0x604, 2, 0) == 0x0001
    bus.write(0x604, 4, 0x2001, 0)
    assert off == [1, 1]


@pytest.mark.parametrize("value", [0x0000, 0x0001, 0x2400, 0x3C00, 0x1C00])
def test_other_sleep_types_do_nothing(power, value):
    bus, off = power
    bus.write(0x604, 2, value, 0)
    assert off == []
    assert bus.read(0x604, 2, 0) == value & 0xDFFF
    assert bus.read(0x605, 1, 0) == (value & 0xDFFF) >> 8


def test_save_and_restore():
    a, b = PostCode(), PostCode(7)
    b.restore(a.save())
    assert b.value == 0
