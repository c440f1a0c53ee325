"""A disk that boots by GRUB 2: Debian's kernel and busybox on ext4, as a PC has them.

No root is needed: GRUB's first sector and its core go where GRUB's own installer puts
them, the file system is made by mke2fs.
"""

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
SIZE: Final = 64 * MIB
SECTOR: Final = 512
PARTITION: Final = 0x1BE  # of the first sector: the first of four entries
MODULES: Final = (
    *("biosdisk", "part_msdos", "ext2", "linux", "normal", "serial", "terminal"),
    *("configfile", "echo", "test", "minicmd", "search"),
)
TREE: Final = {
    "boot/grub/grub.cfg": """\
serial --unit=0 --speed=115200
terminal_output console serial
terminal_input console serial
set timeout=0
menuentry "Debian's kernel and busybox" {
    linux /boot/vmlinuz console=tty0 console=ttyS0,115200
    initrd /boot/initrd
}
""",
    "etc/inittab": """\
::sysinit:/etc/rc
ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100
tty1::respawn:/sbin/getty 38400 tty1 linux
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
""",
    "etc/rc": """\
#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin /proc /sys /dev /tmp
[ -e /sbin/getty ] || /bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
hostname emu86
""",
    "etc/passwd": "root::0:0:root:/:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/issue": "Debian's kernel on a disk: \\l\n\n",
}


def build(
    image: Path, kernel: bytes, initrd: bytes, busybox: bytes, packages: list[Path]
) -> None:
    """Make `image`. packages: Debian's grub-pc-bin and grub-common, of this host."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        root = work / "root"
        for path, text in TREE.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        (root / "etc" / "rc").chmod(0o755)
        (root / "boot" / "vmlinuz").write_bytes(kernel)
        (root / "boot" / "initrd").write_bytes(initrd)
        for directory in ("bin", "sbin", "dev", "proc", "sys"):
            (root / directory).mkdir()
        (root / "bin" / "busybox").write_bytes(busybox)
        (root / "bin" / "busybox").chmod(0o755)
        (root / "sbin" / "init").symlink_to("../bin/busybox")
        for applet in ("sh", "mount"):
            (root / "bin" / applet).symlink_to("busybox")
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, work / "grub"], check=True)
        disk = work / "disk.img"
        disk.touch()
        with disk.open("r+b") as file:
            file.truncate(SIZE)
        _file_system(disk, root)
        _boot_loader(disk, work / "grub")
        shutil.move(disk, image)


def _file_system(disk: Path, root: Path) -> None:
    """Put ext4 with the files of `root` behind the first MiB."""
    # Without the features that GRUB 2.06 cannot read.
    command: list[str | Path] = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", root]
    command += ["-O", "^metadata_csum,^64bit,^orphan_file", "-E", f"offset={MIB}"]
    subprocess.run([*command, disk, f"{(SIZE - MIB) // 1024}k"], check=True)


def _boot_loader(disk: Path, grub: Path) -> None:
    """Put GRUB's first sector, the partition table, and its core behind them."""
    modules = grub / "usr" / "lib" / "grub" / "i386-pc"
    core_file = grub / "core.img"
    prefix = "(hd0,msdos1)/boot/grub"
    command: list[str | Path] = [grub / "usr" / "bin" / "grub-mkimage", "-d", modules]
    command += ["-O", "i386-pc", "-p", prefix, "-o", core_file, *MODULES]
    subprocess.run(command, check=True)
    first = bytearray((modules / "boot.img").read_bytes())
    # Active, ext4, by blocks; the cylinders say that they do not fit.
    entry = bytes.fromhex("80FEFFFF 83FEFFFF")
    entry += struct.pack("<II", MIB // SECTOR, (SIZE - MIB) // SECTOR)
    first[PARTITION - 6 :] = b"em86\0\0" + entry.ljust(64, b"\0") + b"\x55\xaa"
    core = core_file.read_bytes()
    with disk.open("r+b") as file:
        file.write(first)
        file.write(core)
