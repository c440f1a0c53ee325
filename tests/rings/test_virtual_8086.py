"""Virtual-8086 mode: in by IRET and task, out by every event, beside QEMU."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from emu86 import Machine
from support.assembler import assemble
from support.cases import TECHNIQUES, Case, check, on_emu86
from support.snippets import PIC, TIMER

# The program's CS is FFFFh: its code, above 1 MiB, is then at (address - FFFF0h).
ENTER = """
    mov eax, .inner
    mov [IDT + 8 * 0x41], ax
    shr eax, 16
    mov [IDT + 8 * 0x41 + 6], ax
    {setup}
    push dword 0x1111    ; GS
    push dword 0x2222    ; FS
    push dword 0x0700    ; DS
    push dword 0x0703    ; ES
    push dword 0x8003    ; SS
    push dword 0x12340100
    push dword 0x20002 | {flags:#x}
    push dword 0xffff
    push dword .program - 0xffff0
    mov dword [0x7000], 0x08070605
    mov dword [0x7004], 0xfffffff4
    iretd
bits 16
.program:
    {body}
    int 0x40
bits 32
.inner:
    mov edx, esp
    mov ebx, DATA0
    mov ds, ebx
    mov es, ebx
    mov esi, edx
    mov edi, SCRATCH
    mov ecx, 10
    ss rep movsd
    {inner}
    int 0x40
"""


def case(name, body, flags=0, inner="", setup=""):
    code = ENTER.format(body=body, flags=flags, inner=inner, setup=setup)
    return Case(f"{name}, flags {flags:#x}", code)


# What each does with IOPL 0 and 3, interrupts off and on.
BODIES = {
    "INT3": "int3",
    "INT n": "int 0x41",
    "INT n without its gate's DPL": "int 0x60",
    "INTO": "mov al, 0x7f\nadd al, 1\ninto",
    "CLI": "cli\nint3",
    "STI": "sti\nnop\nint3",
    "PUSHF": "pushf\npop ax\nint3",
    "PUSHFD": "pushfd\npop eax\nint3",
    "POPF": "push word 0x7ed7\npopf\nint3",
    "POPFD": "push dword 0x247ed7\npopfd\nint3",
    "IRET": "push word 0x4ed7\npush word 0xffff\ncall .next\n.next: add word [bp], 0\npop ax\nadd ax, .after - .next\npush ax\niret\nud2\n.after: int3",
    "IRETD": "push dword 0x304ed7\npush dword 0xffff\ncall .next\n.next: pop ax\nmovzx eax, ax\nadd ax, .after - .next\npush eax\niretd\nud2\n.after: int3",
    "HLT": "hlt",
    "CLTS": "clts",
    "MOV from CR0": "mov eax, cr0",
    "MOV to DR": "mov dr0, eax",
    "LMSW": "lmsw ax",
    "INVLPG": "invlpg [0]",
    "SGDT": "sgdt [0x10]\nmov eax, [0x12]\nmov cx, [0x10]\nint3",
    "SIDT": "o32 sidt [0x10]\nmov eax, [0x12]\nmov cx, [0x10]\nint3",
    "SMSW": "smsw ax\nint3",
    "SLDT": "sldt ax",
    "STR": "str ax",
    "LLDT": "lldt ax",
    "LTR": "ltr ax",
    "VERR": "verr ax",
    "LAR": "lar ax, cx",
    "LSL": "lsl ax, cx",
    "ARPL": "arpl ax, cx",
    "IN allowed": "in al, 0x21\nint3",
    "IN refused": "mov dx, 0x3f8\nin al, dx",
    "OUT allowed": "out 0x80, al\nint3",
    "OUT refused": "mov dx, 0x3f8\nout dx, al",
    "RDMSR": "rdmsr",
    "UD2": "ud2",
    "DIV": "xor ax, ax\ndiv al",
    "segments": "mov ax, 0x0701\nmov ds, ax\nmov bx, ds\nmov fs, ax\npush es\npop gs\nmov cx, [0]\nmov dx, [gs:2]\nint3",
    "LES": "les bx, [4]\nmov ax, es\nint3",
    "MOV SS": "mov ax, 0x9000\nmov ss, ax\nint3",
    "far CALL": "mov bp, sp\ncall 0xffff:(.far - 0xffff0)\nud2\n.far: pop eax\nint3",
    "far JMP": "jmp 0xffff:(.far - 0xffff0)\nud2\n.far: mov ax, cs\nint3",
    "far RET": "push word 0xffff\ncall .next\n.next: pop ax\nadd ax, .far - .next\npush ax\nretf\nud2\n.far: mov ax, cs\nint3",
    "strings": "cld\nxor si, si\nmov di, 0x20\nmov cx, 4\nrep movsb\nmov eax, [es:0x20]\nint3",
    "data over 64 KiB": "mov al, 1\nmov ds, ax\nint3",
}
FLAGS = (0, 0x200, 0x3000, 0x3200)
CASES = tuple(
    case(name, body, flags) for name, body in BODIES.items() for flags in FLAGS
)
TRACED = tuple(
    case(name, body, flags)
    for name, body in (
        ("moves", "mov ax, 1\nmov bx, ax\nint3"),
        ("CLI", "cli\nnop\nint3"),
        ("MOV SS", "mov cx, 0x9000\nmov ss, cx\nnop\nnop\nint3"),
        ("IN", "in al, 0x21\nnop\nint3"),
        ("SMSW", "smsw ax\nnop\nint3"),
    )
    for flags in (0x100, 0x3100)
)
TARGET = "mov word [IDT + 8 * 0x41 + 2], {}"
OUT = (
    # What the kernel finds on its stack, and what it can give back.
    case("the frame", "int 0x41", 0x3202),
    case("and back", "int 0x41\nmov cx, ds\nint3", 0x3202, "mov esp, edx\niretd"),
    case("back with other segments", "int 0x41\nmov cx, ds\nmov dx, es\nmov si, fs\nmov di, gs\nint3", 0x3202, "mov esp, edx\nmov dword [esp + 24], 0x1234\nmov dword [esp + 20], 0x4321\niretd"),
    case("by a 16-bit gate", "int 0x41", 0x3202, setup="mov byte [IDT + 8 * 0x41 + 5], 0xe6\nmov word [IDT + 8 * 0x41], task_target - mb\nmov dword [IDT + 8 * 0x41 + 6], 0\nmov word [IDT + 8 * 0x41 + 2], HIGH0"),
    case("to conforming code", "int 0x41", 0x3202, setup=TARGET.format("CONFORM")),
    case("to code of ring 3", "int 0x41", 0x3202, setup=TARGET.format("CODE3")),
    case("to code not present", "int 0x41", 0x3202, setup=TARGET.format("ABSENT")),
    case("by a task gate", "int 0x41", 0x3202, setup="mov dword [IDT + 8 * 0x41], TSS1 << 16\nmov dword [IDT + 8 * 0x41 + 4], 0xe500"),
)  # fmt: skip
TASK = """
    mov dword [TSSB + 0x20], .program - 0xffff0
    mov dword [TSSB + 0x24], 0x23202
    mov dword [TSSB + 0x38], 0x100
    mov dword [TSSB + 0x48], 0x703
    mov dword [TSSB + 0x4c], 0xffff
    mov dword [TSSB + 0x50], 0x8003
    mov dword [TSSB + 0x54], 0x700
    mov dword [TSSB + 0x58], 0x2222
    mov dword [TSSB + 0x5c], 0x1111
    {how}
bits 16
.program:
    mov ax, ds
    mov bx, es
    mov si, gs
    int3
bits 32
"""
TASKS = (
    Case("JMP to a task", TASK.format(how="jmp TSS1:0")),
    Case("CALL of a task", TASK.format(how="call TSS1:0")),
    Case("a task by a gate", TASK.format(how="jmp TASK1:0")),
)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("paging", [False, True])
def test_instructions(technique, paging):
    check(CASES, technique, paging=paging)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_single_steps(technique):
    check(TRACED, technique)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_ways_out(technique):
    check(OUT, technique)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_tasks(technique):
    check(TASKS, technique)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_code_of_ring_1(technique):
    """SDM Vol. 2A INT n: from VM86 #GP(selector) unless DPL is 0; QEMU goes there."""
    made = case("to ring 1", "int 0x41", 0x3202, setup=TARGET.format("CODE1"))
    (record,) = on_emu86([made], options=TECHNIQUES[technique])
    assert (record["vector"], record["error"], record["cs"]) == (13, 0x18, 0xFFFF)


def test_an_entry_beyond_the_limit():
    """SDM Vol. 2A IRET: #GP(0) if EIP is not within CS's limit; QEMU takes half."""
    code = ENTER.replace(".program - 0xffff0", ".program - 0xffff0 + 0x10000")
    code = code.format(body="", flags=0, inner="", setup="")
    (record,) = on_emu86([Case("beyond", code)])
    assert (record["vector"], record["error"], record["cs"]) == (13, 0, 8)


# The kernel calls the page of the VM86 program first, so that it is filled, then goes
# there with IOPL 3 and waits for the timer, whose handler takes EFLAGS of its frame.
INTERRUPTED = """
bits 32
org 0x10000
    mov esp, 0x9000
    lgdt [gdtr]
    lidt [idtr]
    mov ax, 0x18
    ltr ax
    call filled
    {pic}
    {timer}
    push dword 0
    push dword 0
    push dword 0
    push dword 0
    push dword 0x3000
    push dword 0xfff0
    push dword 0x23202
    push dword 0x1000
    push dword wait_ - 0x10000
    iretd
filled: ret
wait_: jmp short $
handler:
    mov ebx, [esp + 8]
    cli
    hlt
align 8
gdt: dq 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
    dw 0x67, tss - 0x10000, 0x8901, 0
gdtr: dw 31
    dd gdt
idtr: dw 0x7ff
    dd idt
tss: dd 0, 0x8ff0, 0x10
    times 100 db 0
align 8
idt:
times 256 dw handler - 0x10000, 8, 0x8e00, 1
"""


@pytest.mark.parametrize("technique", ["patch", "iopl", "trap", "bare"])
def test_an_interrupt_tells_of_iopl(technique):
    """Where IRET runs natively, the frame had the IOPL of the kernel's last exit."""
    machine = Machine(memory=1 << 20, technique=technique)
    machine.load_flat(
        assemble(INTERRUPTED.format(pic=PIC.format(base=0x20, mask=0xFE), timer=TIMER)),
        0x10000,
    )
    assert machine.run(timeout=300).reason == "halted"
    assert machine.registers["ebx"] & ~0x10000 == 0x23202
