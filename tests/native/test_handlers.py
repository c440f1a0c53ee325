"""The compiled handlers are their text in Python: both on the same random states."""

import ctypes
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.native import blob
from emu86.native.records import is_integer
from support.world import Arm, World
from tools.native import translate

SEEDS = st.integers(0, (1 << 48) - 1)
WORLD = World()


def arguments(name, seed, control, cpu):
    uc = seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return {
        "on_block": (uc, seed, seed & 0xFFFF, control),
        "on_late": (control, seed & 0xFFFFFFFF),
        "on_guard": (control, seed & 0xFFFFFFFF, seed & 1),
        "on_look": (uc, WORLD.at, seed & 15, WORLD.sites),
        "on_rdtsc": (uc, control),
        "on_exception": (uc, WORLD.vector, control),
        "return_by_plan": (control, cpu),
        "deliver_by_plan": (
            control,
            cpu,
            WORLD.vector,
            seed % 9 - 1,
            seed & 1,
            seed & 2,
        ),
    }[name]


def by_reference(name, seed):
    WORLD.randomize(seed)
    WORLD.point(WORLD.python_calls())
    handler = next(each for each in blob.EXPORTS if each.__name__ == name)
    result = handler(*arguments(name, seed, WORLD.control, WORLD.cpu))
    return result, WORLD.outcome()


def compiled(function):
    kinds, result = translate.signature(function)
    types = [
        ctypes.c_int32 if k is bool else k if is_integer(k) else ctypes.c_uint64
        for k in kinds.values()
    ]
    result = ctypes.c_int32 if result is bool else result
    return ctypes.PYFUNCTYPE(result, *types)(blob.load()[function.__name__])


@pytest.mark.parametrize("function", blob.EXPORTS, ids=lambda f: f.__name__)
@given(seed=SEEDS)
def test_compiled_and_reference_agree(function, seed):
    name = function.__name__
    expected = by_reference(name, seed)
    WORLD.randomize(seed)
    WORLD.point(WORLD.python_calls())
    result = compiled(function)(*arguments(name, seed, WORLD.base, WORLD.cpu_at))
    assert (result, WORLD.outcome()) == expected


FOLDER = Path(blob.FOLDER)
ARM_BLOB = json.loads((FOLDER / "manifest.json").read_text())["blobs"]["aarch64"]
ARM = Arm(WORLD, (FOLDER / "aarch64.bin").read_bytes(), ARM_BLOB["entries"])


@pytest.mark.parametrize("function", blob.EXPORTS, ids=lambda f: f.__name__)
@given(seed=SEEDS)
def test_aarch64_and_reference_agree(function, seed):
    """On Unicorn's ARM64 engine: what was compiled for hosts that this one is not."""
    name = function.__name__
    result, outcome = by_reference(name, seed)
    WORLD.randomize(seed)
    WORLD.point(ARM.calls)
    found = ARM.call(name, *arguments(name, seed, WORLD.base, WORLD.cpu_at))
    assert WORLD.outcome() == outcome
    if result is not None:
        assert found == result
