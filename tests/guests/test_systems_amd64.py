"""64-bit systems other than our Linux: a memory test, a hypervisor, an installer."""

import gzip
import re

import pytest

from emu86 import Machine
from support.places import GUESTS

pytestmark = pytest.mark.slow

PATIENCE = 1800  # wall seconds, on a machine that is busy otherwise


class Console:
    """A machine with a kernel loaded, and what it has shown."""

    def __init__(self, kernel, memory, append, **options):
        cpu = options.pop("cpu", None)
        self.machine = Machine(memory=memory << 20, cpu=cpu)
        self.shown = bytearray()
        self.machine.on_console(self.shown.extend)
        self.machine.load_kernel(kernel, append=append, **options)

    def run(self, until=None):
        """Run until `until` is shown, or to the end; return why the run ended."""
        return self.machine.run(until=until, timeout=PATIENCE).reason


@pytest.mark.guest("memtest-amd64")
def test_a_memory_test_finds_no_error():
    """One pass of memtest86+ over all of 16 MiB, moving itself about in between."""
    guest = Console(GUESTS / "memtest-amd64", 16, "console=ttyS0,115200")
    assert guest.run(b"Pass:  1 ") == "until"
    assert guest.machine.stats.cpu == "atom"
    shown = guest.shown.decode()
    tests = set(re.findall(r"#(\d+) +\[", shown))
    assert {"0", "6", "9"} <= tests
    assert set(re.findall(r"Errors: (\d+)", shown)) == {"0"}


@pytest.mark.guest("xen-amd64.gz")
def test_a_hypervisor_asks_for_its_first_guest():
    """Xen asks the BIOS in real mode, sets up long mode, and has nothing to run."""
    kernel = gzip.decompress((GUESTS / "xen-amd64.gz").read_bytes())
    append = "xen console=com1 com1=115200,8n1"
    guest = Console(kernel, 256, append, cpu="atom")
    assert guest.run() == "reset"
    assert guest.machine.stats.exits["INT 13h"].count > 0
    shown = guest.shown.decode()
    assert "(XEN) Xen version 4." in shown
    assert "(XEN) Bootloader: emu86\r\n" in shown
    words = "dom0 kernel not specified. Check bootloader configuration"
    assert re.search(r"Panic on CPU 0:\r\n\(XEN\) (.*)\r\n", shown)[1] == words


@pytest.mark.guest("vmlinuz-installer-amd64")
def test_an_installer_asks_its_questions():
    """Debian's, with 125 MB of programs: below 1 GiB it would save memory."""
    initrd = GUESTS / "initrd-installer-amd64.gz"
    kernel = GUESTS / "vmlinuz-installer-amd64"
    guest = Console(kernel, 1024, "console=ttyS0", initrd=initrd)
    assert guest.run(b"Select a language") == "until"
    assert guest.run(b"activates buttons") == "until"
    guest.machine.console_input(b"\r")
    assert guest.run(b"Select your location") == "until"
