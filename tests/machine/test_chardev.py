"""A line to the guest, shared by all who watch it or type on it."""

import pytest

from emu86.devices.uart import MCR_RTS, Uart
from emu86.machine.chardev import CharDevice


class Frontend:
    """A guest's end that notes what it receives."""

    def __init__(self):
        self.ready = False
        self.waiting = b""
        self.got = []
        self.urgent = b""

    def watch(self, urgent):
        self.urgent = urgent

    def receive(self, data):
        self.got.append(data)


@pytest.fixture
def frontend():
    return Frontend()


@pytest.fixture
def line(frontend):
    device = CharDevice()
    device.connect(frontend)
    return device


def write(line, data):
    for byte in data:
        line.write(bytes([byte]))


def test_all_who_subscribed_are_told(line):
    told = []
    line.subscribe(lambda data: told.append((1, data)))
    write(line, b"a")
    line.subscribe(lambda data: told.append((2, data)))
    write(line, b"b")
    assert told == [(1, b"a"), (1, b"b"), (2, b"b")]


def test_what_is_expected_is_found_once(line):
    found = []
    line.expect(b"aab", lambda: found.append("aab"))
    write(line, b"aaa")
    assert not found
    write(line, b"b")
    assert found == ["aab"]
    write(line, b"aab")
    assert found == ["aab"]


def test_what_is_expected_is_looked_for_from_then_on(line):
    found = []
    write(line, b"on")
    line.expect(b"one", lambda: found.append(1))
    write(line, b"e")
    assert not found
    write(line, b"on")
    line.expect(b"", lambda: found.append(2))
    write(line, b"e")
    assert not found


def test_input_waits_until_the_guest_is_ready(line, frontend):
    called = []
    line.on_input = lambda: called.append(line.waiting)
    line.send(b"ab")
    line.send(b"")
    line.send(b"c")
    assert called == [2, 3]
    assert not line.deliverable
    line.deliver()
    assert (frontend.got, line.waiting) == ([], 3)
    frontend.ready = True
    assert line.deliverable
    line.deliver()
    assert (frontend.got, line.waiting) == ([b"ab", b"c"], 0)
    assert not line.deliverable
    frontend.waiting = b"bc"
    assert line.waiting == 2


def test_a_line_without_a_guest_keeps_what_is_sent():
    line = CharDevice()
    line.send(b"ab")
    line.deliver()
    assert line.waiting == 2


def test_rts_is_what_a_uart_is_ready_by():
    uart = Uart(lambda _: None, lambda _: None)
    line = CharDevice()
    line.connect(uart)
    line.send(b"a")
    line.deliver()
    assert uart.received == b""
    uart.write(4, 1, MCR_RTS, 0)
    line.deliver()
    assert uart.received == b"a"


def test_what_waits_is_its_state(line, frontend):
    line.send(b"ab")
    line.send(b"c")
    state = line.save()
    other, end = CharDevice(), Frontend()
    other.connect(end)
    other.send(b"lost")
    other.restore(state)
    assert other.save() == state
    frontend.ready = end.ready = True
    line.deliver()
    other.deliver()
    assert b"".join(frontend.got) == b"".join(end.got) == b"abc"
    other.restore(line.save())
    assert other.waiting == 0
