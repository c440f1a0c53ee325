"""The run loop against the host's clock: idle time that is slept."""

import threading
import time

from emu86 import Machine, Stop
from support.flat import flat
from support.snippets import PIC

# The serial line hears, and a byte received interrupts: IRQ 4 at vector 12.
_LISTEN = """
    gate 12, heard
    """
_LISTEN += PIC.format(base=8, mask="0xEF")
_LISTEN += """
    mov dx, 0x3fc
    mov al, 0x0b
    out dx, al
    mov dx, 0x3f9
    mov al, 1
    out dx, al
    sti
.wait:
    hlt
    jmp .wait
heard:
    mov dx, 0x3f8
    in al, dx
    movzx eax, al
    jmp fin
"""

# A tick of the timer 65536 pulses, 55 ms, from now.
_TICK = f"""
    gate 8, ticked
    {PIC.format(base=8, mask=0xFE)}
    mov al, 0x30
    out 0x43, al
    mov al, 0
    out 0x40, al
    out 0x40, al
    sti
.wait:
    hlt
    jmp .wait
ticked:
    mov eax, 7
    jmp fin
"""
_PERIOD = 65536 * 1_000_000_000 // 1_193_182


def test_idle_time_is_slept_in_real_time():
    machine = flat(_TICK, realtime=True)
    begin = time.monotonic()
    assert machine.run(timeout=120) == Stop("debug exit", 7)
    assert time.monotonic() - begin >= 0.05
    assert _PERIOD <= machine.now < _PERIOD + 10_000_000


def test_in_virtual_time_it_is_skipped():
    machine = flat(_TICK)
    assert machine.run(timeout=120) == Stop("debug exit", 7)
    assert _PERIOD <= machine.now < _PERIOD + 10_000_000


def test_input_wakes_a_sleeper():
    machine = flat(_LISTEN, realtime=True)
    threading.Timer(0.1, machine.console_input, [b"z"]).start()
    assert machine.run(timeout=120) == Stop("debug exit", ord("z"))
    assert machine.now >= 50_000_000  # as much virtual time has passed


def test_a_sleeper_wakes_at_the_timeout():
    machine = flat(_LISTEN, realtime=True)
    assert machine.run(timeout=0.01) == Stop("timeout")


def test_a_halted_guest_that_hears_is_given_its_input():
    machine = flat(_LISTEN)
    machine.console_input(b"a")
    assert machine.run(timeout=120) == Stop("debug exit", ord("a"))


def test_a_halted_guest_with_nothing_to_wait_for_has_ended():
    assert flat(_LISTEN).run(timeout=120).detail.endswith("waiting for nothing")


def test_one_request_to_stop_stops_a_sleeper():
    machine = flat(_LISTEN, realtime=True)
    threading.Timer(0.05, machine.stop).start()
    assert machine.run(timeout=120) == Stop("interrupted")


def test_real_time_may_be_chosen_between_two_runs_and_is_saved():
    machine = Machine(memory=1 << 20)
    assert not machine.realtime
    machine.realtime = True
    assert Machine.restore(machine.save()).realtime
