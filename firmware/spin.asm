; spin.asm - ten instructions in ring 3, over and over: what does computing cost?
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; Command line: a number, the iterations in millions; 40 if there is none, at most
; 4000.  Ten instructions each, two loads and two stores among them, so 40 makes 400
; million.  The checksum is the same on every right processor.

%include "lib/image.inc"
%include "lib/serial.inc"
%include "lib/segments.inc"
%include "lib/paging.inc"
%include "lib/machine.inc"
%include "lib/bench.inc"

DEFAULT_MILLIONS equ    40
MOST_MILLIONS   equ     4000            ; the loop counter has 32 bits

section .text

main:   call    command_number
        test    eax, eax
        jnz     .given
        mov     eax, DEFAULT_MILLIONS
.given: cmp     eax, MOST_MILLIONS
        jbe     .fits
        mov     eax, MOST_MILLIONS
.fits:  mov     esi, eax
        imul    ebp, eax, 1000000
        PRINTLN "spin: %d million iterations in ring 3", esi
        mov     eax, spin
        call    enter_user
        mov     eax, [sum]
        PRINTLN "spin: done, checksum %x", eax
        ret

section .utext

; EBP = iterations.
spin:   mov     esi, words
        xor     ebx, ebx
        xor     edx, edx
        mov     ecx, ebp
        align   16, nop
.again: mov     eax, [esi + edx * 4]
        add     eax, ecx
        rol     eax, 5
        xor     ebx, eax
        mov     [esi + edx * 4], eax
        inc     edx
        and     edx, 1023
        add     [sum], ebx
        dec     ecx
        jnz     .again
        mov     eax, SYS_LEAVE
        int     VECTOR_SYSCALL

section .udata
        align   4
sum:    dd      0
        align   PAGE_SIZE, db 0
words:  times   1024 dd 0

IMAGE_END
