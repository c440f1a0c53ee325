"""Debian's kernel saved on its way and at its prompt: both go on alike, to the bit."""

import pytest

from emu86 import Machine
from support.shell import APPEND, INITRD, KERNEL, PATIENCE, PROMPT
from support.snapshots import run_both, run_for, twin

MS = 1_000_000
SIZE = 64 << 20


def goes_on_alike(machine, ns=20 * MS):
    return run_both(machine, twin(machine), lambda one: run_for(one, ns))


@pytest.mark.guest
def test_it_goes_on_alike_from_stops_of_its_boot():
    machine = Machine(memory=SIZE)
    shown = bytearray()
    machine.on_console(shown.extend)
    machine.load_kernel(KERNEL, append=APPEND, initrd=INITRD)
    for _ in range(3):  # while it unpacks itself
        run_for(machine, 7 * MS + 1)
        goes_on_alike(machine)
    for text in (b"devtmpfs", b"Registered PF_INET", b"Run /init"):
        assert machine.run(until=text, timeout=PATIENCE).reason == "until"
        goes_on_alike(machine)
        run_for(machine, 113 * MS - 7)
        goes_on_alike(machine)
    if PROMPT not in shown:
        assert machine.run(until=PROMPT, timeout=PATIENCE).reason == "until"
    goes_on_alike(machine)
    # What is typed has not arrived when it is saved.
    machine.console_input(b"ls -l /proc /bin | md5sum\n")
    other = twin(machine)
    run_both(machine, other, lambda one: one.run(until=PROMPT, timeout=PATIENCE))
    # One that was restored from what was restored.
    other.console_input(b"sleep 1; ps\n")
    run_for(other, 300 * MS)
    run_both(other, twin(other), lambda one: one.run(until=PROMPT, timeout=PATIENCE))
