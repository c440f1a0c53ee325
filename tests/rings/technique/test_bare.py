"""A whole guest at ring 0 of the engine does what it does deprivileged."""

import re

import pytest

from emu86 import Machine, images
from emu86.errors import ConfigError


def boot(image, append, technique):
    machine = Machine(memory=16 << 20, technique=technique)
    machine.load_kernel(images.path(image), append=append)
    shown = bytearray()
    machine.on_console(shown.extend)
    stop = machine.run(timeout=250)
    return machine, stop, shown.decode()


@pytest.mark.not_quick
def test_the_teaching_kernel():
    """Its 93 checks hold on the bare machine; so do the words of all it says."""
    _, patch, expected = boot("teach", "script", "patch")
    machine, bare, found = boot("teach", "script", "bare")
    assert bare == patch
    assert "all 93 checks passed" in found
    # Time is not the same: an instruction of the bare machine takes a microsecond.
    numbers = r"\d+(?= (in all|of them|ticks|system calls|times))|A \d+ times, B \d+"
    assert re.sub(numbers, "n", found) == re.sub(numbers, "n", expected)
    # No exit but what no technique does without.
    assert set(machine.stats.exits) == {"IN", "OUT", "CPUID", "interrupt"}


def test_looking_inside():
    machine = Machine(memory=1 << 20, technique="bare")
    machine.load_flat(bytes.fromhex("b82a000000faf4"), 0x10000)  # mov eax, 42; cli; hlt
    assert machine.run().reason == "halted"
    assert machine.registers["eax"] == 42
    assert machine.registers["cs"] & 3 == 0
    machine.write_physical(0x20000, b"\1\2")
    assert machine.read_virtual(0x20000, 3) == b"\1\2\0"


def test_a_timeout_ends_it():
    machine = Machine(memory=1 << 20, technique="bare")
    machine.load_flat(b"\xeb\xfe", 0x10000)
    assert machine.run(timeout=0.2).reason == "timeout"


def test_an_unknown_technique_is_told_with_all_there_are():
    with pytest.raises(ConfigError, match="patch, trap, iopl, bare"):
        Machine(technique="magic")
