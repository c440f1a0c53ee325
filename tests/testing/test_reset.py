"""A bare machine that has played other programs is as a new one."""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from emu86.testing import State, run
from emu86.testing import strategies as guests
from emu86.testing.run import idle


def alone(program, state, **how):
    """Play on a machine that nobody has used."""
    idle.clear()
    return run(program, state, "bare", **how)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=list(HealthCheck),
)
@given(
    guests.programs(), guests.states(rings=(0, 1, 3)),
    guests.programs(), guests.states(),
)  # fmt: skip
@pytest.mark.not_quick
def test_what_was_played_before_does_not_matter(before, there, program, state):
    expected = alone(program, state)
    run(before, there, "bare")
    run(before, there, "bare")
    assert run(program, state, "bare") == expected


# What one leaves behind, and what would see it.
LEFT = {
    "x87": ("dbe3 d9e8 f4", "f4"),
    "SSE": ("b810020000 0f22e0 660f76c0 f4", "f4"),
    "debug registers": ("b801000000 0f23c0 0f23d8 f4", "0f21c0 f4"),
    "an enabled breakpoint": ("b801000000 0f23f8 f4", "90 f4"),
    "an MSR": ("b917000000 b807000000 0f30 b98b000000 0f30 f4", "b98b000000 0f32 f4"),
    "the TSC": ("b910000000 ba07000000 0f30 f4", "0f31 f4"),
    "time": ("e421 f4", "0f31 f4"),
    "a counter": ("b9c1000000 b807000000 0f30 f4", "b9c1000000 0f32 f4"),
    "CR2 and a page": ("8b0d00000080 f4", "0f20d0 f4"),
    "a triple fault": ("66c705000005000000 0f011d00000500 cc f4", "cd80 f4"),
    "flags": ("6802004400 9d f4", "9c 58 f4"),
    "code of its own": ("c605400004 00 f4 90", "f4"),
    "a task": ("ea0000000030 00", "0f00c8 f4"),
}


@pytest.mark.parametrize(("before", "after"), LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("paging", [False, True])
def test_nothing_is_left_of(before, after, paging):
    program, state = bytes.fromhex(after), State(paging=paging, limit=1)
    expected = alone(program, state)
    run(bytes.fromhex(before), State(paging=paging, limit=1), "bare")
    assert idle
    assert run(program, state, "bare") == expected


def test_interrupts_and_time_are_a_programs_own():
    clocked = State(skip=0, interrupts=((50, 0x21),))
    plays = (
        (bytes.fromhex("fb f4 0f31 fa f4"), clocked),  # sti; hlt; rdtsc; cli; hlt
        (bytes.fromhex("0fa2 0f31 f4"), State()),  # cpuid; rdtsc; hlt
    )
    expected = [alone(*play) for play in plays]
    for _ in range(2):
        assert [run(*play, "bare") for play in plays] == expected


def test_code_is_what_stands_there_now():
    """The engine keeps translations, of which a machine of many programs has many."""
    for register in range(8):
        program = bytes([0x40 | register, 0xF4])  # inc register
        if register != 4:
            name = ("eax", "ecx", "edx", "ebx", "", "ebp", "esi", "edi")[register]
            assert run(program, State(), "bare").registers[name] == 1


def test_a_forked_process_has_machines_of_its_own():
    """RAM of the parent's would be shared."""
    run(b"\xf4", State(), "bare")
    assert idle
    child = os.fork()
    if not child:
        os._exit(len(idle))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert idle
