"""Thousands of random programs: none hangs, crashes or leaves what is not its own.

`python -m support.fuzz.batch KIND FIRST COUNT [TECHNIQUE]` in tests/ runs other seeds;
EMU86_FUZZ multiplies how many run here, EMU86_FUZZ_FIRST is the first.
"""

import json
import os
import subprocess

import pytest

from support.fuzz.programs import KINDS
from support.places import child

pytestmark = pytest.mark.not_quick

_SCALE = float(os.environ.get("EMU86_FUZZ", "1"))
_FIRST = os.environ.get("EMU86_FUZZ_FIRST", "0")
_BATCHES = [
    *((kind, 80, "patch") for kind in KINDS),
    *((kind, 50, "trap") for kind in ("ring0", "ring3", "mix", "mix3", "damaged")),
    *((kind, 50, "iopl") for kind in ("ring0", "ring3", "mix", "mix3", "damaged")),
    *(("long", 50, technique) for technique in ("trap", "iopl")),
    *((kind, 30, "public") for kind in ("ring0", "mix", "mix3", "ports", "long")),
]


@pytest.mark.parametrize(("kind", "count", "technique"), _BATCHES)
def test_no_program_hangs_or_crashes_the_vmm(kind, count, technique):
    count = max(int(count * _SCALE), 1)
    command, env = child("fuzz.batch", kind, _FIRST, count, technique)
    done = subprocess.run(
        command,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300 + 2 * count,
    )
    seeds = [line for line in done.stderr.splitlines() if line.startswith("seed ")]
    told = [line for line in done.stderr.splitlines() if not line.startswith("seed ")]
    last = seeds[-1] if seeds else "no seed"
    assert done.returncode == 0, f"{kind} {last} {technique}:\n" + "\n".join(told)
    reasons = json.loads(done.stdout)["reasons"]
    assert sum(reasons.values()) == count
    assert len(reasons) > 1, "the programs do nothing"
