"""The bus: which device answers at which address; and what a device may be.

A chip is ``Addressable``, ``Timed`` and ``Stateful``, each as far as it has it: the
board asks what it is.

One class serves the I/O ports and memory-mapped I/O, so what it routes by is called
an address. An attached address costs one dictionary entry: meant for registers, not
for frame buffers.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, runtime_checkable

BYTE_ONLY: Final = frozenset({1})


class Addressable(Protocol):
    """What the bus needs of whatever is attached to it.

    ``offset`` counts from the first attached address; ``width`` is 1, 2 or 4 bytes.
    Both methods take any offset within the attached range, any of the declared
    widths (1 always), and any value, at any time, and do not raise.

    A class may declare ``widths: frozenset[int]``, the access widths that it wants
    to see whole; without it, all registers are bytes.
    """

    def read(self, offset: int, width: int, now: int) -> int:
        """Read ``width`` bytes at ``offset``, little endian."""
        ...

    def write(self, offset: int, width: int, value: int, now: int) -> None:
        """Write the low ``width`` bytes of ``value`` at ``offset``."""
        ...


@runtime_checkable
class Timed(Protocol):
    """A chip that does something by itself, later.

    Between two calls of anything the lines of a chip do not move by themselves: they
    move in ``write`` (and ``read``, where reading acknowledges) and in ``advance``.
    Whoever runs the machine calls ``advance`` when ``deadline`` is due and asks for the
    deadline again after each access.

    A chip whose accesses move the deadline of another one, by a pin, names that one in
    an attribute ``drives``.
    """

    def deadline(self) -> int | None:
        """Absolute time, in ns, of the next thing it does by itself, or None."""
        ...

    def advance(self, now: int) -> None:
        """Time has come to ``now``: move the lines that have to move by then."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A chip that knows more than how it is wired."""

    def save(self) -> object:
        """Everything that the chip knows, as a frozen dataclass of plain data."""
        ...

    def restore(self, state: Any) -> None:  # noqa: ANN401  # its own State
        """Become the chip that ``save`` saw; lines are not moved in doing so."""
        ...


class Bus:
    """Routes reads and writes to the devices by address.

    Where no device is attached, reads give ones and writes are lost: an ISA bus
    floats high.
    """

    def __init__(self) -> None:
        """Make a bus with nothing on it."""
        self.attached: list[tuple[range, str]] = []
        """Address ranges and the names given with them, in order of attachment."""
        self._entries: dict[int, tuple[Addressable, str]] = {}
        self._reads: dict[int, Any] = {}
        self._writes: dict[int, Any] = {}

    def attach(self, addresses: range, device: Addressable, name: str) -> None:
        """Let ``device`` answer at ``addresses``.

        A range with a step leaves the addresses between to others; offsets count
        addresses all the same: ``range(0x60, 0x65, 4)`` gives offsets 0 and 4.

        Raises:
            ValueError: the range is empty, or another device is at one of them.

        """
        if not addresses or addresses.step < 1 or addresses[0] < 0:
            msg = f"{name}: {addresses} is no range of addresses"
            raise ValueError(msg)
        for address in addresses:
            if address in self._entries:
                msg = f"{name}: {address:#x} is taken by {self._entries[address][1]}"
                raise ValueError(msg)
        declared: frozenset[int] = getattr(device, "widths", BYTE_ONLY) | BYTE_ONLY
        first = addresses[0]
        for address in addresses:
            # A wide access that leaves the device is split, each byte to its own.
            widths = frozenset(
                width
                for width in declared
                if all(address + i in addresses for i in range(width))
            )
            self._entries[address] = (device, name)
            self._reads[address] = (device.read, address - first, widths)
            self._writes[address] = (device.write, address - first, widths)
        self.attached.append((addresses, name))

    def name(self, address: int) -> str | None:
        """Name of what is attached at ``address``, or None."""
        entry = self._entries.get(address)
        return None if entry is None else entry[1]

    def read(self, address: int, width: int, now: int) -> int:
        """Read ``width`` (1, 2 or 4) bytes at ``address``, little endian."""
        entry = self._reads.get(address)
        if entry is not None:
            read, offset, widths = entry
            if width in widths:
                value: int = read(offset, width, now)
                return value
        elif width == 1:
            return 0xFF
        value = 0
        for i in range(width):
            value |= self.read(address + i, 1, now) << (8 * i)
        return value

    def write(self, address: int, width: int, value: int, now: int) -> None:
        """Write the low ``width`` (1, 2 or 4) bytes of ``value`` at ``address``."""
        entry = self._writes.get(address)
        if entry is not None:
            write, offset, widths = entry
            if width in widths:
                write(offset, width, value, now)
                return
        elif width == 1:
            return
        for i in range(width):
            self.write(address + i, 1, (value >> (8 * i)) & 0xFF, now)
