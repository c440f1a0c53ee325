"""The screen of a machine, as a library's user sees it."""

import struct
import zlib

import pytest

from emu86 import Machine
from emu86.machine.screen import CHARACTERS, Picture
from support.flat import guest, send

HELLO = """
mov edi, 0xb8000
mov esi, text
mov ah, 0x1e
next: lodsb
test al, al
jz shown
stosw
jmp next
text: db "Hello, ", 1, 0x80, 0xcd, "!", 0
shown:
"""
STOP = "cli\nhlt\n"
CLEAR = "mov edi, 0xb8000\nmov ecx, 2000\nmov ax, 0x0720\nrep stosw\n"


def shows(text, at=0):
    """Assembly: these characters on the screen."""
    return "".join(
        f"mov byte [0xb8000 + {2 * (at + i)}], {code}\n" for i, code in enumerate(text)
    )


def delay(ms):
    """Assembly: a loop of so many virtual milliseconds and a little more."""
    return f"mov ecx, {ms * 1000 * 1000}\ndec ecx\njnz $ - 1\n"


def test_every_code_has_a_character():
    assert len(CHARACTERS) == len(set(CHARACTERS)) + 2 == 256
    assert CHARACTERS[65:68] == "ABC"
    assert CHARACTERS[0x81:0x84] == "üéâ"


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl", "bare"])
def test_text_that_a_kernel_writes(technique):
    machine = guest(HELLO + STOP, technique=technique)
    assert machine.run(timeout=60).reason == "halted"
    screen = machine.screen
    assert screen.lines[0] == "Hello, ☺Ç═!".ljust(80)
    assert screen.text == "\n".join(screen.lines)
    assert len(screen.text) == 80 * 25 + 24
    assert repr(screen) == "<Screen: text, 80 by 25>\nHello, ☺Ç═!"
    assert screen.shows_anything
    assert not Machine(memory=1 << 20).screen.shows_anything


def test_writing_text_takes_no_exits():
    machine = guest(CLEAR + HELLO + STOP)
    machine.run(timeout=60)
    reasons = {name for name, exit_ in machine.stats.exits.items() if exit_.count}
    assert reasons == {"#PF fill", "CLI", "HLT"}


def test_a_screen_is_of_its_moment():
    machine = guest(HELLO + STOP)
    before = machine.screen
    machine.run(timeout=60)
    assert not before.text.strip()


def test_it_is_saved_restored_and_reset():
    machine = guest(HELLO + STOP)
    machine.run(timeout=60)
    restored = Machine.restore(machine.save())
    assert restored.screen.text == machine.screen.text
    assert restored.read_physical(0xB8000, 2) == b"H\x1e"
    assert restored.save() == machine.save()
    machine.reset()
    assert not machine.screen.shows_anything


def test_a_picture_is_a_png():
    image = Picture(2, 1, bytes((255, 0, 0, 1, 2, 3)))
    data = image.png()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + size]
        (crc,) = struct.unpack_from(">I", data, at + 8 + size)
        assert crc == zlib.crc32(kind + content)
        chunks[kind] = content
        at += 12 + size
    assert chunks[b"IHDR"] == struct.pack(">2I5B", 2, 1, 8, 2, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0" + image.rgb


def test_in_a_notebook():
    machine = guest(HELLO + STOP)
    machine.run(timeout=60)
    page = machine.screen._repr_html_()
    assert page.startswith('<img alt="Hello, ☺Ç═!" src="data:image/png;base64,iVBOR')
    assert machine.screen.image.png() == machine.screen.image._repr_png_()


def test_graphics():
    machine = guest("""
        mov edx, 0x3c0
        mov al, 0x30
        out dx, al
        mov al, 0x41
        out dx, al
        mov edx, 0x3ce
        mov ax, 0x4005
        out dx, ax
    """ + STOP)  # fmt: skip
    machine.run(timeout=60)
    assert (machine.screen.text, machine.screen.lines) == ("", [])
    assert repr(machine.screen).startswith("<Screen: graphics, ")
    assert machine.screen.shows_anything


# -- until it shows a text -------------------------------------------------------------


def test_until_looks_at_the_screen():
    machine = guest(HELLO + delay(9) + shows(b"?") + "jmp $\n")
    stop = machine.run(until=b"Hello, ", timeout=60)
    assert (stop.reason, stop.detail) == ("until", "on the screen")
    assert machine.screen.lines[0][0] == "H"
    assert machine.run(until=b"?ello", timeout=60).reason == "until"


def test_until_in_the_last_moment():
    assert guest(HELLO + STOP).run(until=b"Hello", timeout=60).reason == "until"
    assert guest(HELLO + STOP).run(until=b"Hullo", timeout=60).reason == "halted"


def test_until_on_the_console_comes_as_before():
    machine = guest(shows(b"ab") + send(b"abc") + STOP)
    stop = machine.run(until=b"abc", timeout=60)
    assert (stop.reason, stop.detail) == ("until", "")


def test_a_text_that_was_there_does_not_count():
    """There has to be one more of it; whether it is a row above or gone."""
    machine = guest(
        shows(b"A>") + delay(9) + shows(b"A>", 80) + delay(9) + CLEAR
        + delay(9) + shows(b"A>") + "jmp $\n"
    )  # fmt: skip
    places = []
    for _ in range(3):
        assert machine.run(until=b"A>", timeout=60).reason == "until"
        places.append(
            [n for n, line in enumerate(machine.screen.lines) if "A>" in line]
        )
    assert places == [[0], [0, 1], [0]]


def test_an_until_that_is_interrupted_goes_on():
    machine = guest(shows(b"A>") + delay(9) + send(b"x") + delay(10) + "jmp $\n")
    machine.run(until=b"x", timeout=60)
    machine.stop()
    assert machine.run(until=b"A>", timeout=60).reason == "interrupted"
    assert machine.run(until=b"A>", timeout=1).reason == "timeout"


def test_a_screen_of_several_rows_is_one_text():
    machine = guest(shows(b"one") + shows(b"two", 80) + STOP)
    assert machine.run(until=b"one\ntwo", timeout=60).reason == "until"
