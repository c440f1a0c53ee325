"""Writes to the GDT by compiled code, where more than one thing says what they may."""

import pytest

from support.cases import TECHNIQUES
from support.flat import code

pytestmark = pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES)

# 18h: a user's flat data. An event has a plan, so that the table has been read.
TABLE = """
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


@pytest.mark.parametrize("large", [False, True])
def test_it_is_written_by_another_address_of_the_same_entry(options, large):
    """Two PDEs for one page table, or for one page of 4 MiB."""
    pde = 0xE7 if large else "PT + 7"
    body = f"""
        mov dword [PD], {pde}
        mov eax, cr3
        mov cr3, eax
    {TABLE}
        mov dword [PD + 4], {pde}
        mov dword [0x91000], 1
        mov dword [0x92000], 2
        mov dword [0x93000], 3
        mov ebp, 3
    .again:
        int 0x40
        mov word [GDT + 26], 0x1000
        mov word [GDT + 0x400000 + 26], 0x2000
        mov eax, 0x1b
        mov fs, eax
        mov esi, [fs:0x90000]
        mov word [GDT + 0x400000 + 26], 0x3000
        mov fs, eax
        mov edi, [fs:0x90000]
        dec ebp
        jnz .again
        shl edi, 4
        lea eax, [edi + esi]
        jmp fin
    """
    assert code(body, "global", **options) == 0x32


def test_without_pse_a_pde_is_never_that_of_a_large_page(options):
    """Bits 6 and 7 of it say nothing then: the PTE forbids the write."""
    body = f"""
    {TABLE}
        gate 14, fault
        mov eax, cr4
        and eax, ~0x10
        mov cr4, eax
        or dword [PD], 0xe0
        mov eax, cr3
        mov cr3, eax
        and dword [PT + 0x220 * 4], ~2
        mov ebx, GDT
        invlpg [ebx]
        xor ebp, ebp
        int 0x40
        mov ebx, [GDT]
        mov ecx, 3
    .again:
        db 0xc7, 5  ; mov dword [GDT + 26], 0x1000
        dd GDT + 26, 0x1000
        loop .again
        mov eax, ebp
        jmp fin
    fault:
        inc ebp
        add dword [esp + 4], 10
        add esp, 4
        iretd
    """
    assert code(body, "global", **options) == 3
