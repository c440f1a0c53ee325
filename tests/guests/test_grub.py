"""From reset through our BIOS, or SeaBIOS, and GRUB: to its menu, and to a login."""

import shutil
import subprocess

import pytest

from emu86 import Machine, images
from support.places import GUESTS

PATIENCE = 1200  # wall seconds, on a machine that is busy otherwise
PARTITION = 1 << 20  # where it begins on the disk


def to_the_menu(**options):
    machine = Machine(memory="32M", writes="discard", **options)
    stop = machine.run(until=b"for a command-line", timeout=PATIENCE)
    assert stop.reason == "until", machine.screen.text
    assert "GNU GRUB  version 2" in machine.screen.text
    return machine


FLOPPY = {"disks": [GUESTS / "grub-floppy.img"]}
CD = {"cdrom": GUESTS / "grub-cdrom.iso"}
SEABIOS = GUESTS / "seabios.bin"


@pytest.fixture
def floppy(tmp_path):
    """GRUB's image, as long as a floppy is."""
    path = tmp_path / "floppy.img"
    path.write_bytes((GUESTS / "grub-floppy.img").read_bytes().ljust(1440 << 10, b"\0"))
    return path


@pytest.mark.not_quick
@pytest.mark.guest("grub-cdrom.iso")
def test_a_cd_to_its_menu():
    to_the_menu(bios=images.bios(), **CD)


@pytest.mark.not_quick
@pytest.mark.guest("grub-cdrom.iso")
def test_a_floppy_to_its_menu(floppy):
    to_the_menu(bios=images.bios(), floppies=[floppy])


@pytest.mark.not_quick
@pytest.mark.guest("seabios.bin")
def test_seabios_to_the_menu(floppy):
    to_the_menu(bios=SEABIOS, floppies=[floppy])


@pytest.mark.slow
@pytest.mark.guest("grub-cdrom.iso")
@pytest.mark.parametrize(
    ("bios", "media", "answer"),
    [
        (images.bios(), FLOPPY, b"(hd0) (hd0,msdos1)"),
        (images.bios(), CD, b"(cd0)"),
        (SEABIOS, FLOPPY, b"(hd0) (hd0,msdos1)"),
    ],
    ids=["floppy", "cd", "seabios"],
)
def test_to_its_command_line(bios, media, answer):
    machine = to_the_menu(bios=bios, **media)
    machine.type("c")
    assert machine.run(until=b"grub>", timeout=PATIENCE).reason == "until"
    machine.type("ls\n")
    assert machine.run(until=answer, timeout=PATIENCE).reason == "until"


@pytest.mark.slow
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
