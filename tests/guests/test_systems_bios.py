"""Systems and tools for a PC's BIOS and its text screen, as Debian has them."""

import gzip

import pytest

from emu86 import Machine, images
from support.places import GUESTS

pytestmark = pytest.mark.slow

PATIENCE = 1800  # wall seconds, on a machine that is busy otherwise


def wait(machine, text):
    """Run until the screen has shown it."""
    stop = machine.run(until=text, timeout=PATIENCE)
    assert stop.reason == "until", (stop, machine.screen.text)


@pytest.mark.guest("memtest-cdrom.iso")
def test_a_memory_test_from_its_cd():
    """One pass of memtest86+ over 16 MiB; GRUB on its CD asks nothing."""
    machine = Machine(
        memory="16M", bios=images.bios(), cdrom=GUESTS / "memtest-cdrom.iso"
    )
    wait(machine, b"Pass:  1 ")
    assert "Errors: 0 " in machine.screen.text


@pytest.mark.guest("ipxe-cdrom.iso")
def test_ipxe_to_its_prompt():
    machine = Machine(memory="64M", bios=images.bios(), cdrom=GUESTS / "ipxe-cdrom.iso")
    machine.press("ctrl-b", after=b"Ctrl-B")
    wait(machine, b"iPXE>")
    machine.type("echo ${buildarch}\n")
    wait(machine, b"i386")


@pytest.mark.guest("syslinux.img")
@pytest.mark.parametrize(
    "media",
    [{"disks": [GUESTS / "syslinux.img"]}, {"cdrom": GUESTS / "isolinux.iso"}],
    ids=["syslinux", "isolinux"],
)
def test_syslinux_and_its_hardware_tool(media):
    machine = Machine(memory="64M", bios=images.bios(), writes="discard", **media)
    wait(machine, b"boot:")
    machine.type("hdt\n")
    wait(machine, b"Processor menu done")


@pytest.mark.guest("invaders")
def test_invaders_come():
    """GRUB Invaders draws itself: the invaders above, the ship below."""
    machine = Machine(memory="16M")
    machine.load_kernel(GUESTS / "invaders")
    wait(machine, b"/ \\")
    assert machine.screen.text.count("-*-") > 5


@pytest.mark.guest("gnumach.gz")
def test_gnu_mach_looks_for_its_servers():
    """It finds the memory, the serial port, the clock; there is no server to start."""
    machine = Machine(memory="64M")
    machine.load_kernel(gzip.decompress((GUESTS / "gnumach.gz").read_bytes()))
    wait(machine, b"No bootstrap code loaded")
    assert "com0: at atbus0" in machine.screen.text


@pytest.mark.guest("initrd-installer-i386.gz")
def test_the_installer_to_its_first_question():
    machine = Machine(memory="512M")
    machine.load_kernel(
        GUESTS / "vmlinuz-installer-i386",
        append="vga=normal fb=false",
        initrd=GUESTS / "initrd-installer-i386.gz",
    )
    wait(machine, b"Select a language")
