; exits.asm - one privileged or sensitive operation at a time: what does each cost?
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; Command line: a number, how often to do each; 10000 if there is none.  Before each
; series a line `section NAME NUMBER` is written; whoever measures takes the time
; between two of them.  After the last series comes `section end 0`.

%include "lib/image.inc"
%include "lib/serial.inc"
%include "lib/segments.inc"
%include "lib/paging.inc"
%include "lib/machine.inc"
%include "lib/bench.inc"

DEFAULT_COUNT   equ     10000
POST_PORT       equ     80h             ; where the BIOS shows its progress: harmless
FILL            equ     20000000h       ; 4 MiB of addresses for page_fill

; SERIES "name" / instructions / REPEAT     the instructions must keep EBP.
%macro SERIES 1
%push series
        [section .rodata]
%$name: db      %1, 0
        __SECT__
        PRINTLN "section %s %d", %$name, [count]
        mov     ebp, [count]
%$again:
%endmacro

%macro REPEAT 0
        dec     ebp
        jnz     %$again
%pop
%endmacro

section .bss
        alignb  PAGE_SIZE
fill_table:     resb    PAGE_SIZE
fill_frame:     resb    PAGE_SIZE
count:          resd    1
table_register: resb    6

section .text

main:   call    command_number
        test    eax, eax
        jnz     .given
        mov     eax, DEFAULT_COUNT
.given: mov     [count], eax

        SERIES  "nothing"               ; the loop itself, to be subtracted
        REPEAT
        SERIES  "cli_sti"
        cli
        sti
        REPEAT
        SERIES  "mov_from_cr0"
        mov     eax, cr0
        REPEAT
        mov     ebx, cr3
        SERIES  "mov_to_cr3"
        mov     cr3, ebx
        REPEAT
        SERIES  "invlpg"
        invlpg  [fill_frame]
        REPEAT
        SERIES  "in"
        in      al, POST_PORT
        REPEAT
        SERIES  "out"
        out     POST_PORT, al
        REPEAT
        SERIES  "pushf_popf"
        pushf
        popf
        REPEAT
        xor     eax, eax                ; SYS_NOTHING
        SERIES  "int80_ring0"
        int     VECTOR_SYSCALL
        REPEAT
        SERIES  "int80_ring3"
        mov     eax, user_calls         ; this loop is in ring 3
        call    enter_user
        mov     ebp, 1
        REPEAT
        SERIES  "sgdt"
        sgdt    [table_register]
        REPEAT
        SERIES  "cpuid"
        xor     eax, eax
        cpuid
        REPEAT
        SERIES  "rdtsc"
        rdtsc
        REPEAT
        call    page_fill
        PRINTLN "section end 0"
        ret

; Make a page present, and touch it.  Its PTE was not present before, so nothing needs
; to be invalidated; under shadow paging the touch is a fault that the guest never
; sees.  Every 1024 pages the table is emptied, and MOV CR3 tells the processor.
page_fill:
        mov     dword [page_directory + (FILL >> 22) * 4], fill_table + PTE_P + PTE_W
        xor     edi, edi
        SERIES  "page_fill"
        mov     eax, edi
        mov     dword [fill_table + edi * 4], fill_frame + PTE_P + PTE_W
        shl     eax, 12
        mov     ecx, [FILL + eax]
        inc     edi
        cmp     edi, 1024
        jb      .more
        xor     eax, eax
        mov     ecx, 1024
        mov     edi, fill_table
        rep     stosd
        xor     edi, edi
        mov     eax, cr3
        mov     cr3, eax
.more:
        REPEAT
        ret

section .utext

user_calls:
        mov     eax, SYS_NOTHING
        int     VECTOR_SYSCALL
        dec     ebp
        jnz     user_calls
        mov     eax, SYS_LEAVE
        int     VECTOR_SYSCALL

IMAGE_END
