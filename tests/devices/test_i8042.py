import pytest

from emu86.devices.i8042 import I8042
from emu86.devices.ps2_keyboard import TRANSLATION, Stroke
from emu86.devices.ps2_mouse import Motion

MS = 1_000_000


class Guest:
    """The controller, its lines, and a guest that polls."""

    def __init__(self):
        self.irq1, self.irq12, self.a20 = [], [], []
        self.resets = 0
        self.kbc = I8042(
            self.irq1.append, self.irq12.append, self.count_reset, self.a20.append
        )
        self.now = 0

    def count_reset(self):
        self.resets += 1

    @property
    def status(self):
        return self.kbc.read(4, 1, self.now)

    def command(self, value, *data):
        self.kbc.write(4, 1, value, self.now)
        for byte in data:
            self.kbc.write(0, 1, byte, self.now)

    def data(self, *values):
        for value in values:
            self.kbc.write(0, 1, value, self.now)

    def key(self, codes):
        self.kbc.keyboard.key(codes, self.now)

    def move(self, *motion):
        self.kbc.mouse.move(Motion(*motion))

    def get(self):
        """Wait for a byte, for two keyboard bytes' time, and read it."""
        if not self.status & 1:
            self.now += 2 * MS
        assert self.status & 1, "nothing came"
        return self.kbc.read(0, 1, self.now)

    def drain(self):
        got = []
        while True:
            if not self.status & 1:
                self.now += 2 * MS
            if not self.status & 1:
                return bytes(got)
            got.append(self.kbc.read(0, 1, self.now))


@pytest.fixture
def pc():
    return Guest()


@pytest.fixture
def raw(pc):
    """With translation off: what the keyboard sends."""
    pc.command(0x60, 0x05)
    return pc


def test_status_after_reset(pc):
    assert pc.status == 0x14
    pc.command(0xAE)
    assert pc.status & 0x08
    pc.data(0xEE)
    assert not pc.status & 0x08


def test_configuration_byte(pc):
    pc.command(0x20)
    assert pc.get() == 0x65
    pc.command(0x60, 0x47)
    pc.command(0x20)
    assert pc.get() == 0x47
    pc.command(0x60, 0x43)
    assert not pc.status & 0x04


def test_internal_ram(pc):
    pc.command(0x75, 0xA5)
    pc.command(0x35)
    assert pc.get() == 0xA5


@pytest.mark.parametrize(
    ("command", "reply"),
    [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0xA4, 0xF1), (0xC0, 0xA0)],
)
def test_commands_with_a_reply(pc, command, reply):
    pc.command(command)
    assert pc.status & 0x21 == 1
    assert pc.get() == reply
    assert not pc.status & 1


@pytest.mark.parametrize(("off", "on", "bit"), [(0xA7, 0xA8, 0x20), (0xAD, 0xAE, 0x10)])
def test_disabling_and_enabling(pc, off, on, bit):
    pc.command(off)
    pc.command(0x20)
    assert pc.get() & bit
    pc.command(on)
    pc.command(0x20)
    assert not pc.get() & bit


def test_reset_pulses(pc):
    for command in (0xF1, 0xFD, 0xFF):
        pc.command(command)
    assert pc.resets == 0
    pc.command(0xFE)
    assert pc.resets == 1
    pc.command(0xF0)
    assert pc.resets == 2
    pc.command(0xD1, 0x02)
    assert pc.resets == 3


def test_a20(pc):
    pc.command(0xD0)
    assert pc.get() & 0x03 == 0x03
    pc.command(0xD1, 0xDD)
    pc.command(0xD1, 0xDD)
    assert pc.a20 == [False]
    pc.command(0xD0)
    assert pc.get() & 0x03 == 0x01
    pc.command(0xDF)
    pc.command(0xDD)
    assert pc.a20 == [False, True, False]
    assert pc.resets == 0


def test_output_buffer_commands(pc):
    pc.command(0xD2, 0x5A)
    assert pc.irq1 == [True]
    assert pc.status & 0x21 == 0x01
    assert pc.get() == 0x5A  # not translated
    assert pc.irq1 == [True, False]
    pc.command(0x60, 0x47)
    pc.command(0xD3, 0xA5)
    assert pc.irq12 == [True]
    assert pc.status & 0x21 == 0x21
    assert pc.get() == 0xA5
    assert pc.irq12 == [True, False]


def test_there_may_be_no_mouse(pc):
    pc.kbc.has_mouse = False
    pc.command(0xD4, 0xF2)
    assert pc.status & 0x61 == 0x61  # a time-out, from the auxiliary side
    assert pc.get() == 0xFE
    pc.data(0xEE)
    assert pc.status & 0x61 == 0x01
    pc.get()
    pc.command(0xA9)
    assert pc.get() == 0x01


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xFF], "fa aa"),
        ([0xF2], "fa ab 83"),
        ([0xEE], "ee"),
        ([0xED, 0x02], "fa fa"),
        ([0xF3, 0x20], "fa fa"),
        ([0xF4], "fa"),
        ([0xF5], "fa"),
        ([0xF6], "fa"),
        ([0xF8], "fa"),
        ([0xFC, 0x1C], "fa fa"),
        ([0xF0, 0x00], "fa fa 02"),
        ([0xF0, 0x01], "fa fa"),
        ([0xF0, 0x03], "fa fa"),
        ([0xF0, 0x04], "fa fe"),
        ([0xED, 0xEE], "fa ee"),  # a command instead of the argument
        ([0x00], "fe"),
        ([0xEF], "fe"),
    ],
)
def test_keyboard_commands(raw, sent, answer):
    got = b""
    for byte in sent:
        raw.data(byte)
        got += raw.drain()
    assert got == bytes.fromhex(answer)


def test_resend(raw):
    raw.data(0xF2)
    assert raw.drain()[-1] == 0x83
    raw.data(0xFE)
    assert raw.drain() == b"\x83"


def test_the_id_is_translated_too(pc):
    pc.data(0xF2)
    assert pc.drain() == bytes.fromhex("fa ab 41")


def test_a_write_to_the_keyboard_enables_it(pc):
    pc.command(0xAD)
    pc.data(0xEE)
    assert pc.drain() == b"\xee"


def test_keys_translated_to_set_1(pc):
    pc.key(bytes.fromhex("1c f0 1c e0 75 e0 f0 75 83 f0 83"))
    assert pc.kbc.deadline() == 0
    assert pc.drain() == bytes.fromhex("1e 9e e0 48 e0 c8 41 c1")


def test_keys_of_set_2_and_1(raw):
    raw.key(bytes.fromhex("1c f0 1c"))
    assert raw.drain() == bytes.fromhex("1c f0 1c")
    raw.data(0xF0, 0x01)
    raw.drain()
    raw.key(bytes.fromhex("1c f0 1c"))
    assert raw.drain() == bytes.fromhex("1e 9e")


def test_the_translation_is_one_to_one():
    assert len(TRANSLATION) == 128
    pairs = {
        0x76: 0x01,
        0x5A: 0x1C,
        0x29: 0x39,
        0x66: 0x0E,
        0x05: 0x3B,
        0x07: 0x58,
        0x12: 0x2A,
        0x14: 0x1D,
        0x11: 0x38,
        0x0D: 0x0F,
        0x15: 0x10,
        0x1A: 0x2C,
        0x4D: 0x19,
        0x45: 0x0B,
        0x77: 0x45,
        0x7E: 0x46,
        0x78: 0x57,
    }
    assert {code: TRANSLATION[code] for code in pairs} == pairs
    assert len(set(TRANSLATION)) == 128


def test_interrupt_for_each_byte_and_a_millisecond_between(pc):
    pc.key(bytes.fromhex("1c f0 1c"))
    pc.kbc.advance(pc.kbc.deadline())
    assert pc.irq1 == [True]
    assert pc.kbc.deadline() is None  # nothing moves until it is read
    assert pc.kbc.read(0, 1, 5) == 0x1E
    assert pc.kbc.read(0, 1, 6) == 0x1E  # it may be read twice
    assert pc.irq1 == [True, False]
    assert pc.kbc.deadline() == 5 + MS
    pc.kbc.advance(5 + MS - 1)
    assert pc.irq1 == [True, False]
    pc.kbc.advance(5 + MS)
    assert pc.irq1 == [True, False, True]
    assert pc.kbc.read(0, 1, 5 + MS) == 0x9E
    assert pc.kbc.deadline() is None


def test_interrupts_off_in_the_configuration(pc):
    pc.command(0x60, 0x64)
    pc.key(b"\x1c")
    pc.kbc.advance(0)
    assert pc.irq1 == []
    pc.command(0x60, 0x65)
    assert pc.irq1 == [True]


def test_a_disabled_interface_holds_the_keys_back(pc):
    pc.command(0xAD)
    pc.key(b"\x1c")
    assert pc.kbc.deadline() is None
    assert not pc.status & 1
    pc.command(0xAE)
    assert pc.get() == 0x1E


def test_disabled_scanning_loses_the_keys(pc):
    pc.key(b"\x32")
    pc.kbc.read(4, 1, 0)
    pc.data(0xF5)
    assert pc.drain() == b"\x30\xfa"
    pc.key(b"\x1c")
    pc.data(0xF4)
    assert pc.drain() == b"\xfa"


def test_responses_go_before_keys(pc):
    pc.command(0xAD)
    pc.key(b"\x1c")
    pc.data(0xED)
    assert pc.drain() == b"\xfa\x1e"


def test_a_reply_waits_behind_an_unread_byte(pc):
    pc.key(b"\x1c")
    pc.kbc.advance(0)
    pc.command(0x20)
    assert pc.get() == 0x1E
    assert pc.irq1 == [True, False, True]
    assert pc.get() == 0x65


def test_save_and_restore_with_half_a_command_and_half_a_key(pc):
    pc.key(bytes.fromhex("e0 f0 75 1c"))
    assert pc.get() == 0xE0
    pc.command(0x60)
    other = Guest()
    other.now = pc.now
    other.kbc.restore(pc.kbc.save())
    for guest in (pc, other):
        guest.data(0x25)
        guest.command(0x20)
    assert pc.drain() == other.drain()
    assert pc.kbc.save() == other.kbc.save()


# -- keys that are held ----------------------------------------------------------------


def typing_times(pc, until):
    """When a byte comes by itself, in ms, and which."""
    got = []
    while (due := pc.kbc.deadline()) is not None and due < until * MS:
        pc.now = due
        pc.kbc.advance(due)
        got.append((due // MS, pc.kbc.read(0, 1, due)))
    return got


def test_a_held_key_repeats_after_half_a_second_ten_times_a_second(raw):
    raw.kbc.keyboard.type([Stroke(b"\x1c", 800 * MS), Stroke(b"\xf0\x1c")])
    got = typing_times(raw, 3000)
    assert [code for _, code in got] == [0x1C] * 5 + [0xF0, 0x1C]
    assert [at for at, _ in got] == [0, 500, 591, 683, 774, 800, 801]


def test_rate_and_delay_can_be_set(raw):
    raw.data(0xF3)
    raw.drain()
    raw.data(0x60)  # 1 s, then 30 a second
    raw.drain()
    raw.key(b"\x1c")
    start = raw.now
    assert raw.get() == 0x1C
    got = [at - start // MS for at, _ in typing_times(raw, start // MS + 1101)]
    assert got == [1000, 1033, 1066, 1099]


def test_only_the_last_key_repeats_and_another_that_goes_up_does_not_stop_it(raw):
    raw.key(bytes.fromhex("12 e0 75 f0 12"))
    raw.drain()
    assert [code for _, code in typing_times(raw, 600)] == [0xE0, 0x75, 0xE0, 0x75]
    raw.key(bytes.fromhex("e0 f0 75"))
    raw.drain()
    assert raw.kbc.deadline() is None


def test_a_guest_that_reads_nothing_gets_no_heap_of_repeats(raw):
    raw.key(b"\x1c")
    for now in range(0, 5000, 100):
        raw.kbc.advance(now * MS)
    raw.now = 5000 * MS
    assert len(raw.drain()) <= 2


@pytest.mark.parametrize(
    ("types", "codes"),
    [
        ((), "1c 11 f0 11 58 63"),  # letters repeat, Ctrl and Alt tell of their release
        ((0xF7,), "1c 11 58 63"),
        ((0xF8,), "1c f0 1c 11 f0 11 58 f0 58 63 f0 63"),
        ((0xFD, 0x11), "1c 11 58 63"),
        ((0xFC, 0x1C, 0x63), "1c f0 1c 11 f0 11 58 63 f0 63"),
    ],
)
def test_scan_code_set_3(raw, types, codes):
    for byte in (0xF0, 3, *types, 0xF4):
        raw.data(byte)
        assert raw.drain() == b"\xfa"
    raw.key(bytes.fromhex("1c f0 1c 14 f0 14 e0 14 e0 f0 14 e0 75 e0 f0 75"))
    assert raw.drain() == bytes.fromhex(codes)


def test_lights(pc):
    pc.data(0xED, 0x06)
    assert pc.kbc.keyboard.lights == 6
    pc.data(0xF6)
    assert pc.kbc.keyboard.lights == 6
    pc.data(0xFF)
    assert not pc.kbc.keyboard.lights


# -- the mouse -------------------------------------------------------------------------


def tell(pc, *data):
    """What the mouse answers."""
    got = b""
    for byte in data:
        pc.command(0xD4, byte)
        got += pc.drain()
    return got


WHEEL = (0xF3, 200, 0xF3, 100, 0xF3, 80)
FIVE = (0xF3, 200, 0xF3, 200, 0xF3, 80)


def test_the_mouses_bytes_come_with_its_bit_and_its_interrupt(pc):
    pc.command(0x60, 0x47)
    pc.command(0xD4, 0xF2)
    assert pc.irq12 == [True]
    assert pc.status & 0x21 == 0x21
    assert pc.get() == 0xFA
    assert not pc.status & 1  # a millisecond later
    assert pc.get() == 0
    assert pc.irq12 == [True, False, True, False]
    assert pc.irq1 == []


def test_a_disabled_mouse_waits(pc):
    tell(pc, 0xF4)
    pc.command(0xA7)
    pc.move(1, 0, 0, 0)
    assert pc.kbc.deadline() is None
    assert pc.drain() == b""
    pc.command(0xA8)
    assert pc.drain() == bytes.fromhex("08 01 00")


def test_a_mouse_that_does_not_report_remembers_buttons_alone(pc):
    pc.move(9, 9, 0, 1)
    assert pc.drain() == b""
    assert tell(pc, 0xE9) == bytes.fromhex("fa 04 02 64")
    assert tell(pc, 0xF4) == b"\xfa"


@pytest.mark.parametrize(
    ("before", "motion", "packets"),
    [
        ((), (1, -2, 0, 0), "08 01 02"),
        ((), (-1, 2, 0, 5), "3d ff fe"),
        ((), (300, 0, 0, 0), "08 ff 00 08 2d 00"),
        ((), (-300, 600, 0, 2), "3a 01 01 3a d3 01 2a 00 a6"),
        ((0xE7,), (5, -4, 0, 0), "08 09 06"),
        ((0xE7,), (-6, 3, 0, 0), "38 f4 fd"),
        (WHEEL, (0, 0, 1, 8), "08 00 00 ff"),
        (WHEEL, (0, 0, -9, 0), "08 00 00 07 08 00 00 02"),
        (FIVE, (0, 0, -1, 0x19), "09 00 00 31"),
    ],
)
def test_packets(pc, before, motion, packets):
    tell(pc, *before, 0xF4)
    pc.move(*motion)
    got = bytes(code for _, code in typing_times(pc, 1000))
    assert got.hex(" ") == packets


def test_packets_come_at_the_sampling_rate(pc):
    tell(pc, 0xF3, 20, 0xF4)
    for _ in range(3):
        pc.move(1, 0, 0, 0)
    times = [at for at, code in typing_times(pc, 10_000) if code == 8]
    assert [at - times[0] for at in times] == [0, 50, 100]


def test_remote_mode_tells_when_asked(pc):
    tell(pc, 0xF0)
    pc.move(3, 0, 0, 1)
    assert pc.drain() == b""
    assert tell(pc, 0xEB) == bytes.fromhex("fa 09 03 00")
    assert tell(pc, 0xEB) == bytes.fromhex("fa 09 00 00")


def test_a_command_gives_up_the_rest_of_a_packet(pc):
    tell(pc, 0xF4)
    pc.move(1, 1, 0, 0)
    assert pc.get() == 0x28
    assert tell(pc, 0xF2) == bytes.fromhex("fa 00")


def test_a_bad_byte_is_asked_for_again_and_then_an_error(pc):
    assert tell(pc, 0x55) == b"\xfe"
    assert tell(pc, 0x55) == b"\xfc"
    assert tell(pc, 0xF3, 99) == b"\xfa\xfe"
    assert tell(pc, 0xFE) == b"\xfe"
    assert tell(pc, 0xE9) == bytes.fromhex("fa 00 02 64")


def test_a_mouse_in_the_midst_of_things_is_saved(pc):
    tell(pc, *FIVE, 0xF4)
    for n in range(3):
        pc.move(5 * n, 400, n, n)
    assert pc.get() == 0x28
    pc.command(0xD4)
    other = Guest()
    other.now = pc.now
    other.kbc.restore(pc.kbc.save())
    for guest in (pc, other):
        guest.data(0xE8)
    assert pc.drain() == other.drain()
    assert pc.kbc.save() == other.kbc.save()
