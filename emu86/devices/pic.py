"""Intel 8259A programmable interrupt controller, and the pair of them in a PC.

Sources: Intel 8259A data sheet (order 231468-003), whose section names are cited
below; Intel 82371FB/82371SB PIIX data sheet (order 290550) for the ELCR, which
selects edge or level per line and takes the place of the LTIM bit of ICW1.

Known differences from the chip: no buffered mode (it only moves a pin).
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from emu86.devices.saving import capture, reinstate
from emu86.native import abi
from emu86.native.pic import read_register, requested, write_ocw2

CASCADE: Final = 2
"""The master's input that the slave's INT pin drives."""

# Lines that are edge triggered whatever is written to the ELCR: the timer, the
# keyboard and the cascade; the RTC and the coprocessor (PIIX, ELCR1 and ELCR2).
ELCR_WRITABLE: Final = (0xF8, 0xDE)

FLOATING: Final = 0xFF
"""What the CPU reads as the vector when no chip drives the data bus."""


class PicState(NamedTuple):
    """The registers of one 8259A, by the names of the data sheet."""

    irr: int
    imr: int
    isr: int
    lines: int
    elcr: int
    lowest: int
    icw1: int
    icw2: int
    icw3: int
    icw4: int
    expected: int
    special_mask: int
    rotate_on_auto_eoi: int
    read_isr: int
    poll: int
    intr: int


class PicPairState(NamedTuple):
    """Both chips of a pair."""

    master: PicState
    slave: PicState


class Pic(abi.Pic):
    """One 8259A: eight inputs, one output, two byte registers.

    ``native.pic`` has what compiled code does, too.
    """

    def __new__(cls, *_: object, registers: abi.Pic | None = None) -> Self:
        """Have the registers where they shall be."""
        return super().__new__(cls) if registers is None else cls.from_buffer(registers)

    def __init__(
        self, output: Callable[[bool], None], *, registers: abi.Pic | None = None
    ) -> None:
        """Make a chip in its power-on state, all inputs low and masked.

        The data sheet leaves the power-on state undefined; masked until ICW1 keeps
        a guest that sets up no interrupts from receiving any.

        Args:
            output: told the level of the INT pin each time that it changes.
            registers: their memory, all 0; None: its own.

        """
        self._output = output
        self.imr = 0xFF
        self.lowest = 7

    @property
    def single(self) -> bool:
        """No other 8259A in the system (ICW1, SNGL)."""
        return bool(self.icw1 & 0x02)

    def set_line(self, n: int, level: bool) -> None:
        """Put input IR ``n`` (0..7) to ``level``.

        A request must stay high until it is acknowledged (data sheet, IR triggering
        timing requirements): when its line falls before, it is gone.
        """
        bit = 1 << n
        if level:
            if not self.lines & bit:
                self.lines |= bit
                self.irr |= bit
                self._update()
        elif self.lines & bit:
            self.lines &= ~bit
            self.irr &= ~bit
            self._update()

    def acknowledge(self) -> int:
        """Acknowledge as by INTA: return the number of the input, 0..7.

        When no request is left, the answer is 7 with its in-service bit not set,
        by which a handler knows the default (spurious) IR7.
        """
        n = requested(self)
        if n < 0:
            return 7
        bit = 1 << n
        if not self.elcr & bit:
            self.irr &= ~bit
        if self.icw4 & 0x02:  # automatic end of interrupt: never seen in service
            if self.rotate_on_auto_eoi:
                self.lowest = n
        else:
            self.isr |= bit
        # INT falls at the acknowledge even when another request is waiting: an edge
        # triggered input that it drives must see the next one as an edge.
        self.intr = 0
        self._output(False)
        self._update()
        return n

    def vector(self, n: int) -> int:
        """Return the byte that the chip sends for input ``n`` at the second INTA."""
        if self.icw4 & 0x01:
            return (self.icw2 & 0xF8) | n
        # MCS-80/85 mode: the low byte of a call address, 4 or 8 bytes apart (ICW1).
        if self.icw1 & 0x04:
            return (self.icw1 & 0xE0) | n << 2
        return (self.icw1 & 0xC0) | n << 3

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the poll word when polled, else IRR or ISR (0), or IMR (1)."""
        if self.poll:
            self.poll = 0
            return 0x80 | self.acknowledge() if self.intr else 0x07
        return read_register(self, offset)

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write ICW1, OCW2 or OCW3 (0), or ICW2 to ICW4 or OCW1 (1)."""
        value &= 0xFF
        if offset & 1:
            self._write_data(value)
        elif value & 0x10:
            self._initialise(value)
        elif value & 0x08:
            self._write_ocw3(value)
        else:
            write_ocw2(self, value)
        self._update()

    def write_elcr(self, value: int) -> None:
        """Select the level triggered inputs: a bit each, 1 for level."""
        self.elcr = value
        self.irr |= self.lines & value
        self._update()

    def _initialise(self, icw1: int) -> None:
        """ICW1: start the initialisation (Initialization Command Words 1 and 2)."""
        self.icw1 = icw1
        self.icw4 = 0
        self.expected = 2
        self.imr = 0
        self.isr = 0
        # The edge sense circuit is reset: an edge input needs a new edge.
        self.irr = self.lines & self.elcr
        self.lowest = 7
        self.icw3 = 7
        self.special_mask = 0
        self.rotate_on_auto_eoi = 0
        self.read_isr = 0
        self.poll = 0

    def _write_data(self, value: int) -> None:
        if self.expected == 0:
            self.imr = value
        elif self.expected == 2:
            self.icw2 = value
            if not self.single:
                self.expected = 3
            else:
                self.expected = 4 if self.icw1 & 0x01 else 0
        elif self.expected == 3:
            self.icw3 = value
            self.expected = 4 if self.icw1 & 0x01 else 0
        else:
            self.icw4 = value
            self.expected = 0

    def _write_ocw3(self, value: int) -> None:
        """Special mask mode, poll, and which register to read (OCW3)."""
        if value & 0x40:
            self.special_mask = bool(value & 0x20)
        if value & 0x04:
            self.poll = 1
        elif value & 0x02:
            self.read_isr = bool(value & 0x01)

    def _update(self) -> None:
        intr = requested(self) >= 0
        if intr != self.intr:
            self.intr = intr
            self._output(intr)


class Elcr:
    """The two edge/level control registers, a byte for each chip (4D0h, 4D1h)."""

    def __init__(self, master: Pic, slave: Pic) -> None:
        """Make the registers of these two chips."""
        self._chips = (master, slave)

    def read(self, offset: int, width: int, now: int) -> int:
        """Read the level bits of the master (0) or the slave (1)."""
        return self._chips[offset & 1].elcr

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write them; the bits of lines that are always edge triggered stay 0."""
        self._chips[offset & 1].write_elcr(value & ELCR_WRITABLE[offset & 1])


class PicPair:
    """The two 8259A of a PC, the slave's INT pin on the master's IR2.

    To be attached to the bus as ``master``, ``slave`` and ``elcr``, each at its own
    two ports. The pair does nothing by itself: it has no deadline.
    """

    def __init__(self, registers: ctypes.Array[abi.Pic] | None = None) -> None:
        """Make both chips in their power-on state; registers: their memory, if any."""
        memory = (abi.Pic * 2)() if registers is None else registers
        self.intr = False
        """An interrupt is being requested of the CPU."""
        self.master = Pic(self._set_intr, registers=memory[0])
        self.slave = Pic(self._cascade, registers=memory[1])
        self.elcr = Elcr(self.master, self.slave)

    def line(self, n: int) -> Callable[[bool], None]:
        """Return a function that sets the level of interrupt line IRQ ``n``.

        Raises:
            ValueError: there is no such line for a device (0, 1, 3..15 are).

        """
        if not 0 <= n <= 15 or n == CASCADE:
            msg = f"IRQ{n} is no interrupt line of a device"
            raise ValueError(msg)
        chip = self.master if n < 8 else self.slave

        def set_level(level: bool) -> None:
            chip.set_line(n & 7, level)

        return set_level

    def set_line(self, n: int, level: bool) -> None:
        """Set the level of interrupt line IRQ ``n``; errors as ``line``."""
        self.line(n)(level)

    def acknowledge(self) -> int:
        """Run the INTA cycles: return the interrupt vector, 0..255.

        Called with nothing pending, it gives the vector of a spurious IRQ7.
        """
        master, slave = self.master, self.slave
        requested = master.intr
        n = master.acknowledge()
        if not requested or master.single or not master.icw3 & 1 << n:
            return master.vector(n)
        if n != CASCADE or slave.icw3 & 7 != n:
            return FLOATING  # no chip has this identity: nobody answers
        return slave.vector(slave.acknowledge())

    def save(self) -> PicPairState:
        """Return the state of both chips."""
        return PicPairState(
            capture(PicState, self.master), capture(PicState, self.slave)
        )

    def restore(self, state: PicPairState) -> None:
        """Become the pair that was saved."""
        reinstate(self.master, state.master)
        reinstate(self.slave, state.slave)
        self.intr = bool(self.master.intr)

    def _set_intr(self, level: bool) -> None:
        self.intr = level

    def _cascade(self, level: bool) -> None:
        self.master.set_line(CASCADE, level)
