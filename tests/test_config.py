"""What can be asked of a machine, and that to ask costs nothing."""

import subprocess
import sys

import pytest

from emu86 import ConfigError, Machine, config
from emu86.cpu.models import MODELS
from emu86.mmu import ram
from emu86.rings.technique.registry import POLICIES

HEAVY = {"capstone", "llvmlite", "numpy", "unicorn"}


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


def test_a_run_imports_what_it_needs():
    """The teaching kernel, to its end: not what shows tables or other instructions."""
    unneeded = HEAVY - {"unicorn"} | {"difflib", "html", "emu86.rings.technique.bare"}
    program = (
        "import atexit, sys; from emu86.cli import main; sys.argv[1:] = ['run'];"
        f"atexit.register(lambda: print('also', {unneeded!r} & {{*sys.modules}}));"
        "main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "checks passed" in result.stdout
    assert result.stdout.endswith("also set()\n")


@pytest.mark.parametrize("technique", config.TECHNIQUES)
def test_every_technique_can_be_asked_for(technique):
    assert Machine(technique=technique, memory=config.SMALLEST).vmm.name == technique
    assert config.TECHNIQUES[technique]


def test_every_technique_has_its_line():
    assert POLICIES.keys() == config.TECHNIQUES.keys()
    guarded = {name for name, policy in POLICIES.items() if policy.kernel_ring}
    assert set(config.DEPRIVILEGED) == guarded


def test_every_cpu_can_be_asked_for():
    assert tuple(MODELS) == tuple(config.CPUS)


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


def limited(kib, program):
    """Run Python under `ulimit -v`."""
    resource = pytest.importorskip("resource")
    limit = (kib << 10, kib << 10)
    return subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


REFUSED = "memory: the host refuses this process {} MiB of address space: raise its"
RUN = "import sys; from emu86.cli import main; sys.argv[1:] = ['run']; main()"


@pytest.mark.parametrize("mib", [60, 300, 500])
def test_too_little_address_space_is_told_of_before_anything_else(mib):
    result = limited(mib << 10, RUN)
    assert result.returncode == 2
    assert result.stderr.startswith("emu86: " + REFUSED.format(128 + 448))
    assert result.stderr.count("\n") == 1


def test_the_hole_below_4_gib_takes_address_space():
    result = limited(5_500_000, RUN.replace("'run'", "'run', '--memory=4G'"))
    assert result.returncode == 2
    assert result.stderr.startswith("emu86: " + REFUSED.format(5 * 1024 + 448))


@pytest.mark.not_quick
def test_the_address_space_that_is_asked_for_is_enough():
    kib = (config.MEMORY + config.MACHINE_SPACE >> 10) + (40 << 10)
    result = limited(kib, RUN)
    assert "teach: all" in result.stdout, result


@pytest.mark.not_quick
def test_a_second_machine_is_refused_and_the_first_goes_on():
    program = """
import gc, resource
from pathlib import Path
from emu86 import ConfigError, Machine, config
first = Machine()
gc.collect()
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = taken + config.ENGINE_SPACE - (8 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    Machine()
except ConfigError as error:
    print(error)
first.load_flat(b"\\xf4", 0x1000)
print(first.run().reason)
"""
    refused = REFUSED.format(config.ENGINE_SPACE >> 20)
    result = limited(4 << 20, program)
    assert result.stdout.startswith(refused), result
    assert result.stdout.endswith("\nhalted\n"), result


def test_memory_that_the_host_has_not(monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(ram.mmap, "mmap", refuse)
    with pytest.raises(
        ConfigError, match="the host has no 3072 MiB for a machine: Can"
    ):
        ram.allocate(3 << 30)
    # The hole below 4 GiB costs addresses: it is none of what was asked for.
    with pytest.raises(ConfigError, match="the host has no 64512 MiB for a machine"):
        ram.Ram(63 << 30)
