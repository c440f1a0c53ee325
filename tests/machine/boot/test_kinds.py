"""A file without an option is found to be a kernel, a disk, a CD or a ROM."""

import pytest

from emu86 import images
from emu86.machine.boot.kinds import option_of

BOOT_SECTOR = bytes(510) + b"\x55\xaa"
CD = bytes(0x8001) + b"CD001\1"
MULTIBOOT = b"\x02\xb0\xad\x1b" + bytes(4) + b"\xfe\x4f\x52\xe4"
BZIMAGE = bytes(0x202).ljust(510, b"\0") + b"\x55\xaa\xeb\x66HdrS" + bytes(0x4000)


@pytest.mark.parametrize(
    ("content", "option"),
    [
        (BOOT_SECTOR, "--disk"),
        (BOOT_SECTOR + bytes(1 << 20), "--disk"),
        (CD, "--cdrom"),
        (BOOT_SECTOR + CD[512:], "--cdrom"),
        (BZIMAGE, "--kernel"),
        (images.path("teach").read_bytes(), "--kernel"),
        (
            b"\x02\xb0\xad\x1b" + bytes(4) + b"\xfe\x4f\x52\xe4" + BOOT_SECTOR,
            "--kernel",
        ),
        (images.bios(), "--bios"),
        (images.bios()[:-1], "--kernel"),
        (b"", "--kernel"),
        (b"no kernel at all", "--kernel"),
    ],
)
def test_the_option_of_a_file(content, option, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    assert option_of(file) == option


def test_what_cannot_be_read_is_told_of_as_a_kernel(tmp_path):
    assert option_of(tmp_path) == "--kernel"
    assert option_of(tmp_path / "absent") == "--kernel"
    assert option_of("a\0b") == "--kernel"
