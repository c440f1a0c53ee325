; exits.asm - one operation of a kernel at a time: what does each cost?
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; Command line: a number, how often to do each; 10000 if there is none.  With
; `only=NAME` there is that series alone.  Before each series a line `section NAME
; NUMBER` is written; whoever measures takes the time between two of them.  After the
; last series comes `section end 0`.
;
; Seven are the nanobenchmarks of Adams and Agesen, "A Comparison of Software and
; Hardware Techniques for x86 Virtualization", ASPLOS 2006, section 6.3: syscall (here
; int80_ring3), in, cr3wr (mov_to_cr3), callret, pgfault, divzero and ptemod.

%include "lib/image.inc"
%include "lib/serial.inc"
%include "lib/segments.inc"
%include "lib/paging.inc"
%include "lib/machine.inc"
%include "lib/bench.inc"

DEFAULT_COUNT   equ     10000
POST_PORT       equ     80h             ; where the BIOS shows its progress: harmless
FILL            equ     20000000h       ; 4 MiB of addresses for page_fill and ptemod
PTE_SOFTWARE    equ     800h            ; bit 11: the processor looks at no such bit
VECTOR_DE       equ     0
VECTOR_PF       equ     14

; SERIES "name" / instructions / REPEAT     the instructions must keep EBP.
%macro SERIES 1
%push series
        [section .rodata]
%$name: db      %1, 0
        __SECT__
        push    dword %$name
        call    wanted
        jne     near %$done
        PRINTLN "section %s %d", %$name, [count]
        mov     ebp, [count]
%$again:
%endmacro

%macro REPEAT 0
        dec     ebp
        jnz     %$again
%$done:
%pop
%endmacro

section .bss
        alignb  PAGE_SIZE
fill_table:     resb    PAGE_SIZE
fill_frame:     resb    PAGE_SIZE
count:          resd    1
only:           resd    1               ; the name behind `only=`, or 0
table_register: resb    6

section .text

main:   call    command_number
        test    eax, eax
        jnz     .given
        mov     eax, DEFAULT_COUNT
.given: mov     [count], eax
        call    find_only

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
        SERIES  "callret"
        call    nothing
        REPEAT
        mov     dword [page_directory + (FILL >> 22) * 4], fill_table + PTE_P + PTE_W
        call    page_fill
        call    page_table_change
        mov     ecx, VECTOR_PF
        mov     eax, over_load
        mov     edx, GATE_KERNEL
        call    set_gate
        SERIES  "pgfault"
        mov     eax, user_loads         ; this loop is in ring 3, and the next
        call    enter_user
        mov     ebp, 1
        REPEAT
        mov     ecx, VECTOR_DE
        mov     eax, over_division
        mov     edx, GATE_KERNEL
        call    set_gate
        SERIES  "divzero"
        mov     eax, user_divisions
        call    enter_user
        mov     ebp, 1
        REPEAT
        PRINTLN "section end 0"
nothing: ret

; The name behind `only=` on the command line  ->  [only].
find_only:
        mov     esi, command_line
.next:  cmp     byte [esi], 0
        je      .none
        inc     esi
        cmp     dword [esi - 1], 'only'
        jne     .next
        cmp     byte [esi + 3], '='
        jne     .next
        add     esi, 4
        mov     [only], esi
.none:  ret

; Is the series whose name is on the stack asked for?  ZF = 1: yes.  Keeps all registers,
; takes the name off the stack.
wanted: pusha
        mov     esi, [esp + 8 * 4 + 4]
        mov     edi, [only]
        test    edi, edi
        jz      .told
.next:  lodsb
        test    al, al
        jz      .end
        cmp     al, [edi]
        jne     .told
        inc     edi
        jmp     .next
.end:   cmp     byte [edi], 0           ; here ends the name that was asked for, too?
        je      .told
        cmp     byte [edi], ' '
.told:  popa
        ret     4

; Change the PTE of a page that is in use, in a bit that means nothing.
page_table_change:
        mov     dword [fill_table], fill_frame + PTE_P + PTE_W
        mov     eax, cr3
        mov     cr3, eax
        mov     ecx, [FILL]
        SERIES  "ptemod"
        xor     dword [fill_table], PTE_SOFTWARE
        REPEAT
        ret

; The faults of ring 3: go on behind the instruction.
over_load:
        add     esp, 4                  ; the error code
        add     dword [esp], LOAD_SIZE
        iret
over_division:
        add     dword [esp], DIVISION_SIZE
        iret

; Make a page present, and touch it.  Its PTE was not present before, so nothing needs
; to be invalidated; under shadow paging the touch is a fault that the guest never
; sees.  Every 1024 pages the table is emptied, and MOV CR3 tells the processor.
page_fill:
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

user_loads:
        mov     eax, [0]                ; page 0 is absent
LOAD_SIZE       equ     $ - user_loads
        dec     ebp
        jnz     user_loads
        mov     eax, SYS_LEAVE
        int     VECTOR_SYSCALL

user_divisions:
        xor     ecx, ecx
.again: div     ecx
DIVISION_SIZE   equ     $ - .again
        dec     ebp
        jnz     .again
        mov     eax, SYS_LEAVE
        int     VECTOR_SYSCALL

IMAGE_END
