"""What is typed on the keyboard reaches the guest."""

from contextlib import nullcontext

import pytest

from emu86 import ConfigError, Machine
from emu86.devices.i8042 import Translator
from emu86.devices.ps2_keyboard import STROKE_NS
from emu86.machine import keys
from support.assembler import assemble
from support.flat import guest, send

# Write scan codes of set 1 to 200000h, until Esc is let go.
ECHO = """
mov edi, 0x200000
next: in al, 0x64
test al, 1
jz next
in al, 0x60
stosb
cmp al, 0x81
jne next
cli
hlt
"""
ESC = "\x1b"


def set_1(*strokes):
    translator = Translator()
    return bytes(
        code
        for stroke in strokes
        for byte in stroke.codes
        if (code := translator.feed(byte)) is not None
    )


def taken(machine):
    codes = machine.read_physical(0x200000, 200)
    return codes[: codes.index(0x81) + 1]


def test_each_printable_character_has_a_key_of_its_own():
    strokes = [tuple(keys.typed(chr(code))) for code in range(32, 127)]
    assert len(set(strokes)) == 95


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("a", "1e 9e"),
        ("A", "2a 1e 9e aa"),
        ("1!", "02 82 2a 02 82 aa"),
        ("\n\r", "1c 9c 1c 9c"),
        ("\t \b", "0f 8f 39 b9 0e 8e"),
        ("\x03", "1d 2e ae 9d"),
        ("|", "2a 2b ab aa"),
    ],
)
def test_text(text, codes):
    assert set_1(*keys.typed(text)) == bytes.fromhex(codes)


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        ("f1", "3b bb"),
        ("up", "e0 48 e0 c8"),
        ("ctrl-alt-delete", "1d 38 e0 53 e0 d3 b8 9d"),
        ("print", "e0 2a e0 37 e0 b7 e0 aa"),
        ("f7", "41 c1"),
        ("ctrl-c", "1d 2e ae 9d"),
        ("-", "0c 8c"),
    ],
)
def test_names(names, codes):
    assert set_1(*keys.held(names)) == bytes.fromhex(codes)


@pytest.mark.parametrize("names", ["", "f13", "ctrl-", "ctrl-A", "Up"])
def test_names_of_no_key(names):
    with pytest.raises(ValueError, match="^keys: no "):
        keys.held(names)


@pytest.mark.parametrize("text", ["é", "\0", "\x1c", "a\u20ac"])
def test_text_on_no_key(text):
    with pytest.raises(ValueError, match="^keys: there is no key for "):
        Machine(memory=1 << 20).type(text)


def test_a_guest_that_polls():
    machine = guest(ECHO)
    machine.type("Hi\n")
    machine.press("up")
    machine.type(ESC)
    assert machine.run(timeout=60).reason == "halted"
    assert taken(machine) == bytes.fromhex("2a 23 a3 aa 17 97 1c 9c e0 48 e0 c8 01 81")


def test_keystrokes_come_20_ms_after_each_other():
    """So that a guest has time for each; but not before the last one is taken."""
    machine = guest(ECHO)
    machine.type("abcd" + ESC)
    machine.run(timeout=60)
    assert 4 * STROKE_NS < machine.now < 5 * STROKE_NS


def test_typing_waits_for_a_text_on_the_console():
    machine = guest(ECHO.replace("next:", send(b"login") + "next:", 1))
    machine.type("b" + ESC, after=b"never")
    assert machine.run(timeout=0.5).reason == "timeout"
    assert machine.read_physical(0x200000, 1) == b"\0"
    machine = guest(ECHO.replace("next:", send(b"login") + "next:", 1))
    machine.type("a", after=b"login")
    machine.type(ESC)
    assert machine.run(timeout=60).reason == "halted"
    assert taken(machine) == bytes.fromhex("1e 9e 01 81")


def test_typing_waits_for_a_text_on_the_screen():
    """The second one is shown when the first one has been answered."""
    show = "mov byte [0xb8000], '?'\nmov ecx, 9000000\ndec ecx\njnz $ - 1\n"
    machine = guest(ECHO.replace("next:", show + "next:", 1).replace(
        "stosb", "stosb\nmov byte [0xb8002], '!'", 1))  # fmt: skip
    machine.type(ESC, after=b"?!")
    machine.type("z")
    assert machine.run(timeout=0.5).reason == "timeout"
    machine = guest(ECHO.replace("next:", show + "next:", 1).replace(
        "stosb", "stosb\nmov byte [0xb8002], '!'", 1))  # fmt: skip
    machine.type("z", after=b"?")
    machine.type(ESC, after=b"?!")
    assert machine.run(timeout=60).reason == "halted"
    assert taken(machine) == bytes.fromhex("2c ac 01 81")


def test_what_is_typed_is_saved_and_survives_a_reset():
    machine = guest(ECHO)
    machine.type("a" + ESC)
    restored = Machine.restore(machine.save())
    assert restored.run(timeout=60).reason == "halted"
    machine.reset()
    assert machine.run(timeout=60).reason == "halted"
    assert taken(restored) == taken(machine) == bytes.fromhex("1e 9e 01 81")


def test_a_halted_guest_is_woken_by_a_text_that_waited_for_it():
    """No timer runs: the screen is looked at before the run would end."""
    machine = guest("""
        mov esp, 0x90000
        mov al, 0xfd
        out 0x21, al
        lidt [idtr]
        mov byte [0xb8000], '>'
        sti
        hlt
        in al, 0x60
        mov [0x200000], al
        cli
        hlt
        isr: iretd
        idtr: dw 0x9f
        dd idt
        align 8
        idt: times 8 * 9 db 0
        dw isr - $$, 0x10, 0x8e00, 0x10
    """)  # fmt: skip
    machine.type("a", after=b">")
    stop = machine.run(timeout=60)
    assert stop.detail.endswith("interrupts off")
    assert machine.read_physical(0x200000, 1) == b"\x1e"


def test_a_key_is_held_for_a_while():
    machine = guest(ECHO)
    machine.press("a", hold=0.05)
    machine.type(ESC)
    assert machine.run(timeout=60).reason == "halted"
    assert taken(machine) == bytes.fromhex("1e 9e 01 81")
    assert machine.now > 0.05e9


@pytest.mark.parametrize("hold", [-1, float("nan"), float("inf")])
def test_a_key_is_held_for_a_time(hold):
    with pytest.raises(ValueError, match="^hold: "):
        Machine(memory=1 << 20).press("a", hold=hold)


def test_a_kernel_with_a_serial_line_alone_has_no_mouse():
    kernel = assemble(
        "bits 32\norg 0x100000\ndd 0x1badb002, 0x10000, -0x1badb002 - 0x10000\n"
        "dd 0x100000, 0x100000, 0, 0, 0x100020\ncli\nhlt"
    )
    for append, there in (("console=ttyS0", False), ("console=tty0", True)):
        machine = Machine(memory=2 << 20)
        machine.load_kernel(kernel, append=append)
        assert machine.board.i8042.has_mouse == there
        machine.reset()
        assert machine.board.i8042.has_mouse == there
        with nullcontext() if there else pytest.raises(ConfigError, match="^move: "):
            machine.move(1)


def test_what_is_waited_for():
    machine = guest(send(b"login") + "cli\nhlt")
    machine.type("a", after=b"login")
    machine.type("b", after=b"password")
    machine.type("c", after=b"never")
    assert machine.awaited == b"login"
    machine.run(timeout=60)
    assert machine.awaited == b"password"


def test_lights():
    machine = guest(
        "mov al, 0xed\nout 0x60, al\n"
        "more: in al, 0x64\ntest al, 1\njz more\nin al, 0x60\n"
        "mov al, 5\nout 0x60, al\ncli\nhlt"
    )
    assert not machine.leds
    machine.run(timeout=60)
    assert machine.leds == {"scroll_lock", "caps_lock"}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"buttons": ["up"]}, ValueError),
        ({"buttons": "left"}, TypeError),
        ({"dx": 1 << 40}, ValueError),
        ({"dy": 0.5}, TypeError),
        ({"wheel": None}, TypeError),
    ],
)
def test_what_no_mouse_does(wrong, error):
    with pytest.raises(error, match=f"^{next(iter(wrong))}: "):
        Machine(memory=1 << 20).move(**wrong)
