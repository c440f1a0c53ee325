import pytest

from emu86.devices.parallel import Parallel

DATA, STATUS, CONTROL = range(3)
INIT, IDLE, STROBE, IRQ = 0x04, 0x0C, 0x0D, 0x10


class Guest:
    """A parallel port between a printer and a driver's accesses."""

    def __init__(self):
        self.lines = []
        self.paper = bytearray()
        self.port = Parallel(self.lines.append, self.paper.extend)

    def __getitem__(self, offset):
        return self.port.read(offset, 1, 0)

    def __setitem__(self, offset, value):
        self.port.write(offset, 1, value, 0)

    def print(self, byte, control=0):
        self[DATA] = byte
        self[CONTROL] = STROBE | control
        self[CONTROL] = IDLE | control


@pytest.fixture
def lpt():
    return Guest()


def test_after_reset(lpt):
    assert [lpt[n] for n in range(3)] == [0, 0xDF, 0xC0 | IDLE]
    assert lpt.lines == []


def test_each_strobe_is_a_byte(lpt):
    for byte in b"ok\n\xff":
        lpt.print(byte)
        assert lpt[STATUS] == 0xDF
    assert lpt.paper == b"ok\n\xff"
    lpt[DATA] = 0x55
    lpt[CONTROL] = STROBE
    lpt[CONTROL] = STROBE  # no new edge
    assert lpt.paper == b"ok\n\xff\x55"
    assert lpt.lines == []


def test_registers_are_read_back_and_the_status_is_not_written(lpt):
    lpt[DATA], lpt[STATUS], lpt[CONTROL] = 0xA5, 0, 0xFF & ~1
    assert [lpt[n] for n in range(3)] == [0xA5, 0xDF, 0xDE]


def test_a_printer_in_reset_takes_nothing(lpt):
    lpt[CONTROL] = 0x08
    lpt[CONTROL] = 0x09
    assert lpt.paper == b""


def test_an_interrupt_for_each_byte_until_the_status_is_read(lpt):
    lpt.print(1, IRQ)
    assert lpt.lines == [True]
    assert lpt[STATUS] == 0xDB
    assert lpt.lines == [True, False]
    assert lpt[STATUS] == 0xDF
    lpt.print(2, IRQ)
    lpt.print(3, IRQ)
    assert lpt.lines == [True, False, True, False, True]
    lpt[CONTROL] = IDLE
    assert lpt.lines[-1] is False


def test_a_fault_is_busy_and_takes_nothing(lpt):
    lpt.port.fault = True
    lpt.print(1, IRQ)
    assert lpt[STATUS] == 0x57
    assert lpt.paper == b""
    assert lpt.lines == []


def test_a_fault_while_it_prints_does_not_acknowledge():
    lpt = Guest()

    def fail(_data):
        lpt.port.fault = True

    lpt.port = Parallel(lpt.lines.append, fail)
    lpt.print(1, IRQ)
    assert lpt.lines == []
