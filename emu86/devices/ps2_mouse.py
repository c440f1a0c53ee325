"""IBM PS/2 mouse with a wheel and five buttons.

Sources: IBM PS/2 Hardware Interface Technical Reference, "Mouse"; Microsoft,
"PS/2 Compatible IntelliMouse" (the sampling rates 200, 100, 80 make it one with a
wheel) and IntelliMouse Explorer (200, 200, 80: five buttons).

Known differences: what it counts does not depend on the resolution; the self test takes
no time; a movement of more than a packet can tell goes on in the next, without the
overflow bits.
"""

from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

_LEFT: Final = 0x01
_RIGHT: Final = 0x02
_MIDDLE: Final = 0x04
_SIDE: Final = 0x08
_EXTRA: Final = 0x10
BUTTONS: Final = {
    "left": _LEFT, "right": _RIGHT, "middle": _MIDDLE, "side": _SIDE, "extra": _EXTRA,
}  # fmt: skip
"""The bit of each button in `Motion`."""

ACK: Final = 0xFA
RESEND: Final = 0xFE
ERROR: Final = 0xFC
_TESTED: Final = 0xAA

_RESOLUTION: Final = 0xE8
_RATE: Final = 0xF3
_RATES: Final = frozenset({10, 20, 40, 60, 80, 100, 200})
_WHEEL: Final = 3  # its identity, and the following
_EXPLORER: Final = 4
# The three sampling rates in a row that make it another mouse.
_KNOCKS: Final = {(200, 100, 80): _WHEEL, (200, 200, 80): _EXPLORER}
_CLOSE: Final = (0, 1, 1, 3, 6, 9)  # scaling 2:1, of 0 to 5 counts; others double
_SECOND: Final = 1_000_000_000


class Motion(NamedTuple):
    """Counts to the right, downwards, of the wheel away from the user; buttons held."""

    dx: int
    dy: int
    wheel: int
    buttons: int


class MouseState(NamedTuple):
    """The mouse; ``argument`` is the command whose argument is awaited, or 0.

    ``rates``: the last three sampling rates; ``moved``: counts that were not told yet.
    """

    argument: int
    wrapping: bool
    remote: bool
    reporting: bool
    doubling: bool
    resolution: int
    rates: tuple[int, ...]
    identity: int
    response: bytes
    last_response: bytes
    last_rejected: bool
    packet: bytes
    packet_at: int
    moved: tuple[int, int, int]
    buttons: int
    motions: tuple[Motion, ...]


class Mouse:
    """The mouse at the other end of the cable."""

    def __init__(self) -> None:
        """Make a mouse that has passed its self test."""
        self.argument = 0
        self.wrapping = False
        self.identity = 0
        self.response = b""
        """What is left of the response to the last command; it goes first."""
        self.last_response = b""
        self.last_rejected = False
        self.packet_at = 0
        """When the next packet may begin."""
        self.buttons = 0
        self._set_default()

    def _set_default(self) -> None:
        self.remote = self.reporting = self.doubling = False
        self.resolution = 2
        self.rates: tuple[int, ...] = (0, 0, 100)
        self._clear()

    def _clear(self) -> None:
        self.packet = b""
        """What is left of a packet that nobody asked for."""
        self.moved = (0, 0, 0)
        self.motions: tuple[Motion, ...] = ()
        """What was done with it, and has still to be told: each in a packet or more."""

    # -- by hand -----------------------------------------------------------------------

    def move(self, motion: Motion) -> None:
        """Move it; while it does not report, only the buttons are remembered."""
        if self.remote or self.reporting:
            self.motions += (motion,)
        else:
            self.buttons = motion.buttons

    @property
    def _news(self) -> bool:
        """Whether there is something to tell."""
        return bool(self.motions or any(self.moved))

    # -- what it sends -----------------------------------------------------------------

    def deadline(self) -> int | None:
        """Return when there is something to send; 0: there is."""
        if self.response or self.packet:
            return 0
        streams = self.reporting and not (self.remote or self.wrapping)
        return self.packet_at if streams and self._news else None

    def send(self, now: int) -> int | None:
        """Take the next byte to send, None when there is nothing."""
        if self.response:
            byte, self.response = self.response[0], self.response[1:]
            return byte
        due = self.deadline()
        if due is None or now < due:
            return None
        if not self.packet:
            self.packet = self._report(doubling=self.doubling)
            self.packet_at = now + _SECOND // self.rates[-1]
        byte, self.packet = self.packet[0], self.packet[1:]
        return byte

    def _report(self, *, doubling: bool) -> bytes:
        """Return a packet that tells what has been done, and forget that."""
        if not any(self.moved) and self.motions:
            motion, *waiting = self.motions
            self.motions = tuple(waiting)
            self.moved, self.buttons = motion[:3], motion.buttons
        right, down, away = self.moved
        dx, rest_x = _counts(right, doubling=doubling)
        dy, rest_y = _counts(-down, doubling=doubling)
        first = 0x08 | self.buttons & 7 | (dx < 0) << 4 | (dy < 0) << 5
        packet = bytes([first, dx & 0xFF, dy & 0xFF])
        wheel = 0
        if self.identity:
            most = 7
            wheel = max(-most, min(most, -away))
            fourth = wheel & 0xFF
            if self.identity == _EXPLORER:
                fourth = wheel & 0x0F | (self.buttons & (_SIDE | _EXTRA)) << 1
            packet += bytes([fourth])
            away += wheel
        else:
            away = 0
        self.moved = rest_x, -rest_y, away
        return packet

    # -- what it is told ---------------------------------------------------------------

    def receive(self, byte: int) -> None:
        """Take a command or an argument; what it has not sent yet is given up."""
        self.packet = b""
        self.response = self._answer(byte)
        if byte != RESEND:
            self.last_response = self.response

    def _answer(self, byte: int) -> bytes:
        if self.wrapping and byte not in (0xEC, 0xFF):
            return bytes([byte])
        command, self.argument = self.argument, 0
        if command:
            return self._with_argument(command, byte)
        done = bytes([ACK])
        if byte == RESEND:
            return self.last_response
        if byte in (_RESOLUTION, _RATE):
            self.argument = byte
        elif byte in (0xE6, 0xE7):  # scaling 1:1, 2:1
            self.doubling = byte == 0xE7
        elif byte == 0xE9:
            done += self._status()
        elif byte in (0xEA, 0xF0):  # stream, remote mode
            self._clear()
            self.remote = byte == 0xF0
        elif byte == 0xEB:  # read data
            done += self._report(doubling=False)
        elif byte == 0xEC:  # no longer wrap
            self.wrapping = False
        elif byte == 0xEE:
            self._clear()
            self.wrapping = True
        elif byte == 0xF2:
            done += bytes([self.identity])
        elif byte in (0xF4, 0xF5):  # report, or not
            self._clear()
            self.reporting = byte == 0xF4
        elif byte == 0xF6:
            self._set_default()
        elif byte == 0xFF:
            self._set_default()
            self.wrapping = False
            self.identity = 0
            done += bytes([_TESTED, self.identity])
        else:
            return self._reject()
        self.last_rejected = False
        return done

    def _reject(self) -> bytes:
        """Ask for it again; the second time in a row it is an error."""
        self.last_rejected = not self.last_rejected
        return bytes([RESEND if self.last_rejected else ERROR])

    def _with_argument(self, command: int, argument: int) -> bytes:
        if command == _RESOLUTION:
            if argument > 3:
                return self._reject()
            self.resolution = argument
        else:
            if argument not in _RATES:
                return self._reject()
            self.rates = (*self.rates[1:], argument)
            if self.rates in _KNOCKS:
                self.identity = _KNOCKS[self.rates]
        self.last_rejected = False
        return bytes([ACK])

    def _status(self) -> bytes:
        """Return the three bytes of the status, where the buttons are in this order."""
        buttons = self.buttons
        first = self.remote << 6 | self.reporting << 5 | self.doubling << 4
        first |= (buttons & _LEFT) << 2 | (buttons & _MIDDLE) >> 1
        first |= (buttons & _RIGHT) >> 1
        return bytes([first, self.resolution, self.rates[-1]])

    # -- state -------------------------------------------------------------------------

    def save(self) -> MouseState:
        """Return what it knows."""
        return capture(MouseState, self)

    def restore(self, state: MouseState) -> None:
        """Become the mouse that was saved."""
        reinstate(self, state)


def _counts(moved: int, *, doubling: bool) -> tuple[int, int]:
    """Return what a packet tells of a movement, and what is left of the movement."""
    most = 127 if doubling else 255
    part = max(-most, min(most, moved))
    if not doubling:
        return part, moved - part
    size = abs(part)
    size = _CLOSE[size] if size < len(_CLOSE) else 2 * size
    return -size if part < 0 else size, moved - part
