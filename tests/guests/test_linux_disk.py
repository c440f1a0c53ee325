"""Debian's kernel on disks: a file system of ext4 that it mounts, writes and leaves."""

import re
import shutil
import subprocess
import sys

import pytest

from emu86 import ConfigError
from support.iso import iso
from support.places import GUESTS
from support.shell import APPEND, KERNEL, Qemu, Shell

INITRD = GUESTS / "initrd-disk.cpio"
pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not shutil.which("mke2fs"), reason="no mke2fs"),
]
MOUNT = "mount -t ext4 /dev/sda /mnt"


def tool(*command, status=0):
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert status in (None, ran.returncode), (command, ran.stdout, ran.stderr)
    return ran.stdout


@pytest.fixture
def disk(tmp_path):
    """An image of ext4 with a file of 1 MiB, as a user makes it without root."""
    root = tmp_path / "root"
    root.mkdir()
    root.joinpath("numbers").write_bytes(b"".join(b"%7d\n" % n for n in range(1 << 17)))
    image = tmp_path / "disk.img"
    tool("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(image), "16M")
    return image


def content(disk, name):
    """A file of an image, read without a kernel."""
    return tool("debugfs", "-R", f"cat {name}", str(disk))


def test_it_mounts_writes_and_leaves_a_clean_file_system(disk, tmp_path):
    """And reads a CD, and the one that is put in after it."""
    first, second = tmp_path / "first.iso", tmp_path / "second.iso"
    first.write_bytes(iso({"LARGE": bytes(300_000), "WORDS": b"of the first CD\n"}))
    second.write_bytes(iso({"WORDS": b"of the second\n"}))
    shell = Shell(initrd=INITRD, disks=[disk], cdrom=first)
    assert "ata2.00: ATAPI: EMU86 CD-ROM, 1.0, max PIO4" in shell.boot
    mount = "mkdir -p /cd; mount -t iso9660 /dev/sr0 /cd"
    assert shell.do(f"{mount}; cat /cd/words") == "of the first CD\n"
    assert shell.do("tr -d '\\0' < /cd/large | wc -c") == "0\n"
    with pytest.raises(ConfigError, match="cdrom: the guest holds its door locked"):
        shell.machine.insert("cdrom", second)
    shell.do("umount /cd")
    shell.machine.insert("cdrom", second)
    assert shell.do(f"{mount}; cat /cd/words; umount /cd") == "of the second\n"
    shell.machine.insert("cdrom", None)
    assert "No medium found" in shell.do(mount)
    assert "ata1.00: ATA-6: EMU86 DISK, 1.0, max PIO4" in shell.boot
    assert "ata1.00: 32768 sectors, multi 16: LBA48" in shell.boot
    assert shell.do(MOUNT) == ""
    assert shell.do("wc < /mnt/numbers").split() == ["131072", "131072", "1048576"]
    shell.do("tac /mnt/numbers > /mnt/back; echo new > /mnt/new; sync")
    shell.do("echo 3 > /proc/sys/vm/drop_caches")
    assert shell.do("tac /mnt/back | cmp - /mnt/numbers; echo $?") == "0\n"
    assert shell.do("umount /mnt; echo $?") == "0\n"
    assert "reboot: System halted" in shell.end("dmesg -n 8; poweroff -f")
    assert re.findall(r"error|timeout|exception", shell.boot) == []
    shell.machine.close()
    assert "clean" in tool("e2fsck", "-n", str(disk))
    tool("e2fsck", "-fn", str(disk))
    assert content(disk, "new") == "new\n"
    numbers = content(disk, "numbers").splitlines()
    assert content(disk, "back").splitlines() == numbers[::-1]


COPY = "i=$((i+1)); cp /mnt/numbers /mnt/f$i; rm -f /mnt/f$((i-3)); sync"
WRITING = f"i=0; while :; do {COPY}; done"


@pytest.mark.slow
def test_after_sigkill_the_journal_repairs_it(disk):
    """What was flushed is there, and what was under way has done no harm."""
    command = [sys.executable, "-m", "emu86", "run", KERNEL, "--initrd", INITRD]
    loop = f"{WRITING} & sleep 5; echo kill-me; sleep 99"
    with subprocess.Popen(
        [*command, "--append", APPEND, "--disk", disk],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdin.write(f"{MOUNT}; echo kept > /mnt/kept; sync; {loop}\n".encode())
        process.stdin.flush()
        shown = b""
        while b"\nkill-me" not in shown:
            more = process.stdout.read1()
            assert more, shown
            shown += more
        process.kill()
    assert "recovering journal" in tool("e2fsck", "-p", str(disk), status=None)
    tool("e2fsck", "-fn", str(disk))
    assert content(disk, "kept") == "kept\n"
    files = tool("debugfs", "-R", "ls -p /", str(disk))
    assert re.search(r"/f[0-9]+/", files)


@pytest.mark.slow
def test_qemu_reads_what_was_written_and_writes_what_is_read(disk):
    """QEMU's ISA PC has the same drive, and the same modules mount it."""
    shell = Shell(initrd=INITRD, disks=[disk])
    shell.do(f"{MOUNT}; tac /mnt/numbers > /mnt/back; umount /mnt")
    shell.machine.close()
    drive = ["-drive", f"file={disk},format=raw,if=ide"]
    qemu = Qemu(initrd=INITRD, more=drive)
    check = "tac /mnt/back | cmp - /mnt/numbers; echo $?"
    assert qemu.do(f"{MOUNT}; {check}") == "0\n"
    qemu.do("echo of QEMU > /mnt/new; umount /mnt; sync")
    qemu.close()
    assert content(disk, "new") == "of QEMU\n"
