"""What the VMM keeps of a guest (sites, plans, tables, pages) and when it must not."""

import pytest

from support.cases import TECHNIQUES
from support.flat import code, flat

pytestmark = pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES)
both = pytest.mark.parametrize("paging", ["local", "global"])


@both
def test_cli_in_a_page_of_code_and_data(options, paging):
    """A page that is written and run in turn: CLI became HLT, and stayed CLI."""
    body = """
        mov edi, 0x300000
        mov byte [edi + 1], 0xc3
        mov ecx, 30
    .again:
        mov [edi + 2], cl
        mov byte [edi], 0xfa
        call edi
        loop .again
        mov byte [edi], 0xf4
        call edi
        jmp bad
    """
    stop = flat(body, paging, **options).run(timeout=120)
    assert stop.reason == "halted"


@both
def test_ud2_after_invlpg_of_its_stack(options, paging):
    """#UD was pushed on the page that was the stack's before an INVLPG."""
    body = """
        gate 6, invalid
        mov ebx, 0x307000
        call drop
        call drop
        call drop
        mov esp, 0x306000
        mov ebp, 4
        ud2
    invalid:
        dec ebp
        js .last
        jz .move
        mov esp, 0x306000
        ud2
    .move:
        mov esp, 0x90000
        mov ebx, 0x305000
        mov dword [0x320ff4], 0
        mov dword [PT + 0x305 * 4], 0x320000 + 0x67 + G
        call drop
        mov esp, 0x306000
    .fault:
        ud2
    .last:
        mov eax, [esp]
        sub eax, .fault
        jmp fin
    drop:
        invlpg [ebx]
        ret
    """
    assert code(body, paging, **options) == 0


@both
def test_invlpg_drops_all_of_a_4_mib_page(options, paging):
    """A stack elsewhere in the 4 MiB than the address given to INVLPG."""
    body = """
        gate 0x41, taken
        mov dword [PD + 4], 0x400000 + 0xe7
        mov esp, 0x410000
        mov ebp, 3
    .again:
        int 0x41
        dec ebp
        jnz .again
        mov dword [PD + 4], 0x800000 + 0xe7
        mov ebx, 0x400000
        invlpg [ebx]
        mov ebp, 0x999
        int 0x41
    after:
        jmp bad
    taken:
        cmp ebp, 0x999
        je .last
        iretd
    .last:
        mov eax, [esp]
        sub eax, after
        jmp fin
    """
    assert code(body, paging, **options) == 0


def test_a_large_frame_is_global_by_its_last_pde(options):
    """A frame mapped by a PDE without G, then by one with it: CLI learned there."""
    body = """
        mov dword [PD + 4], 0x400000 + 0xe7
        mov eax, [0x400000]
        mov dword [PD + 8], 0x400000 + 0x1e7
        mov dword [PD + 12], 0x800000 + 0xe7
        mov word [0x801000], 0xc3fa  ; CLI, RET
        mov word [0xc01000], 0xc3f4  ; HLT, RET
        mov ecx, 5
        mov ebp, 0x801000
    .again:
        call ebp
        loop .again
        mov dword [PD + 8], 0x800000 + 0x1e7
        mov ebx, 0x800000
        invlpg [ebx]
        call ebp
        jmp bad
    """
    stop = flat(body, "global", **options).run(timeout=120)
    assert stop.reason == "halted"


OTHER = {
    "MOV CR3": "mov dword [PT2 + {page} * 4], {frame} + 0x67\n"
    "mov eax, PD2\nmov cr3, eax",
    "INVLPG": "mov dword [PT + {page} * 4], {frame} + 0x67\n"
    "mov ebx, {page} * 4096\ninvlpg [ebx]",
}


@pytest.mark.parametrize("way", OTHER)
def test_idt_is_where_its_page_is(options, way):
    """The same linear address, another table: not the plan made for the first."""
    body = f"""
        gate 0x40, first
        mov esi, IDT
        mov edi, 0x310000
        mov ecx, 1024
        rep movsd
        mov eax, second
        mov [0x310000 + 8 * 0x40], ax
        shr eax, 16
        mov [0x310000 + 8 * 0x40 + 6], ax
        mov ebp, 5
    again:
        int 0x40
    back:
        dec ebp
        jnz again
    {OTHER[way].format(page=0x210, frame=0x310000)}
        mov dword [moved], 1
        int 0x40
    first:
        cmp dword [moved], 0
        jne bad
        mov dword [esp], back
        iretd
    second:
        mov eax, 0x222
        jmp fin
    align 4096
    moved: dd 0
    """
    assert code(body, "local", **options) == 0x222


@pytest.mark.parametrize("way", OTHER)
def test_gdt_is_where_its_page_is(options, way):
    """The same selector, another base: not the descriptor read before."""
    body = f"""
        mov esi, gdt
        mov edi, 0x320000
        mov ecx, 8
        rep movsd
        mov esi, gdt
        mov edi, 0x330000
        mov ecx, 8
        rep movsd
        mov dword [0x330000 + 0x18], 0x1000ffff  ; base 1000h
        lgdt [gdtr]
        mov dword [0x1500], 0x222
        mov dword [0x500], 0x111
        mov ax, 0x18
        mov fs, ax
    {OTHER[way].format(page=0x320, frame=0x330000)}
        mov ax, 0x18
        mov fs, ax
        mov eax, [fs:0x500]
        jmp fin
    align 8
    gdtr: dw 0x1f
        dd 0x320000
    align 8
    gdt: dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cf93000000ffff
    """
    assert code(body, "local", **options) == 0x222


@both
def test_invlpg_of_page_0_and_the_wrap_at_4_gib(options, paging):
    """A doubleword at FFFFFFFEh has its upper half in page 0, wherever that is now."""
    body = """
        mov dword [PD + 1023 * 4], PT + 7
        mov dword [PT + 1023 * 4], 0x3ff000 + 0x67
        mov dword [0x3ffffc], 0x11111111
        mov dword [0], 0x22222222
        mov dword [0x306000], 0x33333333
        mov ebx, 0x305000
        call drop
        call drop
        call drop
        mov eax, [0xfffffffe]
        mov eax, [0]
        mov eax, [0xfffffffe]
        mov dword [PT], 0x306000 + 0x67
        xor ebx, ebx
        call drop
        mov eax, [0xfffffffe]
        jmp fin
    align 4096
        nop
    drop:
        invlpg [ebx]
        ret
    """
    assert code(body, paging, **options) == 0x33331111


@both
def test_accessed_bit_of_a_read_only_gdt(options, paging):
    """It faults each time, loads nothing, and is set when the retry may write it."""
    body = """
        gate 14, fault
        mov esi, gdt
        mov edi, 0x320000
        mov ecx, 10
        rep movsd
        lgdt [gdtr]
        mov dword [PT + 0x320 * 4], 0x320000 + 0x65 + G
        mov ebx, 0x320000
        invlpg [ebx]
        xor ebp, ebp
        mov ax, 0x18
        mov ds, ax
        mov ax, 0x20
        mov fs, ax
        mov eax, fs
        shl eax, 16
        mov al, [0x320025]
        mov ah, 0
        cmp ebp, 3
        jne bad
        jmp fin
    fault:
        cmp dword [esp], 3  ; a write that the page forbids
        jne bad
        mov eax, cr2
        and eax, -8
        cmp eax, 0x320020
        jne bad
        mov eax, fs
        cmp eax, 0x20
        je bad
        mov eax, 0x20
        inc ebp
        cmp ebp, 3
        jne .retry
        mov dword [PT + 0x320 * 4], 0x320000 + 0x67 + G
        invlpg [ebx]
    .retry:
        add esp, 4
        iretd
    align 8
    gdtr: dw 0x27
        dd 0x320000
    align 8
    gdt: dq 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cf92000000ffff
    """
    assert code(body, paging, **options) == 0x200093
