"""Writes to the GDT by compiled code, where more than one thing says what they may."""

import pytest

from support.cases import TECHNIQUES
from support.flat import OWN_GDT, code

pytestmark = pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES)


@pytest.mark.parametrize("large", [False, True])
def test_it_is_written_by_another_address_of_the_same_entry(options, large):
    """Two PDEs for one page table, or for one page of 4 MiB."""
    pde = 0xE7 if large else "PT + 7"
    body = f"""
        mov dword [PD], {pde}
        mov eax, cr3
        mov cr3, eax
    {OWN_GDT}
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
    {OWN_GDT}
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
