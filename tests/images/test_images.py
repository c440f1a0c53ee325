"""The images in the package: well formed, small, and what their sources give."""

import shutil
import struct
import subprocess

import pytest

from emu86 import images
from support.places import ROOT

SOURCES = ROOT / "firmware"
MULTIBOOT_MAGIC = 0x1BADB002


@pytest.mark.parametrize("name", images.IMAGES)
def test_image_is_a_multiboot_elf(name: str) -> None:
    image = images.path(name).read_bytes()
    assert len(image) < 64 << 10
    assert image.startswith(b"\x7fELF\x01\x01\x01")
    entry, header = struct.unpack_from("<II", image, 24)
    kind, offset, vaddr, paddr, filesz, memsz = struct.unpack_from("<6I", image, header)
    assert (kind, offset, vaddr, paddr) == (1, 0, 0x100000, 0x100000)
    assert filesz == len(image)
    assert memsz >= filesz
    assert vaddr < entry < vaddr + filesz
    # Multiboot 0.6.96, 3.1: within the first 8 KiB, on a 4-byte boundary.
    magic = image.index(struct.pack("<I", MULTIBOOT_MAGIC), 0, 8192)
    assert magic % 4 == 0
    assert sum(struct.unpack_from("<3I", image, magic)) % (1 << 32) == 0


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no image 'nothing'"):
        images.path("nothing")


@pytest.mark.skipif(not shutil.which("nasm"), reason="nasm is not installed")
def test_images_are_what_the_sources_give() -> None:
    done = subprocess.run(
        [SOURCES / "check.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
