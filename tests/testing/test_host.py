"""The host's CPU as the oracle of ring 3: the engine computes what a CPU does."""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from emu86.testing import State, stage
from emu86.testing.computations import computations, computing_states
from emu86.testing.host import missing, run_on_host
from emu86.testing.semantics import compare_with_host

SCALE = float(os.environ.get("EMU86_SOAK", "1"))
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
    pytest.mark.xdist_group("host"),
]


@settings(
    deadline=None,
    derandomize="EMU86_SOAK" not in os.environ,
    max_examples=max(int(400 * SCALE), 1),
    suppress_health_check=list(HealthCheck),
)
@given(computations(), computing_states())
def test_one_instruction(instruction, state):
    assert compare_with_host(instruction, state) == []


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("90", "done"),
        ("0f0b", "#UD"),
        ("f7f0", "#DE"),
        ("cc", "#BP"),
        ("a100000000", "#GP or #PF"),
        ("fa", "#GP or #PF"),
    ],
)
def test_how_a_program_ends_on_the_host(code, end):
    assert run_on_host(bytes.fromhex(code), State()).end == end


def test_what_the_host_gives_back():
    state = State(registers={"eax": 0x7FFFFFFF, "esi": 5}, flags=0x401)
    # inc eax; mov [DATA], esi; push eax
    code = b"\x40\x89\x35" + stage.DATA.to_bytes(4, "little") + b"\x50"
    outcome = run_on_host(code, state)
    assert outcome.registers["eax"] == 0x80000000
    assert outcome.registers["esp"] == stage.STACK3 - 4
    # OF, DF, SF, AF, PF; CF as it was.
    assert outcome.registers["eflags"] & 0xCD5 == 0xC95
    assert outcome.data[:5] == b"\5\0\0\0\xcc"
    assert outcome.stack[-4:] == b"\0\0\0\x80"


def test_a_difference_is_told(monkeypatch):
    real = run_on_host(b"\x40", State())
    wrong = type(real)("done", real.registers | {"eax": 7}, real.data, real.stack)
    monkeypatch.setattr("emu86.testing.semantics.run_on_host", lambda *_: wrong)
    (line,) = compare_with_host(b"\x40", State(ring=3))
    assert line == "inc eax: eax 00000001, on the host 00000007"
