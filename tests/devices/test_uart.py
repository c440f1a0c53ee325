import pytest

from emu86.devices.uart import MSR_CTS, MSR_DSR, MSR_RI, Uart

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
THR, FCR = RBR, IIR


class Guest:
    """A 16550A between a host and a guest's register accesses."""

    def __init__(self):
        self.lines = []
        self.sent = bytearray()
        self.uart = Uart(self.lines.append, self.sent.extend)

    def __getitem__(self, offset):
        return self.uart.read(offset, 1, 0)

    def __setitem__(self, offset, value):
        self.uart.write(offset, 1, value, 0)

    @property
    def line(self):
        return bool(self.lines) and self.lines[-1]


@pytest.fixture
def com():
    guest = Guest()
    guest[LCR] = 3
    return guest


@pytest.fixture
def live(com):
    """With OUT2 set: interrupts get through to the line."""
    com[MCR] = 0x0B
    return com


def test_after_reset():
    com = Guest()
    assert [com[n] for n in range(8)] == [0, 0, 0x01, 0, 0, 0x60, 0xB0, 0]
    assert com.lines == []


def test_transmission_is_instant(com):
    for c in b"ok\xff":
        assert com[LSR] & 0x60 == 0x60
        com[THR] = c
    assert bytes(com.sent) == b"ok\xff"


def test_divisor_latch(com):
    com[LCR] = 0x83
    com[0], com[1] = 0x0C, 0x34
    assert (com[0], com[1]) == (0x0C, 0x34)
    com[LCR] = 3
    assert com[IER] == 0
    assert not com.sent
    assert com.uart.divisor == 0x340C


def test_registers_that_keep(com):
    for n, mask in ((IER, 0x0F), (LCR, 0xFF), (MCR, 0x1F), (SCR, 0xFF)):
        com[n] = 0xFF
        assert com[n] == mask
        com[LCR] = 0


def test_read_only_registers(com):
    com[LSR] = com[MSR] = 0
    assert (com[LSR], com[MSR]) == (0x60, 0xB0)


def test_without_fifo_one_character_at_a_time_and_none_lost(com):
    com.uart.receive(b"abc")
    got = []
    while com[LSR] & 1:
        got.append(com[RBR])
    assert bytes(got) == b"abc"
    assert com[RBR] == ord("c")  # the register keeps it
    assert com[LSR] & 0x02 == 0


def test_the_fifo_never_overruns(com):
    com[FCR] = 0x01
    com.uart.receive(bytes(range(100)))
    assert len(com.uart.received) == 16
    got = bytes(com[RBR] for _ in range(100))
    assert got == bytes(range(100))
    assert com[LSR] == 0x60


def test_received_data_interrupt_without_fifo(live):
    live[IER] = 1
    assert not live.line
    live.uart.receive(b"xy")
    assert live.line
    assert live[IIR] == 0x04
    assert live[RBR] == ord("x")
    assert live.line
    live[RBR]
    assert not live.line
    assert live[IIR] == 0x01


@pytest.mark.parametrize(("bits", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_level_and_time_out(live, bits, level):
    live[FCR] = bits << 6 | 1
    live[IER] = 1
    live.uart.receive(bytes(level))
    assert live[IIR] == 0xC4
    live[RBR]
    if level > 1:
        assert live[IIR] == 0xCC
    for _ in range(level - 1):
        assert live.line
        live[RBR]
    assert live[IIR] == 0xC1
    assert not live.line


def test_thre_interrupt_on_enabling_it(live):
    live[IER] = 2
    assert live.line
    assert live[IIR] == 0x02
    assert not live.line
    assert live[IIR] == 0x01
    live[IER] = 2  # no transition
    assert not live.line
    live[IER] = 0
    live[IER] = 2
    assert live.line


def test_thre_interrupt_after_each_character_is_an_edge(live):
    live[IER] = 2
    live.lines.clear()
    live[THR] = ord("a")
    assert live.lines == [False, True]
    live[IIR]
    live.lines.clear()
    live[THR] = ord("b")
    assert live.lines == [True]


def test_reading_iir_clears_thre_only_when_it_says_so(live):
    live[IER] = 3
    live.uart.receive(b"x")
    assert live[IIR] == 0x04
    assert live[IIR] == 0x04
    live[RBR]
    assert live[IIR] == 0x02
    assert live[IIR] == 0x01


def test_priorities(live):
    live[MCR] = 0x10
    live[THR], live[THR] = 1, 2  # an overrun
    live[MCR] = 0x0B  # and changed modem lines
    live[IER] = 0x0F
    assert live[IIR] == 0x06
    assert live[LSR] & 0x02
    assert live[IIR] == 0x04
    live[RBR]
    assert live[IIR] == 0x02
    assert live[IIR] == 0x00
    assert live[MSR] & 0x0F
    assert live[IIR] == 0x01
    assert not live.line


def test_out2_gates_the_line_but_not_the_cause(com):
    com[IER] = 2
    assert not com.lines
    com[MCR] = 0x08
    assert com.line
    com[MCR] = 0x00
    assert not com.line
    assert com[IIR] == 0x02


def test_modem_lines_and_their_deltas(live):
    assert live[MSR] == 0xB0
    live[IER] = 8
    live.uart.set_modem(MSR_DSR | MSR_RI)
    assert live.line
    assert live[IIR] == 0x00
    assert live[MSR] == 0x60 | 0x09  # CTS and DCD changed; RI has only begun
    assert not live.line
    live.uart.set_modem(MSR_DSR | MSR_CTS)
    assert live[MSR] == 0x30 | 0x05  # the trailing edge of RI
    assert live[MSR] == 0x30


@pytest.mark.parametrize(
    ("mcr", "msr"), [(1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80), (0x0A, 0x90)]
)
def test_loopback_connects_the_modem_lines(com, mcr, msr):
    com[MCR] = 0x10 | mcr
    assert com[MSR] & 0xF0 == msr
    com[MCR] = 0
    assert com[MSR] & 0xF0 == 0xB0


def test_loopback_connects_the_data_and_keeps_the_host_out(com):
    com[FCR] = 1
    com[MCR] = 0x10
    com.uart.receive(b"host")
    for c in b"self":
        com[THR] = c
    assert not com.sent
    assert bytes(com[RBR] for _ in range(4)) == b"self"
    assert com[LSR] == 0x60
    com[MCR] = 0
    assert bytes(com[RBR] for _ in range(4)) == b"host"


def test_loopback_overrun_keeps_the_fifo_and_replaces_the_register(com):
    com[MCR] = 0x10
    com[THR], com[THR] = 1, 2
    assert com[LSR] == 0x63
    assert com[LSR] == 0x61
    assert com[RBR] == 2
    com[FCR] = 1
    for c in range(20):
        com[THR] = c
    assert com[LSR] & 2
    assert [com[RBR] for _ in range(16)] == list(range(16))


def test_loopback_makes_out2_inactive(live):
    live[IER] = 2
    assert live.line
    live[MCR] = 0x1B
    assert not live.line


def test_fifo_resets(com):
    com[FCR] = 0xC1
    assert com[IIR] & 0xC0 == 0xC0
    com[MCR] = 0x10
    for c in range(5):
        com[THR] = c
    com[FCR] = 0xC4 | 1  # the transmitter's
    assert com[LSR] & 1
    com[FCR] = 0xC3
    assert not com[LSR] & 1
    com[THR] = 9
    com[FCR] = 0  # leaving FIFO mode clears them, too
    assert not com[LSR] & 1
    assert com[IIR] & 0xC0 == 0


def test_fcr_bits_need_the_enable_bit(com):
    com[FCR] = 0xC0
    com[FCR] = 0x01
    com[IER] = 1
    com.uart.receive(b"a")
    assert com[IIR] == 0xC4  # trigger level 1


def test_a_reset_fifo_takes_up_what_the_host_still_has(com):
    com[FCR] = 1
    com.uart.receive(bytes(range(20)))
    com[FCR] = 3
    assert [com[RBR] for _ in range(4)] == [16, 17, 18, 19]


def test_linux_tells_a_16550a(com):
    com[IER] = 0
    scratch = com[IER]
    com[IER] = 0x0F
    assert (scratch & 0x0F, com[IER] & 0x0F) == (0, 0x0F)
    com[MCR] = 0x10 | 0x0A
    assert com[MSR] & 0xF0 == 0x90
    com[MCR] = 0
    com[FCR] = 1
    assert com[IIR] >> 6 == 3


def test_save_and_restore_in_the_middle(live):
    live[FCR] = 0x81
    live[IER] = 0x0F
    live.uart.receive(bytes(range(40)))
    live[RBR]
    other = Guest()
    other.uart.restore(live.uart.save())
    assert other.uart.line
    assert [other[n] for n in (IIR, LSR, MSR, MCR, LCR, IER)] == [
        live[n] for n in (IIR, LSR, MSR, MCR, LCR, IER)
    ]
    assert [other[RBR] for _ in range(39)] == list(range(1, 40))
