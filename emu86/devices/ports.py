"""The small ports of a PC board that are one register each.

Sources: IBM PC/AT Technical Reference (80h, the POST code; F0h and F1h, the
coprocessor); IBM PS/2 Hardware Interface Technical Reference (system control port A,
92h); ACPI specification 1.0b, 4.7.3.2.1 (PM1a control, at 604h by the habit of common
PC boards). The debug exit port is no PC's: it is for test programs to say how they
ended. Nor is the debug console: Bochs has it at E9h ("port_e9_hack"), and QEMU's
SeaBIOS finds it at 402h.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Self

from emu86.native import abi

RESET: Final = 0x01
A20: Final = 0x02

SLEEP_ENABLE: Final = 0x2000
SLEEP_TYPE: Final = 0x1C00


class RegisterState(NamedTuple):
    """The register."""

    value: int


class Register:
    """A byte that keeps what was written, and does nothing else."""

    def __init__(self, value: int = 0) -> None:
        """Make a register that holds ``value``."""
        self.value = value

    def read(self, offset: int, width: int, now: int) -> int:
        """Read what was written last."""
        return self.value

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Keep ``value``."""
        self.value = value & 0xFF

    def save(self) -> RegisterState:
        """Return the register."""
        return RegisterState(self.value)

    def restore(self, state: RegisterState) -> None:
        """Become the register that was saved."""
        self.value = state.value


class PostCode(abi.Latch, Register):
    """Port 80h: a byte that a board shows on two digits; the last one is kept."""

    def __new__(cls, _value: int = 0, *, latch: abi.Latch | None = None) -> Self:
        """Have the register where it shall be."""
        return super().__new__(cls) if latch is None else cls.from_buffer(latch)

    def __init__(self, value: int = 0, *, latch: abi.Latch | None = None) -> None:
        """Make a register that holds ``value``; latch: its memory, None: its own."""
        self.value = value


class SystemControlA(Register):
    """Port 92h: fast A20 gate (bit 1) and fast CPU reset (bit 0)."""

    def __init__(
        self, reset: Callable[[], None], set_a20: Callable[[bool], None]
    ) -> None:
        """Make the port with its A20 gate open.

        Args:
            reset: called when bit 0 goes from 0 to 1.
            set_a20: told bit 1 when it changes. The keyboard controller has another
                such gate: address line 20 passes when either is open.

        """
        super().__init__(A20)
        self._reset = reset
        self._set_a20 = set_a20

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Set both bits."""
        before = self.value
        self.value = value & 0xFF
        if (value ^ before) & A20:
            self._set_a20(bool(value & A20))
        if value & ~before & RESET:
            self._reset()


class Coprocessor(Register):
    """Ports F0h and F1h: the latch between the coprocessor's ERROR pin and IRQ13.

    The request stays until the handler writes one of the ports: a pulse would be
    gone before the interrupt controller is acknowledged.
    """

    def __init__(self, irq: Callable[[bool], None]) -> None:
        """Make the latch, with no error in it.

        Args:
            irq: told the level of the interrupt line when it changes.

        """
        super().__init__()
        self._irq = irq

    def fail(self) -> None:
        """Latch an error of the coprocessor."""
        if not self.value:
            self.value = 1
            self._irq(True)

    def read(self, offset: int, width: int, now: int) -> int:
        """Nothing can be read."""
        return 0xFF

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Clear the latch, whatever is written."""
        if self.value:
            self.value = 0
            self._irq(False)


class DebugExit(Register):
    """The debug exit port: a write ends the run with the value written."""

    widths = frozenset({1, 2, 4})

    def __init__(self, leave: Callable[[int], None]) -> None:
        """Make a port that calls ``leave`` with each value written to it."""
        super().__init__()
        self._leave = leave

    def read(self, offset: int, width: int, now: int) -> int:
        """Nothing can be read."""
        return (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """End the run."""
        self._leave(value & ((1 << 8 * width) - 1))


class DebugConsole(Register):
    """A port that takes text a byte at a time, and reads as E9h to be found by that."""

    PRESENT: Final = 0xE9

    def __init__(self, said: Callable[[bytes], None]) -> None:
        """Make a port that gives ``said`` each byte."""
        super().__init__(self.PRESENT)
        self._said = said

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Take a byte."""
        self._said(bytes((value & 0xFF,)))


class PowerControl(Register):
    """PM1a control: a 16-bit register by which the guest switches the power off."""

    widths = frozenset({1, 2})

    def __init__(self, power_off: Callable[[], None]) -> None:
        """Make a register that calls ``power_off`` for a change to sleep type 0, S5."""
        super().__init__()
        self._power_off = power_off

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the register; the bit that starts the sleep reads 0."""
        value = self.value >> 8 * (offset & 1)
        return value & ((1 << 8 * width) - 1)

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Set the register, or (width 1) one of its bytes."""
        if width == 1:
            shift = 8 * (offset & 1)
            value = self.value & ~(0xFF << shift) | (value & 0xFF) << shift
        self.value = value & 0xFFFF & ~SLEEP_ENABLE
        if value & (SLEEP_ENABLE | SLEEP_TYPE) == SLEEP_ENABLE:
            self._power_off()
