"""The stage of IA-32e mode: what stands on it, and how it comes alive.

Its kernel has a GDT and an LDT with descriptors of every kind, an IDT of 16-byte gates,
of which some have a stack of their own (IST), two TSSs, a handler of SYSCALL and page
tables of 4 levels. They map the first 2 MiB at 0, at ALIAS, at C0000000h, and all that
again in the upper half: at FFFFFF80_00000000h, FFFFFFFF_80000000h and so on. PML4
and page directory map themselves, too.
"""

import struct
from functools import cache
from typing import Final

from emu86.spec import x86
from emu86.testing.encode import i32, mov, mov64, push
from emu86.testing.stage import (
    BOOT,
    CODE,
    CODE0,
    CODE32_0,
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
    PDPT,
    PML4,
    PT,
    PT_B,
    STACK0,
    STACK3,
    SYSRET_CODE,
    TSS,
    TSS_B,
    State,
    descriptor,
    gate,
)

_USER: Final = x86.PTE_P | x86.PTE_RW | x86.PTE_US
_EFER: Final = x86.EFER_LME | x86.EFER_SCE | x86.EFER_NXE
_WIDE, _CODE32, _DATA = 0xA, 0xC, 0xC  # flags of a descriptor
_TSS_LIMIT: Final = 0xFFF  # the I/O bitmap ends with it, at port 7CC0h
_IST: Final = {x86.VEC_NMI: 2, x86.VEC_DF: 1, 0x86: 3}
_NO_64: Final = {  # gates that IA-32e mode does not take: Vol. 3A section 3.5
    0x81: x86.SYS_TASK_GATE, 0x82: x86.SYS_INT16, 0x85: x86.SYS_INT64,
}  # fmt: skip
FMASK: Final = x86.TF | x86.IF | x86.DF | x86.NT | x86.AC


def parts(state: State) -> list[tuple[int, bytes]]:
    """Return what stands where, but for the program and the state's patches."""
    code, starts = _handlers(state)
    gates = _gates(*starts[:2])
    return [
        (GDT, _descriptors()),
        (state.gdt, _descriptors()),
        (LDT, _descriptors()),
        (IDT, gates),
        (state.idt, gates),
        (TSS, _tss()),
        (TSS_B, _tss()[:0x68]),
        (HANDLERS, code),
        (GDTR_AT, struct.pack("<HQ", state.gdt_size - 1, state.gdt)),
        (IDTR_AT, struct.pack("<HQ", state.idt_size - 1, state.idt)),
        (COUNTER, bytes(4)),
        (BOOT, _boot(state, starts)),
        *_page_tables(large=state.large),
    ]


def wide(descriptor: bytes, high: int = 0) -> bytes:
    """Make a descriptor of 16 bytes of one of 8; high: bits 32 to 63 of its base."""
    return descriptor + struct.pack("<II", high & x86.MASK32, 0)


def gate64(selector: int, offset: int, kind: int, dpl: int = 0, ist: int = 0) -> bytes:
    """Encode a present gate of 16 bytes."""
    low = bytearray(gate(selector, offset & x86.MASK32, kind, dpl))
    low[4] = ist
    return wide(bytes(low), offset >> 32)


@cache
def _descriptors() -> bytes:
    flat = 0xFFFFF
    entries = [
        bytes(8),
        descriptor(0, flat, 0x9A, _WIDE),
        descriptor(0, flat, 0x92, _DATA),
        descriptor(0, flat, 0xFA, _WIDE),
        descriptor(0, flat, 0xF2, _DATA),
        wide(descriptor(TSS, _TSS_LIMIT, 0x89, 0)),
        descriptor(0, flat, 0xFA, _CODE32),
        wide(descriptor(LDT, 0xFF, 0x82, 0)),
        descriptor(0, flat, 0x9A, _CODE32),
        descriptor(0, flat, 0xBA, _WIDE),  # ring 1
        descriptor(0, flat, 0xB2, _DATA),
        descriptor(0, flat, 0xDA, _WIDE),  # ring 2
        descriptor(0, flat, 0xD2, _DATA),
        descriptor(CODE, 0xFFFF, 0x9A, 0),  # 16 bits
        descriptor(0, flat, 0x9E, _WIDE),  # conforming
        descriptor(0, flat, 0x1A, _WIDE),  # not present
        descriptor(0, flat, 0x98, _WIDE),  # execute only
        descriptor(0xC0000000, flat, 0xF2, _DATA),
        gate64(CODE0, HANDLERS, x86.SYS_CALL64, 3),
        wide(descriptor(TSS_B, 0x67, 0x89, 0)),
        descriptor(0, flat, 0xFA, _CODE32),  # for SYSRET
        descriptor(0, flat, 0xF2, _DATA),
        descriptor(0, flat, 0xFA, _WIDE),
    ]
    return b"".join(entries)


def _handlers(state: State) -> tuple[bytes, tuple[int, int, int]]:
    """Return the handlers' code and where they start.

    One is of events without an error code, one of those with one, one of SYSCALL.
    """
    count = b"\xff\x04\x25" + i32(COUNTER)  # inc dword [COUNTER]
    count += b"\x81\x3c\x25" + i32(COUNTER) + i32(state.limit)  # cmp
    count += b"\x72\x02\xfa\xf4"  # jb +2; cli; hlt
    plain = count + b"\x48\x83\x04\x24" + bytes([state.skip])  # add qword [rsp], skip
    plain += b"\x48\xcf"  # iretq
    error = b"\x48\x83\xc4\x08" + plain  # add rsp, 8
    call = count + b"\x48\x0f\x07"  # sysretq
    starts = HANDLERS, HANDLERS + len(plain), HANDLERS + len(plain) + len(error)
    return plain + error + call, starts


SYSTEM_CALLS: Final = _handlers(State(mode="long"))[1][2]  # where SYSCALL leads


@cache
def _gates(plain: int, error: int) -> bytes:
    table = b""
    for vector in range(256):
        kind = _NO_64.get(vector, x86.SYS_INT64 if vector & 1 else x86.SYS_TRAP64)
        selector = CODE32_0 if vector == 0x85 else CODE0
        start = error if vector in x86.PUSHES_ERROR else plain
        dpl = 3 if vector >= 0x60 or vector == x86.VEC_BP else 0
        table += gate64(selector, start, kind, dpl, _IST.get(vector, 0))
    return table


@cache
def _tss() -> bytes:
    stacks = [STACK0, STACK0 - 0x800, STACK0 - 0xC00, 0]  # RSP0 to RSP2
    # The IST; a CPU aligns what it finds there.
    stacks += [STACK0 - 0x1000 - 0x108 * i for i in range(7)]
    head = struct.pack("<I11QQHH", 0, *stacks, 0, 0, 0x68)
    return head.ljust(_TSS_LIMIT, b"\0") + b"\xff"


@cache
def _page_tables(*, large: bool) -> list[tuple[int, bytes]]:
    pages = MEMORY >> 12
    table = [i << 12 | _USER if i < pages + 4 else 0 for i in range(512)]
    own = (0, *range(IDT >> 12, (BOOT >> 12) + 1), PML4 >> 12, PDPT >> 12)
    for page in own:
        table[page] &= ~x86.PTE_US
    table[0x3F] &= ~x86.PTE_RW
    huge = _USER | x86.PDE_PS
    directory = [0] * 512
    directory[0] = PT | _USER
    directory[1] = PT_B | _USER
    directory[2] = huge if large else PT | _USER  # ALIAS
    directory[4] = 0xFEC00000 | huge | x86.PTE_G
    directory[6] = PT_B | _USER
    directory[7] = PT | _USER | x86.PTE_NX
    # A read and a write of its own entry see what the walk has just set.
    directory[511] = PD | _USER | x86.PTE_A | x86.PTE_D
    directory[510] = 0x80000000 | _USER  # a page table where no RAM is
    pointers = [0] * 512
    pointers[0] = pointers[3] = pointers[510] = pointers[511] = PD | _USER
    pointers[1] = huge if large else PD | _USER
    root = [0] * 512
    root[0] = root[511] = PDPT | _USER
    root[510] = PML4 | _USER | x86.PTE_A
    other = [
        (i * 7 % pages) << 12 | _USER | (i & 2) | (i & 0x100) | (i & 4) << 61
        for i in range(512)
    ]
    tables = ((PML4, root), (PDPT, pointers), (PD, directory), (PT, table))
    return [
        (at, struct.pack("<512Q", *entries)) for at, entries in (*tables, (PT_B, other))
    ]


def _wrmsr(number: int, value: int) -> bytes:
    low = mov(x86.ECX, number) + mov(x86.EAX, value)
    return low + mov(x86.EDX, value >> 32) + b"\x0f\x30"


def _boot(state: State, starts: tuple[int, int, int]) -> bytes:
    """Return the code that enters IA-32e mode and then the program."""
    out = b"\x0f\x01\x15" + i32(GDTR_AT)  # lgdt
    out += mov(x86.EAX, state.cr4 | x86.CR4_PAE) + b"\x0f\x22\xe0"
    out += mov(x86.EAX, PML4) + b"\x0f\x22\xd8"
    out += _wrmsr(x86.MSR_EFER, _EFER)
    bits = state.cr0 | x86.CR0_NE | x86.CR0_PG
    out += b"\x0f\x20\xc0\x0d" + i32(bits) + b"\x0f\x22\xc0"  # or eax, bits
    out += b"\xea" + struct.pack("<IH", BOOT + len(out) + 7, CODE0)
    out += mov(x86.EAX, DATA0) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x8e\xd0"
    out += mov(x86.ESP, STACK0)
    out += b"\x0f\x01\x1c\x25" + i32(IDTR_AT)  # lidt
    out += mov(x86.EAX, state.tr) + b"\x0f\x00\xd8"  # ltr ax
    out += mov(x86.EAX, state.ldtr) + b"\x0f\x00\xd0"  # lldt ax
    registers = {
        x86.MSR_STAR: SYSRET_CODE << 48 | CODE0 << 32,
        x86.MSR_LSTAR: starts[2],
        x86.MSR_CSTAR: starts[2],
        x86.MSR_FMASK: FMASK,
        x86.MSR_KERNEL_GS_BASE: DATA,
    }
    for number, value in registers.items():
        out += _wrmsr(number, value)
    stack = STACK3 if state.ring else STACK0
    frame = state.data, stack, state.flags, state.code, state.at
    out += b"".join(map(push, frame))
    if state.ring:
        out += mov(x86.EAX, state.data) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8"
    for i, name in enumerate(state.names):
        if i != x86.ESP:
            out += mov64(i, state.registers.get(name, 0))
    return out + b"\x48\xcf"
