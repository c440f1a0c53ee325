"""One segment descriptor or gate: SDM Vol. 3A sections 3.4.5, 3.5 and 5.8.3.

It has 8 bytes; in IA-32e mode a gate or a system segment has 16.
"""

from emu86.spec import x86


def is_flat(limit: int, attributes: int) -> bool:
    """Tell whether a segment, as a register holds it, forbids no access to memory.

    Of a code segment no store, that is: data, 4 GiB, writable; or code, readable.
    """
    kind = attributes & (x86.DESC_P | x86.DESC_CODE | x86.DESC_RW | x86.DESC_CE)
    if kind & x86.DESC_CODE:
        kind &= ~(x86.DESC_CODE | x86.DESC_CE)
    return limit == x86.MASK32 and kind == x86.DESC_P | x86.DESC_RW


def exceeds(limit: int, attributes: int, offset: int, size: int) -> bool:
    """Tell whether an access goes beyond a segment's limit: SDM Vol. 3A section 5.3.

    One that goes over 4 GiB exceeds no limit of FFFFFFFFh, as on Intel's CPUs.
    """
    if attributes & (x86.DESC_CODE | x86.DESC_CE) != x86.DESC_CE:
        return limit != x86.MASK32 and offset + size - 1 > limit
    top = x86.MASK32 if attributes & x86.DESC_B else 0xFFFF
    return offset <= limit or offset + size - 1 > top


class Descriptor:
    """One descriptor: base 32 bits, limit in bytes, attributes in place.

    upper: its third doubleword in IA-32e mode, where a system segment's base and a
    gate's offset have 64 bits.
    """

    __slots__ = ("attributes", "base", "high", "limit", "low", "upper")

    def __init__(self, low: int, high: int, upper: int = 0) -> None:
        self.low = low
        self.high = high
        self.upper = upper
        self.base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000 | upper << 32
        limit = low & 0xFFFF | high & 0xF0000
        self.limit = limit << 12 | 0xFFF if high & x86.DESC_G else limit
        self.attributes = high & x86.DESC_ATTRIBUTES

    @property
    def dpl(self) -> int:
        """Descriptor privilege level, 0 to 3."""
        return self.high >> x86.DESC_DPL_SHIFT & 3

    @property
    def present(self) -> bool:
        """The P bit."""
        return bool(self.high & x86.DESC_P)

    @property
    def system(self) -> int:
        """The system type (0 to 15), or -1 for a code or data segment."""
        return -1 if self.high & x86.DESC_S else self.high >> 8 & 15

    @property
    def code(self) -> bool:
        """Whether it is a code segment."""
        both = x86.DESC_S | x86.DESC_CODE
        return self.high & both == both

    @property
    def conforming(self) -> bool:
        """Whether it is a conforming code segment."""
        return self.code and bool(self.high & x86.DESC_CE)

    @property
    def readable(self) -> bool:
        """Whether data can be read through it."""
        return self.system < 0 and (not self.code or bool(self.high & x86.DESC_RW))

    @property
    def code64(self) -> bool:
        """Whether it is, in IA-32e mode, a segment of 64-bit code."""
        return self.code and bool(self.high & x86.DESC_L)

    @property
    def offset(self) -> int:
        """Where a gate of 32 or 64 bits leads to."""
        return self.low & 0xFFFF | self.high & 0xFFFF0000 | self.upper << 32

    @property
    def writable(self) -> bool:
        """Whether it is a data segment that can be written."""
        return self.system < 0 and not self.code and bool(self.high & x86.DESC_RW)
