"""Debian's kernel for PAE at its prompt, with RAM above 4 GiB."""

import re

import pytest

from emu86 import ConfigError, Machine
from support.shell import INITRD, KERNEL, KERNEL_PAE, Shell

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def shell():
    """A guest with 1 GiB of RAM above 4 GiB, on the CPU that it needs."""
    return Shell(memory=4 << 30, kernel=KERNEL_PAE)


def test_it_gets_the_cpu_that_it_needs(shell):
    assert shell.machine.stats.cpu == "pentium3-pae"
    assert shell.machine.vcpu.cr4 >> 5 & 1
    machine = Machine(memory=64 << 20)
    machine.load_kernel(KERNEL, initrd=INITRD)
    assert machine.stats.cpu == "pentium3"


def test_a_cpu_without_pae_is_refused():
    machine = Machine(memory=64 << 20, cpu="pentium3")
    refusal = (
        "needs PAE, which this CPU model has not: take pentium3-pae or atom or skylake$"
    )
    with pytest.raises(ConfigError, match=refusal):
        machine.load_kernel(KERNEL_PAE, initrd=INITRD)


def test_what_it_says_of_nx(shell):
    assert "NX (Execute Disable) protection: active\n" in shell.boot
    checked = "x86/mm: Checked W+X mappings: passed, no W+X pages found.\n"
    assert checked in shell.boot
    assert not re.search("WARNING|BUG|Oops", shell.boot)


def test_its_memory(shell):
    above = "BIOS-e820: [mem 0x0000000100000000-0x000000013fffffff] usable\n"
    assert above in shell.boot
    total = re.search(r"MemTotal: +(\d+) kB", shell.do("cat /proc/meminfo"))
    assert int(total[1]) > 3900 << 10


def test_programs(shell):
    assert shell.do("ldt; sigs; fpu") == "ldt-ok\ntls-ok\nsignals-ok\nfpu-ok\n"
    assert shell.do("userio") == "userio-ok\n"
    text = shell.do("head -c 300000 /dev/zero | sha256sum")
    assert text == f"{SUM}  -\n"


SUM = "886715e4051e827f4fe215df3053af3f85ad0d352db2c829c7487af6d78efe30"
