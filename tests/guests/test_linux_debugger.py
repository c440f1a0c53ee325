"""Debian's kernel under the debugger: a boot as without, and stops at a system call."""

import pytest

from emu86 import Machine
from emu86.machine import symbols
from support.shell import APPEND, INITRD, KERNEL, PATIENCE, PROMPT


def booted(*, watched):
    machine = Machine()
    machine.load_kernel(KERNEL, append=APPEND, initrd=INITRD)
    if watched:
        machine.debugger.break_at(0x12345678)
        machine.debugger.break_at(0x3FFFFFF, physical=True)
    assert machine.run(until=PROMPT, timeout=PATIENCE).reason == "until"
    exits = {reason: stat.count for reason, stat in machine.stats.exits.items()}
    return machine, (machine.now, exits)


@pytest.mark.slow
@pytest.mark.guest
def test_a_boot_and_a_system_call():
    _, plain = booted(watched=False)
    machine, found = booted(watched=True)
    assert found == plain
    known = symbols.of_linux(machine._ram.bytes)
    place = {one.name: one.address for one in known._symbols}["ksys_write"]
    machine.debugger.break_at(place)
    machine.console_input(b"echo stopped\n")
    stop = machine.run(timeout=PATIENCE)
    assert (stop.reason, stop.address) == ("breakpoint", place)
    assert machine.registers["cs"] & 3 == 0
    assert machine.step(20).reason == "step"
    machine.debugger.clear()
    assert machine.run(until=b"stopped\r\n", timeout=PATIENCE).reason == "until"
