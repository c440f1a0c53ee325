"""Images: what they refuse, where writes go, and errors of the host."""

import errno
import logging
import os
import subprocess
import sys

import pytest

from emu86 import ConfigError, Machine, config
from emu86.machine import media
from emu86.machine.media import Image

SECTOR = 512
PATTERN = bytes(range(256)) * 8  # four sectors


class Heard(list):
    """An image's lines for the user."""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(PATTERN)
    return path


def image(path, writes="keep", tell=None, **more):
    return Image("disk 0", path, writes=writes, tell=tell or pytest.fail, **more)


def refused(path, writes="keep", **more):
    with pytest.raises(ConfigError) as error:
        image(path, writes, **more)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"disk 0: {path}: ")
    return line.removeprefix(f"disk 0: {path}: ")


# -- what is refused -------------------------------------------------------------------


def test_files_that_are_no_images(tmp_path, path):
    assert refused(tmp_path / "none") == "No such file or directory"
    with pytest.raises(ConfigError, match="disk 0: the name of its file is empty"):
        image("")
    assert refused(tmp_path) == "is no file with an image"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "is no file with an image"
    assert refused("/dev/null") == "is no file with an image"
    path.write_bytes(b"")
    assert refused(path) == "is empty"
    path.write_bytes(PATTERN[:-1])
    why = "is truncated: its 2,047 bytes are no multiple of 512"
    assert refused(path) == why
    assert path.read_bytes() == PATTERN[:-1]


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"QFI\xfb", "qcow2"), (b"KDMV", "VMDK"), (b"# Disk DescriptorFile", "VMDK"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "VDI"), (b"conectix", "VHD"),
        (b"vhdxfile", "VHDX"),
    ],
)  # fmt: skip
def test_other_formats_are_named(path, head, word):
    path.write_bytes(head.ljust(600, b"\1"))
    assert refused(path).startswith(f"is a {word} image, not a raw one")


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x1f\x8b\x08", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"), (b"PK\x03\x04", "zip"),
    ],
)  # fmt: skip
def test_packed_images_are_named(path, head, word):
    path.write_bytes(head.ljust(600, b"\1"))
    assert refused(path) == f"is compressed by {word}; unpack it first"


def test_an_image_that_is_too_large(path, monkeypatch):
    monkeypatch.setattr(media, "_LARGEST", 1024)
    assert refused(path).startswith("is too large")


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_an_image_that_cannot_be_written(path, monkeypatch, error):
    real = os.open

    def open_(name, mode, *more):
        if mode & os.O_RDWR and str(name) == str(path):
            raise OSError(error, os.strerror(error))
        return real(name, mode, *more)

    monkeypatch.setattr(os, "open", open_)
    why = f"cannot be written ({os.strerror(error)}); --discard-writes only reads it"
    assert refused(path) == why
    assert image(path, "discard").read(0, SECTOR) == PATTERN[:SECTOR]


# -- locks -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", config.WRITES)
@pytest.mark.parametrize("second", config.WRITES)
def test_who_writes_has_it_alone(path, first, second):
    holds = image(path, first)
    if "keep" in (first, second):
        assert refused(path, second) == "is in use by another emu86"
    else:
        image(path, second).close()
    holds.close()
    image(path, second).close()


def test_another_process_is_refused(path):
    holds = image(path)
    code = (
        "import sys; from emu86.machine.media import Image;"
        "Image('disk 0', sys.argv[1], writes='keep', tell=print)"
    )
    command = [sys.executable, "-c", code, path]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "is in use by another emu86" in ran.stderr
    holds.close()
    subprocess.run(command, check=True)


def test_a_refused_file_is_not_held(path):
    path.write_bytes(PATTERN[:-1])
    refused(path)
    path.write_bytes(PATTERN)
    image(path).close()


# -- reading and writing ---------------------------------------------------------------


def test_writes_are_kept(path):
    disk = image(path)
    assert disk.size == len(PATTERN)
    disk.write(SECTOR, b"x" * SECTOR)
    assert disk.read(0, 2048) == PATTERN[:SECTOR] + b"x" * SECTOR + PATTERN[1024:]
    assert path.read_bytes() == disk.read(0, 2048)  # at once
    disk.flush()


def test_writes_are_discarded(path):
    disk = image(path, "discard")
    disk.write(SECTOR, b"x" * SECTOR + b"y" * SECTOR)
    expected = PATTERN[:SECTOR] + b"x" * SECTOR + b"y" * SECTOR + PATTERN[1536:]
    assert disk.read(0, 2048) == expected
    disk.write(1024, b"z" * SECTOR)
    assert disk.read(SECTOR, 1024) == b"x" * SECTOR + b"z" * SECTOR
    disk.flush()
    assert path.read_bytes() == PATTERN
    assert not disk.read_only


def test_writes_are_refused(path):
    assert image(path, "refuse").read_only


def test_a_flush_reaches_the_hosts_disk(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    disk = image(path)
    disk.flush()
    assert len(synced) == 1
    disk.finish()
    assert len(synced) == 2
    disk.finish()
    image(path, "discard").flush()
    assert len(synced) == 2


# -- errors of the host ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "doing", "do"),
    [
        ("pread", "reading", lambda disk: disk.read(0, SECTOR)),
        ("pwrite", "writing", lambda disk: disk.write(0, bytes(SECTOR))),
        ("fsync", "flushing", lambda disk: disk.flush()),
    ],
)
def test_each_error_is_told_once_and_goes_on(path, monkeypatch, call, doing, do):
    heard = Heard()
    disk = image(path, tell=heard.append)
    for error in (errno.EIO, errno.ENOSPC):

        def fail(*_args, error=error):
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(os, call, fail)
        for _ in range(3):
            with pytest.raises(OSError, match=os.strerror(error)):
                do(disk)
    lines = [os.strerror(error) for error in (errno.EIO, errno.ENOSPC)]
    end = "; the guest is told of an error"
    assert heard == [f"disk 0: {path}: {doing}: {line}{end}" for line in lines]


def test_a_file_that_becomes_shorter(path):
    heard = Heard()
    disk = image(path, tell=heard.append)
    path.write_bytes(PATTERN[:SECTOR])
    assert disk.read(0, SECTOR) == PATTERN[:SECTOR]
    with pytest.raises(OSError, match="shorter"):
        disk.read(0, 1024)
    assert "the file has become shorter" in heard[0]


def test_a_host_that_writes_less_is_asked_again(path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:100], at))
    image(path).write(0, b"x" * 1024)
    assert path.read_bytes() == b"x" * 1024 + PATTERN[1024:]


# -- machines --------------------------------------------------------------------------


def build(path, **more):
    return Machine(memory=1 << 20, disks=[path], **more)


def test_too_many_and_wrong_kinds(path):
    with pytest.raises(ConfigError, match="5 are too many; there can be 4"):
        Machine(memory=1 << 20, disks=[path] * 5, writes="discard")
    with pytest.raises(ConfigError, match="writes: no 'keeps' .did you mean 'keep'"):
        Machine(memory=1 << 20, writes="keeps")
    for wrong in (str(path), path, b"x"):
        with pytest.raises(TypeError, match="is one file, not a sequence"):
            Machine(memory=1 << 20, disks=wrong)
    with pytest.raises(TypeError, match="disks: 5 is of type int"):
        Machine(memory=1 << 20, disks=[5])


def test_the_disks_before_a_wrong_one_are_given_back(path, tmp_path):
    with pytest.raises(ConfigError, match="disk 1: .*No such file"):
        Machine(memory=1 << 20, disks=[path, tmp_path / "none"])
    image(path).close()


def test_a_closed_machine_gives_its_images_back_and_does_not_run(path):
    machine = build(path)
    assert refused(path) == "is in use by another emu86"
    machine.close()
    image(path).close()
    machine.load_flat(b"\xf4", 0x10000)
    with pytest.raises(ConfigError, match="run: this machine is closed"):
        machine.run()
    machine.close()


def test_errors_are_logged_or_told(path, caplog):
    machine = build(path)
    path.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "emu86"), pytest.raises(OSError):
        machine._drives._images["disk 0"].read(0, SECTOR)
    assert "the file has become shorter" in caplog.text
    heard = Heard()
    machine.on_media_error(heard.append)
    machine._drives._images["disk 0"]._told.clear()
    with pytest.raises(OSError):
        machine._drives._images["disk 0"].read(0, SECTOR)
    assert len(heard) == 1


def test_a_state_has_what_is_discarded(path):
    machine = build(path, writes="discard")
    machine._drives._images["disk 0"].write(0, b"x" * SECTOR)
    state = machine.save()
    machine._drives._images["disk 0"].write(0, b"y" * SECTOR)
    other = Machine.restore(state)
    assert other._drives._images["disk 0"].read(0, SECTOR) == b"x" * SECTOR
    assert other.save() == state


def test_a_state_is_of_the_file_as_it_was(path):
    machine = build(path)
    state = machine.save()
    with pytest.raises(ConfigError, match="in use"):
        Machine.restore(state)
    machine.close()
    Machine.restore(state).close()
    os.utime(path, ns=(0, 0))
    with pytest.raises(ConfigError, match="has changed since the state was saved"):
        Machine.restore(state)


def test_a_cd_is_changed_and_a_wrong_one_leaves_it(tmp_path, path):
    machine = Machine(memory=1 << 20, cdrom=path)
    assert machine.drives == {"cdrom": str(path)}
    wrong = tmp_path / "wrong.iso"
    wrong.write_bytes(PATTERN + bytes(512))
    why = "cdrom: .*wrong.iso: is truncated: its 2,560 bytes are no multiple of 2048"
    with pytest.raises(ConfigError, match=why):
        machine.insert("cdrom", wrong)
    assert machine.drives == {"cdrom": str(path)}
    other = tmp_path / "other.iso"
    other.write_bytes(PATTERN)
    machine.insert("cdrom", other)
    image(path).close()  # nobody has it
    state = machine.save()
    assert Machine.restore(state).drives == machine.drives == {"cdrom": str(other)}
    machine.insert("cdrom", None)
    assert machine.drives == {"cdrom": ""}
    assert Machine.restore(machine.save()).drives == {"cdrom": ""}
    with pytest.raises(ConfigError, match="insert: no 'cd' .there are cdrom"):
        machine.insert("cd", other)
    with pytest.raises(ConfigError, match="insert: there is no drive"):
        Machine(memory=1 << 20).insert("cdrom", other)


def test_a_cd_takes_the_place_of_a_disk(path):
    options = {"memory": 1 << 20, "cdrom": "", "writes": "discard"}
    machine = Machine(disks=[path] * 3, **options)
    assert machine.board.ports.name(0x170) == "IDE channel 1"
    with pytest.raises(ConfigError, match="4 are too many; there can be 3 beside a CD"):
        Machine(disks=[path] * 4, **options)


def test_a_machine_without_disks_has_no_channels():
    machine = Machine(memory=1 << 20)
    assert machine.board.ports.name(0x1F0) is machine.board.ports.name(0x3F6) is None


@pytest.mark.parametrize(("count", "second"), [(1, False), (2, False), (3, True)])
def test_two_disks_to_a_channel(path, count, second):
    machine = Machine(memory=1 << 20, disks=[path] * count, writes="discard")
    name = machine.board.ports.name
    assert (name(0x1F7), name(0x3F6)) == ("IDE channel 0", "IDE channel 0 control")
    assert bool(name(0x177)) == bool(name(0x376)) == second
