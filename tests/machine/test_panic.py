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
    assert watch.settle() == why
    assert watch.settle("halted") == "", "it is told once"


def test_a_line_without_an_end():
    watch = PanicWatch(lambda: None)
    for byte in _WORDS:
        watch.take(bytes([byte]))
        assert watch.settle() == "", "it may go on"
    assert watch.settle() == _WHY
    for byte in _WORDS:
        watch.take(bytes([byte]))
    assert watch.settle("halted") == _WHY


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


# -- with panic=N Linux resets the machine ---------------------------------------------

_FIRST_WORDS = b"[    2.4] Kernel panic - " + _WHY.encode()
_RESET = "mov al, 0xfe\nout 0x64, al\njmp $\n"
_TRIPLE_FAULT = "lidt [none]\nint3\nnone: dw 0, 0, 0\n"


@pytest.mark.parametrize("how", [_RESET, _TRIPLE_FAULT])
@pytest.mark.parametrize("end", [b"\nRebooting in 1 seconds..", b""])
def test_a_reset_after_a_panic_is_the_panic(how, end):
    machine = guest(send(_FIRST_WORDS + end) + how)
    assert machine.run(timeout=120, panics=True) == Stop("panic", 0, _WHY)
    assert machine.run(panics=True).reason in ("reset", "triple fault"), "told once"


def test_a_panic_that_begins_is_no_end_yet():
    machine = guest(send(_FIRST_WORDS + b"\nmore\n") + "cli\nhlt")
    assert machine.run(timeout=120, panics=True).reason == "halted"


def test_a_reset_after_a_panic_is_a_reset_for_who_does_not_ask():
    machine = guest(send(_FIRST_WORDS + b"\n") + _RESET)
    assert machine.run(timeout=120).reason == "reset"


def test_a_line_that_only_speaks_of_a_panic_makes_no_reset_a_panic():
    machine = guest(send(b"# " + _FIRST_WORDS + b"\n") + _RESET)
    assert machine.run(timeout=120, panics=True).reason == "reset"


@pytest.mark.parametrize("end", ["", "reset"])
def test_a_panic_is_forgotten_with_its_guest(end):
    watch = PanicWatch(lambda: None)
    for byte in _FIRST_WORDS + b"\n" + _FIRST_WORDS:
        watch.take(bytes([byte]))
    watch.forget()
    assert watch.settle(end) == ""


def test_a_machine_that_is_reset_forgets_the_panic():
    machine = guest("jmp near say\n" + _RESET + "say:\n" + send(_FIRST_WORDS) + "jmp $")
    assert machine.run(until=_WHY.encode(), timeout=120).reason == "until"
    machine.reset()
    machine.set_register("eip", 0x100005)
    assert machine.run(timeout=120, panics=True).reason == "reset"
