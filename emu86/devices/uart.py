"""National Semiconductor PC16550D universal asynchronous receiver/transmitter.

Source: PC16550D data sheet (TL/C/8652), section 8, Registers; the gating of the
interrupt line by OUT2 is that of the IBM serial adapter.

Characters take no time here: one that is written has left at once, and one that the
host sends is received as soon as there is room for it, so that neither side loses
any. With them the four character times of the receiver's time-out pass at once: what
stays in the FIFO below the trigger level, with nothing to follow, has timed out.

Known differences from the chip: the format of the line (bits, parity, stop bits,
speed) and break are stored but have no effect; parity, framing and break errors do
not occur, and an overrun only in loopback.
"""

# Every register is read and written with the arguments of `bus.Addressable`.
# ruff: noqa: ARG002

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from emu86.devices.saving import capture, reinstate
from emu86.native import abi
from emu86.native.uart import (
    IER_EMPTY,
    LCR_DLAB,
    LSR,
    MCR_LOOP,
    THR,
    line_status,
)

FIFO_SIZE: Final = 16
TRIGGER_LEVELS: Final = (1, 4, 8, 14)

# Interrupt enable register.
IER_RECEIVED: Final = 0x01
IER_LINE: Final = 0x04
IER_MODEM: Final = 0x08

# Interrupt identification register, the causes in the order of their priority.
IIR_NONE: Final = 0x01
IIR_LINE: Final = 0x06
IIR_RECEIVED: Final = 0x04
IIR_TIMEOUT: Final = 0x0C
IIR_EMPTY: Final = 0x02
IIR_MODEM: Final = 0x00
IIR_FIFO: Final = 0xC0

MCR_RTS: Final = 0x02
MCR_OUT2: Final = 0x08

LSR_OVERRUN: Final = 0x02
LSR_ERRORS: Final = 0x1E

MSR_CTS: Final = 0x10
MSR_DSR: Final = 0x20
MSR_RI: Final = 0x40
MSR_DCD: Final = 0x80


class UartState(NamedTuple):
    """The registers by the names of the data sheet, and what is on its way."""

    ier: int
    fcr: int
    lcr: int
    mcr: int
    msr: int
    scr: int
    divisor: int
    errors: int
    empty_pending: int
    last: int
    modem: int
    line: bool
    received: bytes
    waiting: bytes


class Uart(abi.Uart):
    """One 16550A: eight byte registers and an interrupt line."""

    def __new__(cls, *_: object, registers: abi.Uart | None = None) -> Self:
        """Have the registers where they shall be."""
        return super().__new__(cls) if registers is None else cls.from_buffer(registers)

    def __init__(
        self,
        irq: Callable[[bool], None],
        transmit: Callable[[bytes], None],
        *,
        registers: abi.Uart | None = None,
    ) -> None:
        """Make a chip after master reset, a ready peer at its modem lines.

        Args:
            irq: told the level of the interrupt line when it changes.
            transmit: takes the characters that are sent.
            registers: their memory, all 0; None: its own.

        """
        self._irq = irq
        self._transmit = transmit
        self.modem = MSR_CTS | MSR_DSR | MSR_DCD
        """The modem lines of the peer, as the upper half of the MSR."""
        self.msr = self.modem
        self.line = False
        self._waiting: deque[int] = deque()

    def receive(self, data: bytes) -> None:
        """Send characters to the guest, which gets them as it makes room."""
        self._waiting.extend(data)
        self._fill()
        self._update()

    def set_modem(self, lines: int) -> None:
        """Set the peer's modem lines: an or of MSR_CTS, _DSR, _RI and _DCD."""
        self.modem = lines & 0xF0
        self._update_modem()
        self._update()

    def read(self, offset: int, width: int, now: int) -> int:
        """Read a register (offset 0..7)."""
        offset &= 7
        value = 0
        if offset == THR:
            value = self._read_buffer()
        elif offset == 1:
            value = self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier
        elif offset == 2:
            value = self._read_iir()
        elif offset == 3:
            value = self.lcr
        elif offset == 4:
            value = self.mcr
        elif offset == LSR:
            value = line_status(self)
            if self.errors:
                self.errors = 0
                self._update()
        elif offset == 6:
            value = self.msr
            if value & 0x0F:
                self.msr = value & 0xF0
                self._update()
        else:
            value = self.scr
        return value

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write a register (offset 0..7); the LSR and MSR are read only."""
        offset, value = offset & 7, value & 0xFF
        if offset == 0:
            if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0xFF00 | value
            else:
                self._send(value)
        elif offset == 1:
            if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0x00FF | value << 8
            else:
                self._write_ier(value & 0x0F)
        elif offset == 2:
            self._write_fcr(value)
        elif offset == 3:
            self.lcr = value
        elif offset == 4:
            self.mcr = value & 0x1F
            self._update_modem()
            self._fill()
            self._update()
        elif offset == 7:
            self.scr = value

    def save(self) -> UartState:
        """Return the registers, the receive FIFO and the host's waiting input."""
        return capture(UartState, self)

    def restore(self, state: UartState) -> None:
        """Become the chip that was saved."""
        reinstate(self, state)

    @property
    def ready(self) -> bool:
        """Whether the guest lets its peer send (RTS)."""
        return bool(self.mcr & MCR_RTS)

    @property
    def received(self) -> bytes:
        """What is in the receive FIFO, or in the receiver buffer."""
        return bytes(self.fifo[: self.count])

    @received.setter
    def received(self, data: bytes) -> None:
        self.count = len(data)
        self.fifo[: len(data)] = list(data)

    @property
    def waiting(self) -> bytes:
        """Host input that has found no room yet."""
        return bytes(self._waiting)

    @waiting.setter
    def waiting(self, data: bytes) -> None:
        self._waiting = deque(data)

    def watch(self, urgent: bytes) -> None:
        """Have the sending of these characters told at once, of others by `flush`."""
        members = sum(1 << byte for byte in set(urgent))
        for i in range(4):
            self.urgent[i] = members >> 64 * i & (1 << 64) - 1

    def flush(self) -> None:
        """Tell of what compiled code has sent."""
        sent = bytes(self.sent[: self.sent_count])
        self.sent_count = 0
        self._transmit(sent)

    def _room(self) -> int:
        size = FIFO_SIZE if self.fcr & 1 else 1
        return size - self.count

    def _put(self, value: int) -> None:
        self.received += bytes((value,))

    def _fill(self) -> None:
        """Let waiting input in; in loopback the input pin is disconnected."""
        if self._waiting and not self.mcr & MCR_LOOP:
            for _ in range(min(self._room(), len(self._waiting))):
                self._put(self._waiting.popleft())

    def _read_buffer(self) -> int:
        if self.lcr & LCR_DLAB:
            return self.divisor & 0xFF
        received = self.received
        if received:
            self.last = received[0]
            self.received = received[1:]
            self._fill()
            self._update()
        return self.last

    def _send(self, value: int) -> None:
        # The write takes the interrupt away and the empty register brings the next:
        # an edge triggered line must see it fall and rise.
        self.empty_pending = 0
        self._update()
        if not self.mcr & MCR_LOOP:
            self._transmit(bytes((value,)))
        elif self._room() > 0:
            self._put(value)
        else:
            self.errors |= LSR_OVERRUN
            if not self.fcr & 1:  # a full FIFO keeps what it has; a register does not
                self.fifo[0] = value
        self.empty_pending = 1
        self._update()

    def _write_ier(self, value: int) -> None:
        if value & IER_EMPTY and not self.ier & IER_EMPTY:
            self.empty_pending = 1
        self.ier = value
        self._update()

    def _write_fcr(self, value: int) -> None:
        changed = (value ^ self.fcr) & 1
        if changed or (value & 0x03 == 0x03):
            self.count = 0
        # The other bits are only taken along with the enable bit. Both FIFO resets
        # (bits 1 and 2) clear themselves, and the transmitter's is always empty.
        self.fcr = value & 0xC9 if value & 1 else 0
        self._fill()
        self._update()

    def _update_modem(self) -> None:
        """Set the modem lines as they are now, and which of them have changed."""
        if self.mcr & MCR_LOOP:
            mcr = self.mcr  # RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD
            lines = (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4
        else:
            lines = self.modem
        changed = (lines ^ self.msr) >> 4
        delta = changed & 0x0B
        if changed & 4 and not lines & MSR_RI:  # the trailing edge only
            delta |= 4
        self.msr = lines | self.msr & 0x0F | delta

    def _cause(self) -> int:
        """Return the interrupt of the highest priority, as IIR bits 0..3."""
        ier = self.ier
        if ier & IER_LINE and self.errors & LSR_ERRORS:
            return IIR_LINE
        if ier & IER_RECEIVED and self.count:
            full = self.count >= TRIGGER_LEVELS[self.fcr >> 6]
            return IIR_RECEIVED if full or not self.fcr & 1 else IIR_TIMEOUT
        if ier & IER_EMPTY and self.empty_pending:
            return IIR_EMPTY
        if ier & IER_MODEM and self.msr & 0x0F:
            return IIR_MODEM
        return IIR_NONE

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_EMPTY:
            self.empty_pending = 0
            self._update()
        return cause | IIR_FIFO if self.fcr & 1 else cause

    def _update(self) -> None:
        # In loopback the OUT2 pin is inactive whatever its bit says.
        gated = self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        line = gated and self._cause() != IIR_NONE
        if line != self.line:
            self.line = line
            self._irq(line)
