"""A guest with a timer: 300 interrupts, and what it does `between` them."""

from support.snippets import PIC, TIMER_100HZ

_PIC = PIC.format(base=8, mask=0xFE)
TICKS = f"""
    gate 8, ticked
    {_PIC}
    {TIMER_100HZ}
    xor esi, esi
    sti
.wait:
    {{between}}
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
