"""What the terminal is sent, seen by a small terminal of our own; and keys."""

import re

import pytest

from devices.test_vga import CRTC, TEXT, Card
from devices.test_vga_picture import set_mode
from emu86.cli.display import Painter, keys_of
from emu86.machine.screen import Screen

SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(.)")


class Terminal:
    """As much of ECMA-48 as is sent: places, colours, erasing."""

    def __init__(self, columns=80, rows=25):
        self.columns, self.rows = columns, rows
        self.cells = {}
        self.colours = ""
        self.x = self.y = 0
        self.cursor = True
        self.painter = Painter()

    def show(self, card):
        out = self.painter.paint(Screen(card.vga), self.columns, self.rows)
        for parameters, final, character in SEQUENCE.findall(out.decode()):
            if character:
                assert self.x < self.columns
                self.cells[self.y, self.x] = character, self.colours
                self.x += 1
            elif final == "H":
                self.y, self.x = (int(n) - 1 for n in parameters.split(";"))
                assert 0 <= self.y < self.rows
            elif final == "m":
                self.colours = parameters
            elif final == "K":
                for x in range(self.x, self.columns):
                    self.cells[self.y, x] = " ", ""
            elif final == "J":
                self.cells.clear()
            else:
                assert (parameters, final) in (("?25", "h"), ("?25", "l"))
                self.cursor = final == "h"
        return len(out)

    def row(self, y):
        return "".join(self.cells[y, x][0] for x in range(self.columns)).rstrip()


def write(card, at, text, attribute=7):
    for i, code in enumerate(text):
        card.window[TEXT + 2 * (at + i) : TEXT + 2 * (at + i) + 2] = bytes(
            (code, attribute)
        )


def test_text_with_its_colours_and_cursor():
    card, terminal = Card(), Terminal()
    write(card, 160, b"\x01A", 0x1E)
    write(card, 162, b"B", 0xC1)
    card.set(CRTC, _E=0, _F=163)
    terminal.show(card)
    assert terminal.row(2) == "☺AB"
    assert terminal.cells[2, 0] == ("☺", "0;93;44")  # yellow on blue
    assert terminal.cells[2, 2] == ("B", "0;5;34;41")  # blinking blue on red
    assert (terminal.y, terminal.x, terminal.cursor) == (2, 3, True)
    card.set(CRTC, _A=0x20)
    terminal.show(card)
    assert not terminal.cursor


def test_only_rows_that_have_changed_are_sent():
    card, terminal = Card(), Terminal()
    assert terminal.show(card) > 2000
    assert terminal.show(card) == 0
    write(card, 80, b"x")
    assert 80 < terminal.show(card) < 150
    assert terminal.row(1) == "x"
    card.set(CRTC, _F=5)
    assert 0 < terminal.show(card) < 20
    assert (terminal.y, terminal.x) == (0, 5)


def test_a_bright_background_where_nothing_blinks():
    card, terminal = Card(), Terminal()
    card.vga.read(0x2A, 1, 0)
    for value in (0x30, 0x04):
        card.vga.write(0x10, 1, value, 0)
    write(card, 0, b"B", 0xC1)
    terminal.show(card)
    assert terminal.cells[0, 0] == ("B", "0;34;101")


def test_a_small_terminal_shows_where_the_cursor_is():
    card, terminal = Card(), Terminal(40, 10)
    for row in range(25):
        write(card, 80 * row, b"row %d" % row)
    write(card, 80 * 20 + 38, b"wide")
    card.set(CRTC, _E=20 * 80 >> 8, _F=20 * 80 & 255)
    terminal.show(card)
    assert [terminal.row(0), terminal.row(9)] == ["row 11", "row 20".ljust(38) + "wi"]
    assert (terminal.y, terminal.x) == (9, 0)


def test_a_large_terminal_and_one_that_changes_its_size():
    card, terminal = Card(), Terminal(100, 30)
    write(card, 24 * 80, b"last")
    terminal.show(card)
    assert [terminal.row(24), terminal.row(29)] == ["last", ""]
    terminal.columns = 90
    assert terminal.show(card) > 2000


def test_graphics_by_half_blocks():
    card, terminal = set_mode("13h"), Terminal(80, 25)
    card.vga.write(0x18, 1, 1, 0)
    for value in (0x3F, 0, 0):
        card.vga.write(0x19, 1, value, 0)
    card.window[: 320 * 4] = bytes([1]) * (320 * 4)  # the first of two rows
    terminal.show(card)
    red, black = "255;0;0", "0;0;0"
    assert terminal.cells[0, 0] == ("▀", f"38;2;{red};48;2;{black}")
    assert terminal.cells[1, 79] == ("▀", f"38;2;{black};48;2;{black}")
    assert terminal.row(24) == "▀" * 80
    assert terminal.show(card) == 0
    terminal.show(Card())
    assert terminal.row(0) == ""


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"a\r\x7f\x03", ["a", "\r", "\x7f", "\x03"]),
        (b"\x1b", ["\x1b"]),
        (b"\x1b[A\x1bOB", ["<up>", "<down>"]),
        (b"\x1bOP\x1b[15~\x1b[24~", ["<f1>", "<f5>", "<f12>"]),
        (b"\x1b[1;5A\x1b[3;3~", ["<ctrl-up>", "<alt-delete>"]),
        (b"\x1bx\x1bX\x1b1", ["<alt-x>", "<alt-shift-x>", "<alt-1>"]),
        (b"\x1b[99~\x1b[Z", []),
        ("äb".encode(), ["b"]),
        (b"\x1c\x00", []),
    ],
)
def test_keys(data, keys):
    assert [f"<{key}>" if named else key for named, key in keys_of(data)] == keys
