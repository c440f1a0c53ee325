"""A panic of Linux on the console ends a run that asks for it."""

import pytest

from emu86 import Stop
from emu86.machine.panic import PanicWatch
from support.flat import guest, send

_WORDS = b"---[ end Kernel panic - not syncing: VFS: no root ]---"
_WHY = "not syncing: VFS: no root"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (_WORDS, _WHY),
        (b"[    2.406521] " + _WORDS, _WHY),
        (b"[12345.678901][    T1] " + _WORDS, _WHY),
        (b"[    1.000000][   C0] " + _WORDS, _WHY),
        (b"---[ end Kernel panic", "no reason given"),
        (b"---[ end Kernel panic - not syncing: \xff", "not syncing: \ufffd"),
        (b"Kernel panic - not syncing: VFS", ""),
        (b"# " + _WORDS, ""),
        (b"[    1.0]x " + _WORDS, ""),
        (b"---[ end trace 0000000000000000 ]---", ""),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines(line, why, end):
    found = []
    watch = PanicWatch(lambda: found.append(1))
    for byte in b"before" + end + line + end:
        watch.take(bytes([byte]))
    assert bool(found) == bool(why)
    assert watch.settle(ended=False) == why
    assert watch.settle(ended=True) == "", "it is told once"


def test_a_line_without_an_end():
    watch = PanicWatch(lambda: None)
    for byte in _WORDS:
        watch.take(bytes([byte]))
        assert watch.settle(ended=False) == "", "it may go on"
    assert watch.settle(ended=False) == _WHY
    for byte in _WORDS:
        watch.take(bytes([byte]))
    assert watch.settle(ended=True) == _WHY


def test_a_panic_ends_the_run():
    machine = guest(send(_WORDS + b"\r\nmore") + "jmp $")
    shown = bytearray()
    machine.on_console(shown.extend)
    stop = machine.run(timeout=120, panics=True)
    assert stop == Stop("panic", 0, _WHY)
    assert stop.resumable
    assert shown == _WORDS + b"\r"
    assert machine.run(until=b"more", timeout=120, panics=True).reason == "until"


@pytest.mark.parametrize("then", ["jmp $", "cli\nhlt"])
def test_a_panic_of_a_guest_that_writes_no_more(then):
    machine = guest(send(_WORDS) + then)
    assert machine.run(timeout=120, panics=True) == Stop("panic", 0, _WHY)


def test_a_panic_is_no_end_for_who_does_not_ask():
    machine = guest(send(_WORDS + b"\nmore") + "cli\nhlt")
    assert machine.run(timeout=120).reason == "halted"


def test_until_comes_first():
    machine = guest(send(_WORDS + b"\n") + "cli\nhlt")
    assert machine.run(until=b"root", timeout=120, panics=True).reason == "until"
