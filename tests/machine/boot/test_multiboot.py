"""Multiboot 1 kernels."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.errors import ConfigError
from emu86.machine import boot

MIB = 1 << 20
MAGIC = 0x1BADB002


def header(flags, *addresses):
    checksum = -(MAGIC + flags) & 0xFFFFFFFF
    return struct.pack(f"<{3 + len(addresses)}I", MAGIC, flags, checksum, *addresses)


def kludge(before=b"\x90" * 8, after=b"\xf4" * 8, **change):
    """A kernel with load addresses: loaded at 1 MiB from its first byte on."""
    values = {
        "header_addr": MIB + len(before),
        "load_addr": MIB,
        "load_end": 0,
        "bss_end": 0,
        "entry": MIB,
        **change,
    }
    return before + header(0x10003, *values.values()) + after


def load(image, size=4 * MIB, **options):
    ram = memoryview(bytearray(b"\xaa" * size))
    return ram, boot.load(ram, image, **options)


def words(ram, address, count):
    return struct.unpack_from(f"<{count}I", ram, address)


def string(ram, address):
    return bytes(ram[address : address + 64]).split(b"\0")[0]


def test_load_addresses():
    image = kludge(bss_end=MIB + 100)
    assert boot.sniff(image) == "multiboot"
    ram, entry = load(image)
    assert entry.eip == MIB
    assert entry.registers["eax"] == 0x2BADB002
    assert ram[MIB : MIB + len(image)] == image
    assert not any(ram[MIB + len(image) : MIB + 100])
    assert ram[MIB + 100] == 0xAA


def test_load_starts_within_the_file_and_ends_before_its_end():
    image = b"#" * 256 + kludge(load_end=MIB + 16)
    ram, _ = load(image)
    assert ram[MIB : MIB + 16] == image[256:272]
    assert ram[MIB + 16] == 0xAA


def test_information():
    ram, entry = load(kludge(), cmdline="script", initrds=[b"first", b"second"])
    info = entry.registers["ebx"]
    flags, lower, upper = words(ram, info, 3)
    assert flags == 0b1_0010_0100_1101
    assert (lower, upper) == (0x9FC00 >> 10, 3 * 1024)
    cmdline, count, modules = words(ram, info + 16, 3)
    assert string(ram, cmdline) == b"script"
    assert string(ram, words(ram, info + 64, 1)[0]) == b"emu86"
    contents = []
    for at in range(modules, modules + 16 * count, 16):
        start, end, name, zero = words(ram, at, 4)
        assert start % 4096 == 0
        assert (string(ram, name), zero) == (b"", 0)
        contents.append(bytes(ram[start:end]))
    assert contents == [b"first", b"second"]
    screen = struct.unpack_from("<Q3I2B", ram, info + 88)
    assert screen == (0xB8000, 160, 80, 25, 16, 2)  # EGA text
    length, table = words(ram, info + 44, 2)
    entries = list(struct.iter_unpack("<IQQI", ram[table : table + length]))
    assert entries == [(20, *entry) for entry in boot.memory_map(4 * MIB)]


def test_elf():
    code = header(0) + b"\xf4"
    ehdr = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, MIB + 12, 52, 0, 0, 52, 32, 1, 0, 0, 0
    )
    phdr = struct.pack("<8I", 1, 84, MIB, MIB, len(code), len(code), 7, 4)
    ram, entry = load(ehdr + phdr + code)
    assert entry.eip == MIB + 12
    assert ram[MIB : MIB + len(code)] == code


@pytest.mark.parametrize("offset", [0, 4, 8192 - 12])
def test_header_is_found(offset):
    image = bytes(offset) + header(0)
    assert boot.sniff(image) == "multiboot"


@pytest.mark.parametrize("offset", [2, 8192 - 8, 8192])
def test_header_is_not_found_out_of_place(offset):
    where = f"^kernel: its Multiboot header is at {offset:#x} .* first 8192 bytes"
    with pytest.raises(ConfigError, match=where):
        boot.sniff(bytes(offset) + header(0))


def test_a_header_whose_checksum_is_wrong_is_told_of():
    image = bytes(8) + struct.pack("<3I", MAGIC, 3, 4)
    with pytest.raises(ConfigError, match="checksum of its Multiboot header, at 0x8"):
        boot.sniff(image)


def test_a_magic_without_checksum_is_passed_over():
    image = kludge(before=struct.pack("<3I", MAGIC, 0, 0))
    load(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (header(0), "neither ELF nor"),
        (header(4), "graphics mode"),
        (header(0x8000), "unknown Multiboot features 0x8000"),
        (header(0x10000), "truncated"),
        (kludge(header_addr=MIB - 4), "do not match"),
        (kludge(load_addr=0), "do not match"),
        (kludge(load_end=MIB - 1), "end before"),
        (kludge(load_end=MIB + 4096), "truncated: 48 bytes of 4096"),
        (kludge(entry=MIB - 1), "outside"),
        (kludge(entry=MIB + 48), "outside"),
        (kludge(bss_end=0xFFFFFFFF), "does not fit"),
    ],
)
def test_what_cannot_be_loaded(image, message):
    with pytest.raises(ConfigError, match=f"^kernel: .*{message}"):
        load(image)


@given(
    st.lists(st.tuples(st.integers(0, 47), st.integers(0, 255)), max_size=6),
    st.integers(0, 48),
)
def test_no_file_raises_anything_else(changes, length):
    image = bytearray(kludge())
    for offset, value in changes:
        image[offset] = value
    struct.pack_into(
        "<I", image, 16, -(MAGIC + int.from_bytes(image[12:16], "little")) & 0xFFFFFFFF
    )
    try:
        _, entry = load(bytes(image[:length]), 2 * MIB)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert entry.eip < 2 * MIB
