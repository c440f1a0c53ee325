"""Debian's kernel saved on its way and at its prompt: all go on alike, to the bit.

The machine that was saved, one that is restored, and one whose handlers CPython runs.
"""

import faulthandler
import hashlib
from dataclasses import replace

import pytest

from emu86 import Machine
from support.shell import APPEND, INITRD, KERNEL, PATIENCE, PROMPT
from support.snapshots import difference, run_both, run_for, twin

MS = 1_000_000
SIZE = 64 << 20
# Virtual milliseconds: it unpacks itself, finds its memory, its clocks, its devices;
# its drivers begin; it waits; init runs; the shell does.
WAY = (13, 1763, 1830, 1990, 2080, 2500, 2660, 3013, 5160, 5210)


def later(machine, run=lambda machine: run_for(machine, 20 * MS)):
    """Run (20 ms); return the state then, what was shown, a hash of shadow tables."""
    shown = bytearray()
    machine.on_console(shown.extend)
    run(machine)
    shadow = hashlib.sha256(machine.vmm.mmu.vmm_memory.bytes).hexdigest()
    state = machine.save()
    # What the scanner disassembles depends on what blocks count their own time.
    counts = replace(state.technique.counts, decoded=0)
    technique = replace(state.technique, counts=counts)
    return replace(state, technique=technique), bytes(shown), shadow


@pytest.mark.guest
def test_all_go_on_alike_from_ten_stops_of_its_boot():
    machine = Machine(memory=SIZE)
    shown = bytearray()
    machine.on_console(shown.extend)
    machine.load_kernel(KERNEL, append=APPEND, initrd=INITRD)
    for ms in WAY:
        run_for(machine, ms * MS - machine.now)
        state = machine.save()
        compiled, reference = (
            later(Machine.restore(state, native=native)) for native in (True, False)
        )
        assert difference(compiled, reference) is None, f"{ms} ms: compiled, reference"
        # Of what it had before there are remains in its shadow tables, not in use.
        saved = later(machine)
        assert difference(saved[:2], reference[:2]) is None, f"{ms} ms: saved, restored"
    if PROMPT not in shown:
        assert machine.run(until=PROMPT, timeout=PATIENCE).reason == "until"
    # What is typed has not arrived when it is saved.
    machine.console_input(b"ls -l /proc /bin | md5sum\n")
    other = twin(machine)
    run_both(machine, other, lambda one: one.run(until=PROMPT, timeout=PATIENCE))
    # One that was restored from what was restored.
    other.console_input(b"sleep 1; ps\n")
    run_for(other, 300 * MS)
    run_both(other, twin(other), lambda one: one.run(until=PROMPT, timeout=PATIENCE))


@pytest.mark.guest
@pytest.mark.slow
def test_the_reference_boots_as_compiled_code_does():
    """All the way to the prompt, which takes CPython some ten minutes."""
    faulthandler.cancel_dump_traceback_later()  # it does not hang

    def boot(machine):
        machine.load_kernel(KERNEL, append=APPEND, initrd=INITRD)
        assert machine.run(until=PROMPT, timeout=3600).reason == "until"

    compiled, reference = (
        later(Machine(memory=SIZE, native=native), boot) for native in (True, False)
    )
    assert difference(compiled, reference) is None
    exits = compiled[0].technique.exits.values()
    assert sum(count for count, _ns in exits) > 1_000_000
