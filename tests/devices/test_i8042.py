import pytest

from emu86.devices.i8042 import I8042, TRANSLATION

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
    [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x01), (0xA4, 0xF1), (0xC0, 0xA0)],
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


def test_there_is_no_mouse(pc):
    pc.command(0xD4, 0xF2)
    assert pc.status & 0x61 == 0x61  # a time-out, from the auxiliary side
    assert pc.get() == 0xFE
    pc.data(0xEE)
    assert pc.status & 0x61 == 0x01


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
        ([0xF0, 0x03], "fa fe"),
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
    pc.kbc.key(bytes.fromhex("1c f0 1c e0 75 e0 f0 75 83 f0 83"))
    assert pc.kbc.deadline() == 0
    assert pc.drain() == bytes.fromhex("1e 9e e0 48 e0 c8 41 c1")


def test_keys_of_set_2_and_1(raw):
    raw.kbc.key(bytes.fromhex("1c f0 1c"))
    assert raw.drain() == bytes.fromhex("1c f0 1c")
    raw.data(0xF0, 0x01)
    raw.drain()
    raw.kbc.key(bytes.fromhex("1c f0 1c"))
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
    pc.kbc.key(b"\x1c\x32")
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
    assert pc.kbc.read(0, 1, 5 + MS) == 0x30
    assert pc.kbc.deadline() is None


def test_interrupts_off_in_the_configuration(pc):
    pc.command(0x60, 0x64)
    pc.kbc.key(b"\x1c")
    pc.kbc.advance(0)
    assert pc.irq1 == []
    pc.command(0x60, 0x65)
    assert pc.irq1 == [True]


def test_a_disabled_interface_holds_the_keys_back(pc):
    pc.command(0xAD)
    pc.kbc.key(b"\x1c")
    assert pc.kbc.deadline() is None
    assert not pc.status & 1
    pc.command(0xAE)
    assert pc.get() == 0x1E


def test_disabled_scanning_loses_the_keys(pc):
    pc.kbc.key(b"\x32")
    pc.kbc.read(4, 1, 0)
    pc.data(0xF5)
    assert pc.drain() == b"\x30\xfa"
    pc.kbc.key(b"\x1c")
    pc.data(0xF4)
    assert pc.drain() == b"\xfa"


def test_responses_go_before_keys(pc):
    pc.command(0xAD)
    pc.kbc.key(b"\x1c")
    pc.data(0xED)
    assert pc.drain() == b"\xfa\x1e"


def test_a_reply_waits_behind_an_unread_byte(pc):
    pc.kbc.key(b"\x1c")
    pc.kbc.advance(0)
    pc.command(0x20)
    assert pc.get() == 0x1E
    assert pc.irq1 == [True, False, True]
    assert pc.get() == 0x65


def test_save_and_restore_with_half_a_command_and_half_a_key(pc):
    pc.kbc.key(bytes.fromhex("e0 f0 75 1c"))
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
