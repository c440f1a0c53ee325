"""The ROM where no BIOS runs, found and called as a kernel does."""

import struct

import pytest

from emu86 import images
from support.cases import Case, on_emu86

ROM = 0xFF000
IMAGE = images.tables()


def find(signature):
    """Where a table of that signature is in the ROM: on 16 bytes."""
    places = range(0, len(IMAGE), 16)
    (place,) = [at for at in places if IMAGE.startswith(signature, at)]
    return place


def test_the_directory_is_well_formed():
    """Standard BIOS 32-bit Service Directory 0.4, section 3."""
    at = find(b"_32_")
    entry, revision, length = struct.unpack_from("<IBB", IMAGE, at + 4)
    assert ROM < entry < ROM + len(IMAGE)
    assert (revision, length) == (0, 1)
    assert sum(IMAGE[at : at + 16]) & 255 == 0


def test_smbios_is_well_formed():
    """SMBIOS 2.4, sections 2.1.1 (entry point) and 3.1 (structures)."""
    at = find(b"_SM_")
    size, major, minor, largest = struct.unpack_from("<3BH", IMAGE, at + 5)
    assert (size, major, minor) == (0x1F, 2, 4)
    assert sum(IMAGE[at : at + size]) & 255 == 0
    assert IMAGE[at + 16 : at + 21] == b"_DMI_"
    assert sum(IMAGE[at + 16 : at + size]) & 255 == 0
    length, address, count, version = struct.unpack_from("<HIHB", IMAGE, at + 22)
    assert version == 0x24
    table = IMAGE[address - ROM : address - ROM + length]
    found, sizes, texts = [], [], []
    while table:
        kind, formatted, handle = struct.unpack_from("<BBH", table)
        assert handle == len(found)
        end = table.index(b"\0\0", formatted) + 2
        texts.append(table[formatted : end - 2].split(b"\0"))
        found.append(kind)
        sizes.append(end)
        table = table[end:]
    assert found == [0, 1, 127]
    assert len(found) == count
    assert max(sizes) == largest
    assert texts[0] == [b"emu86", b"0.1", b"01/01/2026"]
    assert texts[1] == [b"emu86", b"ISA PC"]


DIRECTORY = int.from_bytes(IMAGE[find(b"_32_") + 4 :][:4], "little")
CALL = "mov ecx, 0x12345678\nmov edx, 0x9ABCDEF0\ncall CODE0:{}\nsetc [SCRATCH]"


def called(entry, *registers):
    """The record of each call of `entry` with these (EAX, EBX)."""
    cases = tuple(
        Case(
            f"{eax:x} {ebx:x}",
            f"mov dword [SCRATCH], 0\nmov eax, {eax}\nmov ebx, {ebx}\n"
            + CALL.format(entry),
        )
        for eax, ebx in registers
    )
    told = on_emu86(cases)
    assert all(record["vector"] == 0x40 for record in told)
    return told


def test_the_directory_tells_of_the_pci_bios_only():
    there, other, function = called(
        DIRECTORY, (0x49435024, 0), (0x12345678, 0), (0x49435024, 1)
    )
    assert there["eax"] & 0xFF == 0
    assert (there["ebx"], there["ecx"]) == (ROM, len(IMAGE))
    assert 0 < there["edx"] < len(IMAGE)
    assert other["eax"] & 0xFF == 0x80
    assert function["eax"] & 0xFF == 0x81


@pytest.mark.parametrize(
    ("function", "status", "ecx"),
    [
        (0xB101, 0x00, None),
        (0xB102, 0x86, 0x12345678),
        (0xB103, 0x86, 0x12345678),
        (0xB106, 0x81, 0x12345678),
        (0xB108, 0x00, 0x123456FF),
        (0xB109, 0x00, 0x1234FFFF),
        (0xB10A, 0x00, 0xFFFFFFFF),
        (0xB10B, 0x00, 0x12345678),
        (0xB10D, 0x00, 0x12345678),
        (0xB10E, 0x81, 0x12345678),
        (0x0000, 0x81, 0x12345678),
        (0xFFFF, 0x81, 0x12345678),
    ],
)
def test_pci_bios_of_a_board_without_devices(function, status, ecx):
    """PCI BIOS Specification 2.1, section 3."""
    (found,) = called(DIRECTORY, (0x49435024, 0))
    (record,) = called(found["ebx"] + found["edx"], (function, 0))
    assert record["eax"] >> 8 & 0xFF == status
    assert record.scratch[0] & 1 == (status != 0)
    if function == 0xB101:
        assert record["edx"] == int.from_bytes(b"PCI ", "little")
        assert record["ebx"] & 0xFFFF == 0x210
        assert (record["eax"] & 0xFF, record["ecx"] & 0xFF) == (0, 0)
    else:
        assert record["ecx"] == ecx
