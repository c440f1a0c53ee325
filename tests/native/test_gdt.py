"""Writes to the GDT by compiled code, where more than one thing says what they may."""

import pytest

from emu86.spec import x86
from support.cases import TECHNIQUES
from support.flat import OWN_GDT, code, guest64

each = pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES)


@each
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


@each
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


@pytest.mark.parametrize("native", [True, False])
def test_that_of_64_bit_code(native):
    """It is written and read again by compiled code alone, by a page of 2 MiB."""
    machine = guest64(
        """
        mov rsp, 0x130000
        mov rbx, 0x00AF9B000000FFFF
        mov [0x160008], rbx
        mov [0x160010], rbx
        mov rbx, 0x00CF93000000FFFF
        mov [0x160018], rbx
        mov rbx, 0x00CFF3000000FFFF
        mov [0x160020], rbx
        lgdt [gdtr]
        lidt [idtr]
        mov dword [0x170000 + 16 * 0x40], 0x00080000 | (event - $$) & 0xFFFF
        mov dword [0x170004 + 16 * 0x40], 0x00108E00
        mov dword [0x91000], 1
        mov dword [0x92000], 2
        mov ebp, 20
        mov eax, 0x23
    .again:
        int 0x40
        mov word [0x160022], 0x1000
        int 0x40
        mov fs, eax
        mov esi, [fs:0x90000]
        mov word [0x160022], 0x2000
        int 0x40
        mov fs, eax
        mov edi, [fs:0x90000]
        dec ebp
        jnz .again
        cli
        hlt
    event: iretq
    align 8
    gdtr: dw 39
        dq 0x160000
    idtr: dw 0xFFF
        dq 0x170000
        """,
        native=native,
    )
    assert machine.run(timeout=60).reason == "halted"
    assert (machine.vmm.q[x86.ESI], machine.vmm.q[x86.EDI]) == (1, 2)
    assert machine.vmm.all_exits()["#PF fill"][0] > 40
    assert machine.vmm.exits["#PF fill"][0] < 10


@each
def test_another_page_stands_there_by_a_cr3_when_python_hears_of_a_write(options):
    """The page that was written is told, not the one that is the GDT's since."""
    body = f"""
    {OWN_GDT}
        mov esi, GDT
        mov edi, 0x230000
        mov ecx, 1024
        rep movsd
        mov dword [0x91000], 1
        mov dword [0x92000], 2
        mov dword [0x93000], 3
        mov ebp, 12
        mov ecx, 0x1000
    .again:
        mov ebx, 0x220067
        cmp ebp, 1
        jne .same
        mov ebx, 0x230067
        mov ecx, 0x2000
    .same:
        mov eax, PD2
        mov cr3, eax
        mov eax, 0x1b
        mov fs, eax
        int 0x40
        mov edx, PD
        mov word [GDT + 26], cx  ; opened by compiled code
        mov cr3, edx             ; compiled
        mov dword [PT + 0x220 * 4], ebx
        mov al, 1
        out 0x70, al             ; Python hears
        mov eax, PD2
        mov cr3, eax             ; the GDT is at 220000h again
        mov eax, 0x1b
        mov fs, eax
        int 0x40
        dec ebp
        jnz .again
        mov eax, 0x1b
        mov fs, eax
        mov esi, [fs:0x90000]    ; 2
        mov word [GDT + 26], 0x3000
        mov fs, eax
        mov edi, [fs:0x90000]    ; 3
        shl edi, 4
        lea eax, [edi + esi]
        jmp fin
    """
    assert code(body, "local", **options) == 0x32
