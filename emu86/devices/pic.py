"""Intel 8259A programmable interrupt controller, and the pair of them in a PC.

Sources: Intel 8259A data sheet (order 231468-003), whose section names are cited
below; Intel 82371FB/82371SB PIIX data sheet (order 290550) for the ELCR, which
selects edge or level per line and takes the place of the LTIM bit of ICW1.

Known differences from the chip: no buffered mode (it only moves a pin).
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from emu86.devices.saving import capture, reinstate

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
    special_mask: bool
    rotate_on_auto_eoi: bool
    read_isr: bool
    poll: bool
    intr: bool


class PicPairState(NamedTuple):
    """Both chips of a pair."""

    master: PicState
    slave: PicState


class Pic:
    """One 8259A: eight inputs, one output, two byte registers."""

    def __init__(self, output: Callable[[bool], None]) -> None:
        """Make a chip in its power-on state, all inputs low and masked.

        The data sheet leaves the power-on state undefined; masked until ICW1 keeps
        a guest that sets up no interrupts from receiving any.

        Args:
            output: told the level of the INT pin each time that it changes.

        """
        self._output = output
        self.irr = 0
        self.imr = 0xFF
        self.isr = 0
        self.lines = 0
        self.elcr = 0
        self.lowest = 7
        self.icw1 = 0
        self.icw2 = 0
        self.icw3 = 0
        self.icw4 = 0
        self.expected = 0
        """Number of the ICW that the next write to the data port is; 0: OCW1."""
        self.special_mask = False
        self.rotate_on_auto_eoi = False
        self.read_isr = False
        self.poll = False
        self.intr = False
        """The level of the INT pin."""

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
        n = self._pending()
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
        self.intr = False
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
            self.poll = False
            return 0x80 | self.acknowledge() if self.intr else 0x07
        if offset & 1:
            return self.imr
        return self.isr if self.read_isr else self.irr

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
            self._write_ocw2(value)
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
        self.special_mask = False
        self.rotate_on_auto_eoi = False
        self.read_isr = False
        self.poll = False

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

    def _write_ocw2(self, value: int) -> None:
        """End of interrupt and rotation: R, SL, EOI and a level (OCW2)."""
        command, level = value >> 5, value & 7
        if command in (0, 4):
            self.rotate_on_auto_eoi = command == 4
        elif command in (1, 5):
            # A masked in-service bit is not seen in special mask mode.
            n = self._first(self.isr & ~self.imr if self.special_mask else self.isr)
            if n >= 0:
                self.isr &= ~(1 << n)
                if command == 5:
                    self.lowest = n
        else:
            if command in (3, 7):
                self.isr &= ~(1 << level)
            if command in (6, 7):
                self.lowest = level

    def _write_ocw3(self, value: int) -> None:
        """Special mask mode, poll, and which register to read (OCW3)."""
        if value & 0x40:
            self.special_mask = bool(value & 0x20)
        if value & 0x04:
            self.poll = True
        elif value & 0x02:
            self.read_isr = bool(value & 0x01)

    def _first(self, bits: int) -> int:
        """Return the number of the highest priority bit of ``bits``, -1 if none."""
        if not bits:
            return -1
        shift = (self.lowest + 1) & 7
        rotated = bits >> shift | (bits << (8 - shift) & 0xFF)
        return (rotated & -rotated).bit_length() - 1 + shift & 7

    def _pending(self) -> int:
        """Return the input to be acknowledged next, -1 if there is none."""
        n = self._first(self.irr & ~self.imr)
        if n < 0:
            return -1
        serving = self._first(self.isr & ~self.imr if self.special_mask else self.isr)
        if serving < 0:
            return n
        if n == serving:
            # Special fully nested mode: a slave in service may ask again, for a
            # higher one of its own inputs.
            again = self.icw4 & 0x10 and not self.single and self.icw3 & 1 << n
            return n if again else -1
        base = self.lowest + 1
        return n if (n - base) & 7 < (serving - base) & 7 else -1

    def _update(self) -> None:
        intr = self._pending() >= 0
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

    def __init__(self) -> None:
        """Make both chips in their power-on state."""
        self.intr = False
        """An interrupt is being requested of the CPU."""
        self.master = Pic(self._set_intr)
        self.slave = Pic(self._cascade)
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
        self.intr = self.master.intr

    def _set_intr(self, level: bool) -> None:
        self.intr = level

    def _cascade(self, level: bool) -> None:
        self.master.set_line(CASCADE, level)
