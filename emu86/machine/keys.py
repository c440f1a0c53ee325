"""The keys of a US keyboard: which of them give a text, and what they send.

Source: Microsoft, "Keyboard Scan Code Specification", rev. 1.3a, for scan code set 2.
Names of keys are QEMU's (`sendkey`).
"""

from collections.abc import Iterator
from typing import Final

from emu86.devices.ps2_keyboard import Stroke
from emu86.errors import unknown

_BREAK: Final = b"\xf0"
_EXTENDED: Final = 0xE0

# The keys in rows, with Shift and without, and the code of each.
_ROWS: Final = (
    ("`1234567890-=", "~!@#$%^&*()_+", "0e161e26252e363d3e46454e55"),
    ("qwertyuiop[]\\", "QWERTYUIOP{}|", "151d242d2c353c43444d545b5d"),
    ("asdfghjkl;'", 'ASDFGHJKL:"', "1c1b232b34333b424b4c52"),
    ("zxcvbnm,./", "ZXCVBNM<>?", "1a22212a32313a41494a"),
)
_LETTERS: Final = {
    plain: bytes([code])
    for row, _, codes in _ROWS
    for plain, code in zip(row, bytes.fromhex(codes), strict=True)
}
_SHIFTED: Final = {
    shifted: _LETTERS[plain]
    for row, above, _ in _ROWS
    for plain, shifted in zip(row, above, strict=True)
}
_NAMED: Final = {
    name: bytes.fromhex(code)
    for name, code in {
        "spc": "29", "ret": "5a", "tab": "0d", "backspace": "66", "esc": "76",
        "f1": "05", "f2": "06", "f3": "04", "f4": "0c", "f5": "03", "f6": "0b",
        "f7": "83", "f8": "0a", "f9": "01", "f10": "09", "f11": "78", "f12": "07",
        "shift": "12", "shift_r": "59", "ctrl": "14", "ctrl_r": "e014",
        "alt": "11", "alt_r": "e011", "caps_lock": "58", "num_lock": "77",
        "scroll_lock": "7e", "insert": "e070", "delete": "e071", "home": "e06c",
        "end": "e069", "pgup": "e07d", "pgdn": "e07a", "up": "e075", "down": "e072",
        "left": "e06b", "right": "e074", "meta_l": "e01f", "meta_r": "e027",
        "menu": "e02f", "print": "e012e07c",
        "kp_0": "70", "kp_1": "69", "kp_2": "72", "kp_3": "7a", "kp_4": "6b",
        "kp_5": "73", "kp_6": "74", "kp_7": "6c", "kp_8": "75", "kp_9": "7d",
        "kp_decimal": "71", "kp_add": "79", "kp_subtract": "7b", "kp_multiply": "7c",
        "kp_divide": "e04a", "kp_enter": "e05a",
    }.items()
}  # fmt: skip
_TEXT: Final = {
    " ": "spc", "\n": "ret", "\r": "ret", "\t": "tab", "\b": "backspace",
    "\x7f": "backspace", "\x1b": "esc",
}  # fmt: skip


def typed(text: str) -> Iterator[Stroke]:
    """Give what the keyboard sends for each character, down and up again, in set 2.

    Control characters are Ctrl and a letter, but for new line, tabulator, backspace and
    escape, which have keys. Raises ValueError for what is on no key.
    """
    for character in text:
        if character in _LETTERS:
            yield _stroke(_LETTERS[character])
        elif character in _SHIFTED:
            yield _stroke(_NAMED["shift"], _SHIFTED[character])
        elif character in _TEXT:
            yield _stroke(_NAMED[_TEXT[character]])
        elif "\0" < character < "\x1b":
            letter = chr(ord(character) | 0x60)
            yield _stroke(_NAMED["ctrl"], _LETTERS[letter])
        else:
            message = f"keys: there is no key for {character!r} on a US keyboard"
            raise ValueError(message)


def held(keys: str, lasts: int = 0) -> tuple[Stroke, ...]:
    """Return what the keyboard sends for keys held together: "ctrl-alt-delete".

    lasts: ns of virtual time from their going down to their going up; 0: at once.
    A key is a character without Shift, or a name. Raises ValueError for another.
    """
    names = keys.split("-") if keys != "-" else [keys]
    codes = []
    for name in names:
        code = _LETTERS.get(name) or _NAMED.get(name)
        if code is None:
            message = f"keys: {unknown(name, _NAMED)}"
            raise ValueError(message)
        codes.append(code)
    stroke = _stroke(*codes)
    if not lasts:
        return (stroke,)
    size = sum(map(len, codes))
    return Stroke(stroke.codes[:size], lasts), Stroke(stroke.codes[size:])


def _stroke(*codes: bytes) -> Stroke:
    """Return the codes of keys that go down one after another, and up again."""
    return Stroke(b"".join(codes) + b"".join(map(_released, reversed(codes))))


def _released(code: bytes) -> bytes:
    """Return what a key sends as it goes up; the last part of it goes first."""
    out = b""
    while code:
        size = 2 if code[0] == _EXTENDED else 1
        out = code[: size - 1] + _BREAK + code[size - 1 : size] + out
        code = code[size:]
    return out
