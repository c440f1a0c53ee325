"""Debian's kernel on every CPU model and with little and much memory.

The kernel is made for CPUs with CMOV. It is entered behind its real-mode part, which
would refuse another one.
"""

import re

import pytest

from emu86 import ConfigError, Machine
from emu86.cpu.models import MODELS
from support.shell import INITRD, KERNEL, Shell

# The name that Linux gives it, and the flags of /proc/cpuinfo.
SHOWN = {
    "pentium2": (
        "Pentium II (Deschutes)",
        "fpu de pse tsc msr mce cx8 pge mca cmov mmx fxsr",
    ),
    "pentium3": (
        "Pentium III (Katmai)",
        "fpu de pse tsc msr mce cx8 pge mca cmov mmx fxsr sse",
    ),
    "pentium4": (
        "emu86 virtual Pentium 4",
        "fpu de pse tsc msr mce cx8 pge mca cmov mmx fxsr sse sse2",
    ),
}

pytestmark = pytest.mark.guest


def test_every_model_is_here():
    assert MODELS.keys() == SHOWN.keys() | {
        "pentium",
        "pentium3-pae",
        "atom",
        "skylake",
    }


@pytest.mark.parametrize(
    ("model", "mib"),
    [
        pytest.param("pentium2", 40, marks=pytest.mark.slow),
        pytest.param("pentium4", 1024, marks=pytest.mark.slow),
    ],
)
def test_model_and_memory(model, mib):
    shell = Shell(cpu=model, memory=mib << 20)
    shown = shell.do("cat /proc/cpuinfo")
    fields = dict(re.findall(r"^(.+?)\s*: (.*)$", shown, re.MULTILINE))
    assert fields["vendor_id"] == "GenuineIntel"
    signature = MODELS[model].signature
    assert int(fields["cpu family"]) == signature >> 8 & 15
    assert int(fields["model"]) == signature >> 4 & 15
    assert int(fields["stepping"]) == signature & 15
    name, flags = SHOWN[model]
    assert fields["model name"] == name
    # "cpuid" is Linux's own: the CPU has the instruction.
    assert fields["flags"] == f"{flags} cpuid"
    assert abs(float(fields["cpu MHz"]) - 1000) < 1
    total = re.search(r"MemTotal: +(\d+) kB", shell.do("cat /proc/meminfo"))
    # The kernel keeps some 20 MiB for itself, and one byte in 128 to describe pages.
    assert (mib - 20 - mib // 64) << 10 < int(total[1]) < mib << 10
    assert shell.do("ldt; sigs; fpu") == "ldt-ok\ntls-ok\nsignals-ok\nfpu-ok\n"
    assert shell.do("userio") == "userio-ok\n"


@pytest.mark.parametrize("mib", [1, 2, 16, 32])
def test_too_little_memory(mib):
    machine = Machine(memory=mib << 20)
    with pytest.raises(ConfigError) as refused:
        machine.load_kernel(KERNEL, initrd=INITRD)
    words = str(refused.value)
    assert re.fullmatch(
        r"kernel: .*: does not fit: needs \d+ MiB .* has \d+ MiB", words
    )
