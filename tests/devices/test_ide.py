"""An IDE channel with ATA disks: what ATA/ATAPI-6 says of each command."""

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.ata import (
    ABRT,
    BSY,
    COMMAND,
    COUNT,
    DATA,
    DEVICE,
    DF,
    DRQ,
    ERR,
    ERROR,
    FEATURES,
    HIGH,
    IDNF,
    LOW,
    MID,
    READY,
    SECTOR,
    STATUS,
    TOTAL,
    UNC,
    WRITES,
    Guest,
    Ram,
    pattern,
    text,
)  # fmt: skip


@pytest.fixture
def ata():
    return Guest()


def sectors(lba, count):
    return b"".join(pattern(lba + i) for i in range(count))


# -- after power-on and resets ---------------------------------------------------------


def signature(ata):
    return ata[ERROR], ata[COUNT], ata[LOW], ata[MID], ata[HIGH]


def test_after_power_on(ata):
    assert ata.control == READY
    assert signature(ata) == (1, 1, 1, 0, 0)
    assert ata[DEVICE] == 0
    assert ata.lines == []
    assert ata.channel.deadline() is None


def test_software_reset_takes_both_drives_and_gives_their_signatures():
    ata = Guest(Ram(), Ram())
    ata[DEVICE] = 0xF0
    ata.command(0x20, lba=3, device=0xF0)
    ata.wait()
    assert ata.line
    ata.control = 4
    assert (ata.control, ata.line) == (BSY, False)
    assert ata.wait() == BSY  # for as long as SRST is set
    ata[COMMAND] = 0xEC
    ata.control = 0
    assert ata.control == BSY
    assert ata.wait() == READY
    assert signature(ata) == (1, 1, 1, 0, 0)
    assert ata[DEVICE] == 0
    ata[DEVICE] = 0x10
    assert signature(ata) == (1, 1, 1, 0, 0)
    assert ata.take(4) == b"\xff" * 4  # what was on its way is gone


def test_a_reset_takes_two_milliseconds(ata):
    ata.control = 4
    ata.now = 10**6
    ata.control = 0
    assert ata.channel.deadline() == 10**6 + 2 * 10**6


def test_diagnostic_is_for_both_drives_and_interrupts():
    ata = Guest(Ram(), Ram())
    ata[DEVICE] = 0x10
    ata[COMMAND] = 0x90
    assert ata.control & BSY
    assert ata.wait() == READY
    assert ata.line
    assert signature(ata) == (1, 1, 1, 0, 0)
    assert not ata[DEVICE] & 0x10


def test_registers_of_both_drives_take_what_is_written():
    ata = Guest(Ram(), Ram())
    ata[COUNT], ata[LOW], ata[MID], ata[HIGH] = 0x55, 0xAA, 0x12, 0x34
    for device in (0xA0, 0xB0):
        ata[DEVICE] = device
        assert [ata[n] for n in range(COUNT, STATUS)] == [
            0x55,
            0xAA,
            0x12,
            0x34,
            device,
        ]


def test_a_drive_that_is_not_there_reads_0_and_takes_no_command(ata):
    ata[DEVICE] = 0xB0
    ata[COUNT] = 0x55
    assert [ata[n] for n in range(1, 8)] == [0] * 7
    assert ata.control == 0
    ata[COMMAND] = 0xEC
    assert ata.channel.deadline() is None
    assert ata.channel.read(DATA, 2, 0) == 0
    ata.channel.write(DATA, 4, 0x12345678, 0)
    ata[DEVICE] = 0xA0
    assert ata[COUNT] == 0x55


# -- IDENTIFY DEVICE -------------------------------------------------------------------


def test_identify(ata):
    words = ata.identity()
    assert words[0] == 0x0040
    assert (words[1], words[3], words[6]) == (5, 16, 63)
    assert text(words[27:47]) == "EMU86 DISK"
    assert text(words[10:20]) == "EMU86-0"
    assert text(words[23:27]) == "1.0"
    assert words[47] == 0x8010
    assert words[49] & 0x0F00 == 0x0A00  # LBA, IORDY, no DMA
    assert words[54:59] == (5, 16, 63, 5 * 16 * 63, 0)
    assert words[59] == 0x0110
    assert words[60] | words[61] << 16 == TOTAL
    assert words[100:104] == (TOTAL, 0, 0, 0)
    assert words[63] == words[88] == 0
    assert words[83] & 0xC000 == words[84] & 0xC000 == words[87] & 0xC000 == 0x4000
    assert sum(struct.pack("<256H", *words)) & 0xFF == 0
    assert words[255] & 0xFF == 0xA5


def test_drives_have_serial_numbers_of_their_own():
    ata = Guest(Ram(), Ram())
    ata[DEVICE] = 0xB0
    ata.command(0xEC, device=0xB0)
    ata.wait()
    assert text(struct.unpack("<256H", ata.take())[10:20]) == "EMU86-1"


@pytest.mark.parametrize(
    ("total", "cylinders", "lba28"),
    [
        (1, 1, 1),
        (16 * 63 * 16383, 16383, 16 * 63 * 16383),
        (1 << 28, 16383, (1 << 28) - 1),
        (1 << 40, 16383, (1 << 28) - 1),
    ],
)
def test_identify_of_all_sizes(total, cylinders, lba28):
    words = Guest(Ram(total)).identity()
    assert words[1] == cylinders
    assert words[60] | words[61] << 16 == lba28
    assert sum(words[100 + i] << 16 * i for i in range(4)) == total


# -- reading ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "ext", "block"),
    [
        (0x20, False, 1), (0x21, False, 1), (0x24, True, 1),
        (0xC4, False, 16), (0x29, True, 16),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("lba", "count"), [(0, 1), (4000, 40), (TOTAL - 17, 17)])
def test_read(ata, opcode, ext, block, lba, count):
    got = ata.read(opcode, lba, count, ext=ext, block=block)
    assert got == sectors(lba, count)


def test_no_count_is_256_sectors_and_with_48_bits_65536(ata):
    assert ata.read(0x20, 5, 256) == sectors(5, 256)
    for total, fits in ((65536, True), (65535, False)):
        ata = Guest(Ram(total))
        ata.command(0x42, lba=0, count=0, ext=True)
        assert ata.wait() == READY | (0 if fits else ERR)


def test_more_than_a_word_has_room_for(ata):
    """The data port by doublewords, and by bytes, which drivers never do."""
    ata.command(0x20, lba=7)
    ata.wait()
    assert ata.take(256, width=4) + ata.take(256, width=1) == pattern(7)
    assert ata.wait() == READY


def test_by_cylinder_head_and_sector(ata):
    for cylinder, head, sector in ((0, 0, 1), (0, 0, 63), (0, 1, 1), (4, 15, 63)):
        ata[LOW], ata[MID], ata[HIGH] = sector, cylinder, 0
        ata.command(0x20, device=0xA0 | head)
        ata.wait()
        assert ata.take() == pattern((cylinder * 16 + head) * 63 + sector - 1)


def test_the_registers_tell_the_last_sector(ata):
    ata[LOW], ata[MID], ata[HIGH] = 62, 1, 0
    ata.command(0x20, count=3, device=0xA0 | 15)
    for _ in range(3):
        ata.wait()
        ata.take()
    assert (ata[LOW], ata[MID], ata[HIGH], ata[DEVICE]) == (1, 2, 0, 0xA0)
    assert ata[COUNT] == 0
    ata.read(0x20, 0x123, 2)
    assert (ata[LOW], ata[MID], ata[HIGH], ata[DEVICE]) == (0x24, 0x01, 0, 0xE0)


def test_an_address_of_48_bits_is_read_back_by_hob():
    ata = Guest(Ram(1 << 40))
    ata.read(0x24, 0x12_3456_789A, 1, ext=True)
    assert (ata[LOW], ata[MID], ata[HIGH]) == (0x9A, 0x78, 0x56)
    ata.control = 0x80
    assert (ata[LOW], ata[MID], ata[HIGH]) == (0x34, 0x12, 0x00)
    ata[FEATURES] = 0  # any write clears HOB
    assert ata[LOW] == 0x9A


@pytest.mark.parametrize(
    ("lba", "count", "ext"),
    [(TOTAL, 1, False), (TOTAL - 1, 2, False), (1 << 47, 1, True)],
)
@pytest.mark.parametrize("opcode", [0x20, 0x30, 0x40])
def test_beyond_the_end(ata, opcode, lba, count, ext):
    before = bytes(ata.media[0].data)
    its = {0x20: 0x24, 0x30: 0x34, 0x40: 0x42}[opcode] if ext else opcode
    ata.command(its, lba=lba, count=count, ext=ext)
    ata.failed(IDNF)
    assert bytes(ata.media[0].data) == before


@pytest.mark.parametrize(("sector", "head"), [(0, 0), (64, 0), (1, 8)])
def test_a_place_that_the_geometry_does_not_have(ata, sector, head):
    ata.command(0x91, count=63, device=0xA0 | 7)
    ata.wait()
    ata[LOW], ata[MID], ata[HIGH] = sector, 0, 0
    ata.command(0x20, device=0xA0 | head)
    ata.failed(IDNF)


def test_a_host_that_cannot_read(ata):
    ata.media[0].fails = errno.EIO
    ata.command(0x20, lba=0x20)
    ata.failed(UNC)
    assert ata[LOW] == 0x20
    ata.media[0].fails = None
    assert ata.read(0x20, 0x20, 1) == pattern(0x20)


def test_verify_moves_no_data(ata):
    for opcode in (0x40, 0x41):
        ata.command(opcode, lba=0, count=100)
        assert ata.wait() == READY
        assert ata.line
    ata.media[0].fails = errno.EIO
    ata.command(0x40, lba=0)
    ata.failed(UNC)


# -- writing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "ext", "block"),
    [
        (0x30, False, 1), (0x31, False, 1), (0x34, True, 1),
        (0xC5, False, 16), (0x39, True, 16),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("lba", "count"), [(0, 1), (4000, 40), (TOTAL - 17, 17)])
def test_write(ata, opcode, ext, block, lba, count):
    expected = bytearray(ata.media[0].data)
    data = bytes(range(256)) * 2 * count
    expected[lba * SECTOR : (lba + count) * SECTOR] = data
    ata.write(opcode, lba, data, ext=ext, block=block)
    assert ata.media[0].data == expected


def test_a_host_that_cannot_write(ata):
    ata.media[0].fails = errno.ENOSPC
    ata.command(0x30, lba=9)
    ata.give(bytes(SECTOR))
    ata.failed(ABRT, status=READY | ERR | DF)
    ata.media[0].fails = None
    ata.write(0x30, 9, bytes(SECTOR))


@pytest.mark.parametrize("opcode", WRITES)
def test_a_medium_that_is_only_read(opcode):
    ata = Guest(Ram(read_only=True))
    ata.command(opcode, lba=9)
    ata.failed(ABRT)


def test_flush(ata):
    for n, opcode in enumerate((0xE7, 0xEA), 1):
        ata.command(opcode)
        assert ata.control & BSY
        assert ata.wait() == READY
        assert ata.line
        assert ata.media[0].flushed == n
    ata.media[0].fails = errno.EIO
    ata.command(0xE7)
    ata.failed(ABRT, status=READY | ERR | DF)


def test_without_a_write_cache_each_write_is_flushed(ata):
    ata.write(0x30, 0, bytes(SECTOR))
    assert ata.media[0].flushed == 0
    ata.command(0xEF, features=0x82)
    ata.wait()
    flushed = ata.media[0].flushed
    assert not ata.identity()[85] & 0x20
    ata.write(0x30, 0, bytes(SECTOR))
    assert ata.media[0].flushed == flushed + 1
    ata.command(0xEF, features=0x02)
    ata.wait()
    assert ata.identity()[85] & 0x20


# -- settings --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 4, 8, 16])
def test_set_multiple(ata, count):
    ata.command(0xC6, count=count)
    assert ata.wait() == READY
    assert ata.line
    assert ata.identity()[59] == (0x100 | count if count else 0)
    if count:
        assert ata.read(0xC4, 0, 33, block=count) == sectors(0, 33)
    else:
        ata.command(0xC4, lba=0)
        ata.failed(ABRT)


@pytest.mark.parametrize("count", [3, 5, 17, 32, 255])
def test_multiples_that_there_are_not(ata, count):
    ata.command(0xC6, count=count)
    ata.failed(ABRT)
    assert ata.identity()[59] == 0x0110


def test_initialize_device_parameters(ata):
    ata.command(0x91, count=17, device=0xA0 | 3)
    assert ata.wait() == READY
    assert ata.identity()[54:58] == (TOTAL // 68, 4, 17, TOTAL // 68 * 68)
    assert ata.identity()[1] == 5
    ata[LOW], ata[MID], ata[HIGH] = 2, 1, 0
    ata.command(0x20, device=0xA0 | 1)
    ata.wait()
    assert ata.take() == pattern((4 + 1) * 17 + 1)
    ata.command(0x91, count=0)
    ata.failed(ABRT)


@pytest.mark.parametrize("mode", [0, 1, 8, 12])
def test_transfer_modes(ata, mode):
    ata.command(0xEF, features=3, count=mode)
    assert ata.wait() == READY


@pytest.mark.parametrize(
    ("features", "count"), [(3, 13), (3, 0x20), (3, 0x42), (0x05, 1), (0x99, 0)]
)
def test_features_that_there_are_not(ata, features, count):
    ata.command(0xEF, features=features, count=count)
    ata.failed(ABRT)


@pytest.mark.parametrize(
    "opcode", [0x10, 0x1F, 0x70, 0x7F, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6]
)
def test_what_only_takes_time(ata, opcode):
    ata.command(opcode)
    assert ata.control & BSY
    assert ata.wait() == READY
    assert ata.line


def test_it_is_always_active(ata):
    ata.command(0xE5)
    assert ata.wait() == READY
    assert ata[COUNT] == 0xFF


@pytest.mark.parametrize(
    "opcode", [0x00, 0x08, 0xA0, 0xA1, 0xB0, 0xC8, 0xCA, 0xF8, 0xFF]
)
def test_commands_that_there_are_not(ata, opcode):
    ata.command(opcode)
    ata.failed(ABRT)
    assert ata.read(0x20, 0, 1) == pattern(0)


# -- the interrupt line ----------------------------------------------------------------


def test_nien_holds_the_line_and_shows_what_is_pending(ata):
    ata.control = 2
    ata.command(0xE7)
    ata.wait()
    assert not ata.line
    ata.control = 0
    assert ata.line


def test_the_alternate_status_leaves_the_interrupt(ata):
    ata.command(0xE7)
    assert ata.wait() == READY
    assert ata.line
    assert ata[STATUS] == READY
    assert not ata.line


def test_a_drive_that_is_not_selected_is_not_heard():
    ata = Guest(Ram(), Ram())
    ata.command(0xE7)
    ata[DEVICE] = 0xB0
    ata.wait()
    assert not ata.line
    ata[DEVICE] = 0xA0
    assert ata.line


def test_a_command_takes_a_pending_interrupt_away(ata):
    ata.command(0xE7)
    ata.wait()
    ata.command(0xE7)
    assert not ata.line


def test_a_busy_drive_takes_neither_commands_nor_registers(ata):
    ata.command(0x20, lba=8)
    ata[LOW] = 1
    ata[COMMAND] = 0xE7
    ata.wait()
    assert ata.take() == pattern(8)
    ata.command(0x20, lba=8)
    ata.wait()
    ata[COMMAND] = 0xE7  # nor does one that moves data
    assert ata.take() == pattern(8)
    assert ata.media[0].flushed == 0


def test_the_window_follows_the_selected_drive():
    ata = Guest(Ram(), Ram())
    ata[DEVICE] = 0xB0
    ata[DEVICE] = 0xE0
    first, second, third = ata.windows
    assert first == third != second != 0


# -- all of it -------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    commands=st.lists(
        st.tuples(
            st.sampled_from([0x20, 0x24, 0xC4, 0x29, 0x30, 0x34, 0xC5, 0x39]),
            st.integers(0, TOTAL - 1),
            st.integers(1, 20),
            st.binary(min_size=1, max_size=3),
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read(commands):
    ata = Guest()
    model = bytearray(ata.media[0].data)
    for opcode, lba, count, seed in commands:
        count = min(count, TOTAL - lba)  # noqa: PLW2901
        block = 16 if opcode in (0xC4, 0x29, 0xC5, 0x39) else 1
        ext = opcode in (0x24, 0x29, 0x34, 0x39)
        if opcode in WRITES:
            data = (seed * SECTOR * count)[: SECTOR * count]
            ata.write(opcode, lba, data, ext=ext, block=block)
            model[lba * SECTOR : (lba + count) * SECTOR] = data
        else:
            got = ata.read(opcode, lba, count, ext=ext, block=block)
            assert got == model[lba * SECTOR : (lba + count) * SECTOR]
    assert ata.media[0].data == model


def test_a_state_is_whole_at_each_step_of_a_write():
    """Also while the drive is busy with a block that the host has sent."""
    ata, data = Guest(), bytes(range(256)) * 2 * 3

    def again():
        other = Guest(*ata.media)
        other.channel.restore(ata.channel.save())
        assert other.channel.save() == ata.channel.save()
        other.now = ata.now
        return other

    ata.command(0x30, lba=5, count=3)
    for at in range(0, len(data), SECTOR):
        ata.give(data[at : at + 100])
        ata = again()
        ata.give(data[at + 100 : at + SECTOR])
        ata = again()
        assert ata.wait() & ~DRQ == READY
        ata = again()
    assert ata.media[0].data[5 * SECTOR : 8 * SECTOR] == data
