"""What is done again and again, and then differently: nothing remembered may be stale.

The VMM keeps decoded sites, checked gates and translations. Each case does one thing
several times, changes one thing it depends on, and does it again.
"""

# ruff: noqa: E501 (lines of assembly)

import pytest

from support.cases import Case, check, on_emu86
from support.snippets import IRQ4

# To ring 3 with IOPL 3; then `.go` does INT 45h four times, and .user goes on.
INT = """
    mov eax, .handler
    mov [IDT + 0x45 * 8], ax
    shr eax, 16
    mov [IDT + 0x45 * 8 + 6], ax
    mov eax, .again
    mov [IDT + 0x46 * 8], ax
    shr eax, 16
    mov [IDT + 0x46 * 8 + 6], ax
    push dword DATA3
    push dword STACK3
    push dword 0x3202
    push dword CODE3
    push .user
    mov eax, DATA3
    mov ds, eax
    mov es, eax
    iretd
    .handler:
    inc dword [SCRATCH]
    mov [SCRATCH + 4], esp
    mov ebp, [esp + 4]
    add [SCRATCH + 8], ebp
    iretd
    .again:
    add dword [SCRATCH + 0xC], 0x100
    mov [SCRATCH + 0x10], esp
    iretd
    .user:
    mov ecx, 5
    .loop: int 0x45
    loop .loop
"""
CHANGES = {
    "nothing": "",
    "the gate's handler": "mov ax, [IDT + 0x46 * 8]\nmov [IDT + 0x45 * 8], ax\n"
    "mov ax, [IDT + 0x46 * 8 + 6]\nmov [IDT + 0x45 * 8 + 6], ax",
    "a trap gate": "mov byte [IDT + 0x45 * 8 + 5], 0xEF",
    "an absent gate": "mov byte [IDT + 0x45 * 8 + 5], 0x6E",
    "the gate's DPL": "mov byte [IDT + 0x45 * 8 + 5], 0x8E",
    "the gate's selector": "mov word [IDT + 0x45 * 8 + 2], CODE1",
    "a task gate": "mov dword [IDT + 0x45 * 8], TSS1 << 16\n"
    "mov dword [IDT + 0x45 * 8 + 4], 0xE500",
    "ESP0": "mov dword [TSS + 4], STACK0 - 0x100",
    "SS0": "mov dword [TSS + 8], FRESH\nmov dword [GDT + FRESH + 4], 0x00CF9200",
    "the code segment's base": "mov word [IDT + 0x45 * 8 + 2], HIGH0\n"
    "mov eax, .handler - mb\nmov [IDT + 0x45 * 8], ax\nshr eax, 16\n"
    "mov [IDT + 0x45 * 8 + 6], ax",
    "the user's code segment": "mov byte [GDT + (CODE3 & ~3) + 5], 0x7B",
    "the user's stack segment is read-only": "mov byte [GDT + (DATA3 & ~3) + 5], 0xF1",
    "the kernel's stack segment has another DPL": "mov dword [IDT + 10 * 8], TSS1 << 16\n"
    "mov dword [IDT + 10 * 8 + 4], 0x8500\nmov byte [GDT + DATA0 + 5], 0xB3",
    "another SS of the user": "mov eax, FRESH + 3\nmov ss, eax",
    "the user's flags": "push dword 0xCD7\npopfd",
    "the direction flag": "std",
    "NT": "push dword 0x4202\npopfd",
    "TF": "push dword 0x3302\npopfd",
    "the user's DS": "mov eax, BASED\nmov fs, eax\nmov gs, eax",
    "IOPL": "push dword 0x202\npush cs\npush .here\niretd\n.here:",
    "the A bit": "and byte [GDT + (CODE3 & ~3) + 5], 0xFE",
    "the TSS's limit": "mov word [GDT + TSS0], 5",
}
TWICE = "\nmov ecx, 5\n.loop2: int 0x45\nloop .loop2\npushfd\npop ebx\npush dword 0x3002\npopfd"
USER = tuple(Case(name, f"{INT}\n{change}{TWICE}") for name, change in CHANGES.items())
KERNEL_CHANGES = {
    "another IDT": "mov esi, IDT\nmov edi, 0x270000\nmov ecx, 512\nrep movsd\n"
    "mov byte [0x270000 + 0x45 * 8 + 5], 0x0E\nmov dword [SCRATCH + 0x30], 0x7FF\n"
    "mov dword [SCRATCH + 0x32], 0x270000\nlidt [SCRATCH + 0x30]",
    "a shorter IDT": "mov dword [SCRATCH + 0x30], 0x22E\n"
    "mov dword [SCRATCH + 0x32], IDT\nlidt [SCRATCH + 0x30]",
    "another stack": "mov eax, BASED & ~3\nmov byte [GDT + BASED + 5], 0x93\n"
    "mov ss, eax\nmov esp, 0x1000",
    "IF": "sti",
    "TF": "push dword 0x102\npopfd",
    "VM's neighbours": "push dword 0x244002\npopfd\npush dword 2\npopfd",
}
KERNEL = tuple(
    Case(
        name,
        f"""
        mov eax, .handler
        mov [IDT + 0x45 * 8], ax
        shr eax, 16
        mov [IDT + 0x45 * 8 + 6], ax
        mov ecx, 5
        .loop: int 0x45
        loop .loop
        {change}
        mov ecx, 5
        .loop2: int 0x45
        loop .loop2
        mov eax, DATA0
        mov ss, eax
        mov esp, STACK0
        push dword 2
        popfd
        int 0x40
        .handler: inc dword [SCRATCH]
        mov [SCRATCH + 4], esp
        mov ebp, [esp + 8]
        add [SCRATCH + 8], ebp
        iretd""",
    )
    for name, change in KERNEL_CHANGES.items()
)
# Paging: what the IDT, the TSS, the stacks and the code are mapped to changes.
MAPPINGS = {
    "the IDT's page": "mov esi, IDT\nmov edi, 0x270000\nmov ecx, 512\nrep movsd\n"
    "mov byte [0x270000 + 0x45 * 8 + 5], 0x6E\nmov dword [PT + 0x210 * 4], 0x270007",
    "the TSS's page": "mov esi, TSS\nmov edi, 0x270000\nmov ecx, 1024\nrep movsd\n"
    "mov dword [0x270004], STACK0 - 0x300\nmov dword [PT + 0x212 * 4], 0x270007",
    "the GDT's page": "mov esi, GDT\nmov edi, 0x270000\nmov ecx, 1024\nrep movsd\n"
    "mov byte [0x270000 + BASED + 5], 0x73\nmov dword [PT + 0x200 * 4], 0x270007",
    "the stack's page": "mov esi, 0x21F000\nmov edi, 0x270000\nmov ecx, 1024\nrep movsd\n"
    "mov dword [PT + 0x21F * 4], 0x270007",
    "the user's stack": "mov dword [PT + 0x237 * 4], 0x270007",
}
TELL = {
    "by INVLPG": "invlpg [{0}]",
    "by MOV to CR3": "mov eax, cr3\nmov cr3, eax",
    "by another CR3": "mov esi, PD\nmov edi, 0x278000\nmov ecx, 1024\nrep movsd\n"
    "mov eax, 0x278000\nmov cr3, eax",
}
PAGES = {
    "IDT": 0x210000,
    "TSS": 0x212000,
    "GDT": 0x200000,
    "stack": 0x21F000,
    "user": 0x237000,
}
MAPPED = tuple(
    Case(
        f"{name} {tell}",
        f"""
        mov dword [IDT + 0x47 * 8], CODE0 << 16
        mov eax, .change
        mov [IDT + 0x47 * 8], ax
        shr eax, 16
        mov [IDT + 0x47 * 8 + 6], ax
        {INT}
        int 0x47
        {TWICE}
        mov eax, BASED
        mov fs, eax
        int 0x40
        .change: pushad
        mov eax, DATA0
        {change}
        {how.format(next(at for key, at in PAGES.items() if key in name.replace("the user's stack", "user")))}
        popad
        iretd""",
    )
    for name, change in MAPPINGS.items()
    for tell, how in TELL.items()
)
# One mapping after another at the same address, by code whose own pages are global.
GLOBAL = """
    mov eax, 0x80
    mov cr4, eax
    mov ecx, 0x280
    mov edi, PT
    .g: or dword [edi], 0x100
    add edi, 4
    loop .g
    mov eax, cr3
    mov cr3, eax
    mov dword [0x271000], 0x08
    mov dword [0x272000], 0x10
    mov dword [0x273000], 0x43
    xor esi, esi
    mov ecx, 60
    .loop:
    mov eax, ecx
    and eax, 1
    shl eax, 12
    add eax, 0x271007
"""
REMAPS = tuple(
    Case(name, f"{GLOBAL}{body}\nloop .loop\nxor eax, eax\nmov cr4, eax")
    for name, body in {
        "INVLPG": "mov [PT + 0x700 * 4], eax\ninvlpg [0x700000]\nadd esi, [0x700000]\nrol esi, 1",
        "INVLPG of a global page": "or eax, 0x100\nmov [PT + 0x700 * 4], eax\n"
        "invlpg [0x700000]\nadd esi, [0x700000]\nrol esi, 1",
        "MOV to CR3": "mov [PT + 0x700 * 4], eax\nmov edx, cr3\nmov cr3, edx\n"
        "add esi, [0x700000]\nrol esi, 1",
        "CLI, STI and INVLPG": "cli\nmov [PT + 0x700 * 4], eax\nsti\ninvlpg [0x700000]\ncli\n"
        "add esi, [0x700000]\nrol esi, 1",
        "INVLPG by a register": "mov [PT + 0x700 * 4], eax\nmov ebx, 0x700123\n"
        "invlpg [ebx]\nadd esi, [0x700000]\nrol esi, 1",
        "INVLPG in a segment": "mov [PT + 0x700 * 4], eax\nmov edx, BASED\nmov fs, edx\n"
        "invlpg [fs:0x700000 - SCRATCH]\nadd esi, [0x700000]\nrol esi, 1",
        "INVLPG and emulated reads": "mov [PT + 0x700 * 4], eax\ninvlpg [0x700000]\n"
        "lar edx, [0x700000]\nadd esi, edx\nrol esi, 1",
        "emulated writes": "mov [PT + 0x700 * 4], eax\ninvlpg [0x700000]\n"
        "str [0x700010]\nsldt [0x700020]\nadd esi, [0x271010]\nadd esi, [0x272010]\nrol esi, 1\n"
        "mov dword [0x271010], 0\nmov dword [0x272010], 0",
        "a PDE": "mov edx, PT + 0x1000 + 7\ntest cl, 1\njz .a\nmov edx, 0x274007\n.a:\n"
        "mov dword [0x274000 + 0x300 * 4], 0x273007\nmov dword [PT + 0x700 * 4], 0x271007\n"
        "mov [PD + 4], edx\ninvlpg [0x700000]\nadd esi, [0x700000]\nrol esi, 1",
        "rights": "mov ebx, ecx\nand ebx, 1\nxor ebx, 7\nmov eax, 0x271000\nor eax, ebx\n"
        "mov [PT + 0x700 * 4], eax\ninvlpg [0x700000]\ntest cl, 1\njnz .n\nmov [0x700004], ecx\n.n:\n"
        "add esi, [PT + 0x700 * 4]\nrol esi, 1",
        "dirty bits": "mov dword [PT + 0x700 * 4], 0x271007\ninvlpg [0x700000]\n"
        "test cl, 3\njz .n\nmov [0x700004], ecx\n.n: mov edx, [0x700000]\n"
        "add esi, [PT + 0x700 * 4]\nrol esi, 1",
    }.items()
)


@pytest.mark.parametrize("technique", ["patch", "public API only"])
@pytest.mark.parametrize("paging", [False, True], ids=["flat", "paged"])
@pytest.mark.parametrize("cases", [USER, KERNEL], ids=["user", "kernel"])
def test_events(cases, technique, paging):
    check(cases, technique, paging=paging)


@pytest.mark.parametrize("technique", ["patch", "public API only"])
def test_mappings(technique):
    check(MAPPED, technique, paging=True)


@pytest.mark.parametrize("technique", ["patch", "iopl", "public API only"])
def test_remapped_pages(technique):
    check(REMAPS, technique, paging=True)


# IRQ 4 at vector 12 and 8 by a PIC that stands where the BIOS left it.
LEGACY = tuple(
    Case(f"{name}, PIC at {base}", f"""
        {IRQ4.format(base=base)}
        mov eax, .handler
        mov [IDT + {base + 4} * 8], ax
        shr eax, 16
        mov [IDT + {base + 4} * 8 + 6], ax
        {change.format(base + 4)}
        xor ecx, ecx
        xor edx, edx
        sti
        nop
        nop
        int 0x41
        .handler: mov esi, esp
        mov edi, SCRATCH
        mov ecx, 4
        rep movsd
        int 0x42""")
    for base in (8, 0x10, 0x48, 4, 6)
    for name, change in {
        "an interrupt": "",
        "an absent gate": "mov byte [IDT + {} * 8 + 5], 0x0E",
        "a bad selector": "mov word [IDT + {} * 8 + 2], 0xFFF8",
    }.items()
)  # fmt: skip


def test_interrupts_at_the_vectors_of_exceptions():
    """No error code, no RF, and a fault on the way is no double fault.

    QEMU leaves EXT clear in the error code, where Vol. 3A section 6.13 sets it.
    """
    check(LEGACY, "patch", ignore=("error",))
    for record in on_emu86(LEGACY):
        assert record["error"] == 0xDEADBEEF or record["error"] & 1
