"""Intel 8042 keyboard controller of a PS/2, with a keyboard and a mouse.

Sources: IBM Personal Computer AT Technical Reference (6280070), Keyboard Controller;
IBM PS/2 Hardware Interface Technical Reference, Keyboard and Auxiliary Device
Controller.

The controller answers at once; keyboard and mouse send at most one byte a millisecond
each, as their serial lines allow, so that a guest may read a byte twice.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from emu86.devices.ps2_keyboard import RESEND, Keyboard, KeyboardState, translated
from emu86.devices.ps2_mouse import Mouse, MouseState
from emu86.devices.saving import capture, reinstate

DATA: Final = 0
"""Offset of the data port (60h)."""
COMMAND: Final = 4
"""Offset of the status and command port (64h)."""

BYTE_NS: Final = 1_000_000
"""Time that keyboard or mouse takes for a byte: 11 bits at 11 kHz or so."""

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

_BREAK: Final = 0xF0


class Translator:
    """Scan code set 2 to set 1: the break prefix becomes bit 7 of the code."""

    def __init__(self) -> None:
        """Make a translator that has seen no prefix."""
        self.broken = False

    def feed(self, byte: int) -> int | None:
        """Translate the next byte; None when it gives nothing yet."""
        if byte == _BREAK:
            self.broken = True
            return None
        code = translated(byte)
        if self.broken:
            self.broken = False
            code |= 0x80
        return code


class I8042State(NamedTuple):
    """The controller and what is connected to it.

    ``command`` is the command whose data byte is awaited, or 0; ``pending`` the reply
    that waits for the output buffer: the byte, and whether it comes as the auxiliary
    device's. ``from_device``: what is in the output buffer came from there.
    """

    internal: bytes
    output: int
    full: bool
    aux: bool
    timeout: bool
    from_device: bool
    last_command: bool
    command: int
    pending: tuple[int, bool, bool] | None
    a20: bool
    broken: bool
    ready_at: int
    aux_ready_at: int
    irq1: bool
    irq12: bool
    keyboard_state: KeyboardState
    has_mouse: bool
    mouse_state: MouseState


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
        self.keyboard = Keyboard()
        self.mouse = Mouse()
        self.has_mouse = True
        """Whether the mouse is plugged in."""
        self._translator = Translator()
        self._internal = bytearray(32)
        self.config = CONFIG_IRQ1 | CONFIG_SYSTEM | CONFIG_AUX_OFF | CONFIG_TRANSLATE
        self.output = 0
        self.full = False
        self.aux = False
        self.timeout = False
        self.from_device = False
        self.last_command = False
        self.command = 0
        self.pending: tuple[int, bool, bool] | None = None
        self.a20 = True
        self.ready_at = 0
        """When the keyboard can have sent its next byte."""
        self.aux_ready_at = 0
        """When the mouse can."""
        self.irq1 = False
        self.irq12 = False

    @property
    def config(self) -> int:
        """The configuration ("command") byte, byte 0 of the internal RAM."""
        return self._internal[0]

    @config.setter
    def config(self, value: int) -> None:
        self._internal[0] = value

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the output buffer (0) or the status (4)."""
        self.advance(now)
        if offset & COMMAND:
            return self._status()
        value = self.output
        if self.full:
            self.full = False
            if self.from_device and self.aux:
                self.aux_ready_at = now + BYTE_NS
            elif self.from_device:
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
            self.keyboard.receive(value)
        self.advance(now)

    def deadline(self) -> int | None:
        """Time at which the next byte of keyboard or mouse arrives."""
        if self.full:
            return None
        deadlines = []
        if not self.config & CONFIG_KEYBOARD_OFF:
            due = self.keyboard.deadline()
            if due is not None:
                deadlines.append(max(self.ready_at, due))
        if not self.config & CONFIG_AUX_OFF:
            due = self.mouse.deadline()
            if due is not None:
                deadlines.append(max(self.aux_ready_at, due))
        return min(deadlines, default=None)

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
    def keyboard_state(self) -> KeyboardState:
        """What the keyboard knows."""
        return self.keyboard.save()

    @keyboard_state.setter
    def keyboard_state(self, state: KeyboardState) -> None:
        self.keyboard.restore(state)

    @property
    def mouse_state(self) -> MouseState:
        """What the mouse knows."""
        return self.mouse.save()

    @mouse_state.setter
    def mouse_state(self, state: MouseState) -> None:
        self.mouse.restore(state)

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
            self.full, self.from_device = True, False
            return
        if not self.config & CONFIG_KEYBOARD_OFF and now >= self.ready_at:
            self._hear_keyboard(now)
        if self.full or self.config & CONFIG_AUX_OFF or now < self.aux_ready_at:
            return
        byte = self.mouse.send(now)
        if byte is not None:
            self.output, self.aux, self.timeout = byte, True, False
            self.full = self.from_device = True

    def _hear_keyboard(self, now: int) -> None:
        self.keyboard.advance(now)
        while not self.full and (byte := self.keyboard.send()) is not None:
            code = byte
            if self.config & CONFIG_TRANSLATE:
                translated_code = self._translator.feed(byte)
                if translated_code is None:
                    continue
                code = translated_code
            self.output, self.aux, self.timeout = code, False, False
            self.full = self.from_device = True

    def _status(self) -> int:
        status = STATUS_UNLOCKED | self.config & STATUS_SYSTEM
        if self.full:
            status |= STATUS_FULL
            if self.aux:
                status |= STATUS_AUX
        if self.timeout:
            status |= STATUS_TIMEOUT
        if self.last_command:
            status |= STATUS_COMMAND
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
        elif command == 0xAA:  # self test
            self.config |= CONFIG_SYSTEM
            self._reply(0x55)
        elif command == 0xA9:  # test the mouse's lines: without one the clock is low
            self._reply(0x00 if self.has_mouse else 0x01)
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
        elif not self.has_mouse:  # D4h, write to the auxiliary device: none answers
            self._reply(RESEND, aux=True, timeout=True)
        else:
            self.config &= ~CONFIG_AUX_OFF
            self.mouse.receive(value)

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
