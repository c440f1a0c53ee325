"""What can be asked of a machine, and that to ask costs nothing."""

import subprocess
import sys

import pytest

from emu86 import ConfigError, Machine, config
from emu86.cpu.models import MODELS
from emu86.rings.technique.registry import POLICIES

HEAVY = {"capstone", "llvmlite", "numpy", "rich", "unicorn"}


@pytest.mark.parametrize(
    "program",
    [
        "import emu86.config",
        "from emu86.cli import commands; commands.main(['run', '--help'])",
        "from emu86.cli import main; sys.argv[1:] = ['run', '--cpu', 'z80']; main()",
    ],
)
def test_nothing_heavy_is_imported(program):
    heavy = f"{HEAVY!r} & {{*sys.modules}}"
    end = f"import atexit, sys; atexit.register(lambda: print({heavy}))"
    result = subprocess.run(
        [sys.executable, "-c", f"{end}; {program}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout.endswith("set()\n"), result


@pytest.mark.parametrize("technique", config.TECHNIQUES)
def test_every_technique_can_be_asked_for(technique):
    assert Machine(technique=technique, memory=config.SMALLEST).vmm.name == technique
    assert config.TECHNIQUES[technique]


def test_every_technique_has_its_line():
    assert POLICIES.keys() == config.TECHNIQUES.keys()
    guarded = {name for name, policy in POLICIES.items() if policy.kernel_ring}
    assert set(config.DEPRIVILEGED) == guarded


def test_every_cpu_can_be_asked_for():
    assert tuple(MODELS) == config.CPUS


def test_the_defaults_are_allowed():
    config.memory(config.MEMORY)
    config.memory(config.SMALLEST)
    config.memory(config.LARGEST)
    config.check_cpu(config.CPU)
    config.check_technique(config.TECHNIQUE)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (config.memory, config.SMALLEST - 4096),
        (config.memory, config.SMALLEST + 1),
        (config.memory, config.LARGEST + 4096),
        (config.check_cpu, "z80"),
        (config.check_technique, "magic"),
    ],
)
def test_what_is_not_allowed(check, value):
    with pytest.raises(ConfigError):
        check(value)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (128 << 20, "128M"),
        (3 << 30, "3G"),
        (4096, "4K"),
        (4097, "4097"),
        (1 << 30, "1G"),
        (1536 << 20, "1536M"),
    ],
)
def test_sizes_in_words(number, text):
    assert config.size(number) == text
