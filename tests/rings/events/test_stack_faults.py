"""Where the push of an event faults, CR2 has the first word that is pushed."""

import pytest

from emu86.testing.run import run
from emu86.testing.stage import State


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl"])
def test_cr2_of_an_event_that_finds_no_stack(technique):
    """Also where a plan says how the event goes: #PF has been delivered before."""
    program = bytes.fromhex(
        "68 28 00 00 00  0f a1"  # push 28h; pop fs: #GP
        "67 8b 20"  # mov esp, [bx + si]: CCCCCCCCh; what follows is #PF
    )
    events = run(program, State(paging=True), technique).events
    found = [(event.what, event.registers["cr2"]) for event in events]
    assert found[1:] == [
        ("#PF", 0xCC208B67), ("#PF", 0xCCCCCCC8), ("#DF", 0xCCCCCCC8)
    ]  # fmt: skip
