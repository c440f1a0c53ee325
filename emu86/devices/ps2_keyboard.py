"""IBM PS/2 keyboard: what it sends for its keys, and what it is told.

Sources: IBM PS/2 Hardware Interface Technical Reference, "Keyboards" (commands, scan
code sets 1 to 3, typematic rate); Microsoft, "Keyboard Scan Code Specification".

Known differences: the self test takes no time; while the buffer has keys in it a key
that is held does not repeat, and the buffer has no end.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

STROKE_NS: Final = 20_000_000
"""Time from one keystroke that is typed to the next: a guest has to take it."""

ACK: Final = 0xFA
RESEND: Final = 0xFE
TESTED: Final = 0xAA
_BREAK: Final = 0xF0
_EXTENDED: Final = 0xE0

LIGHTS: Final = {"scroll_lock": 0x01, "num_lock": 0x02, "caps_lock": 0x04}
"""The lights, by the names of their keys: the bit of each in command EDh."""

_LIGHTS: Final = 0xED
_SCAN_SET: Final = 0xF0
_TYPEMATIC: Final = 0xF3
_KEY_TYPES: Final = range(0xFB, 0xFE)
_TAKE_ARGUMENT: Final = frozenset({_LIGHTS, _SCAN_SET, _TYPEMATIC, *_KEY_TYPES})
_USUAL_TYPEMATIC: Final = 0x2B  # 10.9 a second after 500 ms

# What a key does in set 3, bit by bit; commands F7h to FAh, FBh to FDh say it.
_BREAKS: Final = 0x01
_REPEATS: Final = 0x02
_TYPES: Final = (_REPEATS, _BREAKS, 0, _BREAKS | _REPEATS)

# Scan code set 2 to set 1, by the code of set 2, 00h..7Fh (Keyboard Controller).
TRANSLATION: Final = bytes.fromhex(
    "ff43413f3d3b3c58 64444240 3e0f2959 65382a70 1d10025a 66712c1f 1e11035b"
    "672e2d20 1205045c 68392f21 1413065d 69313023 2215075e 6a723224 1608095f"
    "6b332517 180b0a60 6c343526 27190c61 6d732874 1a0d626e 3a361c1b 752b6376"
    "55567778 797a0e7b 7c4f7d4b 477e7f6f 5253504c 4d480145 574e514a 37494654"
)

# Scan code set 2 to set 3, where they differ: E0h before the code is its bit 8.
_SET_3: Final = {
    0x005: 0x07, 0x006: 0x0F, 0x004: 0x17, 0x00C: 0x1F, 0x003: 0x27, 0x00B: 0x2F,
    0x083: 0x37, 0x00A: 0x3F, 0x001: 0x47, 0x009: 0x4F, 0x078: 0x56, 0x007: 0x5E,
    0x076: 0x08, 0x058: 0x14, 0x014: 0x11, 0x011: 0x19, 0x114: 0x58, 0x111: 0x39,
    0x05D: 0x5C, 0x170: 0x67, 0x171: 0x64, 0x16B: 0x61, 0x16C: 0x6E, 0x169: 0x65,
    0x175: 0x63, 0x172: 0x60, 0x17D: 0x6F, 0x17A: 0x6D, 0x174: 0x6A, 0x077: 0x76,
    0x14A: 0x77, 0x07C: 0x7E, 0x07B: 0x84, 0x079: 0x7C, 0x15A: 0x79, 0x07E: 0x5F,
    0x17C: 0x57, 0x11F: 0x8B, 0x127: 0x8C, 0x12F: 0x8D,
}  # fmt: skip
# Keys that are not typematic in set 3 until a command says so: those that tell of
# their release, too, and those that do not.
_MAKE_BREAK: Final = bytes.fromhex("11 12 14 19 59")
_MAKE_ONLY: Final = bytes.fromhex(
    "07080f171f272f373f474f565e 39585f5762 65676d6e6f 697071726b73746c757d7a 76777e84"
    "79 8b8c8d"
)


class Stroke(NamedTuple):
    """Scan codes of set 2 that are sent at once; lasts: ns until the next stroke."""

    codes: bytes
    lasts: int = STROKE_NS


class KeyboardState(NamedTuple):
    """The keyboard; ``argument`` is the command whose argument is awaited, or 0."""

    argument: int
    scan_set: int
    scanning: bool
    lights: int
    typematic: int
    types: bytes
    last_sent: int
    response: bytes
    keys: bytes
    held: int | None
    repeat_at: int
    strokes: tuple[Stroke, ...]
    stroke_at: int


class Keyboard:
    """The keyboard at the other end of the cable: an MF II one."""

    def __init__(self) -> None:
        """Make a keyboard that has passed its self test."""
        self.argument = 0
        self.last_sent = 0
        self.lights = 0
        """Those that are on, by their bits."""
        self.response = b""
        """What is left of the response to the last command; it goes first."""
        self.strokes: tuple[Stroke, ...] = ()
        """What will be typed: a keystroke each time that the last one is taken."""
        self.stroke_at = 0
        """When the next of them can be typed."""
        self.repeat_at = 0
        self._set_default(scanning=True)

    def _set_default(self, *, scanning: bool) -> None:
        self.scanning = scanning
        self.scan_set = 2
        self.typematic = _USUAL_TYPEMATIC
        types = bytearray([_REPEATS]) * 256
        for code in _MAKE_BREAK:
            types[code] = _BREAKS
        for code in _MAKE_ONLY:
            types[code] = 0
        self.types = bytes(types)
        """Of each key, by its code in set 3: whether it breaks and repeats there."""
        self._clear()

    def _clear(self) -> None:
        self.keys = b""
        self.held: int | None = None
        """The key that repeats, by its code in set 2; bit 8: E0h comes before it."""

    @property
    def ready(self) -> bool:
        """There is something to send."""
        return bool(self.response or self.keys)

    def deadline(self) -> int | None:
        """Return when there is something to send; 0: there is."""
        if self.ready:
            return 0
        if not self.scanning:
            return None
        due = [self.stroke_at] if self.strokes else []
        if self.held is not None:
            due.append(self.repeat_at)
        return min(due, default=None)

    def advance(self, now: int) -> None:
        """Type the next stroke, or repeat the key that is held, if it is time."""
        if self.ready or not self.scanning:
            return
        if self.strokes and now >= self.stroke_at:
            stroke, *rest = self.strokes
            self.strokes = tuple(rest)
            self.stroke_at = now + stroke.lasts
            self.key(stroke.codes, now)
        elif self.held is not None and now >= self.repeat_at:
            self.keys += self._sent(self.held, released=False)
            # (8 + A) * 2^B * 1/240 s: A is bits 2 to 0, B bits 4 and 3.
            steps = 8 + (self.typematic & 7) << (self.typematic >> 3 & 3)
            self.repeat_at = now + steps * 1_000_000_000 // 240

    def key(self, codes: bytes, now: int) -> None:
        """Have keys go down and up: whole codes of set 2; lost while it is disabled."""
        if not self.scanning:
            return
        for key, released in _events(codes):
            self.keys += self._sent(key, released=released)
            if not released:
                repeats = self.scan_set != 3 or self.types[_in_set_3(key)] & _REPEATS
                self.held = key if repeats else None
                delay = 1 + (self.typematic >> 5 & 3)
                self.repeat_at = now + delay * 250_000_000
            elif key == self.held:
                self.held = None

    def _sent(self, key: int, *, released: bool) -> bytes:
        """Return what it sends for a key, in the set that is selected."""
        prefix = bytes([_EXTENDED]) if key & 0x100 else b""
        if self.scan_set == 1:
            return prefix + bytes([translated(key & 0xFF) | released << 7])
        if self.scan_set == 3:
            key = _in_set_3(key)
            if not key or (released and not self.types[key] & _BREAKS):
                return b""
            prefix = b""
        return prefix + bytes([_BREAK] * released + [key & 0xFF])

    def send(self) -> int | None:
        """Take the next byte to send, None when there is nothing."""
        if self.response:
            self.last_sent, self.response = self.response[0], self.response[1:]
        elif self.keys:
            self.last_sent, self.keys = self.keys[0], self.keys[1:]
        else:
            return None
        return self.last_sent

    def receive(self, byte: int) -> None:
        """Take a command or an argument; an unread response is given up."""
        command, self.argument = self.argument, 0
        if command and byte < _LIGHTS:
            self.response = self._with_argument(command, byte)
        elif byte in _TAKE_ARGUMENT:
            self.argument = byte
            self.response = bytes([ACK])
        elif byte == 0xEE:  # echo
            self.response = bytes([byte])
        elif byte == 0xF2:  # identify
            self.response = bytes([ACK, 0xAB, 0x83])
        elif byte == 0xF4:  # enable
            self._clear()
            self.scanning = True
            self.response = bytes([ACK])
        elif byte in (0xF5, 0xF6):  # set default, and disable
            self._set_default(scanning=byte == 0xF6)
            self.response = bytes([ACK])
        elif 0xF7 <= byte <= 0xFA:  # all keys' types
            self.types = bytes([_TYPES[byte - 0xF7]]) * 256
            self.response = bytes([ACK])
        elif byte == RESEND:
            self.response = bytes([self.last_sent])
        elif byte == 0xFF:  # reset
            self._set_default(scanning=True)
            self.lights = 0
            self.response = bytes([ACK, TESTED])
        else:
            self.response = bytes([RESEND])

    def _with_argument(self, command: int, argument: int) -> bytes:
        if command == _LIGHTS:
            self.lights = argument & 7
        elif command == _TYPEMATIC:
            self.typematic = argument & 0x7F
        elif command in _KEY_TYPES:  # more codes may follow, until a command comes
            types = bytearray(self.types)
            types[argument] = _TYPES[command - _KEY_TYPES[0]]
            self.types = bytes(types)
            self.scanning = False
            self.argument = command
        elif argument == 0:
            return bytes([ACK, self.scan_set])
        elif argument > 3:
            return bytes([RESEND])
        else:
            self.scan_set = argument
            self._clear()
        return bytes([ACK])

    def save(self) -> KeyboardState:
        """Return what it knows."""
        return capture(KeyboardState, self)

    def restore(self, state: KeyboardState) -> None:
        """Become the keyboard that was saved."""
        reinstate(self, state)

    def type(self, strokes: Sequence[Stroke]) -> None:
        """Type one stroke after another; they wait while scanning is disabled."""
        self.strokes += tuple(strokes)


def translated(code: int) -> int:
    """Return the code of set 1 for one of set 2; others as they are."""
    if code < 0x80:
        return TRANSLATION[code]
    return {0x83: 0x41, 0x84: 0x54}.get(code, code)


def _in_set_3(key: int) -> int:
    """Return a key's code in set 3; 0 of what is no key, as E0h 12h."""
    return _SET_3.get(key, 0 if key & 0x100 else key)


def _events(codes: bytes) -> Iterator[tuple[int, bool]]:
    """Give the keys that go down or, True, up."""
    extended, released = 0, False
    for code in codes:
        if code == _EXTENDED:
            extended = 0x100
        elif code == _BREAK:
            released = True
        else:
            yield extended | code, released
            extended, released = 0, False
