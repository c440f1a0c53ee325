"""A guest with a timer: 300 interrupts, and what it does `between` them."""

TICKS = """
    gate 8, ticked
    mov al, 0x11
    out 0x20, al
    mov al, 8
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, 11932 & 255
    out 0x40, al
    mov al, 11932 >> 8
    out 0x40, al
    xor esi, esi
    sti
.wait:
    {between}
    jmp .wait
ticked:
    inc esi
    push eax
    mov al, 0x20
    out 0x20, al
    mov eax, esi
    cmp eax, 300
    je fin
    pop eax
    iret
"""
