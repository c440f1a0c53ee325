"""Multiboot 2: the header's tags, and the boot information (specification 2.0)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.errors import ConfigError
from emu86.machine import boot

MIB = 1 << 20
MAGIC, LOADER = 0xE85250D6, 0x36D76289
CODE = b"\xf4" * 16
OPTIONAL = 1
MASK32 = 0xFFFFFFFF


def tag(kind, *words, flags=0):
    size = 8 + 4 * len(words)
    content = struct.pack(f"<2HI{len(words)}I", kind, flags, size, *words)
    return content + bytes(-size % 8)


def header(*tags, architecture=0, end=True):
    content = b"".join(tags) + (tag(0) if end else b"")
    fields = MAGIC, architecture, 16 + len(content)
    return struct.pack("<4I", *fields, -sum(fields) & 0xFFFFFFFF) + content


def addresses(at=MIB, entry=MIB + 4):
    """Load all of the file, which begins with its header, at an address."""
    return tag(2, at, at, 0, 0), tag(3, entry)


def load(image, size=4 * MIB, **options):
    ram = memoryview(bytearray(b"\xaa" * size))
    return ram, boot.load(ram, image, **options)


def elf(content, *, bits=64, entry=0):
    """An ELF file with one segment at 1 MiB."""
    ehdr, phdr = ("HHIQQQI6H", "2I6Q") if bits == 64 else ("HHIIIII6H", "8I")
    start = 16 + struct.calcsize("<" + ehdr)
    size = struct.calcsize("<" + phdr)
    at = start + size
    at += -at % 8
    row = (at, MIB, MIB, len(content), len(content))
    row = (1, 5, *row, 0) if bits == 64 else (1, *row, 5, 0)
    fields = (
        2,
        62 if bits == 64 else 3,
        1,
        entry,
        start,
        0,
        0,
        start,
        size,
        1,
        0,
        0,
        0,
    )
    ident = bytes((0x7F, 69, 76, 70, bits // 32, 1, 1)).ljust(16, b"\0")
    made = ident + struct.pack("<" + ehdr, *fields) + struct.pack("<" + phdr, *row)
    return made.ljust(at, b"\0") + content


def information(ram, entry):
    """The tags of the boot information: type and content."""
    at = entry.registers["ebx"]
    assert at % 8 == 0
    total, reserved = struct.unpack_from("<2I", ram, at)
    assert reserved == 0
    tags, offset = [], 8
    while offset < total:
        kind, size = struct.unpack_from("<2I", ram, at + offset)
        tags.append((kind, bytes(ram[at + offset + 8 : at + offset + size])))
        offset += size + 7 & -8
    assert offset == total
    assert tags[-1] == (0, b"")
    return tags[:-1]


def test_load_addresses():
    image = header(*addresses()) + CODE
    assert boot.sniff(image) == "multiboot2"
    ram, entry = load(image)
    assert (entry.eip, entry.registers["eax"], entry.cr3) == (MIB + 4, LOADER, 0)
    assert ram[MIB : MIB + len(image)] == image


def test_a_file_that_is_loaded_from_its_beginning():
    """load_addr is -1: 3.1.3 "The address tag"."""
    tags = tag(2, MIB + 8, MASK32, 0, 0), tag(3, MIB)
    image = CODE[:8] + header(*tags)
    ram, entry = load(image)
    assert entry.eip == MIB
    assert ram[MIB : MIB + len(image)] == image


def test_information():
    image = header(*addresses(), tag(1, 1, 2, 3, 4, 6, 14)) + CODE
    ram, entry = load(image, cmdline="a=b", initrds=(b"abc", b"defg"))
    tags = information(ram, entry)
    told = dict(tags)
    assert told[1] == b"a=b\0"
    assert told[2] == b"emu86\0"
    assert struct.unpack("<2I", told[4]) == (639, 3 << 10)
    modules = [content for kind, content in tags if kind == 3]
    for content, data in zip(modules, (b"abc", b"defg"), strict=True):
        start, end = struct.unpack_from("<2I", content)
        assert start % 4096 == 0
        assert bytes(ram[start:end]) == data
        assert content[8:] == b"\0"
    entry_size, version = struct.unpack_from("<2I", told[6])
    assert (entry_size, version) == (24, 0)
    found = [
        struct.unpack_from("<2QI", told[6], at) for at in range(8, len(told[6]), 24)
    ]
    assert found == boot.memory_map(len(ram))


@pytest.mark.parametrize("bits", [32, 64])
def test_elf(bits):
    """A kernel of 64 bits is entered in 32-bit mode; the entry tag comes first."""
    image = elf(header() + CODE, bits=bits, entry=MIB + 24)
    assert boot.sniff(image) == "multiboot2"
    assert bool(boot.features_of(image)) == (bits == 64)
    ram, entry = load(image)
    assert (entry.eip, entry.cr3) == (MIB + 24, 0)
    assert ram[MIB : MIB + 24] == header()
    _, entry = load(elf(header(tag(3, MIB + 32)) + CODE, bits=bits, entry=MIB))
    assert entry.eip == MIB + 32


@pytest.mark.parametrize("offset", [0, 8, 32768 - 72])
def test_header_is_found(offset):
    assert boot.sniff(bytes(offset) + header(*addresses())) == "multiboot2"


@pytest.mark.parametrize("offset", [4, 32768 - 8])
def test_header_is_not_found_out_of_place(offset):
    with pytest.raises(ConfigError):
        boot.sniff(bytes(offset) + header(*addresses()))


def test_what_it_may_ask_for():
    """Tags that are optional, or ask for nothing here."""
    granted = [tag(4, 3), tag(6), tag(7), tag(8, 0), tag(9, 0), tag(10, 0, 0, 0, 0)]
    optional = [tag(5, 0, 0, 0, flags=OPTIONAL), tag(77, 1, flags=OPTIONAL)]
    load(header(*granted, *optional, *addresses()) + CODE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (header(tag(5, 0, 0, 32), *addresses()), "graphics mode"),
        (header(tag(1, 4, 22), *addresses()), "unknown Multiboot 2 information 22"),
        (header(tag(11), *addresses()), "unknown Multiboot 2 feature 11"),
        (header(*addresses(), architecture=4), "Multiboot 2's architecture 4"),
        (header(addresses()[0]), "load addresses, and no entry"),
        (header(*addresses(), end=False), "truncated in its Multiboot 2 header"),
        (header(tag(2, MIB), tag(3, MIB)), "truncated in its Multiboot 2 header"),
        (header(), "neither ELF nor"),
        (header(*addresses(entry=MIB - 1)), "outside"),
        (header(tag(2, MIB, MIB, MIB + 4096, 0), tag(3, MIB)), "truncated"),
        (bytes(8) + header(tag(2, 0, MASK32, 0, 0), tag(3, 0)), "do not match"),
        (elf(header(tag(3, 2 * MIB)) + CODE, entry=MIB), "0x200000 is in no segment"),
        (header(*addresses(8 * MIB, 8 * MIB)), "does not fit"),
    ],
)
def test_what_cannot_be_loaded(image, message):
    with pytest.raises(ConfigError, match=f"^kernel: .*{message}"):
        load(image)


@given(
    st.lists(st.tuples(st.integers(16, 63), st.integers(0, 255)), max_size=6),
    st.integers(16, 80),
)
def test_no_file_raises_anything_else(changes, length):
    image = bytearray(header(*addresses(), tag(6)) + CODE)
    for offset, value in changes:
        image[offset] = value
    try:
        boot.load(memoryview(bytearray(2 * MIB)), bytes(image[:length]))
    except ConfigError as error:
        assert str(error)
