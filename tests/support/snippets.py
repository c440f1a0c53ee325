"""Assembly that several guests share."""

# The interrupt controller is given a base and a mask.
PIC = """
    mov al, 0x11
    out 0x20, al
    mov al, {base}
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, {mask}
    out 0x21, al
"""
# Counter 0 of the timer as a rate generator: IRQ 0 every 1000h of its clocks.
TIMER = """
    mov al, 0x34
    out 0x43, al
    mov al, 0
    out 0x40, al
    mov al, 0x10
    out 0x40, al
"""
# The low and the high byte of a count of 11932 clocks: IRQ 0 a hundred times a second.
HUNDREDTH = """
    mov al, 11932 & 255
    out 0x40, al
    mov al, 11932 >> 8
    out 0x40, al
"""
TIMER_100HZ = f"""
    mov al, 0x34
    out 0x43, al
{HUNDREDTH}
"""
# IRQ 4, unmasked alone, by the UART: setting IER.THRE while the transmitter is empty
# requests it at once.
IRQ4 = (
    PIC.replace("{mask}", "0xEF")
    + """
    mov dx, 0x3FC
    mov al, 8
    out dx, al
    mov dx, 0x3F9
    mov al, 0
    out dx, al
    mov al, 2
    out dx, al
"""
)
# From ring 0 to another.
TO_RING = """
    push dword [data + {ring} * 4]
    push dword [stacks + {ring} * 4]
    push dword {flags}
    push dword [code + {ring} * 4]
    push dword .outer
    mov eax, [data + {ring} * 4]
    mov ds, eax
    mov es, eax
    iretd
    .outer:
"""
