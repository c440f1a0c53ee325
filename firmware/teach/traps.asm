; traps.asm - the way into the kernel: IDT, trap frames, dispatch; and out again.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; Whatever happens (an instruction faults, a chip interrupts, a program asks by INT
; 80h), the processor does the same: it looks up the gate of the vector, switches to
; the kernel's stack if it was in ring 3, pushes where it was, and goes on at the
; gate's address in ring 0.  We push the rest; together that is the trap frame.
;
; Source: Intel SDM Vol. 3A, 6.12.1 (exception and interrupt procedures), 6.15.

struc Frame
.gs:            resd    1               ; pushed by trap_common
.fs:            resd    1
.es:            resd    1
.ds:            resd    1
.edi:           resd    1               ; pushed by PUSHA
.esi:           resd    1
.ebp:           resd    1
.esp:           resd    1               ; (useless: ESP in the middle of this frame)
.ebx:           resd    1
.edx:           resd    1
.ecx:           resd    1
.eax:           resd    1
.vector:        resd    1               ; pushed by the stub
.error:         resd    1               ; pushed by the processor, or 0 by the stub
.eip:           resd    1               ; pushed by the processor
.cs:            resd    1
.eflags:        resd    1
.user_esp:      resd    1               ; these two only when coming from ring 3
.user_ss:       resd    1
endstruc

VECTOR_DE       equ     0               ; divide error
VECTOR_UD       equ     6               ; undefined opcode
VECTOR_NM       equ     7               ; no math: the FPU is not available
VECTOR_GP       equ     13              ; general protection
VECTOR_PF       equ     14              ; page fault
LAST_EXCEPTION  equ     19
VECTOR_IRQ      equ     20h             ; the 16 interrupt lines: 20h to 2Fh
VECTOR_SYSCALL  equ     80h

; One stub for each vector: they differ in nothing but the number.  Some exceptions
; come with an error code; for the others we push a 0, so that all frames are alike.
%macro STUB 1
        align   16, db 0CCh
%if %1 != 8 && (%1 < 10 || %1 > 14) && %1 != 17
        push    dword 0
%endif
        push    dword %1
        jmp     trap_common
%endmacro

section .text
        align   16, db 0CCh
exception_stubs:
%assign vector 0
%rep LAST_EXCEPTION + 1
        STUB    vector
%assign vector vector + 1
%endrep
        align   16, db 0CCh
irq_stubs:
%assign vector VECTOR_IRQ
%rep 16
        STUB    vector
%assign vector vector + 1
%endrep
        align   16, db 0CCh
syscall_stub:
        STUB    VECTOR_SYSCALL

; Fill the IDT.  Only the system call's gate has DPL 3: INT 80h is the one door that
; ring 3 may open by itself.  Faults and interrupts pass any gate; DPL binds INT n.
init_idt:
        xor     ecx, ecx
        mov     eax, exception_stubs
.exception:
        mov     edx, GATE_KERNEL
        call    set_gate
        add     eax, 16
        inc     ecx
        cmp     ecx, LAST_EXCEPTION
        jbe     .exception
        mov     ecx, VECTOR_IRQ
        mov     eax, irq_stubs
.irq:   mov     edx, GATE_KERNEL
        call    set_gate
        add     eax, 16
        inc     ecx
        cmp     ecx, VECTOR_IRQ + 16
        jb      .irq
        mov     ecx, VECTOR_SYSCALL
        mov     eax, syscall_stub
        mov     edx, GATE_USER
        jmp     set_gate

; All stubs come here, with interrupts off (these are interrupt gates, not trap
; gates).  Handlers are called with EBX = frame, and return in EBX the frame to go on
; with: if that is the frame of another task, then that task goes on.
trap_common:
        pusha
        push    ds
        push    es
        push    fs
        push    gs
        mov     eax, KERNEL_DS          ; CS and SS are the kernel's already
        mov     ds, eax
        mov     es, eax
        cld                             ; the flags are the program's: D may be set
        mov     ebx, esp
        mov     eax, [ebx + Frame.vector]
        cmp     eax, LAST_EXCEPTION
        jbe     .exception
        cmp     eax, VECTOR_SYSCALL
        je      .syscall
        call    interrupt
        jmp     leave_trap
.exception:
        call    exception
        jmp     leave_trap
.syscall:
        call    system_call

; EBX = frame.  Undo all of it.  IRET takes back EIP, CS, EFLAGS and, if the CS is of
; ring 3, the stack as well: this is also how a program first gets to ring 3.
leave_trap:
        mov     esp, ebx
        pop     gs
        pop     fs
        pop     es
        pop     ds
        popa
        add     esp, 8                  ; vector and error code
        iret
