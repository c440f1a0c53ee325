"""ELF kernels."""

import struct
import sys

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
        (elf(GOOD, MIB, ident=b"\x7fELF\x02\x01\x01"), "damaged: its program headers"),
        (elf(GOOD, 0), "entry 0x0 is in no segment"),
        (elf([], MIB), "in no segment"),
        (elf(GOOD, MIB)[:-1], "truncated: 147 bytes of 148"),
        (elf(GOOD, MIB)[:60], "truncated in its program headers"),
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


# What ld -m elf_i386 -Ttext 0x100000 makes: the headers come first, on a page of their
# own or before the code.
HEADERS = bytes(4096 - 84)


@pytest.mark.parametrize(
    "segments",
    [
        [(0xFF000, 0xFF000, b"", 0), (MIB, MIB, DATA, 100)],
        [(0xFF000, 0xFF000, HEADERS + DATA, 4096 - 84 + 100)],
    ],
)
def test_headers_below_1_mib_go_where_there_is_no_memory(segments):
    """The first segment's file offset is 0, or what follows the headers is padding."""
    image = bytearray(elf(segments, MIB))
    if len(segments) == 2:
        size = struct.pack("<II", 52 + 64, 52 + 64)
        image[52 + 4 : 52 + 8], image[52 + 16 : 52 + 24] = bytes(4), size
    else:
        image[52 + 8 : 52 + 16] = struct.pack("<II", 0xFF054, 0xFF054)
    ram, entry = load(bytes(image))
    assert entry.eip == MIB
    assert ram[MIB : MIB + 64] == DATA
    assert not any(ram[MIB + 64 : MIB + 100])
    assert ram[0xFF000:MIB] == b"\xaa" * 4096


@pytest.mark.parametrize("at", [0xA0000, 0xFF000, MIB - 1])
def test_code_is_not_lost_below_1_mib(at):
    with pytest.raises(ConfigError, match=r"^kernel: .* no memory between 0xa0000 and"):
        load(elf([(at, at, DATA, 64)], at))


def test_a_position_independent_multiboot_kernel_is_loaded_where_it_is_linked():
    header = struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    _, entry = load(elf([(MIB, MIB, header + DATA, 76)], MIB + 12, kind=3))
    assert entry.eip == MIB + 12


def steps(count):
    """How many steps of Python it takes to load a kernel of so many segments."""
    segments = [(MIB + 64 * i, MIB + 64 * i, b"\xf4", 2) for i in range(count)]
    image, taken = elf(segments, MIB), 0

    def trace(*_):
        nonlocal taken
        taken += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        ram, _ = load(image)
    finally:
        sys.settrace(before)
    assert ram[MIB + 64 * (count - 1)] == 0xF4
    return taken


def test_time_is_linear_in_program_headers():
    assert steps(800) < 2.2 * steps(400)


def elf64(segments, entry, *, notes=b"", machine=62):
    """An ELF file of 64 bits; segments: as `elf`'s; notes: the content of PT_NOTE."""
    rows = [(1, *segment) for segment in segments]
    if notes:
        rows.append((4, 0, 0, notes, len(notes)))
    at = 64 + 56 * len(rows)
    headers = content = b""
    for kind, virtual, physical, data, memory in rows:
        place = at + len(content)
        fields = (kind, 5, place, virtual, physical, len(data), memory, 8)
        headers += struct.pack("<2I6Q", *fields)
        content += data
    fields = (2, machine, 1, entry, 64, 0, 0, 64, 56, len(rows), 0, 0, 0)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return ident + struct.pack("<HHIQQQIHHHHHH", *fields) + headers + content


HIGH_HALF = 0xFFFFFFFF80000000


def test_a_kernel_of_64_bits():
    """Entered in 64-bit mode, with boot_params, as Linux's 64-bit boot protocol has."""
    segments = [(HIGH_HALF + MIB, MIB, DATA, 100)]
    for start in (MIB + 8, HIGH_HALF + MIB + 8):
        image = elf64(segments, start)
        assert boot.sniff(image) == "elf"
        assert boot.features_of(image) == 1 << 34
        ram, entry = load(image, cmdline="quiet")
        assert ram[MIB : MIB + 64] == DATA
        assert entry.eip == MIB + 8
        assert entry.cr3
        params = entry.registers["esi"]
        assert ram[params + 0x202 : params + 0x206] == b"HdrS"
    with pytest.raises(ConfigError, match=r"^kernel: .* entry 0x123 is in no segment"):
        load(elf64(segments, 0x123))
    with pytest.raises(
        ConfigError, match=r"^kernel: needs 64-bit mode.* take atom or skylake$"
    ):
        load(elf64(segments, MIB), features=0)


def note(name, kind, content):
    """An ELF note."""
    parts = [part + bytes(-len(part) % 4) for part in (name, content)]
    return struct.pack("<3I", len(name), len(content), kind) + b"".join(parts)


BUILD_ID = note(b"GNU\0", 3, bytes(5))


@pytest.mark.parametrize("size", [4, 8])
def test_a_pvh_kernel(size):
    """Xen's boot ABI: EBX has the start information, whose magic is 336EC578h."""
    notes = BUILD_ID + note(b"Xen\0", 18, (MIB + 16).to_bytes(size, "little"))
    image = elf64([(HIGH_HALF + MIB, MIB, DATA, 64)], MIB, notes=notes)
    assert boot.sniff(image) == "pvh"
    ram, entry = load(image, cmdline="root=x", initrds=(b"abc", b"defg"))
    assert (entry.eip, entry.cr3, set(entry.registers)) == (MIB + 16, 0, {"ebx"})
    info = entry.registers["ebx"]
    magic, version, flags, count = struct.unpack_from("<4I", ram, info)
    assert (magic, version, flags, count) == (0x336EC578, 1, 0, 2)
    modules, text, rsdp, table = struct.unpack_from("<4Q", ram, info + 16)
    assert (bytes(ram[text : text + 7]), rsdp) == (b"root=x\0", 0)
    for i, data in enumerate((b"abc", b"defg")):
        at, length, cmdline, _ = struct.unpack_from("<4Q", ram, modules + 32 * i)
        assert (bytes(ram[at : at + length]), cmdline) == (data, 0)
    (count,) = struct.unpack_from("<I", ram, info + 48)
    found = [struct.unpack_from("<2QI", ram, table + 24 * i) for i in range(count)]
    assert found == boot.memory_map(len(ram))


@pytest.mark.parametrize(
    "notes",
    [
        note(b"Xen\0", 17, bytes(4)),
        note(b"GNU\0", 18, bytes(4)),
        note(b"Xen\0", 18, b"")[:12],
        b"\xff" * 64,
        bytes(11),
    ],
)
def test_other_notes_are_no_pvh_entry(notes):
    image = elf64([(MIB, MIB, DATA, 64)], MIB, notes=notes)
    assert boot.sniff(image) == "elf"


@pytest.mark.parametrize("content", [bytes(4), b"\0\0\x10\0\1\0\0\0"])
def test_a_pvh_entry_that_lies(content):
    """It is in no segment: below, and 4 GiB above."""
    image = elf64([(0, MIB, DATA, 64)], MIB, notes=note(b"Xen\0", 18, content))
    with pytest.raises(ConfigError, match=r"^kernel: its entry 0x\w+ is in no segment"):
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
