"""Straight code that runs into a page from which nothing can be fetched.

The fault comes at the first instruction that is not all there, with everything before
it done (SDM Vol. 3A section 6.5); CR2 is the first byte that could not be fetched
(section 4.7).
"""

import pytest

from emu86.spec import x86
from support.flat import MEMORY, flat

EVERY = pytest.mark.parametrize("technique", ["patch", "iopl", "trap", "bare"])
END = 0x150000
# The code stands up to END, behind which a page table entry of the test's follows.
BODY = """
    gate 1, step
    gate 6, undefined
    gate 14, fault
    mov dword [PT + 4 * 0x14f], {page} + 0x67
    mov dword [PT + 4 * 0x150], {entry}
    mov eax, cr3
    mov cr3, eax
    mov edi, 0x150000 - (code_end - code)
    mov ebx, edi
    mov esi, code
    mov ecx, code_end - code
    rep movsb
    xor eax, eax
    xor ecx, ecx
    xor edx, edx
    {go}
code:
    {code}
code_end:
step:
    inc edx
    iretd
undefined:
    push dword 0
fault:
    pop esi
    pop edi
    mov ebp, cr2
    jmp fin
align 8
gdt:
    dq 0, 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0x00CFFA000000FFFF
    dq 0x00CFF2000000FFFF, 0x0000891600000067
gdtr: dw gdtr - gdt - 1
    dd gdt
"""
KERNEL = "jmp ebx"
# The TSS is at 160000h.
USER = """
    mov dword [0x160004], 0x90000
    mov dword [0x160008], 0x18
    lgdt [gdtr]
    mov eax, 0x30
    ltr ax
    mov eax, 0x2b
    mov ds, eax
    xor eax, eax
    push dword 0x2b
    push dword 0x8f000
    push dword {flags}
    push dword 0x23
    push ebx
    iretd
"""
IN_USER = USER.format(flags=2)
COUNT = "inc eax\n" * 5


def faulted(technique, code, entry="0", go=KERNEL, page=END - 0x1000):
    """EAX, EDX, EIP, error code and CR2 of the fault."""
    body = BODY.format(code=code, entry=entry, go=go, page=page)
    built = flat(body, "local", technique=technique)
    stop = built.run(timeout=60)
    assert stop.reason == "debug exit", stop
    registers = built.registers
    assert stop.code == registers["eax"]
    return tuple(registers[name] for name in ("eax", "edx", "edi", "esi", "ebp"))


@EVERY
@pytest.mark.parametrize(
    ("entry", "go", "error"),
    [
        ("0", KERNEL, 0),
        ("0", IN_USER, x86.PF_U),
        ("0x150063", IN_USER, x86.PF_U | x86.PF_P),  # a page of the supervisor's
        ("0xff000067", KERNEL, None),  # no RAM: FFh, FFh is #UD
        (f"{MEMORY:#x} + 0x67", IN_USER, None),
    ],
)
def test_where_it_ends(technique, entry, go, error):
    *rest, cr2 = faulted(technique, COUNT, entry, go)
    assert rest == [5, 0, END, error or 0]
    assert cr2 == (0 if error is None else END)


@EVERY
@pytest.mark.parametrize("bytes_", ["0x05", "0x05, 1, 0", "0x0f", "0x66, 0x2e, 0x81"])
def test_an_instruction_in_both_pages(technique, bytes_):
    found = faulted(technique, f"{COUNT}db {bytes_}", go=IN_USER)
    assert found == (5, 0, END - 1 - bytes_.count(","), x86.PF_U, END)


@EVERY
def test_what_exits_on_the_way(technique):
    # A page filled, one that is patched, one that traps, and flags that show TF.
    code = """
        inc eax
        add eax, [0x170000]
        sgdt [0x171000]
        inc eax
        cli
        inc eax
        pushfd
        inc eax
        add eax, [esp]
        setc [0x172000]
        inc eax
        mov ecx, ss
        mov ss, ecx
        inc eax
    """
    eax, _edx, eip, _error, cr2 = faulted(technique, code)
    assert (eip, cr2) == (END, END)
    iopl = 0x1000 if technique == "iopl" else 0
    assert eax & ~0x8D5 == (6 + 2 | iopl) & ~0x8D5


@EVERY
def test_under_single_step(technique):
    go = USER.format(flags=2 | x86.TF)
    # An IRETD to TF: each instruction traps once.
    assert faulted(technique, COUNT, go=go) == (5, 5, END, x86.PF_U, END)


@EVERY
def test_data_in_the_page_that_is_not_there(technique):
    code = "inc eax\nmov ecx, [0x150000]\ninc eax"
    length = 1 + 6 + 1
    found = faulted(technique, code, go=IN_USER)
    assert found == (1, 0, END - length + 1, x86.PF_U, END)


@EVERY
def test_the_page_comes_and_the_code_goes_on(technique):
    go = f"gate 3, undefined\ngate 14, there\nxor eax, eax\n{KERNEL}"
    code = f"""
        {COUNT}
        db 0x05, 1                     ; add eax, 1
    code_end:
    there:
        mov dword [PT + 4 * 0x150], 0x150067
        mov dword [0x150000], 0xCC000000
        pop esi
        iretd
    """
    body = BODY.replace("code_end:\n", "", 1)
    body = body.format(code=code, entry="0", go=go, page=END - 0x1000)
    built = flat(body, "local", technique=technique)
    assert built.run(timeout=60).code == 6
    assert built.registers["edi"] == END + 4


def test_a_device_behind_the_code_is_not_read():
    body = BODY.format(code=COUNT, entry="0xfe000067", go=KERNEL, page=END - 0x1000)
    built = flat(body, "local")
    vmm = built.vmm
    vmm.mmu.mmio_pages = frozenset({0xFE000})
    done = []
    vmm.bus.mmio_read = lambda _gpa, width: done.append(vmm.q[x86.EAX]) or bytes(width)
    built.run(timeout=60)
    assert done[0] == 5
