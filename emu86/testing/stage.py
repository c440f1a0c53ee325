"""The stage on which test programs play: tables, handlers, stacks, and a start.

A program stands at CODE. Its kernel has a GDT and an LDT with descriptors of every
kind, an IDT with gates of every kind, three TSSs and, if wanted, page tables that map
the first 4 MiB at 0, at ALIAS and at C0000000h. Handlers of exceptions count, skip a
few bytes of code and return; after `limit` exceptions they halt the machine.

`stage32` has what stands there in protected mode, `stage64` in IA-32e mode.
"""

import math
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Final, Literal, TypeGuard, get_args

from emu86.notebook import table
from emu86.spec import x86

MEMORY: Final = 0xA0000  # bytes of RAM: all there is below the PC's hole

# Guest-physical addresses, which are linear addresses, too.
IDT: Final = 0x10000
GDT: Final = 0x11000
LDT: Final = 0x12000
TSS: Final = 0x13000
TSS_B: Final = 0x14000
TSS16: Final = 0x14800
PD: Final = 0x15000
PT: Final = 0x16000
PT_B: Final = 0x17000
HANDLERS: Final = 0x18000
BOOT: Final = 0x19000
PML4: Final = 0x1A000  # in IA-32e mode
PDPT: Final = 0x1B000
COUNTER: Final = 0x1C000
STACK0: Final = 0x1F000
STACK3: Final = 0x2F000
CODE: Final = 0x40000
DATA: Final = 0x50000
TABLES: Final = (PD, PT, PT_B), (PML4, PDPT, PD, PT, PT_B)  # in IA-32e mode: root first
ALIAS: Final = 0x400000  # the second 4 MiB are the first again, if paging is on
OWN: Final = range(IDT, STACK3)  # the stage's: tables, handlers, boot code and stacks

# Selectors of the GDT; the LDT has the same descriptors.
CODE0: Final = 0x08
DATA0: Final = 0x10
CODE3: Final = 0x1B
DATA3: Final = 0x23
CODE_OF: Final = (CODE0, 0x49, 0x5A, CODE3)  # by ring
DATA_OF: Final = (DATA0, 0x51, 0x62, DATA3)
TSS_SELECTOR: Final = 0x28
TSS_B_SELECTOR: Final = 0x30
TSS16_SELECTOR: Final = 0x38
LDT_SELECTOR: Final = 0x40
LAST_SELECTOR: Final = 0xB8
# In IA-32e mode: as above, where nothing else is said.
CODE64_OF: Final = (CODE0, 0x59, 0x6A, CODE3)
DATA64_OF: Final = (DATA0, 0x61, 0x72, DATA3)
CODE32_0: Final = 0x50  # of compatibility mode
CODE32_3: Final = 0x3B
SYSRET_CODE: Final = 0xC3  # 32 bits; then SS and 64 bits, as SYSRET wants them
TSS_B64_SELECTOR: Final = 0xB0
LAST_SELECTOR64: Final = 0xD0

Mode = Literal["protected", "long", "compatibility"]
GDTR_AT: Final = BOOT + 0xF00
IDTR_AT: Final = BOOT + 0xF10
_GDT_SIZES: Final = LAST_SELECTOR + 8, LAST_SELECTOR64 + 8
_IDT_SIZES: Final = 0x800, 0x1000
_IN_HEX: Final = ("flags", "cr0", "cr4", "at", "gdt", "idt", "ldtr", "tr")


@dataclass(frozen=True)
class State:
    """Where a program starts.

    mode: of the program; that of its kernel is "protected" or, with the others, "long"
    (64-bit code in IA-32e mode); ring: 0 to 3, in compatibility mode 0 or 3; paging:
    whether it is on, which it always is in IA-32e mode; flags: EFLAGS, 32 bits (with VM
    set: virtual-8086 mode, where nothing but an end is seen of an event); registers:
    general registers by name ("eax", or "rax", "r8" in long mode), but ESP, which is
    the ring's stack; cr0: more bits of CR0; cr4: CR4; large: the second 4 MiB are one
    page (needs CR4.PSE), or in IA-32e mode two MiB there and the second GiB; at: where
    the program stands, not among what is the stage's OWN, with VM set a multiple of 16;
    skip: bytes
    of code that the handlers skip; limit: exceptions after which they halt; interrupts:
    pairs (instructions of the program, or of its handlers, run before it; vector, 0 to
    255), or None: there is no clock, so that RDTSC tells of the technique; gdt, idt:
    where these tables stand, at their own place or where a program may; ldtr, tr:
    selectors; patches: (address, bytes) put over the stage, for tables that are hostile
    or half valid. Raises ValueError.
    """

    mode: Mode = "protected"
    ring: int = 0
    paging: bool = False
    flags: int = x86.FLAGS_FIXED
    registers: dict[str, int] = field(default_factory=dict)
    cr0: int = 0
    cr4: int = 0
    large: bool = False
    at: int = CODE
    skip: int = 1
    limit: int = 20
    gdt: int = GDT
    idt: int = IDT
    ldtr: int = LDT_SELECTOR
    tr: int = TSS_SELECTOR
    interrupts: tuple[tuple[int, int], ...] | None = None
    patches: tuple[tuple[int, bytes], ...] = ()

    def _differs(self) -> Iterator[tuple[str, object]]:
        """Yield the fields, by name, that are not as in `State()`."""
        for one in fields(self):
            plain = {} if one.name == "registers" else one.default
            if (value := getattr(self, one.name)) != plain:
                yield one.name, value

    def __repr__(self) -> str:
        """Name what is not as it is without being asked for."""
        shown = (
            f"{name}={value:#x}" if name in _IN_HEX else f"{name}={value!r}"
            for name, value in self._differs()
        )
        return f"State({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """Show in a notebook what `repr` does."""
        return table("State", [(name, repr(value)) for name, value in self._differs()])

    def __post_init__(self) -> None:
        """Raise ValueError for a field that no stage can have."""
        __tracebackhide__ = True
        names = [name for i, name in enumerate(self.names) if i != x86.ESP]
        rings = (0, 3) if self.mode == "compatibility" else range(4)
        width = 64 if self.mode == "long" else 32
        word, selector, truth = "32 bits", "a selector", "True or False"
        free = "a free place on the stage"
        wanted = {
            "mode": (self.mode in get_args(Mode), " or ".join(get_args(Mode))),
            "ring": (self.ring in rings, "0 or 3" if len(rings) == 2 else "0 to 3"),
            "paging": (isinstance(self.paging, bool), truth),
            "registers": (
                are_registers(self.registers, names, 1 << width),
                f"{width} bits for each of {', '.join(names)}",
            ),
            "cr0": (_is_word(self.cr0), word),
            "cr4": (_is_word(self.cr4), word),
            "large": (isinstance(self.large, bool), truth),
            "gdt": (self.gdt == GDT or _is_free(self.gdt, self.gdt_size), free),
            "idt": (self.idt == IDT or _is_free(self.idt, self.idt_size), free),
            "ldtr": (is_number(self.ldtr, 1 << 16), selector),
            "tr": (is_number(self.tr, 1 << 16), selector),
            "flags": (_is_word(self.flags), word),
            "skip": (is_number(self.skip, 0x80), "0 to 127"),
            "limit": (is_number(self.limit, 1 << 31), "a number from 0 on"),
            "at": (_is_free(self.at, 1), free),
            "interrupts": (
                self.interrupts is None or _are_pairs(self.interrupts, _is_interrupt),
                "pairs of a number of instructions and a vector, 0 to 255",
            ),
            "patches": (
                _are_pairs(self.patches, _is_patch),
                "pairs of an address on the stage and bytes",
            ),
        }
        for name, (is_right, what) in wanted.items():
            if not is_right:
                message = f"{name}: {getattr(self, name)!r:.60} is not {what}"
                raise ValueError(message)
        if self.flags & x86.VM and self.at % 16:
            message = f"at: {self.at:#x} is no multiple of 16, with VM set"
            raise ValueError(message)
        if self.flags & x86.VM and self.is_long:
            message = "flags: VM is set, and IA-32e mode has no virtual-8086 mode"
            raise ValueError(message)

    @property
    def is_long(self) -> bool:
        """Whether the stage is one of IA-32e mode."""
        return self.mode != "protected"

    @property
    def bits(self) -> int:
        """The default size of the program's code: 16, 32, or 64 for long mode."""
        if self.mode == "long":
            return 64
        return 16 if self.flags & x86.VM else 32

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the program's general registers, as the SDM numbers them."""
        return x86.GPR_NAMES64 if self.mode == "long" else x86.GPR_NAMES

    @property
    def code(self) -> int:
        """The program's selector in CS."""
        if self.mode == "compatibility":
            return CODE32_3 if self.ring else CODE32_0
        return (CODE64_OF if self.is_long else CODE_OF)[self.ring]

    @property
    def data(self) -> int:
        """The program's selector in SS and the others."""
        return (DATA64_OF if self.is_long else DATA_OF)[self.ring]

    @property
    def gdt_size(self) -> int:
        """Bytes of the GDT."""
        return _GDT_SIZES[self.is_long]

    @property
    def idt_size(self) -> int:
        """Bytes of the IDT."""
        return _IDT_SIZES[self.is_long]


def is_number(value: object, end: float = math.inf) -> TypeGuard[int]:
    """Tell whether a value is an int from 0 up to `end`, which it is not itself."""
    return isinstance(value, int) and 0 <= value < end


def are_registers(value: object, names: Collection[str], end: int) -> bool:
    """Tell whether a value has nothing but numbers below `end`, by these names."""
    return isinstance(value, dict) and all(
        name in names and is_number(one, end) for name, one in value.items()
    )


def _is_word(value: object) -> bool:
    return is_number(value, 1 << 32)


def _are_pairs(value: object, is_one: Callable[[object, object], bool]) -> bool:
    return isinstance(value, tuple | list) and all(
        isinstance(one, tuple | list) and len(one) == 2 and is_one(*one)
        for one in value
    )


def _is_interrupt(count: object, vector: object) -> bool:
    return is_number(count) and is_number(vector, 256)


def _is_patch(at: object, data: object) -> bool:
    return isinstance(data, bytes) and is_number(at, MEMORY + 1 - len(data))


def _is_free(at: object, size: int) -> bool:
    """Tell whether `size` bytes at `at` are on the stage, and not among its own."""
    return is_number(at, MEMORY + 1 - size) and not meet(range(at, at + size), OWN)


def meet(one: range, other: range) -> bool:
    """Tell whether two ranges have something in common."""
    return max(one.start, other.start) < min(one.stop, other.stop)


def descriptor(base: int, limit: int, access: int, flags: int = 0xC) -> bytes:
    """Encode a descriptor; access: its byte 5; flags: G, D/B, L and AVL."""
    low = limit & 0xFFFF | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | access << 8 | limit & 0xF0000 | flags << 20
    return struct.pack("<II", low, high | base & 0xFF000000)


def gate(selector: int, offset: int, kind: int, dpl: int = 0) -> bytes:
    """Encode a present gate of system type `kind`."""
    offset &= x86.MASK32 if kind & 8 else 0xFFFF
    high = offset & 0xFFFF0000 | 0x8000 | dpl << 13 | kind << 8
    return struct.pack("<II", selector << 16 | offset & 0xFFFF, high)
