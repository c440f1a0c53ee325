"""Media that boot by SYSLINUX: a disk of FAT and a CD, both with its hardware tool HDT.

The programs are Debian's, of the packages dosfstools, mtools, syslinux, genisoimage;
what boots is in syslinux-common and isolinux.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_PROGRAMS: Final = ("mkfs.fat", "mcopy", "syslinux", "genisoimage")
_FOLDER: Final = Path("/usr/lib/syslinux/modules/bios")
_ISOLINUX: Final = Path("/usr/lib/ISOLINUX/isolinux.bin")
_MODULES: Final = ("ldlinux", "hdt", "libcom32", "libgpl", "libmenu", "libutil")
_CONFIGURATION: Final = """\
prompt 1
timeout 0
label hdt
  kernel hdt.c32
"""
_KIB: Final = 16384  # of the disk: what FAT16 needs


def can_build() -> bool:
    """Tell whether all that is needed is installed."""
    files = _FOLDER.exists() and _ISOLINUX.exists()
    return files and all(shutil.which(program) for program in _PROGRAMS)


def build(disk: Path, cd: Path) -> None:
    """Make both images."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        (tree / "syslinux.cfg").write_text(_CONFIGURATION)
        for module in _MODULES:
            data = (_FOLDER / f"{module}.c32").read_bytes()
            (tree / f"{module}.c32").write_bytes(data)
        files = sorted(tree.iterdir())
        disk.unlink(missing_ok=True)
        _run("mkfs.fat", "-F", "16", "-C", disk, str(_KIB))
        _run("mcopy", "-i", disk, *files, "::")
        _run("syslinux", "--install", disk)
        (tree / "isolinux.bin").write_bytes(_ISOLINUX.read_bytes())
        _run(
            *("genisoimage", "-quiet", "-o", cd, "-b", "isolinux.bin"),
            *("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", tree),
        )


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
