; chips.asm - the two 8259A, the 8254 and the input side of the 16550A.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; Sources: Intel 8259A data sheet (ICW1-4, OCW1-3), 8254 data sheet (control word),
;          National Semiconductor PC16550D, section 8.

PIC1            equ     20h             ; command; the data port is the next one
PIC2            equ     0A0h
ICW1            equ     11h             ; edge triggered, cascaded, ICW4 follows
ICW4            equ     01h             ; 8086 mode, normal end of interrupt
READ_ISR        equ     0Bh             ; OCW3: the next read gives what is in service
EOI             equ     20h             ; OCW2: the highest one in service is done
IRQ_TIMER       equ     0
IRQ_CASCADE     equ     2               ; the second chip hangs on this line
IRQ_COM1        equ     4

PIT_COUNTER0    equ     40h
PIT_CONTROL     equ     43h
PIT_MODE2       equ     34h             ; counter 0, low byte then high, rate generator
PIT_HZ          equ     1193182
TICKS_PER_SECOND equ    100

section .data
        align   4
ticks:          dd      0
input_head:     dd      0               ; where the interrupt puts the next character
input_tail:     dd      0               ; where the prompt takes one

INPUT_SIZE      equ     64              ; a power of two
section .bss
input_buffer:   resb    INPUT_SIZE

section .text

; The BIOS left IRQ0 at vector 8, which is the double fault's.  Move the 16 lines to
; 20h, behind the vectors that belong to the processor, and admit the two we serve.
init_pics:
        mov     al, ICW1
        out     PIC1, al
        out     PIC2, al
        mov     al, VECTOR_IRQ          ; ICW2: the first vector
        out     PIC1 + 1, al
        mov     al, VECTOR_IRQ + 8
        out     PIC2 + 1, al
        mov     al, 1 << IRQ_CASCADE    ; ICW3: a bit for the master, a number for
        out     PIC1 + 1, al            ; the slave
        mov     al, IRQ_CASCADE
        out     PIC2 + 1, al
        mov     al, ICW4
        out     PIC1 + 1, al
        out     PIC2 + 1, al
        mov     al, ~(1 << IRQ_TIMER | 1 << IRQ_COM1) & 0FFh
        out     PIC1 + 1, al            ; OCW1: a one masks the line
        mov     al, 0FFh
        out     PIC2 + 1, al
        ret

; Count down from 11932 at 1.193182 MHz, again and again: 100 times a second.
init_timer:
        mov     al, PIT_MODE2
        out     PIT_CONTROL, al
        mov     eax, (PIT_HZ + TICKS_PER_SECOND / 2) / TICKS_PER_SECOND
        out     PIT_COUNTER0, al
        mov     al, ah
        out     PIT_COUNTER0, al
        ret

init_serial_input:
        mov     edx, UART_IER
        mov     al, 1                   ; interrupt when a character has come
        out     dx, al
        ret

; EBX = frame; returns the frame to go on with.
interrupt:
        mov     ecx, [ebx + Frame.vector]
        sub     ecx, VECTOR_IRQ
        cmp     ecx, 7
        je      .spurious
        cmp     ecx, 8
        jb      .master
        mov     al, EOI
        out     PIC2, al
.master:
        mov     al, EOI                 ; before the handler: it may leave by another
        out     PIC1, al                ; task, and interrupts are off until IRET
        cmp     ecx, IRQ_TIMER
        je      .timer
        cmp     ecx, IRQ_COM1
        je      serial_input
        ret
.timer: inc     dword [ticks]
        call    wake_sleepers
        jmp     preempt

; An interrupt that vanished before it was acknowledged is given as IRQ7, without its
; bit in service.  It must not be ended: that would end another one.
.spurious:
        mov     al, READ_ISR
        out     PIC1, al
        in      al, PIC1
        test    al, 80h
        jnz     .master
        ret

serial_input:
        mov     edx, UART_LSR
        in      al, dx
        test    al, LSR_DATA_READY
        jz      .done
        mov     edx, UART_DATA
        in      al, dx
        mov     ecx, [input_head]
        mov     edx, ecx
        sub     edx, [input_tail]
        cmp     edx, INPUT_SIZE
        jae     serial_input            ; full: the character is lost
        and     ecx, INPUT_SIZE - 1
        mov     [input_buffer + ecx], al
        inc     dword [input_head]
        jmp     serial_input
.done:  ret

; Wait for a character  ->  AL.  STI takes effect one instruction late, so nothing can
; come between STI and HLT and be slept through.
get_char:
        cli
        mov     ecx, [input_tail]
        cmp     ecx, [input_head]
        jne     .take
        sti
        hlt
        jmp     get_char
.take:  and     ecx, INPUT_SIZE - 1
        mov     al, [input_buffer + ecx]
        inc     dword [input_tail]
        sti
        ret

; Let ECX ticks pass.
wait_ticks:
        add     ecx, [ticks]
.more:  hlt
        cmp     [ticks], ecx
        js      .more                   ; the difference: right even when it wraps
        ret

show_timer:
        HEADING "The timer: the 8254 interrupts 100 times a second"
        mov     ebx, [ticks]
        mov     ecx, 10
        call    wait_ticks
        mov     eax, [ticks]
        sub     eax, ebx
        cmp     eax, 10
        CHECK   ae, "%d ticks counted while the processor halted, %d in all", \
                eax, [ticks]
        ret
