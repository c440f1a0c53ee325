"""Debian's kernel without its wrapping, started as the ELF file that it is."""

import lzma
import re

import pytest

from emu86 import Machine
from emu86.cpu.library import Abilities
from support.shell import APPEND, INITRD, KERNEL, PATIENCE

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def vmlinux():
    """The ELF file in the bzImage."""
    image = KERNEL.read_bytes()
    # setup_sects, payload_offset and payload_length of the boot protocol
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start:][: int.from_bytes(image[0x24C:0x250], "little")]
    return lzma.LZMADecompressor().decompress(payload)


def boot(vmlinux, until, **options):
    """Boot until the console has shown `until`; return the machine and its console."""
    machine = Machine(memory=64 << 20, **options)
    shown = bytearray()
    machine.on_console(shown.extend)
    early = f"{APPEND} earlyprintk=serial"
    machine.load_kernel(vmlinux, append=early, initrd=INITRD)
    assert machine.run(until=until, timeout=PATIENCE).reason == "until"
    return machine, re.sub(r"\[ *\d+\.\d+\]", "", shown.decode())


def test_it_finds_its_initrd(vmlinux):
    _, shown = boot(vmlinux, b"Freeing initrd memory: 2")
    assert f"Kernel command line: {APPEND}" in shown


@pytest.mark.slow
def test_unicorns_public_interface_is_enough(vmlinux):
    """Slow, as each exit copies the CPU's state, but the same."""
    fast, expected = boot(vmlinux, b"NR_IRQS")
    slow, shown = boot(vmlinux, b"NR_IRQS", abilities=Abilities.none())
    assert "Linux version" in shown
    assert shown == expected
    assert exits(slow) == exits(fast)
    # The last block before a stop is counted at another moment.
    assert abs(slow.now - fast.now) < 1000


def exits(machine):
    """Return how many exits of each kind there were."""
    return {reason: stat.count for reason, stat in machine.stats.exits.items()}
