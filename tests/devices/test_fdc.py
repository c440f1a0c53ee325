"""The 82077AA floppy controller: what its data sheet says of each command."""

import copy
import errno
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu86.devices.fdc import DE, EN, MA, ND, NW, OR, WC
from emu86.devices.floppy_drive import (
    DRIVE_360K,
    DRIVE_1200K,
    DRIVE_1440K,
    DRIVE_2880K,
    FORMATS,
)
from support.floppy import (
    ANSWERS,
    BUSY,
    DATA,
    DOR,
    FROM_MEMORY,
    IDLE,
    MSR,
    NON_DMA,
    READY,
    SECTOR,
    TDR,
    TO_MEMORY,
    TO_PROCESSOR,
    VERIFY,
    Floppy,
    Guest,
    number_of,
    pattern,
)  # fmt: skip


@pytest.fixture
def fdc():
    return Guest()


def sectors(first, count):
    return b"".join(map(pattern, range(first, first + count)))


# -- resets and registers --------------------------------------------------------------


def test_after_power_on(fdc):
    assert fdc[MSR] == IDLE
    assert fdc[DOR] == 0x0C
    assert fdc.changed
    assert fdc.lines == []
    assert (fdc[0], fdc[1]) == (0xFF, 0xFF)  # registers of a PS/2
    assert fdc[DATA] == 0xFF
    fdc[TDR] = 0xFF
    assert fdc[TDR] == 3


@pytest.mark.parametrize("by", ["DOR", "DSR"])
def test_a_reset_has_four_drives_report_that_they_were_polled(fdc, by):
    fdc.seek(10)
    fdc.give(0x46, 0)
    if by == "DOR":
        fdc[DOR] = 0
        assert fdc[MSR] == 0
        fdc.wait()
        assert not fdc.line
        fdc[DATA] = 8  # nobody takes it
        fdc[DOR] = 0x0C
    else:
        fdc[MSR] = 0x80
    assert fdc[MSR] == 0
    assert not fdc.line
    fdc.wait()
    assert fdc.line
    for drive in range(4):
        assert fdc.command(8) == bytes((0xC0 | drive, 0))
        assert not fdc.line
    assert fdc.command(8) == b"\x80"


def test_the_gate_of_the_dor_holds_the_interrupt_back(fdc):
    fdc[DOR] = 0
    fdc[DOR] = 0x04
    fdc.wait()
    assert not fdc.line
    fdc[DOR] = 0x0C
    assert fdc.line


def test_invalid_commands(fdc):
    for opcode in (0x00, 0x01, 0x11, 0x18, 0x1F, 0x83, 0x44, 0x90, 0xFF):
        fdc.give(opcode)
        assert fdc[MSR] == ANSWERS
        assert fdc.take() == b"\x80"
        assert fdc[MSR] == IDLE


def test_a_command_takes_its_bytes(fdc):
    for at, byte in enumerate((0xE6, 0, 0, 0, 1, 2, 18, 0x1B)):
        assert fdc[MSR] == (READY | (BUSY if at else 0))
        fdc[DATA] = byte
    fdc[DATA] = 0xFF
    assert fdc[MSR] == BUSY
    fdc[DATA] = 8  # not asked for
    assert fdc[DATA] == 0xFF


# -- commands without data -------------------------------------------------------------


def test_version_and_what_a_newer_chip_has(fdc):
    assert fdc.command(0x10) == b"\x90"
    assert fdc.command(0x18) == b"\x80"


def test_dumpreg_tells_what_was_set(fdc):
    fdc.command(0x03, 0xDF, 0x02)
    fdc.command(0x13, 0, 0x57, 0x12)
    fdc.command(0x12, 0x95)
    fdc.seek(7)
    fdc.seek(9, drive=1)
    fdc.read(7, 0, 1, 1, last=15)
    assert fdc.command(0x94) == b"\x10"
    expected = bytes((7, 9, 0, 0, 0xDF, 0x02, 15, 0x80 | 0x15, 0x57, 0x12))
    assert fdc.command(0x0E) == expected


def test_lock_keeps_the_fifo_over_resets(fdc):
    for locked in (True, False):
        fdc.command(0x94 if locked else 0x14)
        fdc.command(0x13, 0, 0x4A, 0x12)
        fdc[MSR] = 0x80
        fdc.wait()
        answer = fdc.command(0x0E)
        assert answer[7] == (0x80 if locked else 0)
        assert answer[8:] == (bytes((0x0A, 0x12)) if locked else bytes((0x20, 0)))


def test_perpendicular_changes_drives_only_if_told_to(fdc):
    fdc.command(0x12, 0x3C)
    assert fdc.command(0x0E)[7] == 0
    fdc.command(0x12, 0xBC)
    fdc.command(0x12, 0x03)
    assert fdc.command(0x0E)[7] == 0x3F
    fdc[MSR] = 0x80
    fdc.wait()
    assert fdc.command(0x0E)[7] == 0x3C


def test_sense_drive_status():
    fdc = Guest(Floppy(read_only=True), None)
    assert fdc.command(0x04, 4) == bytes((0x28 | 0x40 | 0x10 | 4,))
    fdc.seek(1)
    assert fdc.command(0x04, 0) == bytes((0x28 | 0x40,))
    assert fdc.command(0x04, 1) == bytes((0x28 | 0x10 | 1,))
    assert fdc.command(0x04, 2) == bytes((0x28 | 2,))


# -- seeks -----------------------------------------------------------------------------


def test_seek_and_recalibrate_tell_of_their_end(fdc):
    fdc.give(0x0F, 4, 40)
    assert fdc[MSR] == READY | 1
    assert not fdc.line
    fdc.wait()
    assert fdc.line
    assert fdc[MSR] == READY | 1
    fdc.give(8)
    assert not fdc.line
    assert fdc.take() == bytes((0x20, 40))
    assert fdc[MSR] == READY
    assert fdc.drives[0].track == 40
    fdc.command(0x07, 0)
    assert fdc.command(0x08) == bytes((0x20, 0))
    assert fdc.drives[0].track == 0


def test_two_drives_seek_at_once():
    fdc = Guest(Floppy(), Floppy())
    fdc.give(0x0F, 0, 5)
    fdc.now += 1000
    fdc.give(0x0F, 1, 6)
    assert fdc[MSR] == READY | 3
    fdc.wait()
    assert fdc.command(0x08) == bytes((0x20, 5))
    assert fdc[MSR] == READY | 2
    assert fdc.line  # the other one asks anew
    assert fdc.lines[-2:] == [False, True]
    assert fdc.command(0x08) == bytes((0x21, 6))
    assert not fdc.line


def test_recalibrate_without_a_drive_finds_no_track_0(fdc):
    fdc.command(0x07, 1)
    assert fdc.command(0x08) == bytes((0x71, 0))


def test_recalibrate_makes_79_steps(fdc):
    fdc.seek(82)
    fdc.command(0x07, 0)
    assert fdc.command(0x08) == bytes((0x70, 0))
    fdc.command(0x07, 0)
    assert fdc.command(0x08) == bytes((0x20, 0))


def test_the_head_stops_at_its_end(fdc):
    fdc.seek(255)
    assert fdc.drives[0].track == 82
    assert fdc.command(0x0E)[0] == 255


def test_relative_seeks(fdc):
    fdc.seek(10)
    fdc.command(0xCF, 0, 5)
    assert fdc.command(8) == bytes((0x20, 15))
    fdc.command(0x8F, 0, 3)
    assert fdc.command(8) == bytes((0x20, 12))
    assert fdc.drives[0].track == 12


def test_an_implied_seek(fdc):
    fdc.command(0x13, 0, 0x57, 0)
    answer, data = fdc.read(33, 1, 4, 1)
    assert answer[0] & 0xC0 == 0
    assert data == pattern(number_of(33, 1, 4))


# -- the change line -------------------------------------------------------------------


def test_the_change_line_falls_with_a_step_and_a_floppy_in(fdc):
    fdc.seek(1)
    assert not fdc.changed
    drive = fdc.drives[0]
    drive.insert(None)
    assert fdc.changed
    fdc.seek(2)
    assert fdc.changed
    drive.insert(Floppy())
    fdc.seek(2)  # no step
    assert fdc.changed
    fdc.command(0x07, 0)
    assert not fdc.changed
    fdc[DOR] = 0x0D
    assert fdc.changed  # of a drive that is not there


# -- data by DMA -----------------------------------------------------------------------


def test_sectors_are_read(fdc):
    fdc.seek(3)
    answer, data = fdc.read(3, 0, 5, 4)
    assert answer == bytes((0, 0, 0, 3, 0, 9, 2))
    assert data == sectors(number_of(3, 0, 5), 4)


def test_the_interrupt_falls_as_the_result_is_read(fdc):
    fdc.program(TO_MEMORY, 0, SECTOR)
    fdc.give(0x46, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    assert not fdc.line
    fdc.wait()
    assert fdc.line
    assert fdc[MSR] == ANSWERS
    assert fdc[DATA] == 0
    assert not fdc.line
    assert fdc.take() == bytes((0, 0, 0, 0, 2, 2))


@pytest.mark.parametrize(
    ("opcode", "head", "sector", "count", "result"),
    [
        # The data sheet's table: MT, HD, the last sector: C, H, R.
        (0x46, 0, 17, 1, (3, 0, 18)),
        (0x46, 0, 18, 1, (4, 0, 1)),
        (0x46, 1, 17, 1, (3, 1, 18)),
        (0x46, 1, 18, 1, (4, 1, 1)),
        (0xC6, 0, 17, 1, (3, 0, 18)),
        (0xC6, 0, 18, 1, (3, 1, 1)),
        (0xC6, 1, 17, 1, (3, 1, 18)),
        (0xC6, 1, 18, 1, (4, 0, 1)),
        (0xC6, 0, 17, 4, (3, 1, 3)),
    ],
)
def test_where_a_command_would_go_on(fdc, opcode, head, sector, count, result):
    fdc.seek(3)
    answer, data = fdc.read(3, head, sector, count, opcode)
    assert answer[0] & 0xC0 == 0
    assert tuple(answer[3:6]) == result
    assert data == sectors(number_of(3, head, sector), count)


def test_the_end_of_a_track_without_terminal_count(fdc):
    answer, data = fdc.read(0, 0, 17, 3, opcode=0x46)
    assert answer[:3] == bytes((0x40, EN, 0))
    assert data == sectors(16, 2) + bytes(SECTOR)


def test_a_sector_that_is_only_in_part_wanted(fdc):
    fdc.program(TO_MEMORY, 0, 100)
    assert fdc.command(0x46, 0, 0, 0, 4, 2, 18, 27, 255)[0] == 0
    assert fdc.memory.read(0, 101) == pattern(3)[:100] + b"\0"


def test_sectors_are_written(fdc):
    fdc.seek(79)
    data = bytes(range(256)) * 6
    answer = fdc.write(79, 1, 2, data)
    assert answer == bytes((4, 0, 0, 79, 1, 5, 2))
    at = number_of(79, 1, 2) * SECTOR
    assert fdc.floppies[0].data[at : at + len(data)] == data
    assert fdc.floppies[0].data[at - 4 : at] == pattern(number_of(79, 1, 1))[:4]


def test_what_is_left_of_a_sector_is_filled_with_zeros(fdc):
    fdc.write(0, 0, 1, b"x" * 10)
    assert fdc.floppies[0].data[:SECTOR] == b"x" * 10 + bytes(SECTOR - 10)


@pytest.mark.parametrize(
    ("cylinder", "head", "sector", "last", "wrong"),
    [
        (0, 0, 19, 20, (ND, 0)),
        (0, 0, 0, 20, (ND, 0)),
        (1, 0, 1, 18, (ND, WC)),
    ],
)
def test_sectors_that_are_not_there(fdc, cylinder, head, sector, last, wrong):
    for answer in (
        fdc.read(cylinder, head, sector, 1, last=last)[0],
        fdc.write(cylinder, head, sector, bytes(SECTOR), last=last),
    ):
        assert answer[:3] == bytes((0x40, *wrong))
        assert tuple(answer[3:6]) == (cylinder, head, sector)
    assert fdc.floppies[0].data == Floppy().data


def test_a_sector_of_another_size_or_head_is_not_there(fdc):
    fdc.program(TO_MEMORY, 0, SECTOR)
    assert fdc.command(0x46, 0, 0, 0, 1, 3, 18, 27, 255)[1] == ND
    assert fdc.command(0x46, 4, 0, 0, 1, 2, 18, 27, 255)[1] == ND


def test_a_wrong_rate_fm_a_track_beyond_and_no_floppy_have_no_mark(fdc):
    def mark():
        return fdc.command(0x4A, 0)[1]

    assert mark() == 0
    fdc.rate = 2
    assert mark() == MA
    fdc.rate = 0
    assert fdc.command(0x0A, 0)[1] == MA
    fdc.seek(80)
    assert mark() == MA
    fdc.seek(0)
    fdc.drives[0].insert(None)
    assert mark() == MA
    assert fdc.command(0x4A, 3)[:2] == bytes((0x43, MA))
    fdc.drives[0].insert(Floppy(160 << 10))
    fdc.rate = 2
    assert mark() == 0
    assert fdc.command(0x4A, 4)[1] == MA  # it has one side


def test_read_id_tells_of_the_sector_that_comes_by(fdc):
    fdc.seek(12)
    seen = set()
    for _ in range(40):
        fdc.now += 7_000_000
        answer = fdc.command(0x4A, 4)
        assert answer[:5] == bytes((4, 0, 0, 12, 1))
        assert answer[6] == 2
        seen.add(answer[5])
    assert seen == set(range(1, 19))


def test_write_protection():
    fdc = Guest(Floppy(read_only=True))
    assert fdc.write(0, 0, 1, bytes(SECTOR))[:2] == bytes((0x40, NW))
    fdc.program(FROM_MEMORY, 0, 72)
    assert fdc.command(0x4D, 0, 2, 18, 0x6C, 0xF6)[:2] == bytes((0x40, NW))
    assert fdc.read(0, 0, 1, 1)[0][0] == 0


def test_errors_of_the_host(fdc):
    fdc.floppies[0].fails = errno.EIO
    assert fdc.read(0, 0, 1, 1)[0][:3] == bytes((0x40, DE, 0x20))
    assert fdc.write(0, 0, 1, bytes(SECTOR))[:3] == bytes((0x40, DE, 0x20))
    fdc[DOR] = 0x1C
    fdc[DOR] = 0x0C  # the flush fails, of which a drive cannot tell


def test_a_channel_that_opens_late_is_waited_for(fdc):
    fdc.give(0x46, 0, 0, 0, 1, 2, 18, 27, 255)
    fdc.now = fdc.fdc.deadline()
    fdc.fdc.advance(fdc.now)
    assert fdc[MSR] == BUSY
    fdc.program(TO_MEMORY, 0, SECTOR)
    fdc.wait()
    assert fdc.take()[0] == 0
    assert fdc.memory.read(0, SECTOR) == pattern(0)


def test_a_channel_that_stays_closed_is_an_overrun(fdc):
    assert fdc.command(0x46, 0, 0, 0, 1, 2, 18, 27, 255)[:2] == bytes((0x40, OR))
    assert 200_000_000 <= fdc.now < 300_000_000


def test_verifying_dma_changes_no_memory(fdc):
    fdc.program(VERIFY, 0, SECTOR)
    assert fdc.command(0xE6, 0, 0, 0, 1, 2, 18, 27, 255)[:2] == bytes(2)
    assert fdc.memory.read(0, SECTOR) == bytes(SECTOR)


def test_verify(fdc):
    assert fdc.command(0xD6, 0x80, 0, 0, 1, 2, 18, 27, 3)[:6] == bytes(5) + b"\4"
    assert fdc.command(0x56, 0, 0, 0, 1, 2, 18, 27, 0xFF)[:6] == bytes(
        (0, 0, 0, 1, 0, 1)
    )
    assert fdc.command(0x56, 0, 0, 0, 1, 2, 19, 27, 0xFF)[:2] == bytes((0x40, ND))


def test_read_track_begins_with_its_first_sector(fdc):
    answer, data = fdc.read(0, 0, 9, 3, opcode=0x42)
    assert answer[0] == 0
    assert data == sectors(0, 3)


def test_deleted_data(fdc):
    answer, data = fdc.read(0, 0, 3, 2, opcode=0x4C)
    assert answer[:3] == bytes((0, 0, 0x40))
    assert data == pattern(2) + bytes(SECTOR)
    assert fdc.read(0, 0, 3, 2, opcode=0x6C)[0][:2] == bytes((0x40, ND))
    assert fdc.write(0, 0, 1, b"d" * SECTOR, opcode=0x49)[0] == 0
    assert fdc.floppies[0].data[:SECTOR] == b"d" * SECTOR


# -- formatting ------------------------------------------------------------------------


def names(cylinder, head, count=18, size=2):
    places = range(1, count + 1)
    return b"".join(bytes((cylinder, head, sector, size)) for sector in places)


def formats(fdc, data, count=18, head=1):
    fdc.memory.write(0x1000, data)
    fdc.program(FROM_MEMORY, 0x1000, max(len(data), 1))
    return fdc.command(0x4D, head << 2, 2, count, 0x6C, 0xF6)


def test_a_track_is_formatted(fdc):
    fdc.seek(79)
    assert formats(fdc, names(79, 1))[:3] == bytes((4, 0, 0))
    at = number_of(79, 1, 1) * SECTOR
    assert fdc.floppies[0].data[at:] == b"\xf6" * 18 * SECTOR
    assert fdc.floppies[0].data[:at] == Floppy().data[:at]


@pytest.mark.parametrize(
    "data",
    [names(78, 1), names(79, 0), names(79, 1, 19), names(79, 1, size=3)],
    ids=["cylinder", "head", "sector", "size"],
)
def test_what_an_image_has_no_place_for_is_not_formatted(fdc, data):
    fdc.seek(79)
    assert formats(fdc, data, len(data) // 4)[:2] == bytes((0x44, ND))
    assert fdc.floppies[0].data == Floppy().data


def test_nothing_to_format(fdc):
    fdc.command(0x03, 0xDF, 3)
    assert formats(fdc, b"", 0)[:2] == bytes((4, 0))


# -- data by the processor -------------------------------------------------------------


@pytest.fixture
def pio(fdc):
    fdc.command(0x03, 0xDF, 0x03)
    return fdc


def test_a_sector_is_read_without_dma(pio):
    pio.give(0x46, 0, 0, 0, 17, 2, 18, 27, 255)
    assert pio[MSR] == BUSY | NON_DMA
    for sector in (16, 17):
        pio.wait()
        assert pio.line
        assert pio[MSR] == READY | TO_PROCESSOR | NON_DMA | BUSY
        data = bytes((pio[DATA],))
        assert not pio.line
        data += bytes(pio[DATA] for _ in range(SECTOR - 1))
        assert data == pattern(sector)
    assert pio.line
    assert pio.take() == bytes((0x40, EN, 0, 1, 0, 1, 2))  # nobody counts here


def test_a_sector_is_written_without_dma(pio):
    pio.give(0x45, 0, 0, 0, 17, 2, 18, 27, 255)
    for value in b"ab":
        pio.wait()
        assert pio.line
        assert pio[MSR] == READY | NON_DMA | BUSY
        for _ in range(SECTOR):
            pio[DATA] = value
            assert not pio.line or pio[MSR] == ANSWERS
    assert pio.take()[:2] == bytes((0x40, EN))
    written = pio.floppies[0].data[16 * SECTOR : 18 * SECTOR]
    assert written == b"a" * SECTOR + b"b" * SECTOR


def test_a_track_is_formatted_without_dma(pio):
    pio.give(0x4D, 0, 2, 18, 0x6C, 0xE5)
    pio.wait()
    for byte in names(0, 0):
        pio[DATA] = byte
    assert pio.take()[:2] == bytes(2)
    assert pio.floppies[0].data[: 18 * SECTOR] == b"\xe5" * 18 * SECTOR


def test_a_floppy_that_is_taken_out_in_between(pio):
    pio.give(0x45, 0, 0, 0, 17, 2, 18, 27, 255)
    pio.wait()
    pio.drives[0].insert(None)
    for _ in range(SECTOR):
        pio[DATA] = 1
    assert pio.take()[:2] == bytes((0x40, MA))


# -- floppies and drives ---------------------------------------------------------------


@pytest.mark.parametrize("size", FORMATS)
def test_each_format_is_read_to_its_last_sector(size):
    its = FORMATS[size]
    fdc = Guest(Floppy(size), kinds=[its.drives[0]])
    fdc.rate = its.rate
    fdc.seek(its.tracks - 1)
    assert fdc.drives[0].track == its.tracks - 1
    answer, data = fdc.read(
        its.tracks - 1, its.heads - 1, its.sectors, 1, last=its.sectors
    )
    assert answer[0] & 0xC0 == 0
    assert data == pattern(size // SECTOR - 1)


def test_the_sizes_and_the_drives_that_take_them():
    kib = {size >> 10: its.drives for size, its in FORMATS.items()}
    assert kib == {
        160: (DRIVE_360K,), 180: (DRIVE_360K,), 320: (DRIVE_360K,), 360: (DRIVE_360K,),
        720: (DRIVE_1440K, DRIVE_2880K), 1200: (DRIVE_1200K,),
        1440: (DRIVE_1440K, DRIVE_2880K), 1680: (DRIVE_1440K, DRIVE_2880K),
        2880: (DRIVE_2880K,),
    }  # fmt: skip


def test_what_was_written_is_flushed_as_the_motor_stops(fdc):
    fdc[DOR] = 0x1C
    fdc[DOR] = 0x0C
    assert fdc.floppies[0].flushed == 0
    fdc[DOR] = 0x1C
    fdc.write(0, 0, 1, bytes(SECTOR))
    assert fdc.floppies[0].flushed == 0
    fdc[DOR] = 0x0C
    fdc[DOR] = 0x1C
    fdc[DOR] = 0x0C
    assert fdc.floppies[0].flushed == 1


# -- state -----------------------------------------------------------------------------

_commands = st.lists(
    st.sampled_from([
        (0x0F, 0, 5), (0x0F, 1, 7), (0x07, 0), (0x08,), (0x0E,), (0x94,), (0x03, 1, 2),
        (0x03, 1, 3), (0x46, 0, 5, 0, 8, 2, 8, 0, 0), (0x4A, 0), (0x13, 0, 0x57, 1),
        (0xC5, 0, 0, 0, 8, 2, 8, 0, 0), (0x46, 1),
    ]),
    max_size=4,
)  # fmt: skip


@settings(max_examples=60)
@given(_commands, st.integers(0, 60))
def test_its_state_is_saved_and_restored(commands, more):
    """At any point; both go on alike."""
    one = Guest(*(Floppy(320 << 10) for _ in range(2)), kinds=[DRIVE_360K] * 2)
    one.rate = 2
    one.program(TO_MEMORY, 0, 1024)
    for command in commands:
        for byte in command:
            one[DATA] = byte
        one.now += 60_000
        one.fdc.advance(one.now)
    for _ in range(more // 10):
        one[DATA]
    other = Guest(*copy.deepcopy(one.floppies), kinds=[DRIVE_360K] * 2)
    other.fdc.restore(one.fdc.save())
    other.dma.restore(one.dma.save())
    other.pages.restore(one.pages.save())
    assert other.fdc.save() == one.fdc.save()
    seen = []
    other.now = one.now
    for guest in (one, other):
        log = []
        for _ in range(4):
            guest.wait()
            log.append([(guest[MSR], guest[DATA]) for _ in range(more)])
            guest[DATA] = 0x08
        seen.append((log, guest.fdc.line, guest.floppies[0].data))
    assert seen[0] == seen[1]


def test_states_differ(fdc):
    """The test above compares something."""
    states = [fdc.fdc.save()]
    fdc.give(0x0F, 0, 5)
    states.append(fdc.fdc.save())
    fdc.wait()
    states.append(fdc.fdc.save())
    assert all(a != b for a, b in itertools.pairwise(states))
