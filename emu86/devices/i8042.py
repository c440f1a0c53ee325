"""Intel 8042 keyboard controller of the PC/AT, with a keyboard and no mouse.

Sources: IBM Personal Computer AT Technical Reference (6280070), Keyboard Controller
and Keyboard; IBM PS/2 Hardware Interface Technical Reference, Keyboard and Auxiliary
Device Controller (the commands of the auxiliary device, scan code sets).

The controller answers at once; the keyboard sends at most one byte a millisecond, as
its serial line allows, so that a guest may read a byte twice.

Known differences: scan code set 3 is refused; typematic rate and lights are taken
and ignored; the keyboard does not tire of waiting: its buffer has no end.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

DATA: Final = 0
"""Offset of the data port (60h)."""
COMMAND: Final = 4
"""Offset of the status and command port (64h)."""

STROKE_NS: Final = 20_000_000
"""Time from one keystroke that is typed to the next: a guest has to take it."""

BYTE_NS: Final = 1_000_000
"""Time that the keyboard takes for a byte: 11 bits at 11 kHz or so."""

STATUS_FULL: Final = 0x01
STATUS_SYSTEM: Final = 0x04
STATUS_COMMAND: Final = 0x08
STATUS_UNLOCKED: Final = 0x10
STATUS_AUX: Final = 0x20
STATUS_TIMEOUT: Final = 0x40

CONFIG_IRQ1: Final = 0x01
CONFIG_IRQ12: Final = 0x02
CONFIG_SYSTEM: Final = 0x04
CONFIG_KEYBOARD_OFF: Final = 0x10
CONFIG_AUX_OFF: Final = 0x20
CONFIG_TRANSLATE: Final = 0x40

OUTPUT_RESET: Final = 0x01
"""Output port, bit 0: the CPU runs while it is 1."""
OUTPUT_A20: Final = 0x02

ACK: Final = 0xFA
RESEND: Final = 0xFE
BREAK: Final = 0xF0
TESTED: Final = 0xAA
TAKE_ARGUMENT: Final = frozenset({0xED, 0xF0, 0xF3, 0xFB, 0xFC, 0xFD})
"""Keyboard commands with an argument: lights, scan code set, typematic, key types."""

# Scan code set 2 to set 1, by the code of set 2, 00h..7Fh (Keyboard Controller).
TRANSLATION: Final = bytes.fromhex(
    "ff43413f3d3b3c58 64444240 3e0f2959 65382a70 1d10025a 66712c1f 1e11035b"
    "672e2d20 1205045c 68392f21 1413065d 69313023 2215075e 6a723224 1608095f"
    "6b332517 180b0a60 6c343526 27190c61 6d732874 1a0d626e 3a361c1b 752b6376"
    "55567778 797a0e7b 7c4f7d4b 477e7f6f 5253504c 4d480145 574e514a 37494654"
)


class Translator:
    """Scan code set 2 to set 1: the break prefix becomes bit 7 of the code."""

    def __init__(self) -> None:
        """Make a translator that has seen no prefix."""
        self.broken = False

    def feed(self, byte: int) -> int | None:
        """Translate the next byte; None when it gives nothing yet."""
        if byte == BREAK:
            self.broken = True
            return None
        code = {0x83: 0x41, 0x84: 0x54}.get(byte, byte)
        if byte < 0x80:
            code = TRANSLATION[byte]
        if self.broken:
            self.broken = False
            code |= 0x80
        return code


class KeyboardState(NamedTuple):
    """The keyboard; ``argument`` is the command whose argument is awaited, or 0."""

    argument: int
    scan_set: int
    scanning: bool
    last_sent: int
    response: bytes
    keys: bytes
    strokes: tuple[bytes, ...]
    broken: bool


class I8042State(NamedTuple):
    """The controller and its keyboard.

    ``command`` is the command whose data byte is awaited, or 0; ``pending`` the reply
    that waits for the output buffer: the byte, and whether it comes as the auxiliary
    device's, and with a time-out.
    """

    internal: bytes
    output: int
    full: bool
    aux: bool
    timeout: bool
    from_keyboard: bool
    last_command: bool
    command: int
    pending: tuple[int, bool, bool] | None
    a20: bool
    broken: bool
    ready_at: int
    stroke_at: int
    irq1: bool
    irq12: bool
    keyboard: KeyboardState


class Keyboard:
    """The keyboard at the other end of the cable: an MF II one."""

    def __init__(self) -> None:
        """Make a keyboard that has passed its self test."""
        self.argument = 0
        self.scan_set = 2
        self.scanning = True
        self.last_sent = 0
        self.response = b""
        """What is left of the response to the last command; it goes first."""
        self.keys = b""
        """What was typed, in scan code set 2."""
        self.strokes: tuple[bytes, ...] = ()
        """What will be typed: a keystroke each time that the last one is taken."""
        self._translator = Translator()

    @property
    def broken(self) -> bool:
        """A break prefix has been taken of which the code is still to come."""
        return self._translator.broken

    @broken.setter
    def broken(self, broken: bool) -> None:
        self._translator.broken = broken

    @property
    def ready(self) -> bool:
        """There is something to send."""
        return bool(self.response or self.keys)

    def send(self) -> int | None:
        """Take the next byte to send, None when there is nothing."""
        byte: int | None = None
        if self.response:
            byte, self.response = self.response[0], self.response[1:]
        while byte is None and self.keys:
            byte, self.keys = self.keys[0], self.keys[1:]
            if self.scan_set == 1:
                byte = self._translator.feed(byte)
        if byte is not None:
            self.last_sent = byte
        return byte

    def receive(self, byte: int) -> None:
        """Take a command or an argument; an unread response is given up."""
        command, self.argument = self.argument, 0
        if command and byte < 0xED:
            self.response = self._with_argument(command, byte)
        elif byte in TAKE_ARGUMENT:
            self.argument = byte
            self.response = bytes([ACK])
        elif byte == 0xEE:  # echo
            self.response = bytes([byte])
        elif byte == 0xF2:  # identify
            self.response = bytes([ACK, 0xAB, 0x83])
        elif 0xF4 <= byte <= 0xF6:  # enable, disable, set default
            self._clear(scanning=byte != 0xF5)
            if byte == 0xF6:
                self.scan_set = 2
            self.response = bytes([ACK])
        elif 0xF7 <= byte <= 0xFA:  # all keys' types: of set 3 only
            self.response = bytes([ACK])
        elif byte == RESEND:
            self.response = bytes([self.last_sent])
        elif byte == 0xFF:  # reset
            self._clear(scanning=True)
            self.scan_set = 2
            self.response = bytes([ACK, TESTED])
        else:
            self.response = bytes([RESEND])

    def _clear(self, *, scanning: bool) -> None:
        self.keys = b""
        self.broken = False
        self.scanning = scanning

    def _with_argument(self, command: int, argument: int) -> bytes:
        if command == 0xF0:
            if argument > 2:
                return bytes([RESEND])
            if argument == 0:
                return bytes([ACK, self.scan_set])
            self.scan_set = argument
        return bytes([ACK])


class I8042:
    """The controller: data at offset 0, status and commands at offset 4."""

    def __init__(
        self,
        irq1: Callable[[bool], None],
        irq12: Callable[[bool], None],
        reset: Callable[[], None],
        set_a20: Callable[[bool], None],
    ) -> None:
        """Make a controller as a BIOS leaves it: translating, interrupts enabled.

        Args:
            irq1: told the level of the keyboard's interrupt line when it changes.
            irq12: the same of the auxiliary device's.
            reset: called when the CPU's reset line is pulled.
            set_a20: told whether address line 20 is let through, when it changes.

        """
        self._irq1 = irq1
        self._irq12 = irq12
        self._reset = reset
        self._set_a20 = set_a20
        self._keyboard = Keyboard()
        self._translator = Translator()
        self._internal = bytearray(32)
        self.config = CONFIG_IRQ1 | CONFIG_SYSTEM | CONFIG_AUX_OFF | CONFIG_TRANSLATE
        self.output = 0
        self.full = False
        self.aux = False
        self.timeout = False
        self.from_keyboard = False
        self.last_command = False
        self.command = 0
        self.pending: tuple[int, bool, bool] | None = None
        self.a20 = True
        self.ready_at = 0
        """When the keyboard can have sent its next byte."""
        self.stroke_at = 0
        """When the next keystroke can be typed."""
        self.irq1 = False
        self.irq12 = False

    @property
    def config(self) -> int:
        """The configuration ("command") byte, byte 0 of the internal RAM."""
        return self._internal[0]

    @config.setter
    def config(self, value: int) -> None:
        self._internal[0] = value

    def key(self, codes: bytes) -> None:
        """Type: queue scan codes of set 2; lost when the guest disabled scanning.

        They are sent by ``advance``: ask for the deadline after this.
        """
        if self._keyboard.scanning:
            self._keyboard.keys += codes

    def type(self, strokes: Iterable[bytes]) -> None:
        """Type keystrokes, each as its scan codes of set 2, at the speed of a person.

        They wait while the guest has disabled scanning. As with ``key``, ask for the
        deadline.
        """
        self._keyboard.strokes += tuple(strokes)

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the output buffer (0) or the status (4)."""
        self.advance(now)
        if offset & COMMAND:
            return self._status()
        value = self.output
        if self.full:
            self.full = False
            if self.from_keyboard:
                self.ready_at = now + BYTE_NS
            # The lines fall even when the next byte is there already: their inputs
            # are edge triggered.
            self._update()
            self.advance(now)
        return value

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a byte for the keyboard or a command's data (0), or a command (4)."""
        self.advance(now)
        value &= 0xFF
        command, self.command = self.command, 0
        self.last_command = bool(offset & COMMAND)
        if self.last_command:
            self._command(value)
        elif command:
            self._command_data(command, value)
        else:
            self.config &= ~CONFIG_KEYBOARD_OFF
            self._keyboard.receive(value)
        self.advance(now)

    def deadline(self) -> int | None:
        """Time at which the keyboard's next byte arrives."""
        keyboard = self._keyboard
        if self.full or self.config & CONFIG_KEYBOARD_OFF:
            return None
        if keyboard.ready:
            return self.ready_at
        if keyboard.strokes and keyboard.scanning:
            return max(self.ready_at, self.stroke_at)
        return None

    def advance(self, now: int) -> None:
        """Let the next byte into the output buffer, if it is empty."""
        if not self.full:
            self._fill(now)
        self._update()

    def save(self) -> I8042State:
        """Return the registers of the controller and of the keyboard."""
        return capture(I8042State, self)

    def restore(self, state: I8042State) -> None:
        """Become the controller and keyboard that were saved."""
        reinstate(self, state)

    @property
    def keyboard(self) -> KeyboardState:
        """What the keyboard knows."""
        return capture(KeyboardState, self._keyboard)

    @keyboard.setter
    def keyboard(self, state: KeyboardState) -> None:
        reinstate(self._keyboard, state)

    @property
    def internal(self) -> bytes:
        """The 32 bytes of RAM that commands 20h..3Fh read."""
        return bytes(self._internal)

    @internal.setter
    def internal(self, data: bytes) -> None:
        self._internal[:] = data

    @property
    def broken(self) -> bool:
        """A break prefix has been taken of which the code is still to come."""
        return self._translator.broken

    @broken.setter
    def broken(self, broken: bool) -> None:
        self._translator.broken = broken

    def _fill(self, now: int) -> None:
        if self.pending is not None:
            self.output, self.aux, self.timeout = self.pending
            self.pending = None
            self.full, self.from_keyboard = True, False
            return
        if self.config & CONFIG_KEYBOARD_OFF or now < self.ready_at:
            return
        keyboard = self._keyboard
        idle = keyboard.scanning and not keyboard.ready
        if idle and keyboard.strokes and now >= self.stroke_at:
            keyboard.keys, *rest = keyboard.strokes
            keyboard.strokes = tuple(rest)
            self.stroke_at = now + STROKE_NS
        while not self.full and (byte := keyboard.send()) is not None:
            code = byte
            if self.config & CONFIG_TRANSLATE:
                translated = self._translator.feed(byte)
                if translated is None:
                    continue
                code = translated
            self.output, self.aux, self.timeout = code, False, False
            self.full = self.from_keyboard = True

    def _status(self) -> int:
        status = STATUS_UNLOCKED | self.config & STATUS_SYSTEM
        if self.full:
            status |= STATUS_FULL
            if self.aux:
                status |= STATUS_AUX
        if self.last_command:
            status |= STATUS_COMMAND
        if self.timeout:
            status |= STATUS_TIMEOUT
        return status

    def _reply(self, value: int, *, aux: bool = False, timeout: bool = False) -> None:
        """Put a reply into the output buffer, or behind the byte that is there."""
        self.pending = (value, aux, timeout)

    def _command(self, command: int) -> None:
        if command & 0xE0 == 0x20:  # read internal RAM
            self._reply(self._internal[command & 0x1F])
        elif command & 0xE0 == 0x60 or 0xD1 <= command <= 0xD4:
            self.command = command
        elif command == 0xA4:  # is a password installed? No
            self._reply(0xF1)
        elif command == 0xA7:
            self.config |= CONFIG_AUX_OFF
        elif command == 0xA8:
            self.config &= ~CONFIG_AUX_OFF
        elif command == 0xA9:  # test the auxiliary device's lines: the clock is low
            self._reply(0x01)
        elif command == 0xAA:  # self test
            self.config |= CONFIG_SYSTEM
            self._reply(0x55)
        elif command == 0xAB:  # test the keyboard's lines
            self._reply(0x00)
        elif command == 0xAD:
            self.config |= CONFIG_KEYBOARD_OFF
        elif command == 0xAE:
            self.config &= ~CONFIG_KEYBOARD_OFF
        elif command == 0xC0:  # read input port: not locked, no jumper
            self._reply(0xA0)
        elif command == 0xD0:  # read output port
            value = 0xC0 | OUTPUT_RESET | (OUTPUT_A20 if self.a20 else 0)
            if self.full:
                value |= 0x20 if self.aux else 0x10
            self._reply(value)
        elif command in (0xDD, 0xDF):
            self._gate_a20(command == 0xDF)
        elif command >= 0xF0 and not command & OUTPUT_RESET:  # pulse output port
            self._reset()

    def _command_data(self, command: int, value: int) -> None:
        if command & 0xE0 == 0x60:  # write internal RAM
            self._internal[command & 0x1F] = value
        elif command == 0xD1:  # write output port
            self._gate_a20(bool(value & OUTPUT_A20))
            if not value & OUTPUT_RESET:
                self._reset()
        elif command == 0xD2:  # write keyboard output buffer
            self._reply(value)
        elif command == 0xD3:  # write auxiliary device output buffer
            self._reply(value, aux=True)
        else:  # D4h, write to the auxiliary device: none answers
            self._reply(RESEND, aux=True, timeout=True)

    def _gate_a20(self, level: bool) -> None:
        if level != self.a20:
            self.a20 = level
            self._set_a20(level)

    def _update(self) -> None:
        irq1 = self.full and not self.aux and bool(self.config & CONFIG_IRQ1)
        irq12 = self.full and self.aux and bool(self.config & CONFIG_IRQ12)
        if irq1 != self.irq1:
            self.irq1 = irq1
            self._irq1(irq1)
        if irq12 != self.irq12:
            self.irq12 = irq12
            self._irq12(irq12)
