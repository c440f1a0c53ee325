"""Flat images, and files as they are read."""

import gc
import os

import pytest

from emu86.errors import ConfigError
from emu86.machine import boot


def test_a_flat_image_is_entered_at_its_start_or_where_told():
    ram = memoryview(bytearray(1 << 20))
    assert boot.flat.load(ram, b"\x90\xf4", address=0x7C00).eip == 0x7C00
    assert ram[0x7C00:0x7C02] == b"\x90\xf4"
    assert boot.flat.load(ram, b"\x90\xf4", address=0, entry=1).eip == 1


def test_a_flat_image_and_the_gdt_keep_clear_of_each_other():
    ram = memoryview(bytearray(1 << 20))
    image = b"\xf4" * 0x8000
    entry = boot.flat.load(ram, image, address=0)
    assert ram[:0x8000] == image
    assert entry.gdt_base >= 0x8000


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (b"", {"address": 0}, "empty"),
        (b"x", {"address": -1}, "negative"),
        (b"x", {"address": 1 << 20}, "does not fit"),
        (b"x", {"address": 0, "entry": 1}, "outside"),
    ],
)
def test_flat_images_refused(image, options, message):
    with pytest.raises(ConfigError, match=f"^image: .*{message}"):
        boot.flat.load(memoryview(bytearray(1 << 20)), image, **options)


def test_reading(tmp_path):
    file = tmp_path / "kernel"
    file.write_bytes(b"abc")
    assert boot.read("kernel", file) == boot.read("kernel", str(file)) == b"abc"
    assert boot.read("kernel", b"as it is") == b"as it is"


def test_a_file_is_read_again_and_not_kept(tmp_path, monkeypatch):
    file = tmp_path / "kernel"
    file.write_bytes(b"abc")
    monkeypatch.chdir(tmp_path)
    data = boot.read("kernel", "kernel")
    again = boot.reader("kernel", "kernel", data)
    assert not any(one is data for one in gc.get_referents(*again.__closure__))
    monkeypatch.chdir("/")
    assert again() == b"abc"
    for changed in (b"abd", b"abcd", None):
        file.write_bytes(changed) if changed else file.unlink()
        with pytest.raises(
            ConfigError, match=f"^kernel: {file}: (has changed|No such)"
        ):
            again()


def test_a_pipe_is_kept(tmp_path):
    pipe = tmp_path / "kernel"
    os.mkfifo(pipe)
    assert boot.reader("kernel", pipe, b"abc")() == b"abc"
    assert boot.reader("kernel", b"abc", b"abc")() == b"abc"


def test_a_file_without_an_end_is_not_read_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "_LARGEST", 2 * boot._PIECE)
    file = tmp_path / "kernel"
    file.write_bytes(bytes(2 * boot._PIECE))
    assert boot.read("kernel", file) == bytes(2 * boot._PIECE)
    file.write_bytes(bytes(2 * boot._PIECE + 1))
    for path in (file, "/dev/zero"):
        with pytest.raises(ConfigError, match="larger than 1 GiB"):
            boot.read("kernel", path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nonexistent/file", "No such file"),
        ("/", "Is a directory"),
        ("", "empty"),
        ("a\0b", "null byte"),
    ],
)
def test_reading_what_cannot_be_read(path, message):
    with pytest.raises(ConfigError, match=f"^initrd: .*({message})"):
        boot.read("initrd", path)
