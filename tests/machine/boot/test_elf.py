"""ELF kernels."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.errors import ConfigError
from emu86.machine import boot

MIB = 1 << 20
DATA = b"\xf4" * 64


def elf(segments, entry, *, machine=3, kind=2, ident=b"\x7fELF\x01\x01\x01"):
    """An ELF32 file; segments are (vaddr, paddr, data, memsz) or (.., type)."""
    offset = 52 + 32 * len(segments)
    headers, contents = b"", b""
    for vaddr, paddr, data, memsz, *rest in segments:
        (p_type,) = rest or (1,)
        at = offset + len(contents)
        headers += struct.pack(
            "<8I", p_type, at, vaddr, paddr, len(data), memsz, 7, 4096
        )
        contents += data
    return (
        ident.ljust(16, b"\0")
        # e_shoff and e_shstrndx point into nothing, as a careless strip leaves them
        + struct.pack(
            "<HHIIIIIHHHHHH",
            kind,
            machine,
            1,
            entry,
            52,
            0xFFFFFF,
            0,
            52,
            32,
            len(segments),
            40,
            9,
            77,
        )
        + headers
        + contents
    )


def load(image, size=4 * MIB, **options):
    ram = memoryview(bytearray(b"\xaa" * size))
    return ram, boot.load(ram, image, **options)


def test_segments_go_to_their_physical_addresses():
    image = elf(
        [
            (0xC0100000, MIB, DATA, 256),
            (0xC0200000, 2 * MIB, b"data", 4),
            (0, 0, b"", 0),
            (0, 0, b"a note", 6, 4),
        ],
        0xC0100010,
    )
    assert boot.sniff(image) == "elf"
    ram, entry = load(image, cmdline="quiet", initrds=[b"cpio"])
    assert entry.eip == MIB + 0x10
    assert ram[MIB : MIB + 64] == DATA
    assert not any(ram[MIB + 64 : MIB + 256])
    assert ram[2 * MIB : 2 * MIB + 4] == b"data"
    params = ram[entry.registers["esi"] :][:4096]
    assert params[0x202:0x208] == b"HdrS\x0f\x02"
    assert params[0x210] == 0xFF
    initrd = int.from_bytes(params[0x218:0x21C], "little")
    assert ram[initrd : initrd + 4] == b"cpio"
    cmdline = int.from_bytes(params[0x228:0x22C], "little")
    assert ram[cmdline : cmdline + 6] == b"quiet\0"


def test_a_physical_entry_is_taken_as_it_is():
    _, entry = load(elf([(0xC0100000, MIB, DATA, 64)], MIB + 4))
    assert entry.eip == MIB + 4


GOOD = [(MIB, MIB, DATA, 64)]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (elf(GOOD, MIB, machine=62), "for X86_64"),
        (elf(GOOD, MIB, machine=0x4242), "for 16962"),
        (elf(GOOD, MIB, ident=b"\x7fELF\x02\x01\x01"), "a 64-bit ELF"),
        (elf(GOOD, MIB, ident=b"\x7fELF\x01\x02\x01"), "a big-endian"),
        (elf(GOOD, MIB, kind=1), "no executable"),
        (elf(GOOD, 0), "entry 0x0 is in no segment"),
        (elf([], MIB), "in no segment"),
        (elf(GOOD, MIB)[:-1], "truncated: 147 bytes of 148"),
        (elf(GOOD, MIB)[:60], "damaged"),
        (elf(GOOD, MIB)[:40], "truncated"),
        (b"\x7fELF", "truncated"),
        (elf([(0, 0xA0000, DATA, 64)], 0), "no memory"),
        (elf([(0, 0xFFFFFFF0, DATA, 64)], 0), "does not fit"),
        (elf([(0, MIB, DATA, 0xFFFFFFFF)], 0), "does not fit"),
        (elf([(MIB, MIB, DATA, 64), (MIB, MIB, DATA, 64)], MIB), "taken already"),
    ],
)
def test_what_cannot_be_loaded(image, message):
    with pytest.raises(ConfigError, match=f"^kernel: .*{message}"):
        load(image)


@given(
    st.lists(st.tuples(st.integers(0, 147), st.integers(0, 255)), max_size=6),
    st.integers(0, 200),
)
def test_no_file_raises_anything_else(changes, length):
    image = bytearray(elf(GOOD, MIB))
    for offset, value in changes:
        image[offset] = value
    try:
        _, entry = load(bytes(image[:length]), 2 * MIB)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert entry.eip < 2 * MIB
