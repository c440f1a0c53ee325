"""The stage on which test programs play: tables, handlers, stacks, and a start.

A program stands at CODE. Its kernel has a GDT and an LDT with descriptors of every
kind, an IDT with gates of every kind, three TSSs and, if wanted, page tables that map
the first 4 MiB at 0, at ALIAS and at C0000000h. Handlers of exceptions count, skip a
few bytes of code and return; after `limit` exceptions they halt the machine.
"""

import math
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Final, TypeGuard

from emu86.notebook import table
from emu86.spec import x86
from emu86.testing.encode import mov, push

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
COUNTER: Final = 0x1C000
STACK0: Final = 0x1F000
STACK3: Final = 0x2F000
CODE: Final = 0x40000
DATA: Final = 0x50000
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

_GDT_SIZE: Final = LAST_SELECTOR + 8
_IDT_SIZE: Final = 0x800
_GDTR_AT: Final = BOOT + 0xF00
_IDTR_AT: Final = BOOT + 0xF08
_FILLER: Final = b"\xcc"  # what RAM holds elsewhere: INT3, so that a lost program ends
_IN_HEX: Final = ("flags", "cr0", "cr4", "at", "gdt", "idt", "ldtr", "tr")
_USER: Final = x86.PTE_P | x86.PTE_RW | x86.PTE_US


@dataclass(frozen=True)
class State:
    """Where a program starts.

    ring: 0 to 3; paging: whether it is on; flags: EFLAGS, 32 bits (with VM set:
    virtual-8086 mode, where nothing but an end is seen of an event); registers: general
    registers by name, but ESP, which is the ring's stack; cr0: more bits of CR0; cr4:
    CR4; large: the second 4 MiB are one page (needs CR4.PSE); at: where the program
    stands, not among what is the stage's OWN, with VM set a multiple of 16; skip: bytes
    of code that the handlers skip; limit: exceptions after which they halt; interrupts:
    pairs (instructions of the program, or of its handlers, run before it; vector, 0 to
    255), or None: there is no clock, so that RDTSC tells of the technique; gdt, idt:
    where these tables stand, at their own place or where a program may; ldtr, tr:
    selectors; patches: (address, bytes) put over the stage, for tables that are hostile
    or half valid. Raises ValueError.
    """

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
        names = [name for name in x86.GPR_NAMES if name != "esp"]
        word, selector, truth = "32 bits", "a selector", "True or False"
        free = "a free place on the stage"
        wanted = {
            "ring": (is_number(self.ring, 4), "0 to 3"),
            "paging": (isinstance(self.paging, bool), truth),
            "registers": (
                are_registers(self.registers, names, 1 << 32),
                f"32 bits for each of {', '.join(names)}",
            ),
            "cr0": (_is_word(self.cr0), word),
            "cr4": (_is_word(self.cr4), word),
            "large": (isinstance(self.large, bool), truth),
            "gdt": (self.gdt == GDT or _is_free(self.gdt, _GDT_SIZE), free),
            "idt": (self.idt == IDT or _is_free(self.idt, _IDT_SIZE), free),
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
    return is_number(at, MEMORY + 1 - size) and not _meet(range(at, at + size), OWN)


def _meet(one: range, other: range) -> bool:
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


def image(program: bytes, state: State) -> bytes:
    """Return all of RAM: the stage, set up for `state`, with the program on it.

    Raises ValueError if the program reaches beyond what is free from `state.at` on.
    """
    __tracebackhide__ = True
    place = range(state.at, state.at + len(program))
    gdt = range(state.gdt, state.gdt + _GDT_SIZE)
    idt = range(state.idt, state.idt + _IDT_SIZE)
    if place.stop > MEMORY or any(_meet(place, other) for other in (OWN, gdt, idt)):
        where = f"{len(program)} bytes at {state.at:#x}"
        message = f"program: {where} are not on the stage, or not free there"
        raise ValueError(message)
    ram = bytearray(_FILLER * MEMORY)
    code, plain, error = _handlers(state)
    parts = [
        (GDT, _descriptors()),
        (state.gdt, _descriptors()),
        (LDT, _descriptors()),
        (IDT, _gates(plain, error)),
        (state.idt, _gates(plain, error)),
        (TSS, _tss()),
        (TSS_B, _tss()),
        (TSS16, _tss16()),
        (HANDLERS, code),
        (_GDTR_AT, struct.pack("<HI", _GDT_SIZE - 1, state.gdt)),
        (_IDTR_AT, struct.pack("<HI", _IDT_SIZE - 1, state.idt)),
        (COUNTER, bytes(4)),
        (BOOT, _boot(state)),
        (state.at, program),
    ]
    if state.paging:
        parts += _page_tables(large=state.large)
    for at, data in (*parts, *state.patches):
        ram[at : at + len(data)] = data
    return bytes(ram[:MEMORY])


@cache
def _descriptors() -> bytes:
    flat = 0xFFFFF
    entries = [
        bytes(8),
        descriptor(0, flat, 0x9A),
        descriptor(0, flat, 0x92),
        descriptor(0, flat, 0xFA),
        descriptor(0, flat, 0xF2),
        descriptor(TSS, 0x2067, 0x89, 0),
        descriptor(TSS_B, 0x67, 0xE9, 0),
        descriptor(TSS16, 0x2B, 0xE1, 0),
        descriptor(LDT, 0xFF, 0x82, 0),
        descriptor(0, flat, 0xBA),  # ring 1
        descriptor(0, flat, 0xB2),
        descriptor(0, flat, 0xDA),  # ring 2
        descriptor(0, flat, 0xD2),
        descriptor(CODE, 0xFFFF, 0x9A, 0),  # 16 bits
        descriptor(DATA, 0xFFFF, 0x92, 0),
        descriptor(0, flat, 0x9E),  # conforming
        descriptor(0, flat, 0x1A),  # not present
        descriptor(0, flat, 0x98),  # execute only
        descriptor(0xC0000000, flat, 0x9B),  # bases that wrap
        descriptor(0xFFFFF000, flat, 0x93),
        gate(CODE0, HANDLERS, x86.SYS_CALL32, 3)[:4] + struct.pack("<I", 0xEC02),
        gate(0x6B, CODE, x86.SYS_CALL16, 3),
        gate(TSS_B_SELECTOR, 0, x86.SYS_TASK_GATE, 3),
        descriptor(0, flat, 0xFE),  # conforming, ring 3
    ]  # fmt: skip
    return b"".join(entries)


def _handlers(state: State) -> tuple[bytes, int, int]:
    """Return the handlers' code and where two start: without error code, and with."""
    tail = b"\x36\xff\x05" + struct.pack("<I", COUNTER)  # inc dword [ss:COUNTER]
    tail += b"\x36\x81\x3d" + struct.pack("<II", COUNTER, state.limit)  # cmp
    tail += b"\x72\x02\xfa\xf4"  # jb +2; cli; hlt
    tail += b"\x36\x83\x04\x24" + bytes([state.skip])  # add dword [ss:esp], skip
    tail += b"\xcf"  # iret
    error = b"\x83\xc4\x04" + tail  # add esp, 4
    return tail + error, HANDLERS, HANDLERS + len(tail)


@cache
def _gates(plain: int, error: int) -> bytes:
    table = b""
    for vector in range(256):
        if vector == 0x81:
            table += gate(TSS_B_SELECTOR, 0, x86.SYS_TASK_GATE, 3)
        elif vector == 0x82:
            table += gate(CODE0, HANDLERS & 0xFFFF, x86.SYS_INT16, 3)
        else:
            start = error if vector in x86.PUSHES_ERROR else plain
            kind = x86.SYS_INT32 if vector & 1 else x86.SYS_TRAP32
            dpl = 3 if vector >= 0x60 or vector == x86.VEC_BP else 0
            table += gate(CODE0, start, kind, dpl)
    return table


def _tss() -> bytes:
    fields = [0, STACK0, DATA0, STACK0 - 0x800, 0x51, STACK0 - 0xC00, 0x62, PD]
    fields += [HANDLERS, 2, 0, 0, 0, 0, STACK0 - 0x400, 0, 0, 0]
    fields += [DATA0, CODE0, DATA0, DATA0, DATA0, DATA0, 0, 0x68 << 16]
    return struct.pack("<26I", *fields) + bytes(0x2000) + b"\xff"


def _tss16() -> bytes:
    fields = [0, 0xF000, 0x70, 0, 0, 0, 0, 0x100, 2, 0, 0, 0, 0, 0xE000, 0, 0, 0]
    return struct.pack("<22H", *fields, 0x70, 0x68, 0x70, 0x70, 0)


@cache
def _page_tables(*, large: bool) -> list[tuple[int, bytes]]:
    pages = MEMORY >> 12
    table = [i << 12 | _USER if i < pages + 4 else 0 for i in range(1024)]
    for page in (0, *range(IDT >> 12, (BOOT >> 12) + 1)):
        table[page] &= ~x86.PTE_US
    table[0x3F] &= ~x86.PTE_RW
    directory = [0] * 1024
    directory[0] = PT | _USER
    directory[1] = _USER | x86.PDE_PS if large else PT | _USER
    directory[2] = 0xFEC00000 | _USER | x86.PDE_PS | x86.PTE_G
    directory[3] = PT_B | _USER
    directory[0x300] = PT | _USER | x86.PTE_G
    # A read and a write of its own entry see what the walk has just set.
    directory[0x3FF] = PD | _USER | x86.PTE_A | x86.PTE_D
    directory[0x3FE] = 0x80000000 | _USER  # a page table where no RAM is
    other = [(i * 7 % pages) << 12 | _USER | (i & 2) | (i & 0x100) for i in range(1024)]
    tables = ((PD, directory), (PT, table), (PT_B, other))
    return [(at, struct.pack("<1024I", *entries)) for at, entries in tables]


def _boot(state: State) -> bytes:
    """Return the code that switches to the tables and then to the program."""
    out = b"\x0f\x01\x15" + struct.pack("<I", _GDTR_AT)  # lgdt
    out += b"\xea" + struct.pack("<IH", BOOT + len(out) + 7, CODE0)
    out += mov(x86.EAX, DATA0) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x8e\xd0"
    out += mov(x86.ESP, STACK0)
    out += b"\x0f\x01\x1d" + struct.pack("<I", _IDTR_AT)  # lidt
    out += mov(x86.EAX, state.tr) + b"\x0f\x00\xd8"  # ltr ax
    out += mov(x86.EAX, state.ldtr) + b"\x0f\x00\xd0"  # lldt ax
    out += mov(x86.EAX, state.cr4) + b"\x0f\x22\xe0"
    out += mov(x86.EAX, PD) + b"\x0f\x22\xd8\x0f\x20\xc0\x0d"
    bits = state.cr0 | x86.CR0_NE | (x86.CR0_PG if state.paging else 0)
    out += struct.pack("<I", bits) + b"\x0f\x22\xc0"  # or eax, bits; mov cr0, eax
    if state.flags & x86.VM:
        # GS to ES, SS, ESP, EFLAGS, CS, EIP: Vol. 3B section 20.2.2
        frame = [
            0,
            0,
            0,
            0,
            STACK3 >> 4 & 0xF000,
            0xF000,
            state.flags,
            state.at >> 4,
            0,
        ]
        return out + b"".join(map(push, frame)) + b"\xcf"
    frame = [state.flags, CODE_OF[state.ring], state.at]
    if state.ring:
        frame = [DATA_OF[state.ring], STACK3, *frame]
    out += b"".join(map(push, frame))
    if state.ring:
        out += mov(x86.EAX, DATA_OF[state.ring]) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8"
    for i, name in enumerate(x86.GPR_NAMES):
        if i != x86.ESP:
            out += mov(i, state.registers.get(name, 0))
    return out + b"\xcf"
