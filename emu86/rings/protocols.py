"""What rings/ needs from elsewhere: the board, and guest memory."""

from typing import Protocol

from emu86.mmu.ram import Ram


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
        """Write device memory, or where there is neither a device nor RAM."""
        ...

    def catch_up(self) -> None:
        """Hear of what compiled code has sent on a serial line."""
        ...

    def timer_changed(self) -> None:
        """Hear that compiled code has delivered the timer's interrupt, or set it."""
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


class LinearMemory(Protocol):
    """Guest memory by linear address, as emulated instructions read and write it.

    1 to 8 bytes; raises PageFault. ram: where it is; bytes: all of that. user: whether
    it is an access of an instruction at CPL 3; None: an implicit one of a supervisor.
    """

    ram: Ram
    bytes: memoryview

    def lookup(self, gva: int) -> int | None:
        """Return the GPA that the guest's tables give, without effects; or None."""
        ...

    def page_to_write(self, gva: int, *, user: bool | None = None) -> int:
        """Return the GPA of the page for a supervisor write; -1: use `write`.

        What is written there at once needs nothing else.
        """
        ...

    def translate(
        self, gva: int, *, write: bool = False, user: bool | None = None
    ) -> int:
        """Return the GPA of `gva`, setting accessed and dirty bits as accesses do."""
        ...

    def read(self, gva: int, size: int, *, user: bool | None = None) -> int:
        """Read `size` bytes."""
        ...

    def read32(self, gva: int) -> int:
        """Read a doubleword with supervisor rights."""
        ...

    def write(
        self, gva: int, value: int, size: int, *, user: bool | None = None
    ) -> None:
        """Write `size` bytes."""
        ...

    def write32(self, gva: int, value: int) -> None:
        """Write a doubleword with supervisor rights."""
        ...
