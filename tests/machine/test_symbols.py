"""Symbols of System.map, of ELF files, of /proc/kallsyms, and in a Linux's memory."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86 import ConfigError
from emu86.machine import symbols
from support.elf import elf

MAP = b"""\
00000000 A VDSO32_PRELINK
00000000 D __per_cpu_start
c1000000 T _stext
c1000000 T startup_32
c1000100 t helper
c1000200 W weak
c1000300 R table
c2000000 t last
"""


def test_a_system_map():
    known = symbols.read(MAP)
    names = {
        0: "",
        0xC0FFFFFF: "",
        0xC1000000: "_stext",
        0xC10000FF: "_stext",
        0xC1000100: "helper",
        0xC10002FF: "weak",
        0xC1000300: "",  # data ends the code before it
        0xC2000FFF: "last",
        0xC2001000: "",
        0xFFFFFFFF: "",
    }
    assert {address: known.name(address) for address in names} == names


def test_kallsyms_in_the_log_of_a_console():
    log = b"emu86# cat /proc/kallsyms\r\nc1000000 T start\r\nf7c00000 t go\t[dummy]\r\n"
    known = symbols.read(log + b"emu86# \r\n")
    assert known.name(0xC1000004) == "start"
    assert known.name(0xF7C00010) == "go"


ELF = elf([
    ("file.c", 0, 0, 4, 0xFFF1),
    ("sized", 0x8048000, 16, 2, 1),
    ("label", 0x8048100, 0, 0, 1),
    ("object", 0x8048200, 4, 1, 1),
    ("data", 0x8049000, 0, 0, 2),
    ("absolute", 0x8048180, 0, 0, 0xFFF1),
    ("undefined", 0x8048190, 0, 2, 0),
])  # fmt: skip


def test_an_elf_file(tmp_path):
    path = tmp_path / "program"
    path.write_bytes(ELF)
    known = symbols.read(path)
    names = {
        0x8048000: "sized",
        0x804800F: "sized",
        0x8048010: "",
        0x8048100: "label",
        0x80481FF: "label",
        0x8048200: "",
        0x8049000: "",
    }
    assert {address: known.name(address) for address in names} == names
    assert symbols.ours(ELF).name(0x8048000) == "sized"
    assert symbols.ours(MAP) is None
    assert symbols.ours(elf([], stripped=True)) is None


@pytest.mark.parametrize("wide", [False, True])
def test_a_global_name_is_taken_before_a_local_one(wide):
    local, named = ("label", 0x1000, 0, 0, 1), ("_start", 0x1000, 0, 0x10, 1)
    assert symbols.read(elf([local, named], wide=wide)).name(0x1000) == "_start"


HIGH = 0xFFFFFFFF81000000
ELF64 = elf([("f", HIGH, 0x100, 2, 1), ("data", HIGH + 0x100, 8, 1, 2)], wide=True)


@pytest.mark.parametrize(
    "data",
    [
        b"0000000000000000 D percpu\nffffffff81000000 T f\nffffffff81000100 D data\n",
        ELF64,
    ],
    ids=["System.map", "ELF"],
)
def test_addresses_of_64_bits(data):
    known = symbols.read(data)
    at = (HIGH - 1, HIGH, HIGH + 0xFF, HIGH + 0x100, HIGH & 0xFFFFFFFF)
    assert [known.name(address) for address in at] == ["", "f", "f", "", ""]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "neither an ELF file nor lines as System.map has"),
        (b"\0\xff" * 99, "neither an ELF file nor lines as System.map has"),
        (b"00000000 T _stext\n00000000 t f\n", "all its addresses are 0"),
        (b"ffffffffffffffff B The real System.map is elsewhere\n", "The real System"),
        (b"c1000000 D data\n", "no code is named"),
        (elf([]), "stripped"),
        (elf([], stripped=True), "stripped"),
        (b"\x7fELF\2\1\1" + bytes(60), "stripped"),
        (b"\x7fELF\2\2\1" + bytes(60), "not of an x86"),
        (ELF[:60], "truncated or damaged"),
        (ELF64[:40] + b"\xff" * 8 + ELF64[48:], "truncated or damaged"),
        (b"\x7fELF\1\1", "truncated or damaged"),
    ],
)
def test_what_names_nothing_is_told_in_one_line(data, why):
    with pytest.raises(ConfigError, match=why) as raised:
        symbols.read(data)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("symbols: ")


@given(st.data())
def test_a_damaged_elf_file_raises_nothing_else(data):
    whole = data.draw(st.sampled_from((ELF, ELF64)))
    damaged = bytearray(whole[: data.draw(st.integers(5, len(whole)))])
    for at in data.draw(st.lists(st.integers(4, len(damaged) - 1), max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        symbols.read(bytes(damaged))
    except ConfigError as error:
        assert str(error).startswith("symbols: ")


# -- in a Linux's memory ---------------------------------------------------------------

BASE = 0xC1000000
COUNT = 1500


BASE64 = 0xFFFFFFFF9A000000


def aligned(data, width=4):
    return data + bytes(-len(data) % width)


def linux(*, since_6_4, seqs, base=BASE, width=4, percpu=0):
    """Memory with the tables of COUNT symbols, as scripts/kallsyms.c lays them out."""
    tokens = [bytes([code]) if 0x30 <= code < 0x5B else b"" for code in range(256)]
    tokens[0x80], tokens[0x81], tokens[0x82] = b"Tdo_", b"t", b"D"
    tokens = [token or b"~" for token in tokens]
    names, markers = b"", []
    for number in range(COUNT):
        if not number % 256:
            markers.append(len(names))
        first = 0x82 if number == COUNT - 1 else 0x80 + number % 2
        text = bytes([first]) + str(number).encode()
        if number == 7:  # longer than 127 tokens: two bytes
            text += b"X" * 200
            names += bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
        else:
            names += bytes([len(text)])
        names += text
    offsets = list(range(0, 16 * COUNT, 16))
    if percpu:  # the first are absolute
        offsets[percpu:] = [-1 - offset for offset in offsets[percpu:]]
    addresses = aligned(struct.pack(f"<{COUNT}i", *offsets), width)
    addresses += struct.pack("<I" if width == 4 else "<Q", base)
    places = [sum(len(token) + 1 for token in tokens[:i]) for i in range(256)]
    table = aligned(struct.pack("<I", COUNT), width) + aligned(names, width)
    table += aligned(struct.pack(f"<{len(markers)}I", *markers), width)
    table += aligned(b"\0\1\2" * COUNT, width) if seqs else b""
    table += aligned(b"".join(token + b"\0" for token in tokens), width)
    table += struct.pack("<256H", *places)
    table = table + addresses if since_6_4 else addresses + table
    # What has the digits, too, but is no token table.
    digits = b"".join(bytes([code, 0]) for code in range(256))
    return digits + bytes(0x3000) + table + bytes(0x100) + digits


@pytest.mark.parametrize("seqs", [False, True])
@pytest.mark.parametrize("since_6_4", [False, True])
def test_the_tables_of_a_linux(since_6_4, seqs):
    ram = linux(since_6_4=since_6_4, seqs=seqs)
    known = symbols.of_linux(memoryview(ram))
    assert known.name(BASE - 1) == ""
    assert known.name(BASE) == "do_0"
    assert known.name(BASE + 16 + 15) == "1"
    assert known.name(BASE + 7 * 16) == "7" + "X" * 200
    assert known.name(BASE + 1498 * 16) == "do_1498"
    assert known.name(BASE + 1499 * 16) == ""  # data


@pytest.mark.parametrize("percpu", [0, 1, 3])
@pytest.mark.parametrize("since_6_4", [False, True])
def test_the_tables_of_a_linux_of_64_bits(since_6_4, percpu):
    ram = linux(
        since_6_4=since_6_4, seqs=since_6_4, base=BASE64, width=8, percpu=percpu
    )
    known = symbols.of_linux(memoryview(ram))
    assert known.name(BASE64 - 1) == (
        "" if not percpu else known.name(16 * percpu - 16)
    )
    assert known.name(BASE64 + 16 * 8) == "do_8"
    assert known.name(BASE64 + 7 * 16) == "7" + "X" * 200
    assert known.name(BASE64 + 1498 * 16) == "do_1498"
    assert (known.name(16) == "1") == (percpu > 1)


def test_a_memory_without_tables():
    ram = linux(since_6_4=False, seqs=True)
    assert symbols.of_linux(memoryview(bytes(1 << 20))) is None
    for end in range(0, len(ram) - 0x400, 997):
        assert symbols.of_linux(memoryview(ram[:end])) is None


@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=9)), max_size=9))
def test_a_guest_may_have_made_its_tables_anything(changes):
    ram = bytearray(linux(since_6_4=False, seqs=False))
    for at, data in changes:
        place = at % (len(ram) - len(data))
        ram[place : place + len(data)] = data
    known = symbols.of_linux(memoryview(ram))
    assert known is None or isinstance(known.name(BASE), str)
