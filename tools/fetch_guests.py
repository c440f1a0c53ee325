"""Fetch the guests that the tests and the benchmark boot, into build/guests.

    vmlinuz              Debian's i386 kernel (package linux-image-686), as it is
    vmlinuz-pae          its i386 kernel for PAE (package linux-image-686-pae)
    vmlinuz-amd64        its 64-bit kernel (package linux-image-amd64)
    vmlinuz-cloud-amd64  the smaller one for clouds (package linux-image-cloud-amd64)
    initrd.cpio          busybox and the test programs of tools/initramfs: a shell
    workload.cpio        the same and tools/initramfs/bench, with a fixed workload that
                         ends by powering off
    initrd-disk.cpio     busybox and the modules of `vmlinuz` for IDE disks, CDs and
                         file systems, loaded: a shell
    initrd-amd64.cpio, workload-amd64.cpio
                         the same with busybox of 64 bits
    seabios.bin, vgabios-isavga.bin
                         SeaBIOS, and its ROM for the display (package seabios)
    grub-floppy.img, grub-cdrom.iso
                         GRUB's rescue floppy and CD (package grub-rescue-pc)

With --nightly also what only `make nightly` boots, 200 MB to download:

    memtest-amd64        memtest86+ of 64 bits, which starts as Linux does
    xen-amd64.gz         Xen, a Multiboot kernel once it is unpacked
    vmlinuz-installer-amd64, initrd-installer-amd64.gz
                         Debian's installer in a terminal, as it comes by network
    vmlinuz-installer-i386, initrd-installer-i386.gz
                         the same of 32 bits
    memtest-cdrom.iso, ipxe-cdrom.iso
                         CDs with memtest86+ of 32 bits and with iPXE
    invaders, gnumach.gz GRUB Invaders and GNU Mach, Multiboot kernels
    syslinux.img, isolinux.iso
                         a disk and a CD with SYSLINUX and its hardware tool; only where
                         there are the programs that make them
    disk-grub.img        a disk with GRUB, `vmlinuz` and busybox on ext4, which asks who
                         logs in; only where there is mke2fs

The packages come by apt-get from the system's own sources, with apt's state in
build/guests/apt: nothing of the system is changed, and no root is needed. What is
there already is kept.
"""

import argparse
import hashlib
import io
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tools import grub_disk, syslinux_media

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "tools" / "initramfs"
GUESTS: Final = ROOT / "build" / "guests"
TRIES: Final = 3


class Source(NamedTuple):
    """Where a guest comes from: a file in a package of one of Debian's architectures.

    package: its name; or a pattern of it, if it is what `newest` depends on.
    path: a pattern.
    """

    architecture: str
    package: str
    path: str
    newest: str = ""


def _kernel(architecture: str, kind: str) -> Source:
    image = rf"linux-image-[\d.]+-\d+-{kind}"
    return Source(architecture, image, r"\./boot/vmlinuz-.*", f"linux-image-{kind}")


def _busybox(architecture: str) -> Source:
    return Source(architecture, "busybox-static", r"\./(usr/)?bin/busybox")


def _installer(architecture: str, file: str) -> Source:
    """Name a file of the installer of the Debian that this is."""
    release = platform.freedesktop_os_release().get("VERSION_ID", "")
    package = f"debian-installer-{release}-netboot-{architecture}"
    path = rf"\./.*/text/debian-installer/{architecture}/{file}"
    return Source("amd64", package, path)


def _of(package: str, path: str) -> Source:
    return Source("amd64", package, rf"\./{re.escape(path)}")


PACKAGED: Final = {
    "vmlinuz": _kernel("i386", "686"),
    "vmlinuz-pae": _kernel("i386", "686-pae"),
    "busybox": _busybox("i386"),
    "vmlinuz-amd64": _kernel("amd64", "amd64"),
    "vmlinuz-cloud-amd64": _kernel("amd64", "cloud-amd64"),
    "busybox-amd64": _busybox("amd64"),
    "seabios.bin": _of("seabios", "usr/share/seabios/bios.bin"),
    "vgabios-isavga.bin": _of("seabios", "usr/share/seabios/vgabios-isavga.bin"),
    "grub-floppy.img": _of(
        "grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-floppy.img"
    ),
    "grub-cdrom.iso": _of(
        "grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso"
    ),
}
NIGHTLY: Final = {
    "memtest-amd64": Source("amd64", "memtest86+", r"\./boot/memtest86\+x64\.bin"),
    "xen-amd64.gz": Source(
        "amd64",
        r"xen-hypervisor-[\d.]+-amd64",
        r"\./boot/xen-.*\.gz",
        "xen-system-amd64",
    ),
    "vmlinuz-installer-amd64": _installer("amd64", "linux"),
    "initrd-installer-amd64.gz": _installer("amd64", r"initrd\.gz"),
    "vmlinuz-installer-i386": _installer("i386", "linux"),
    "initrd-installer-i386.gz": _installer("i386", r"initrd\.gz"),
    "memtest-cdrom.iso": _of("memtest86+", "usr/lib/memtest86+/memtest86+ia32.iso"),
    "ipxe-cdrom.iso": _of("ipxe", "usr/lib/ipxe/ipxe.iso"),
    "invaders": _of("grub-invaders", "boot/invaders.exec"),
    "gnumach.gz": Source(
        "amd64",
        r"gnumach-image-[\d.]+-486",
        r"\./boot/gnumach-.*\.gz",
        "gnumach-image-1-486",
    ),
}
MODULES: Final = "modules.tar"  # of `vmlinuz`, in the order in which they are loaded
WANTED: Final = ("pata_legacy", "sd_mod", "sr_mod", "crc32c_generic", "ext4", "isofs")
DISK: Final = "disk-grub.img"
SYSLINUX: Final = ("syslinux.img", "isolinux.iso")
ARCHIVES: Final = {
    "": "busybox",
    "-amd64": "busybox-amd64",
}  # by the end of their names


class FetchError(Exception):
    """A guest cannot be had; its text says why."""


class Apt:
    """apt-get for an architecture, with a state of its own in `directory`."""

    def __init__(self, directory: Path, architecture: str) -> None:
        self._directory = directory
        self._architecture = architecture
        for part in ("state/lists/partial", "cache/archives/partial"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        status = directory / "state" / "status"
        status.touch()
        self._options = [
            f"-oDir::State={directory / 'state'}",
            f"-oDir::State::status={status}",
            f"-oDir::Cache={directory / 'cache'}",
            f"-oAPT::Architecture={architecture}",
            f"-oAPT::Architectures={architecture}",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=2",
        ]

    def update(self) -> None:
        """Get the package lists; go on with what there is if some cannot be had."""
        for _ in range(TRIES):
            if self._run("apt-get", "update", "--error-on=any").returncode == 0:
                return
        print("fetch_guests: some package lists failed, going on without them")

    def depends(self, package: str, pattern: str) -> str:
        """Name the first dependency of `package` that matches `pattern`."""
        listing = self._run("apt-cache", "depends", package).stdout
        found = re.search(rf"Depends: ({pattern})\s", listing)
        if not found:
            where = f"for {self._architecture} in this system's sources"
            raise FetchError(f"no package {package} {where}")
        return found[1]

    def download(self, package: str) -> Path:
        """Get the file of `package`."""
        for _ in range(TRIES):
            result = self._run("apt-get", "download", package)
            if result.returncode == 0:
                return next(self._directory.glob(f"{package}_*.deb"))
        raise FetchError(f"cannot download {package}: {result.stderr.strip()}")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [program, *self._options, *arguments],
                cwd=self._directory,
                check=False,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            raise FetchError(f"{program} is needed: this is no Debian") from None


def member(package: Path, pattern: str) -> bytes:
    """Read the first file in a Debian package whose path matches `pattern`."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacker,
        tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive,
    ):
        for entry in archive:
            file = archive.extractfile(entry)
            if file is not None and re.fullmatch(pattern, entry.name):
                data = file.read()
                unpacker.kill()
                return data
    raise FetchError(f"{package.name} holds no {pattern}")


def modules(package: Path, wanted: Iterable[str]) -> bytes:
    """Return a tar file of a kernel's modules, each behind those that it needs."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    unpacked = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        for entry in archive:
            if entry.name.endswith(".ko") and (file := archive.extractfile(entry)):
                found[Path(entry.name).stem.replace("-", "_")] = file.read()
    out = io.BytesIO()
    done: set[str] = set()

    def add(name: str, archive: tarfile.TarFile) -> None:
        if name in done:
            return
        done.add(name)
        needs = re.search(rb"\0depends=([^\0]*)\0", found[name])
        for other in needs[1].decode().split(",") if needs and needs[1] else ():
            add(other.replace("-", "_"), archive)
        entry = tarfile.TarInfo(f"{name}.ko")
        entry.size = len(found[name])
        archive.addfile(entry, io.BytesIO(found[name]))

    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in wanted:
            add(name, archive)
    return out.getvalue()


def _has(file: str) -> bool:
    return (GUESTS / file).exists()


def fetch_packages(sources: dict[str, Source]) -> None:
    """Put into GUESTS what is missing of what comes as it is from Debian."""
    missing = {file: it for file, it in sources.items() if not _has(file)}
    if not _has(MODULES):
        missing["vmlinuz"] = sources["vmlinuz"]  # which they come with
    if not missing:
        return
    print(f"fetch_guests: fetching Debian's {', '.join(missing)}")
    for architecture in ("i386", "amd64"):
        wanted = [
            (file, it)
            for file, it in missing.items()
            if it.architecture == architecture
        ]
        if wanted:
            fetch_of(architecture, wanted)


def fetch_of(architecture: str, wanted: list[tuple[str, Source]]) -> None:
    """Put files of one of Debian's architectures into GUESTS."""
    directory = GUESTS / "apt"
    shutil.rmtree(directory, ignore_errors=True)
    apt = Apt(directory, architecture)
    apt.update()
    for file, it in wanted:
        name = apt.depends(it.newest, it.package) if it.newest else it.package
        package = apt.download(name)
        write(GUESTS / file, member(package, it.path))
        if file == "vmlinuz":
            write(GUESTS / MODULES, modules(package, WANTED))
    shutil.rmtree(directory)


def programs(sources: Path, work: Path) -> Iterator[tuple[str, bytes]]:
    """Assemble the programs in `sources`, if there is an assembler."""
    if shutil.which("nasm") is None:
        print("fetch_guests: no nasm, the initramfs goes without test programs")
        return
    for source in sorted(sources.glob("*.asm")):
        program = work / source.stem
        subprocess.run(
            ["nasm", "-f", "bin", f"-I{SOURCES}/", "-o", program, source], check=True
        )
        yield f"bin/{source.stem}", program.read_bytes()
        program.unlink()


def archive(files: dict[str, bytes]) -> bytes:
    """Make an initramfs: executables by path, and the nodes that an init needs.

    The format is cpio "newc", as in the kernel's buffer-format.rst. The same files
    give the same bytes: no times, no owners, in order.
    """
    nodes: dict[str, tuple[int, tuple[int, int], bytes]] = {
        "dev/console": (0o020600, (5, 1), b""),
        "dev/null": (0o020666, (1, 3), b""),
    }
    nodes |= {path: (0o100755, (0, 0), data) for path, data in files.items()}
    for path in list(nodes):
        for parent in list(Path(path).parents)[:-1]:
            nodes[str(parent)] = (0o040755, (0, 0), b"")
    out = io.BytesIO()
    entries = [*sorted(nodes.items()), ("TRAILER!!!", (0, (0, 0), b""))]
    for number, (path, (mode, device, data)) in enumerate(entries, start=1):
        name = path.encode() + b"\0"
        links = 2 if mode & 0o040000 else 1
        # inode, mode, owner, group, links, time, size, the device it lies on, the
        # device it is, length of the name, checksum (none)
        fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        for part in (name, data):
            out.write(part)
            out.write(bytes(-out.tell() % 4))
    return out.getvalue()


def write(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_bytes(data)
    partial.replace(path)


def build_archives() -> None:
    """Make the archives of the busyboxes in GUESTS and of tools/initramfs.

    The test programs are of 32 bits, which a 64-bit kernel runs, too.
    """
    tests = dict(programs(SOURCES, GUESTS))
    measured = dict(programs(SOURCES / "bench", GUESTS))
    for end, busybox in ARCHIVES.items():
        files = {"bin/busybox": (GUESTS / busybox).read_bytes(), **tests}
        for name, init, more in (
            ("initrd", "init", files),
            ("workload", "workload", files | measured),
        ):
            content = more | {"init": (SOURCES / init).read_bytes()}
            write(GUESTS / f"{name}{end}.cpio", archive(content))
    write(GUESTS / "initrd-disk.cpio", with_modules("disk"))


def with_modules(init: str) -> bytes:
    """Make an archive of busybox, the modules and an init of SOURCES."""
    files = {"bin/busybox": (GUESTS / "busybox").read_bytes()}
    files["init"] = (SOURCES / init).read_bytes()
    with tarfile.open(GUESTS / MODULES) as packed:
        for number, entry in enumerate(packed):
            if file := packed.extractfile(entry):
                files[f"modules/{number:02}-{entry.name}"] = file.read()
    return archive(files)


def build_disk() -> None:
    """Make the disk that boots by GRUB."""
    directory = GUESTS / "apt"
    apt = Apt(directory, platform.machine().replace("x86_64", "amd64"))
    apt.update()
    grub_disk.build(
        GUESTS / DISK,
        (GUESTS / "vmlinuz").read_bytes(),
        with_modules("root"),
        (GUESTS / "busybox").read_bytes(),
        [apt.download("grub-pc-bin"), apt.download("grub-common")],
    )
    shutil.rmtree(directory)


def inputs() -> str:
    """Digest everything that the archives are made of, but for the packages."""
    digest = hashlib.sha256(str(shutil.which("nasm")).encode())
    sources = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    ours = (__file__, grub_disk.__file__, syslinux_media.__file__)
    for path in (*map(Path, ours), *sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main(nightly: bool) -> int:
    """Fetch and build what is missing or out of date."""
    sources = PACKAGED | NIGHTLY if nightly else PACKAGED
    GUESTS.mkdir(parents=True, exist_ok=True)
    stamp = GUESTS / "stamp"
    archives = (
        f"{name}{end}.cpio" for end in ARCHIVES for name in ("initrd", "workload")
    )
    wanted = [*sources, *archives, "initrd-disk.cpio"]
    disk = nightly and shutil.which("mke2fs") is not None
    if disk:
        wanted.append(DISK)
    elif nightly:
        print("fetch_guests: no mke2fs, no disk")
    syslinux = nightly and syslinux_media.can_build()
    if syslinux:
        wanted += SYSLINUX
    elif nightly:
        print("fetch_guests: no SYSLINUX, or not what makes its media")
    there = all((GUESTS / name).exists() for name in wanted)
    if there and stamp.exists() and stamp.read_text() == inputs():
        return 0
    (GUESTS / DISK).unlink(missing_ok=True)  # of what has changed, perhaps
    try:
        fetch_packages(sources)
        build_archives()
        if disk:
            build_disk()
        if syslinux:
            syslinux_media.build(*(GUESTS / name for name in SYSLINUX))
    except (FetchError, OSError, subprocess.CalledProcessError) as error:
        print(f"fetch_guests: {error}", file=sys.stderr)
        return 1
    stamp.write_text(inputs())
    print(f"fetch_guests: {', '.join(wanted)} are in {GUESTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nightly", action="store_true")
    sys.exit(main(parser.parse_args().nightly))
