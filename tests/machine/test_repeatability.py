"""The same machine, guest and input give the same run, to every bit of RAM."""

import hashlib

import pytest

from emu86 import Machine, images
from support.flat import MEMORY
from support.recorder import Recorder

pytestmark = pytest.mark.not_quick


def teach(*, watched=False):
    """All that a run of the teaching kernel leaves behind."""
    built = Machine(memory=MEMORY)
    shown = bytearray()
    built.on_console(shown.extend)
    if watched:
        built.subscribe(Recorder())
    built.load_kernel(images.path("teach"), append="script")
    stop = built.run(until=b"checks passed", timeout=300)
    assert stop.reason == "until", (stop, bytes(shown[-300:]))
    stop = built.run(timeout=300)
    assert stop.reason == "poweroff"
    memory = hashlib.sha256(built.read_physical(0, MEMORY)).hexdigest()
    exits = {name: stat.count for name, stat in built.stats.exits.items()}
    return bytes(shown), built.registers, memory, built.now, exits


@pytest.mark.parametrize("watched", [False, True])
def test_two_runs_are_the_same(watched):
    """Registers, RAM, console, time and exits, whether or not someone watches."""
    assert teach() == teach(watched=watched)


def test_a_run_in_pieces_tells_the_guest_nothing():
    """Stopping at each line of the console cuts time elsewhere, and changes nothing."""
    whole = teach()
    machine = Machine(memory=MEMORY)
    machine.load_kernel(images.path("teach"), append="script")
    shown = bytearray()
    machine.on_console(shown.extend)
    while machine.run(b"\n", timeout=300).resumable:
        machine.registers  # noqa: B018 (looking changes nothing)
        machine.read_physical(0x100000, 16)
    assert bytes(shown) == whole[0]
