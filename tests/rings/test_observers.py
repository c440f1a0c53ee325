"""Each hook of an observer costs what it watches, and nothing else."""

import pytest

from emu86 import Machine, images
from emu86.native import abi


def run(observer=None):
    machine = Machine(memory=16 << 20)
    machine.load_kernel(images.path("exits"), append="20")
    if observer is not None:
        machine.subscribe(observer)
    machine.run(timeout=300)
    return machine


class Events:
    def __init__(self):
        self.told = []

    def inject(self, vector, error):
        self.told.append((vector, error))


class Exits:
    def __init__(self):
        self.told = []

    def vm_exit(self, reason, _cs, _eip):
        self.told.append(reason)


def test_who_watches_events_leaves_cli_and_sti_to_compiled_code():
    watch = Events()
    alone, watched = run(), run(watch)
    assert watch.told
    compiled = [
        [machine.vmm.engine.control[word] for word in (abi.COUNT_CLI, abi.COUNT_STI)]
        for machine in (alone, watched)
    ]
    assert min(compiled[0]) > 0
    assert compiled[0] == compiled[1]


def test_who_watches_exits_sees_them_all():
    watch = Exits()
    alone, watched = run(), run(watch)
    assert watched.vmm.engine.control[abi.COUNT_CLI] == 0
    assert alone.stats.exits["CLI"].count == watch.told.count("CLI")
    assert alone.now == watched.now


def test_an_observer_watches_something():
    with pytest.raises(TypeError, match="vm_exit, inject, shadow_fill, pio"):
        Machine(memory=1 << 20).subscribe(object())


class _Once:
    """Raises at the first exit of one reason."""

    def __init__(self, reason):
        self.left = {reason}

    def vm_exit(self, reason, _cs, _eip):
        if reason in self.left:
            self.left.clear()
            raise LookupError(reason)


@pytest.mark.parametrize("technique", ["trap", "patch", "iopl"])
@pytest.mark.parametrize("reason", ["OUT", "IN", "CPUID"])
def test_a_run_goes_on_after_what_an_observer_raised(technique, reason):
    def machine():
        made = Machine(memory=16 << 20, technique=technique)
        made.load_kernel(images.path("exits"), append="20")
        return made

    alone, broken = machine(), machine()
    alone.subscribe(Exits())
    broken.subscribe(_Once(reason))
    with pytest.raises(LookupError):
        broken.run(timeout=300)
    assert broken.run(timeout=300) == alone.run(timeout=300)
    assert broken.registers == alone.registers
