"""The law: a deprivileged run equals a bare run, for random programs of every kind.

EMU86_SOAK multiplies how many are tried; `make soak` does so with fresh seeds.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from emu86.testing import assert_equivalent
from emu86.testing import strategies as guests

SCALE = float(os.environ.get("EMU86_SOAK", "1"))
EQUAL = settings(
    deadline=None,
    derandomize="EMU86_SOAK" not in os.environ,
    max_examples=max(int(150 * SCALE), 1),
    suppress_health_check=list(HealthCheck),
)
ANY = {
    "moves and arithmetic": ("moves", "arithmetic", "strings", "jumps"),
    "privileged": ("privileged", "moves"),
    "sensitive": ("sensitive", "moves"),
    "segments": ("segment_loads", "moves", "sensitive"),
    "transfers": ("transfers", "moves", "sensitive"),
    "ports": ("ports", "privileged"),
    "rewritten code": ("rewriting", "moves", "jumps", "sensitive", "privileged"),
    "page tables": ("page_table_edits", "moves", "arithmetic", "strings"),
    "descriptors": ("descriptor_edits", "segment_loads", "transfers"),
    "all": (),
}


@pytest.mark.parametrize("classes", ANY.values(), ids=ANY)
def test_patch_is_bare(classes):
    @EQUAL
    @given(guests.programs(*classes), guests.states())
    def law(program, state):
        assert_equivalent(program, state)

    law()
