"""The same guest does the same twice, to the last byte of RAM and the last exit."""

import json
import subprocess

import pytest

from support.places import child
from support.shell import PATIENCE


def histories(times, seed):
    """Boot `times` times in a process whose sets are ordered by `seed`."""
    command, env = child("repeat", times)
    result = subprocess.run(
        command,
        env=env | {"PYTHONHASHSEED": str(seed)},
        capture_output=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


@pytest.mark.guest
@pytest.mark.slow
def test_a_run_can_be_repeated():
    first, second = histories(2, seed=1)
    (third,) = histories(1, seed=2)
    assert (len(first["way"]), len(first["marks"])) == (4, 3)
    for part in first:
        assert first[part] == second[part], f"{part}, in the same process"
        assert first[part] == third[part], f"{part}, in another process"
