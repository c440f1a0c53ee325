; faults.asm - exceptions: those that a demonstration expects, and all others.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; A demonstration announces its fault in a table: at which EIP, which vector, error
; code and CR2, and where to resume.  The handler looks up the EIP, reports what came,
; compares, and continues behind the faulting instruction.  (Linux finds its way back
; from a bad user pointer by just such a table.)
;
; Source: Intel SDM Vol. 3A, 6.13 (error codes), 6.15 (exceptions), 4.7 (#PF).

struc Fault
.eip:           resd    1               ; the instruction that faults
.resume:        resd    1               ; where to go on
.vector:        resd    1
.error:         resd    1
.cr2:           resd    1               ; the address, for a page fault
.text:          resd    1               ; what it shows
endstruc

; EXPECT vector, error code, CR2, "what it shows" [, EIP if not the next instruction]
; an instruction
; RESUME                                if no fault came, say so; uses EAX and EBX
%assign fault_number 0
%macro EXPECT 4-5
%push fault
        [section .rodata]
%$text: db      %4, 0
        [section .faults]
%if %0 = 5
        dd      %5
%else
        dd      %$here
%endif
        dd      %$resume, %1, %2, %3, %$text
        __SECT__
%$here:
%endmacro

%macro RESUME 0
        mov     eax, SYS_NO_FAULT
        mov     ebx, fault_number
        int     VECTOR_SYSCALL
%$resume:
%assign fault_number fault_number + 1
%pop
%endmacro

section .faults
fault_table:

section .rodata
        align   4
exception_names:
        dd      .de, .db, .nmi, .bp, .of, .br, .ud, .nm, .df, .cso
        dd      .ts, .np, .ss, .gp, .pf, .r15, .mf, .ac, .mc, .xm
.de:    db      "#DE divide error", 0
.db:    db      "#DB debug", 0
.nmi:   db      "NMI", 0
.bp:    db      "#BP breakpoint", 0
.of:    db      "#OF overflow", 0
.br:    db      "#BR bound range", 0
.ud:    db      "#UD undefined opcode", 0
.nm:    db      "#NM no math unit available", 0
.cso:   db      "vector 9", 0
.df:    db      "#DF", 0                ; those with an error code: it follows
.ts:    db      "#TS", 0
.np:    db      "#NP", 0
.ss:    db      "#SS", 0
.gp:    db      "#GP", 0
.pf:    db      "#PF", 0
.r15:   db      "vector 15", 0
.mf:    db      "#MF math fault", 0
.ac:    db      "#AC", 0
.mc:    db      "#MC machine check", 0
.xm:    db      "#XM SIMD exception", 0

write_word:     db      "write", 0
read_word:      db      "read", 0
fetch_word:     db      "fetch", 0
user_word:      db      "user", 0
kernel_word:    db      "kernel", 0
protected_word: db      "protection", 0
absent_word:    db      "not present", 0

section .data
fault_cr2:      dd      0

section .text

; EBX = frame; returns the frame to go on with.
exception:
        mov     eax, cr2                ; at once: another #PF would overwrite it
        mov     [fault_cr2], eax
        mov     eax, [ebx + Frame.eip]
        mov     esi, fault_table
.find:  cmp     esi, fault_table + FAULTS * Fault_size
        je      unexpected
        cmp     eax, [esi + Fault.eip]
        je      .found
        add     esi, Fault_size
        jmp     .find

.found: mov     eax, [esi + Fault.resume]
        push    eax
        call    report_fault
        call    judge_fault
        CHECK   e, "%s", [esi + Fault.text]
        pop     eax
        mov     [ebx + Frame.eip], eax
        ret

; ESI = table entry, EBX = frame.  ZF = 1 if the fault is just what was announced, and
; came with interrupts on from the ring that its address belongs to.
judge_fault:
        mov     eax, [ebx + Frame.vector]
        cmp     eax, [esi + Fault.vector]
        jne     .done
        mov     edx, [ebx + Frame.error]
        cmp     edx, [esi + Fault.error]
        jne     .done
        cmp     eax, VECTOR_PF          ; CR2 tells nothing about other faults
        jne     .ring
        mov     eax, [fault_cr2]
        cmp     eax, [esi + Fault.cr2]
        jne     .done
.ring:  mov     eax, KERNEL_CS
        cmp     dword [ebx + Frame.eip], USER_TEXT
        jb      .cs
        mov     eax, USER_CS
.cs:    cmp     [ebx + Frame.cs], ax    ; (the upper half of that word is undefined)
        jne     .done
        mov     eax, [ebx + Frame.eflags]
        and     eax, EFLAGS_IF
        cmp     eax, EFLAGS_IF
.done:  ret

; EBX = frame.  One line that says what happened, and where.
report_fault:
        pusha
        mov     eax, [ebx + Frame.vector]
        mov     ecx, [ebx + Frame.error]
        mov     edx, [ebx + Frame.eip]
        PRINT   "  %s", [exception_names + eax * 4]
        cmp     eax, VECTOR_PF
        je      .page
        cmp     eax, VECTOR_GP
        je      .code
        jb      .maybe                  ; 8, 10, 11, 12 have one, and 17
        cmp     eax, 17
        jne     .where
        jmp     .code
.maybe: cmp     eax, 10
        jae     .code
        cmp     eax, 8
        jne     .where
.code:  test    ecx, ecx
        jz      .no_selector
        PRINT   "(%hh) ", ecx
        test    ecx, 2                  ; bit 1: the index is into the IDT
        jnz     .gate
        and     ecx, 0FFFCh
        PRINT   "of selector %hh", ecx
        jmp     .where
.gate:  shr     ecx, 3
        PRINT   "of IDT gate %hh", ecx
        jmp     .where
.no_selector:
        PRINT   "(0)"
        cmp     byte [ebx + Frame.vector], VECTOR_GP
        jne     .where
        PRINT   " general protection"
        jmp     .where

.page:  mov     esi, write_word         ; bit 1: W/R
        test    ecx, 2
        jnz     .who
        mov     esi, read_word
        cmp     edx, [fault_cr2]        ; the instruction itself could not be read
        jne     .who
        mov     esi, fetch_word
.who:   mov     edi, user_word          ; bit 2: U/S
        test    ecx, 4
        jnz     .why
        mov     edi, kernel_word
.why:   mov     ebp, protected_word     ; bit 0: P
        test    ecx, 1
        jnz     .paging
        mov     ebp, absent_word
.paging:
        PRINT   "(%h) %s, %s, %s; CR2=%x", ecx, esi, edi, ebp, [fault_cr2]
        jmp     .place
.where: PRINT   ";"
.place: movzx   ecx, word [ebx + Frame.cs]
        mov     eax, ecx
        and     eax, 3
        PRINTLN " EIP=%x CS=%hh ring %d", edx, ecx, eax
        popa
        ret

; A fault that nobody announced: show everything, and stop.
unexpected:
        PRINTLN `\nteach: an unexpected fault: the kernel stops here`
        call    report_fault
        call    dump_frame
        jmp     stop

; EBX = frame.  A fault from ring 0 pushes no stack pointer: it stays where it was.
dump_frame:
        lea     eax, [ebx + Frame.user_esp]
        mov     ecx, ss
        test    byte [ebx + Frame.cs], 3
        jz      .kernel
        mov     eax, [ebx + Frame.user_esp]
        mov     ecx, [ebx + Frame.user_ss]
.kernel:
        PRINTLN "  EAX=%x EBX=%x ECX=%x EDX=%x", [ebx + Frame.eax], \
                [ebx + Frame.ebx], [ebx + Frame.ecx], [ebx + Frame.edx]
        PRINTLN "  ESI=%x EDI=%x EBP=%x ESP=%x", [ebx + Frame.esi], \
                [ebx + Frame.edi], [ebx + Frame.ebp], eax
        mov     edx, [ebx + Frame.ds]
        movzx   esi, word [ebx + Frame.cs]
        PRINTLN "  EIP=%x EFL=%x CS=%h SS=%h DS=%h", [ebx + Frame.eip], \
                [ebx + Frame.eflags], esi, ecx, edx
        mov     eax, cr0
        mov     ecx, cr3
        mov     edx, cr4
        PRINTLN "  CR0=%x CR2=%x CR3=%x CR4=%x", eax, [fault_cr2], ecx, edx
        ret
