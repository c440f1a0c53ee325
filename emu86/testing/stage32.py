"""The stage of 32-bit protected mode: what stands on it, and how it comes alive."""

import struct
from functools import cache
from typing import Final

from emu86.spec import x86
from emu86.testing.encode import mov, push
from emu86.testing.stage import (
    BOOT,
    CODE,
    CODE0,
    COUNTER,
    DATA,
    DATA0,
    GDT,
    GDTR_AT,
    HANDLERS,
    IDT,
    IDTR_AT,
    LDT,
    MEMORY,
    PD,
    PT,
    PT_B,
    STACK0,
    STACK3,
    TSS,
    TSS16,
    TSS_B,
    TSS_B_SELECTOR,
    State,
    descriptor,
    gate,
)

_USER: Final = x86.PTE_P | x86.PTE_RW | x86.PTE_US


def parts(state: State) -> list[tuple[int, bytes]]:
    """Return what stands where, but for the program and the state's patches."""
    code, plain, error = _handlers(state)
    found = [
        (GDT, _descriptors()),
        (state.gdt, _descriptors()),
        (LDT, _descriptors()),
        (IDT, _gates(plain, error)),
        (state.idt, _gates(plain, error)),
        (TSS, _tss()),
        (TSS_B, _tss()),
        (TSS16, _tss16()),
        (HANDLERS, code),
        (GDTR_AT, struct.pack("<HI", state.gdt_size - 1, state.gdt)),
        (IDTR_AT, struct.pack("<HI", state.idt_size - 1, state.idt)),
        (COUNTER, bytes(4)),
        (BOOT, _boot(state)),
    ]
    if state.paging:
        found += _page_tables(large=state.large)
    return found


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
    out = b"\x0f\x01\x15" + struct.pack("<I", GDTR_AT)  # lgdt
    out += b"\xea" + struct.pack("<IH", BOOT + len(out) + 7, CODE0)
    out += mov(x86.EAX, DATA0) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x8e\xd0"
    out += mov(x86.ESP, STACK0)
    out += b"\x0f\x01\x1d" + struct.pack("<I", IDTR_AT)  # lidt
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
    frame = [state.flags, state.code, state.at]
    if state.ring:
        frame = [state.data, STACK3, *frame]
    out += b"".join(map(push, frame))
    if state.ring:
        out += mov(x86.EAX, state.data) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8"
    for i, name in enumerate(x86.GPR_NAMES):
        if i != x86.ESP:
            out += mov(i, state.registers.get(name, 0))
    return out + b"\xcf"
