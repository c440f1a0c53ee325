"""Random programs in real mode: deprivileged they end as on the bare machine."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from emu86.testing import code16
from emu86.testing.real_mode import RealMode, differences

FEW = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def machines():
    return {name: RealMode(name) for name in ("bare", "patch", "trap", "iopl")}


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl"])
@FEW
@given(data=st.data())
def test_real_mode_is_bare(machines, technique, data):
    program = data.draw(code16.programs(holes=technique != "trap"))
    state, image = data.draw(code16.states()), code16.image_of(program)
    bare = machines["bare"].play(state, image)
    assume(bare.end == "halted")  # what loops has no end to compare
    found = machines[technique].play(state, image)
    assert differences(bare, found) == []


def test_differences_are_seen(machines):
    """Under trap SMSW tells of the VMM: a register differs, and a word in RAM."""
    program = b"\x0f\x01\xe0\xa3\0\x10"  # SMSW AX; MOV [1000h], AX
    state = {"cs": code16.CODE, "ds": code16.DATA, "eip": code16.ENTRY}
    image = code16.image_of(program)
    bare, found = (machines[name].play(state, image) for name in ("bare", "trap"))
    assert differences(bare, found) == ["eax: 10, but 30", "[31000]: 10, but 30"]
    loop = code16.image_of(b"\xeb\xfe")
    ends = {name: one.play(state, loop).end for name, one in machines.items()}
    assert set(ends.values()) == {"budget"}
