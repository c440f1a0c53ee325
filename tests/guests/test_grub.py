"""From reset through our BIOS and GRUB: a CD to its menu, a disk to a login."""

import shutil
import subprocess

import pytest

from emu86 import Machine, images
from support.places import GUESTS

pytestmark = pytest.mark.slow

PATIENCE = 1200  # wall seconds, on a machine that is busy otherwise
PARTITION = 1 << 20  # where it begins on the disk


@pytest.mark.guest("grub-cdrom.iso")
def test_a_cd_to_its_menu():
    machine = Machine(bios=images.bios(), cdrom=GUESTS / "grub-cdrom.iso")
    stop = machine.run(until=b"for a command-line", timeout=PATIENCE)
    assert stop.reason == "until"
    assert "GNU GRUB  version 2" in machine.screen.text


@pytest.mark.guest("disk-grub.img")
def test_a_disk_to_its_login_and_a_clean_end(tmp_path):
    """Debian's kernel on ext4, written to, as a PC starts it."""
    disk = tmp_path / "disk.img"
    shutil.copy(GUESTS / "disk-grub.img", disk)
    machine = Machine(bios=images.bios(), disks=[disk])
    for shown, typed in (
        (b"emu86 login: ", b"root\n"),
        (b"# ", b"echo kept > /new; poweroff\n"),
    ):
        assert machine.run(until=shown, timeout=PATIENCE).reason == "until"
        machine.console_input(typed)
    assert machine.run(timeout=PATIENCE).reason == "halted"
    machine.close()
    system = tmp_path / "ext4"
    system.write_bytes(disk.read_bytes()[PARTITION:])
    subprocess.run(["e2fsck", "-fn", system], check=True, capture_output=True)
    command = ["debugfs", "-R", "cat new", system]
    told = subprocess.run(command, check=True, capture_output=True)
    assert told.stdout == b"kept\n"
