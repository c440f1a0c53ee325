"""What a monitor needs from elsewhere: the board, guest memory, and those who watch."""

from typing import Protocol


class IoBus(Protocol):
    """What the VMM needs of the board: ports and memory-mapped I/O."""

    def port_read(self, port: int, width: int) -> int:
        """Read a port, `width` 1, 2 or 4 bytes."""
        ...

    def port_write(self, port: int, width: int, value: int) -> None:
        """Write a port."""
        ...

    def mmio_read(self, gpa: int, width: int) -> bytes:
        """Read device memory."""
        ...

    def mmio_write(self, gpa: int, data: bytes) -> None:
        """Write device memory."""
        ...

    def coprocessor_error(self) -> None:
        """Raise the FERR# line (IRQ 13)."""
        ...


class Interrupts(Protocol):
    """The interrupt controller as the CPU's INTR and INTA pins see it."""

    intr: bool

    def acknowledge(self) -> int:
        """Take the interrupt that `intr` announces; return its vector."""
        ...


class Observer(Protocol):
    """What may watch a VMM; all of it is told after the fact."""

    def vm_exit(self, reason: str, cs: int, eip: int) -> None:
        """Tell of an exit: its reason, and where the guest is afterwards."""
        ...

    def inject(self, vector: int, error: int | None) -> None:
        """Tell of an event on its way through the guest's IDT."""
        ...

    def shadow_fill(self, gva: int) -> None:
        """Tell of a shadow entry made for `gva`."""
        ...

    def pio(self, port: int, width: int, value: int, write: bool) -> None:
        """Tell of a port access."""
        ...


class LinearMemory(Protocol):
    """Guest memory by linear address, as the delivery of events reads and writes it.

    1 to 4 bytes, with supervisor or user rights; raises PageFault.
    """

    def translate(self, gva: int, *, write: bool = False, user: bool = False) -> int:
        """Return the GPA of `gva`, setting accessed and dirty bits as accesses do."""
        ...

    def read(self, gva: int, size: int, *, user: bool = False) -> int:
        """Read `size` bytes."""
        ...

    def read32(self, gva: int) -> int:
        """Read a doubleword with supervisor rights."""
        ...

    def write(self, gva: int, value: int, size: int, *, user: bool = False) -> None:
        """Write `size` bytes."""
        ...

    def write32(self, gva: int, value: int) -> None:
        """Write a doubleword with supervisor rights."""
        ...
