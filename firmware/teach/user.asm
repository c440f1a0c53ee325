; user.asm - what runs in ring 3.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; These programs see only their own pages.  Everything else is the kernel's gift: to
; be asked for by INT 80h, or tried, and then there is a fault.

UNMAPPED        equ     40300000h       ; user addresses, and nothing there

; A claim that a program in ring 3 makes about itself, without a fault.
%macro CLAIM 2                          ; condition, number
        mov     ebx, 0                  ; (MOV keeps the flags)
        set%1   bl
        mov     ecx, %2
        mov     eax, SYS_EXAMINED
        int     VECTOR_SYSCALL
%endmacro

CLAIM_CS        equ     0
CLAIM_WRITE     equ     1
CLAIM_POPF_IF   equ     2
CLAIM_POPF_IOPL equ     3
CLAIMS          equ     4

section .rodata
        align   4
user_claims:    dd      .cs, .write, .popf_if, .popf_iopl
.cs:    db      "MOV EAX,CS: the program sees 1Bh, so it is in ring 3", 0
.write: db      "write(kernel address): the kernel refuses, it looks the page up", 0
.popf_if:
        db      "POPF with IF clear: no fault, but IF stays: POPF lies to ring 3", 0
.popf_iopl:
        db      "POPF with IOPL 3: no fault, but IOPL stays 0", 0

section .text

show_rings:
        HEADING "What ring 3 may not do"
        cli
        mov     esi, task_a
        mov     eax, ring3_program
        call    spawn
        jmp     run_tasks

section .utext

; Each attempt faults; the kernel reports it and lets us go on behind it.
ring3_program:
        mov     eax, cs
        cmp     ax, USER_CS
        CLAIM   e, CLAIM_CS

        EXPECT  VECTOR_GP, 0, 0, "CLI: ring 3 may not switch interrupts off"
        cli
        RESUME
        EXPECT  VECTOR_GP, 0, 0, "HLT: ring 3 may not stop the processor"
        hlt
        RESUME
        mov     edx, COM1
        EXPECT  VECTOR_GP, 0, 0, "IN AL,DX: ring 3 may not talk to the UART"
        in      al, dx
        RESUME
        EXPECT  VECTOR_GP, 0, 0, "OUT DX,AL: nor write to it"
        out     dx, al
        RESUME
        EXPECT  VECTOR_GP, 0, 0, "MOV EAX,CR0: ring 3 may not even look at CR0"
        mov     eax, cr0
        RESUME
        EXPECT  VECTOR_GP, 0, 0, "MOV CR3,EAX: nor choose other page tables"
        mov     cr3, eax
        RESUME
        EXPECT  VECTOR_GP, 0, 0, "LGDT: nor make segments of its own"
        lgdt    [user_scratch]
        RESUME
        mov     eax, KERNEL_DS
        EXPECT  VECTOR_GP, KERNEL_DS, 0, "MOV DS: a segment of DPL 0 is not for ring 3"
        mov     ds, eax
        RESUME
        EXPECT  VECTOR_GP, KERNEL_CS, 0, "JMP FAR: no jump leads into ring 0"
        jmp     KERNEL_CS:start
        RESUME
        EXPECT  VECTOR_GP, 21h * 8 + 2, 0, \
                "INT 21h: that gate has DPL 0, the door is shut"
        int     21h
        RESUME

        EXPECT  VECTOR_PF, 7, ticks, \
                "write to a kernel page: present, but not for users"
        mov     dword [ticks], 0
        RESUME
        EXPECT  VECTOR_PF, 5, image_start, "read of a kernel page: just the same"
        mov     eax, [image_start]
        RESUME
        EXPECT  VECTOR_PF, 7, ring3_program, \
                "write to the program's own code: read only"
        mov     byte [ring3_program], 90h
        RESUME
        EXPECT  VECTOR_PF, 4, UNMAPPED, "jump to where nothing is mapped", UNMAPPED
        jmp     UNMAPPED
        RESUME
        mov     esp, USER_STACK_A - PAGE_SIZE   ; as if the stack's page were used up
        EXPECT  VECTOR_PF, 6, USER_STACK_A - PAGE_SIZE - 4, \
                "PUSH on a full stack: the hole under it catches it"
        push    eax
        RESUME
        mov     esp, USER_STACK_A

        EXPECT  VECTOR_UD, 0, 0, "UD2: an instruction that is none"
        ud2
        RESUME
        xor     ecx, ecx
        EXPECT  VECTOR_DE, 0, 0, "DIV by zero"
        div     ecx
        RESUME

        mov     eax, SYS_WRITE
        mov     ebx, image_start
        int     VECTOR_SYSCALL
        cmp     eax, -EFAULT
        CLAIM   e, CLAIM_WRITE

        pushf
        and     dword [esp], ~EFLAGS_IF
        popf
        pushf
        pop     eax
        test    eax, EFLAGS_IF
        CLAIM   nz, CLAIM_POPF_IF
        pushf
        or      dword [esp], EFLAGS_IOPL
        popf
        pushf
        pop     eax
        test    eax, EFLAGS_IOPL
        CLAIM   z, CLAIM_POPF_IOPL

        mov     eax, SYS_EXIT
        int     VECTOR_SYSCALL

; Both tasks run this.  Each waits for its turn without asking the kernel for anything:
; if the timer did not take the processor away, the first would spin for ever.
TASK_ROUNDS     equ     4
TASK_SLEEP      equ     5

task_program:
        mov     eax, SYS_GETPID
        int     VECTOR_SYSCALL
        mov     edi, eax                        ; 1 is A, 2 is B
        mov     ebp, TASK_ROUNDS
        lea     esi, [task_a_line]
        cmp     edi, 1
        je      .round
        lea     esi, [task_b_line]
.round: cmp     [task_turn], edi
        jne     .round
        mov     ebx, esi
        mov     eax, SYS_WRITE
        int     VECTOR_SYSCALL
        inc     byte [esi + TASK_DIGIT]
        inc     dword [task_lines]
        mov     eax, 3
        sub     eax, edi
        mov     [task_turn], eax                ; the other's turn
        dec     ebp
        jnz     .round
        mov     byte [esi + TASK_DIGIT], '1'    ; for the next time

        cmp     edi, 1
        jne     .b
        mov     ebx, TASK_SLEEP
        mov     eax, SYS_SLEEP
        int     VECTOR_SYSCALL
        mov     ebx, task_a_slept
        jmp     .end
.b:     mov     ebp, 3
.yield: mov     eax, SYS_YIELD
        int     VECTOR_SYSCALL
        dec     ebp
        jnz     .yield
        mov     ebx, task_b_yielded
.end:   mov     eax, SYS_WRITE
        int     VECTOR_SYSCALL
        mov     eax, SYS_EXIT
        int     VECTOR_SYSCALL

section .udata
        align   4
task_turn:      dd      0                       ; whose turn it is: 1 or 2
task_lines:     dd      0                       ; lines written by both
user_scratch:   dd      0, 0
task_a_line:    db      "  A writes line 1", 10, 0
TASK_DIGIT      equ     16
task_b_line:    db      "  B writes line 1", 10, 0
task_a_slept:   db      "  A has slept, and ends", 10, 0
task_b_yielded: db      "  B has yielded three times, and ends", 10, 0
