"""Small guests in flat memory: a stack, an IDT and, if wanted, page tables.

A body starts in ring 0 at 100000h with interrupts off. An exception or interrupt that
it has no gate for ends the run with code BADh; `jmp fin` ends it with EAX.
"""

from emu86 import Machine
from emu86.machine.boot.placement import Placement
from support.assembler import assemble

MEMORY = 16 << 20
BAD = 0xBAD
COM1 = 0x3F8

_BEFORE = """
bits 32
org 0x100000
PD equ 0x200000
PT equ 0x201000
PD2 equ 0x202000
PT2 equ 0x203000
IDT equ 0x210000
%macro gate 2  ; vector, handler
    mov eax, %2
    mov [IDT + 8 * (%1)], ax
    shr eax, 16
    mov [IDT + 8 * (%1) + 6], ax
%endmacro
    mov esp, 0x90000
    lidt [idtr]
    mov edi, IDT
    mov ecx, 256
.gate:
    mov eax, bad
    mov [edi], ax
    mov word [edi + 2], cs
    mov word [edi + 4], 0x8e00
    shr eax, 16
    mov [edi + 6], ax
    add edi, 8
    loop .gate
"""

# The first 4 MiB map to themselves, in both page directories; CR0.WP is set.
_PAGING = """
G equ {g}
    mov edi, PT
    mov eax, 0x67 + G
    mov ecx, 1024
.map:
    stosd
    add eax, 4096
    loop .map
    mov edi, PT2
    mov esi, PT
    mov ecx, 1024
    rep movsd
    mov dword [PD], PT + 7
    mov dword [PD2], PT2 + 7
    mov eax, 0x90  ; PSE, PGE
    mov cr4, eax
    mov eax, PD
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80010000
    mov cr0, eax
"""

_AFTER = f"""
bad:
    mov eax, {BAD}
fin:
    out 0xf4, eax
    jmp $
idtr: dw 0x7ff
    dd IDT
"""

# 18h: a user's flat data. An event has a plan, so that the table has been read.
OWN_GDT = """
GDT equ 0x220000
    mov esi, table
    mov edi, GDT
    mov ecx, 8
    rep movsd
    lgdt [gdtr]
    jmp 8:here
    align 8
gdtr: dw 31
    dd GDT
table: dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff
event: iretd
here:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, IDT
    mov ecx, 256
.selector:
    mov word [edi + 2], 8
    add edi, 8
    loop .selector
    gate 0x40, event
"""


def flat(body, paging=None, **options):
    """A machine with this guest; paging: None, "local" or "global" pages."""
    tables = _PAGING.format(g=0x100 if paging == "global" else 0) if paging else ""
    built = Machine(memory=MEMORY, debug_exit=True, **options)
    built.load_flat(assemble(_BEFORE + tables + body + _AFTER), 0x100000)
    return built


def code(body, paging=None, **options):
    """The EAX that this guest ends with."""
    stop = flat(body, paging, **options).run(timeout=120)
    assert stop.reason == "debug exit", stop
    return stop.code


def guest(code, **options):
    """A machine with this code at 100000h."""
    built = Machine(memory=MEMORY, **options)
    built.load_flat(assemble(f"bits 32\norg 0x100000\n{code}"), 0x100000)
    return built


def guest64(code, **options):
    """A machine with this 64-bit code at 100000h, by identity, for ring 0 alone."""
    built = Machine(memory=MEMORY, cpu="atom", **options)
    places = Placement(built._ram.bytes)
    places.put("code", 0x100000, assemble(f"bits 64\norg 0x100000\n{code}"))
    built._enter(places.entry64(0x100000, {}))
    return built


def send(text):
    """Assembly: these characters go to COM1, each from a block of its own."""
    one = "mov al, {}\nout dx, al\njmp short $ + 2\n"
    return f"mov edx, {COM1}\n" + "".join(map(one.format, text))
