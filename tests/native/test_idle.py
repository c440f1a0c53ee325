"""A guest that waits for its timer: HLT and a tick are compiled code's."""

import pytest

from emu86 import Stop
from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.machine import realtime
from support.flat import flat
from support.ticks import TICKS

native = pytest.mark.skipif(not abilities().native, reason="no compiled code here")
HALTS = TICKS.format(between="hlt")
NOBODY_CALLS = "inc edi\nsti\nhlt\ncli"  # an interrupt comes in the shadow's end


def ends(machine):
    """Run to the end; what can be known of it."""
    assert machine.run(timeout=100) == Stop("debug exit", 300)
    exits = machine.vmm.all_exits()
    return machine.now, machine.registers, exits["HLT"][0], exits["interrupt"][0]


@pytest.mark.parametrize("between", ["hlt", NOBODY_CALLS])
def test_whoever_halts_the_guest_ends_alike(between):
    code = TICKS.format(between=between)
    cans = None, abilities().reference(), Abilities.none()
    found = [ends(flat(code, "local", abilities=can)) for can in cans]
    assert found[0] == found[1] == found[2]
    assert found[0][3] == 300


def times(monkeypatch, machine):
    """Have a machine sleep no time; return how often, and what it was woken by."""
    ticks, late = [], [0]
    board = machine.board
    tick = board.tick
    monkeypatch.setattr(board, "tick", lambda do: ticks.append(tick(do)) or ticks[-1])
    now = realtime.monotonic_ns
    monkeypatch.setattr(realtime, "monotonic_ns", lambda: now() + late[0])

    def wait(seconds):
        late[0] += int(seconds * 1e9)

    monkeypatch.setattr(machine._loop._kicked, "wait", wait)
    return ticks


@native
def test_a_tick_of_a_halted_guest_is_one_call(monkeypatch):
    machine = flat(HALTS, "local", realtime=True)
    ticks = times(monkeypatch, machine)
    found = ends(machine)
    # The first makes the plan.
    assert ticks.count(True) > 280
    assert found[2:] == (300, 300)
    assert machine.vmm.exits["interrupt"][0] == 300


# A chip beside the timer is due at the same time, or the 8259A is set up otherwise.
OTHERWISE = {
    "automatic end": ("mov al, 1\n    out 0x21, al", "mov al, 3\n    out 0x21, al"),
    "square wave": ("mov al, 0x34", "mov al, 0x36"),
    "special mask": ("sti\n", "mov al, 0x68\nout 0x20, al\nsti\n"),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_what_is_not_the_usual_is_done_one_by_one(monkeypatch, how):
    before, after = OTHERWISE[how]
    assert HALTS.count(before) == 1
    machine = flat(HALTS.replace(before, after), "local", realtime=True)
    ticks = times(monkeypatch, machine)
    assert ends(machine)[2:] == (300, 300)
    assert not any(ticks)


@native
def test_python_halts_once():
    machine = flat(HALTS, "local")
    _now, _registers, halts, _interrupts = ends(machine)
    assert halts == 300
    assert machine.vmm.exits["HLT"][0] == 1


def test_a_profile_stops_where_the_guest_halts():
    plain, watched = (flat(HALTS, "local") for _ in range(2))
    profile = watched.profile()
    assert ends(plain) == ends(watched)
    assert watched.vmm.exits["HLT"][0] <= 1
    del profile
