"""Control registers by compiled code and by Python, and faults that hang on them."""

import pytest

from support.cases import TECHNIQUES
from support.flat import code, flat

every = pytest.mark.parametrize("options", TECHNIQUES.values(), ids=TECHNIQUES)


def by_python(body, paging, *reasons, **options):
    """How often Python did exits of these reasons, and the guest's last word."""
    built = flat(body, paging, **options)
    stop = built.run(timeout=120)
    assert stop.reason == "debug exit", stop
    exits = built.vmm.exits
    return [exits.get(reason, (0,))[0] for reason in reasons], stop.code


# The FPU is used in turns, as kernels do that save it late: #NM, CLTS, TS set again.
LATE_FPU = """
    gate 7, absent
    mov eax, cr4
    or eax, 0x200           ; OSFXSR: or an #NM may be #UD
    mov cr4, eax
    fninit
    xor ebp, ebp
    mov ecx, 100
.again:
    mov eax, cr0
    or eax, 8
    mov cr0, eax
    fld1
    fnop
    mov eax, cr0
    and eax, 8
    add ebp, eax
    loop .again
    fninit
    mov eax, ebp
    jmp fin
absent:
    clts
    inc ebp
    mov eax, [esp]
    cmp word [eax], 0xe8d9  ; FLD1
    je .right
    add ebp, 0x1000
.right:
    fninit
    iretd
"""


@every
def test_late_fpu(options):
    assert code(LATE_FPU, "global", **options) == 100


def test_late_fpu_is_compiled():
    reasons = "MOV to CR", "MOV from CR", "CLTS", "#NM"
    counts, found = by_python(LATE_FPU, "global", *reasons)
    assert found == 100
    assert max(counts) < 10


DIVIDE = """
    gate 0, divided
    mov ebp, 0
    mov ecx, 100
.again:
    xor ebx, ebx
    stc
    div ebx
    jc .kept
    add ebp, 0x1000
.kept:
    loop .again
    mov eax, ebp
    jmp fin
divided:
    inc ebp
    add dword [esp], 2
    iretd
"""


@every
def test_division_by_zero(options):
    assert code(DIVIDE, "global", **options) == 100


def test_division_by_zero_is_compiled_and_told_of():
    counts, found = by_python(DIVIDE, "global", "#DE")
    assert found == 100
    assert counts[0] < 3
    built = flat(DIVIDE, "global")
    built.run(timeout=120)
    last = built.vmm.history.events[-1]
    assert (last.vector, last.error) == (0, None)


@every
@pytest.mark.parametrize(
    ("change", "found"), [("or eax, 0x20000000", 13), ("and eax, ~0x80000000", 1)]
)
def test_what_else_of_cr0_changes(options, change, found):
    """NW without CD is #GP(0); paging goes off where pages map to themselves."""
    body = f"""
        gate 13, refused
        mov ebx, 2
    .again:
        mov eax, cr0
        cmp ebx, 1
        jne .write
        {change}
    .write:
        mov cr0, eax
        dec ebx
        jnz .again
        mov eax, cr0
        shr eax, 31
        xor eax, 1
        jmp fin
    refused:
        mov eax, 13
        jmp fin
    """
    assert code(body, "global", **options) == found


@every
def test_a_site_is_another_instruction_behind_mov_to_cr3(options):
    """Page 300h is another in the other directory: CLI here, STI there."""
    body = """
        mov dword [0x300000], 0x90c390fa    ; CLI; NOP; RET
        mov dword [0x301000], 0x90c390fb    ; STI; NOP; RET
        mov dword [PT2 + 0x300 * 4], 0x301067
        mov ebx, PD
        mov edx, PD2
        mov edi, 0x300000
        xor ebp, ebp
        mov ecx, 20
    .again:
        mov cr3, edx
        call edi
        pushfd
        pop eax
        and eax, 0x200
        add ebp, eax
        mov cr3, ebx
        call edi
        pushfd
        pop eax
        and eax, 0x200
        shl eax, 8
        add ebp, eax
        loop .again
        mov eax, ebp
        jmp fin
    """
    assert code(body, "local", **options) == 20 * 0x200


SWITCHES = """
    mov ebx, PD
    mov edx, PD2
    mov ecx, 100
.again:
    mov cr3, edx
    cli
    mov cr3, ebx
    cli
    loop .again
    xor eax, eax
    jmp fin
"""


def test_mov_to_cr3_is_compiled_where_no_page_is_global():
    counts, found = by_python(SWITCHES, "local", "MOV to CR", "CLI")
    assert found == 0
    assert max(counts) < 10


def test_and_where_pages_are_of_4_mib():
    large = "mov dword [PD], 0x87\nmov dword [PD2], 0x87\n"
    counts, found = by_python(large + SWITCHES, "local", "MOV to CR", "CLI")
    assert found == 0
    assert max(counts) < 10


@every
def test_the_code_is_gone_behind_mov_to_cr3(options):
    """The fault is the next instruction's."""
    body = """
        gate 14, gone
        mov dword [PT2 + 0x103 * 4], 0
        mov ebx, PD2
        jmp away
    gone:
        mov eax, PD
        mov cr3, eax
        mov eax, cr2
        sub eax, next
        mov ecx, [esp + 4]
        sub ecx, next
        or eax, ecx
        jmp fin
    times 0x3000 - ($ - $$) nop
    away:
        mov cr3, ebx
    next:
        nop
        mov eax, 1
        jmp fin
    """
    assert code(body, "local", **options) == 0
