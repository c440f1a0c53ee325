"""The board derives from its chips what they are; and it can be saved."""

from emu86.cpu.clock import Clock
from emu86.devices.bus import Stateful, Timed
from emu86.machine import layout
from emu86.machine.board import Board
from emu86.machine.chardev import CharDevice
from emu86.native import abi


def new(**options):
    memory = bytearray(8 * abi.WORDS)
    control = memoryview(memory).cast("q")
    ends = []
    clock = Clock(control)
    board = Board(
        clock,
        abi.Control.from_buffer(memory),
        1 << 20,
        memoryview(bytearray(len(layout.VGA_MEMORY))),
        lambda _plain: None,
        CharDevice(),
        lambda *end: ends.append(end),
        lambda _level: None,
        rtc=0,
        **options,
    )
    return board, clock, ends


def test_who_is_timed():
    board, _, _ = new()
    assert set(board.timed) == {board.pit, board.rtc, board.i8042}


def test_which_ports_can_move_a_deadline():
    board, _, _ = new()
    # Port 61h moves the gate of the timer's channel 2.
    timed = (layout.PIT, layout.SPEAKER, layout.RTC, layout.I8042)
    assert board._timed_ports == {port for ports in timed for port in ports}


def test_an_access_moves_the_deadline():
    board, clock, _ = new()
    assert board.deadline() is None
    board.port_write(0x43, 1, 0x34)
    board.port_write(0x40, 1, 0xFF)
    board.port_write(0x40, 1, 0xFF)
    due = board.deadline()
    assert due == board.pit.deadline() > 50_000_000
    clock.advance_to(due)
    assert clock.is_due
    board.port_write(0x21, 1, 0)
    board.advance()
    assert board.pic.intr
    assert board.deadline() > due


def test_every_chip_that_can_be_is_saved():
    board, _, _ = new(debug_exit=True)
    saved = list(board._stateful.values())
    parts = board.pic.master, board.pic.slave, board.pic.elcr  # saved by the pair
    on_the_bus = {id(entry[0]) for entry in board.ports._entries.values()}
    assert on_the_bus - set(map(id, parts)) == set(map(id, saved)) - {id(board.pic)}
    assert not any(isinstance(part, Stateful) for part in parts)
    assert all(isinstance(one, Stateful) for one in saved)
    assert isinstance(board.rtc, Timed)


def _use(board, clock):
    """Leave the chips in the middle of something."""
    for port, value in (
        *((0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01)),
        *((0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01)),
        *((0x43, 0x34), (0x40, 0x10)),  # half a count
        *((0x43, 0xB6), (0x42, 0x34), (0x42, 0x12), (0x61, 0x03)),
        *((0x70, 0x0B), (0x71, 0x42), (0x70, 0x0A), (0x71, 0x2F)),
        *((0x3FC, 0x0B), (0x3F9, 0x01), (0x3FF, 0x5A)),
        *((0x64, 0x20), (0x60, 0xF2), (0x80, 0x77), (0x4D1, 0x0C), (0x92, 0x00)),
    ):
        board.port_write(port, 1, value)
        clock.advance_to(clock.now + 1234)
    board.uart.receive(b"typed")
    board.coprocessor_error()


def _read(board, clock):
    """Read what a guest can, and see what the board does by itself."""
    seen = []
    for _ in range(5):
        board.advance()
        seen += [board.port_read(port, 1) for ports, _ in board.ports.attached
                 for port in ports]  # fmt: skip
        seen += [board.pic.intr, board.deadline()]
        if board.pic.intr:
            seen.append(board.pic.acknowledge())
        clock.advance_to(clock.now + 1_000_003)
    return seen


def test_a_restored_board_goes_on_as_the_saved_one():
    board, clock, ends = new()
    _use(board, clock)
    other, time, others_ends = new()
    time.restore(clock.save())
    state = board.save()
    assert isinstance(state, tuple)
    other.restore(state)
    assert other.save() == state
    assert other.deadline() == board.deadline()
    assert other.pic.intr == board.pic.intr
    assert _read(other, time) == _read(board, clock)
    assert other.save() == board.save() != state
    assert others_ends == ends
