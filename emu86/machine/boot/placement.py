"""Guest RAM as a boot loader sees it: a memory map, and places not yet taken."""

from bisect import bisect
from dataclasses import dataclass
from typing import Final

from emu86.config import HIGH, LOW_MOST
from emu86.errors import ConfigError
from emu86.spec import x86

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE: Final = 4096

# Types of a memory map entry, as INT 15h function E820h reports them
# (ACPI specification, "System Address Map Interfaces", address range types).
USABLE: Final = 1
RESERVED: Final = 2

LOW_END: Final = 0x9FC00
"""End of what a guest may take for its own: the KiB above is the extended BIOS data
area of a PC."""

ADAPTERS: Final = 0xA0000
"""From here to 1 MiB there is no memory: display memory and ROM."""

_FIRST_FREE: Final = 0x1000
# Page 0 holds the real-mode interrupt vectors and the BIOS data area.

# Flat 4 GiB segments: present, DPL 0, 32-bit, granularity 4 KiB, and accessed already,
# so that the first load needs no write (SDM Vol. 3A, 3.4.5 "Segment Descriptors").
_FLAT_CODE: Final = 0x00CF_9B00_0000_FFFF
_FLAT_DATA: Final = 0x00CF_9300_0000_FFFF
_FLAT_CODE64: Final = 0x00AF_9B00_0000_FFFF
_TABLES: Final = 6  # pages: a PML4, a page-directory-pointer table, 4 directories
_CS: Final = 0x10  # Linux's __BOOT_CS
_DS: Final = 0x18  # Linux's __BOOT_DS


@dataclass(frozen=True, slots=True)
class Entry:
    """How a loaded guest wants to be started, with flat segments and interrupts off.

    It is in 32-bit protected mode with paging off; or in 64-bit mode, if `cr3` is not
    0: the guest-physical address of page tables that are in RAM already. `registers`
    gives general registers by lower-case name ("eax"); those not named are 0. The GDT
    is in RAM, too: `gdt_base` is its guest-physical address, `gdt_limit` its length in
    bytes less 1. `cs` is the selector for CS, `ds` that for DS, ES, FS, GS and SS.
    """

    eip: int
    registers: dict[str, int]
    gdt_base: int
    gdt_limit: int
    cs: int
    ds: int
    cr3: int = 0


def memory_map(ram_size: int) -> list[tuple[int, int, int]]:
    """What lies where in `ram_size` bytes of RAM, as (base, length, type) entries."""
    entries = [(0, LOW_END, USABLE), (LOW_END, MIB - LOW_END, RESERVED)]
    low = min(ram_size, LOW_MOST)
    if low > MIB:
        entries.append((MIB, low - MIB, USABLE))
    if ram_size > low:
        entries.append((HIGH, ram_size - low, USABLE))
    return entries


def human(size: int) -> str:
    """`size` bytes for a person, with a unit, never rounded down."""
    if size < MIB:
        return f"{-(-size // KIB)} KiB" if size >= KIB else f"{size} bytes"
    if size < GIB or size % GIB:
        return f"{-(-size // MIB)} MiB"
    return f"{size // GIB} GiB"


class Placement:
    """Puts the parts of a guest into RAM, each where nothing else is.

    A part is called by its role ("kernel", "initrd") in the ConfigError that says why
    it cannot be put there. ram: of guest-physical memory what is below 4 GiB; memory:
    bytes of RAM in all.
    """

    def __init__(self, space: memoryview) -> None:
        """Place parts in guest-physical memory, holes included."""
        self.ram = space[:LOW_MOST]
        self.memory = len(self.ram) + max(len(space) - HIGH, 0)
        self._taken: list[tuple[int, int]] = []  # (start, end), sorted, never empty

    def reserve(self, role: str, address: int, size: int) -> None:
        """Take [address, address + size) for `role`, or say why it cannot be had."""
        end = address + size
        if end > len(self.ram):
            has = human(len(self.ram))
            if self.memory > len(self.ram):
                has += " below 4 GiB"
            raise ConfigError(
                f"{role}: does not fit: needs {human(end)} of memory,"
                f" the machine has {has}"
            )
        if size and address < MIB and end > ADAPTERS:
            raise ConfigError(
                f"{role}: wants {address:#x}-{end:#x}, where a PC has no memory"
                f" between {ADAPTERS:#x} and {MIB:#x}"
            )
        self.lose(role, address, size)

    def lose(self, role: str, address: int, size: int) -> None:
        """Take [address, address + size), memory or not, for what is not put there."""
        end = address + size
        if not size:
            return
        at = bisect(self._taken, (address, end))
        # Of what is taken only the neighbours can overlap it.
        if (at and self._taken[at - 1][1] > address) or (
            at < len(self._taken) and self._taken[at][0] < end
        ):
            raise ConfigError(
                f"{role}: wants {address:#x}-{end:#x}, which is taken already"
            )
        self._taken.insert(at, (address, end))

    def put(self, role: str, address: int, data: bytes | memoryview) -> None:
        """Reserve the room for `data` at `address` and write it there."""
        self.reserve(role, address, len(data))
        self.ram[address : address + len(data)] = data

    def put_zeros(self, role: str, address: int, size: int) -> None:
        """Reserve `size` bytes at `address` and clear them."""
        self.reserve(role, address, size)
        # A file can ask for gigabytes of zeros, and memory that nobody has written to
        # costs the host nothing as long as nobody writes.
        for start in range(address, address + size, MIB):
            piece = self.ram[start : min(start + MIB, address + size)]
            if bytes(piece) != bytes(len(piece)):
                piece[:] = bytes(len(piece))

    def put_low(self, role: str, data: bytes, alignment: int = 16) -> int:
        """Write `data` at the lowest free place below 640 KiB; return its address."""
        address = _FIRST_FREE
        for start, end in self._taken:
            if address + len(data) <= start:
                break
            address = max(address, (end + alignment - 1) & -alignment)
        if address + len(data) > LOW_END:
            raise ConfigError(f"{role}: no room for it below 640 KiB")
        self.put(role, address, data)
        return address

    def put_high(self, role: str, data: bytes, limit: int) -> int:
        """Write `data` at the highest free page that ends by `limit`; return it."""
        end = min(limit, len(self.ram))
        for start, taken_end in reversed(self._taken):
            if taken_end <= self._page_below(end, data):
                break
            end = min(end, start)
        address = self._page_below(end, data)
        if address < MIB:
            raise ConfigError(
                f"{role}: its {human(len(data))} do not fit beside the kernel"
                f" in {human(len(self.ram))} of memory"
            )
        self.put(role, address, data)
        return address

    def entry(self, eip: int, registers: dict[str, int]) -> Entry:
        """Write a flat GDT and return the Entry at `eip` with these registers."""
        return self._entry(eip, registers, _FLAT_CODE, 0)

    def entry64(self, rip: int, registers: dict[str, int]) -> Entry:
        """As `entry`, in 64-bit mode: with page tables, for the lowest 4 GiB."""
        at = self.put_low("page tables", bytes(_TABLES * PAGE), PAGE)
        tables = self.ram[at : at + _TABLES * PAGE].cast("Q")
        rights = x86.PTE_P | x86.PTE_RW
        tables[0] = at + PAGE | rights
        for i in range(4):
            tables[512 + i] = at + (2 + i) * PAGE | rights
        for i in range(4 * 512):
            tables[1024 + i] = i << 21 | rights | x86.PDE_PS
        return self._entry(rip, registers, _FLAT_CODE64, at)

    def _entry(self, rip: int, registers: dict[str, int], code: int, cr3: int) -> Entry:
        descriptors = (0, 0, code, _FLAT_DATA)
        gdt = b"".join(one.to_bytes(8, "little") for one in descriptors)
        base = self.put_low("GDT", gdt)
        return Entry(rip, registers, base, len(gdt) - 1, _CS, _DS, cr3)

    @staticmethod
    def _page_below(end: int, data: bytes) -> int:
        return (end - len(data)) & -PAGE
