"""Transfers to a 16-bit stack load SP alone; beside QEMU."""

import pytest

from support.cases import TECHNIQUES, Case, differences, on_emu86, on_qemu

# FRESH becomes a 16-bit stack of ring 3, ABSENT one of ring 0. Both begin at 0.
NARROW = """
    mov byte [GDT + FRESH + 6], 0x8F
    mov dword [GDT + ABSENT], 0x0000FFFF
    mov dword [GDT + ABSENT + 4], 0x008F9300
"""
INNER = """
    mov dword [TSS + 4], 0x12348000
    mov dword [TSS + 8], ABSENT
    mov eax, .inner
    mov [IDT + 0x41 * 8], ax
    mov [IDT + 13 * 8], ax
    mov [GDT + GATE32], ax
    shr eax, 16
    mov [IDT + 0x41 * 8 + 6], ax
    mov [IDT + 13 * 8 + 6], ax
    mov [GDT + GATE32 + 6], ax
"""
# What the delivery pushed, and back to a stack that can be looked through.
SEEN = """
.inner:
    mov ebp, esp
    mov esi, 0x7fd0
    mov edi, SCRATCH
    mov ecx, 12
    mov eax, DATA0
    mov ds, eax
    mov es, eax
    rep movsd
    and dword [SCRATCH + 36], 0xFFFEFFFF  ; RF, which QEMU does not push
    mov ss, eax
    mov esp, STACK0
    int 0x40
"""


def outward(name, frame, transfer):
    return Case(name, f"{NARROW}{frame}{transfer}\n.user: int 0x40")


FRAME = "push dword FRESH + 3\npush dword {}\n"
CASES = (
    outward("IRETD", FRAME.format("0x12348000"),
            "push dword 2\npush dword CODE3\npush dword .user\niretd"),
    outward("IRETD, SP over the end", FRAME.format("0xFFFF0000"),
            "push dword 2\npush dword CODE3\npush dword .user\niretd"),
    outward("RETF", FRAME.format("0x12348000"),
            "push dword CODE3\npush dword .user\nretf"),
    outward("RETF that releases over the end", FRAME.format("0x1234FFFC"),
            "sub esp, 8\npush dword CODE3\npush dword .user\nretf 8"),
    *(
        Case(f"{name} from ring {ring}", f"{NARROW}{INNER}{code}{SEEN}", ring)
        for ring in (1, 3)
        for name, code in (
            ("INT", "int 0x41"),
            ("a fault with an error code", "hlt"),
            ("a call gate", "push dword 0x77\npush dword 0x88\ncall GATE32:0"),
        )
    ),
    Case("a task with a 32-bit TSS", f"{NARROW}mov dword [TSSB + 0x38], 0x12348000\n"
         "mov dword [TSSB + 0x50], ABSENT\nmov dword [TSSB + 0x20], .task\n"
         f"call TSS1:0\n.task:\npush eax\njmp .inner{SEEN}"),
)  # fmt: skip


@pytest.mark.parametrize("technique", [*TECHNIQUES, "bare"])
def test_esp_on_a_16_bit_stack(technique):
    options = TECHNIQUES.get(technique, {"technique": technique})
    ours, theirs = on_emu86(CASES, options=options), on_qemu(CASES)
    hidden = 0x3000 if technique == "iopl" else 0
    lines = differences(CASES, ours, theirs, hidden=hidden)
    assert not lines, "\n".join(lines)
    # The upper half is the kernel's ESP, of which no transfer has changed a bit.
    assert ours[0]["esp"] == 0x00218000
