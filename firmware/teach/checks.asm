; checks.asm - what the kernel itself sees of the processor, in ring 0.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; On a real 80386 and its successors these lines are dull: of course the kernel is in
; ring 0.  Under a virtual machine monitor of the old kind it is not; it runs in ring
; 1, and somebody takes great pains that it cannot tell.  The instructions here are
; those by which it could.  The worst are the ones that do not trap: Popek and
; Goldberg called them sensitive (Communications of the ACM, July 1974), and Robin and
; Irvine counted 17 of them on this processor (USENIX Security, August 2000).

ACCESS_MASK     equ     00F0FF00h       ; what LAR gives for certain
CR4_TSD         equ     00000004h
DR7_FIXED       equ     00000400h

section .data
        align   4
table_register: dw      0               ; SGDT and SIDT store limit and base here
                dd      0

section .text

show_sensitive:
        call    check_ring
        call    check_flags
        call    check_tables
        call    check_descriptors
        call    check_registers
        jmp     check_memory

check_ring:
        HEADING "Which ring the kernel sees itself in"
        mov     eax, cs
        cmp     ax, KERNEL_CS
        movzx   eax, ax
        mov     ebx, eax
        mov     ecx, eax
        and     ecx, 3
        CHECK   e, "MOV EAX,CS gives %hh: RPL %d, ring 0", eax, ecx
        push    cs
        pop     eax
        movzx   eax, ax                 ; (the upper half of that word is undefined)
        cmp     eax, KERNEL_CS
        CHECK   e, "PUSH CS pushes %hh", eax
        mov     eax, ss
        cmp     ax, KERNEL_DS
        CHECK   e, "MOV EAX,SS gives %hh", eax
        push    ds
        pop     eax
        movzx   eax, ax
        cmp     eax, KERNEL_DS
        CHECK   e, "PUSH DS pushes %hh", eax

        call    KERNEL_CS:.far          ; pushes the CS it came from
        cmp     eax, KERNEL_CS
        CHECK   e, "CALL FAR pushes CS %hh", eax

        mov     eax, SYS_GETPID         ; a trap from ring 0: same stack, no SS:ESP
        mov     ebx, esp
        int     VECTOR_SYSCALL
        movzx   ecx, word [ebx - 8]     ; what it pushed there is still there
        cmp     eax, 0
        CHECK   e, "INT 80h from ring 0 comes back: pid %d, the kernel itself", eax
        cmp     ebx, esp
        CHECK   e, "IRET to ring 0 leaves ESP alone: it pops three words, not five"
        cmp     ecx, KERNEL_CS
        CHECK   e, "INT 80h pushed CS %hh: the way back is to ring 0", ecx
        ret
.far:   movzx   eax, word [esp + 4]
        retf

check_flags:
        HEADING "Is the interrupt flag what it was set to?"
        cli
        pushf
        pop     eax
        test    eax, EFLAGS_IF
        CHECK   z, "CLI, PUSHF: EFLAGS %x, IF is 0", eax
        sti
        pushf
        pop     eax
        test    eax, EFLAGS_IF
        CHECK   nz, "STI, PUSHF: EFLAGS %x, IF is 1", eax
        push    dword EFLAGS_FIXED
        popf
        pushf
        pop     eax
        test    eax, EFLAGS_IF
        CHECK   z, "POPF of 0002: EFLAGS %x, IF is 0", eax
        push    dword EFLAGS_FIXED | EFLAGS_IF
        popf
        pushf
        pop     eax
        test    eax, EFLAGS_IF
        CHECK   nz, "POPF of 0202: EFLAGS %x, IF is 1", eax
        cli
        push    dword EFLAGS_FIXED | EFLAGS_IF
        push    cs
        push    dword .back
        iret
.back:  pushf
        pop     eax
        test    eax, EFLAGS_IF
        CHECK   nz, "CLI, IRET to IF = 1: EFLAGS %x", eax
        push    dword EFLAGS_FIXED | EFLAGS_IF | EFLAGS_IOPL
        popf
        pushf
        pop     eax
        push    dword EFLAGS_FIXED | EFLAGS_IF
        popf
        mov     ecx, eax
        and     ecx, EFLAGS_IOPL
        shr     ecx, 12
        cmp     ecx, 3
        CHECK   e, "POPF of 3202: EFLAGS %x, IOPL is %d", eax, ecx

        cli                             ; a tick that comes now must wait
        mov     ebx, [ticks]
        call    wait_for_tick_request
        mov     ecx, [ticks]
        sub     ecx, ebx
        CHECK   z, "with IF 0 the timer asked, but was not served"
        sti
        nop                             ; STI lets one more instruction pass
        cmp     ebx, [ticks]
        CHECK   ne, "with IF 1 it was served at once"
        ret

; Look at the 8259A's requests until the timer's line is among them.
wait_for_tick_request:
        mov     al, 0Ah                 ; OCW3: the next read gives the requests
        out     PIC1, al
.more:  in      al, PIC1
        test    al, 1 << IRQ_TIMER
        jz      .more
        ret

check_tables:
        HEADING "Are the tables where the kernel put them?"
        sgdt    [table_register]
        movzx   ecx, word [table_register]
        mov     edx, [table_register + 2]
        mov     esi, gdt_pointer
        call    same_table
        CHECK   e, "SGDT gives base %x, limit %hh", edx, ecx
        sidt    [table_register]
        movzx   ecx, word [table_register]
        mov     edx, [table_register + 2]
        mov     esi, idt_pointer
        call    same_table
        CHECK   e, "SIDT gives base %x, limit %hh", edx, ecx
        mov     eax, -1
        sldt    ax
        test    ax, ax
        movzx   eax, ax
        CHECK   z, "SLDT gives %hh: no local table", eax
        xor     eax, eax
        str     ax
        cmp     ax, TSS_SELECTOR
        CHECK   e, "STR gives %hh", eax
        mov     al, [tss_descriptor + 5]
        and     eax, 0Fh
        cmp     eax, 0Bh
        CHECK   e, "LTR marked the TSS busy: its descriptor has type %hh", eax
        mov     eax, cr0
        movzx   ecx, ax
        xor     edx, edx
        smsw    dx
        cmp     ecx, edx
        CHECK   e, "SMSW gives %hh, the lower half of CR0 %x", edx, eax
        ret

; ESI = pointer that was loaded; ZF = 1 if it equals the one that was stored.
same_table:
        cmp     cx, [esi]
        jne     .done
        cmp     edx, [esi + 2]
.done:  ret

check_descriptors:
        HEADING "What LAR, LSL, VERR and VERW say about segments"
        mov     ecx, KERNEL_CS
        mov     edx, 00C09B00h
        call    check_lar
        mov     ecx, KERNEL_DS
        mov     edx, 00C09300h
        call    check_lar
        mov     ecx, USER_CS
        mov     edx, 00C0FB00h
        call    check_lar
        mov     ecx, USER_DS
        mov     edx, 00C0F300h
        call    check_lar
        mov     ecx, TSS_SELECTOR
        mov     edx, 00008B00h
        call    check_lar
        mov     ecx, GDT_ENTRIES * 8
        lar     eax, ecx
        CHECK   nz, "LAR of %hh, behind the table: ZF 0, no answer", ecx
        mov     ecx, KERNEL_CS
        xor     eax, eax
        lsl     eax, ecx
        sete    dl
        cmp     eax, -1
        sete    dh
        and     dl, dh
        CHECK   nz, "LSL of %hh: limit %x", ecx, eax
        mov     ecx, TSS_SELECTOR
        lsl     eax, ecx
        cmp     eax, TSS_LIMIT
        CHECK   e, "LSL of %hh: limit %hh, the TSS", ecx, eax
        xor     ecx, ecx
        lsl     eax, ecx
        CHECK   nz, "LSL of 0h: ZF 0, the null selector has no limit"
        mov     ecx, KERNEL_CS
        verr    cx
        CHECK   z, "VERR %hh: the kernel's code may be read", ecx
        verw    cx
        CHECK   nz, "VERW %hh: but not written", ecx
        mov     ecx, KERNEL_DS
        verr    cx
        CHECK   z, "VERR %hh: the kernel's data may be read", ecx
        verw    cx
        CHECK   z, "VERW %hh: and written", ecx
        mov     ecx, KERNEL_DS + 3
        verw    cx
        CHECK   nz, "VERW %hh: but not with RPL 3, on behalf of ring 3", ecx
        mov     ecx, USER_DS
        verw    cx
        CHECK   z, "VERW %hh: ring 0 may write the user's data", ecx
        ret

; ECX = selector, EDX = the access rights that it should have.
check_lar:
        lar     eax, ecx
        jnz     .judge                  ; ZF 0: refused, and EAX is not the answer
        and     eax, ACCESS_MASK
        cmp     eax, edx
.judge: CHECK   e, "LAR of %hh: access rights %x", ecx, eax
        ret

check_registers:
        HEADING "Do the control registers hold what was written?"
        mov     eax, cr0
        mov     ecx, eax
        and     ecx, CR0_PG | CR0_WP | CR0_NE | CR0_PE
        cmp     ecx, CR0_PG | CR0_WP | CR0_NE | CR0_PE
        CHECK   e, "CR0 %x: paging and protection are on", eax
        mov     ebx, eax
        and     eax, ~CR0_WP
        mov     cr0, eax
        mov     ecx, cr0
        mov     cr0, ebx
        cmp     ecx, eax
        CHECK   e, "CR0 %x: with WP off", ecx
        mov     eax, 12345678h
        mov     cr2, eax
        mov     ecx, cr2
        cmp     ecx, eax
        CHECK   e, "CR2 %x: as written", ecx
        mov     ecx, cr3
        cmp     ecx, page_directory
        CHECK   e, "CR3 %x: the page directory", ecx
        mov     ebx, cr4
        mov     eax, ebx
        xor     eax, CR4_TSD
        mov     cr4, eax
        mov     ecx, cr4
        mov     cr4, ebx
        cmp     ecx, eax
        CHECK   e, "CR4 %x: TSD turned over", ecx
        mov     eax, image_start
        mov     dr0, eax
        mov     ecx, dr0
        cmp     ecx, eax
        CHECK   e, "DR0 %x: as written", ecx
        mov     ecx, dr7
        cmp     ecx, DR7_FIXED
        CHECK   e, "DR7 %x: no breakpoint is armed", ecx

        mov     eax, cr0
        or      eax, CR0_TS
        mov     cr0, eax
        EXPECT  VECTOR_NM, 0, 0, "an FPU instruction with CR0.TS set"
        fnop
        RESUME
        clts
        mov     eax, cr0
        test    eax, CR0_TS
        CHECK   z, "CLTS: CR0 %x, TS is 0", eax
        smsw    ax
        mov     ecx, eax
        xor     ecx, CR0_MP
        and     ecx, ~CR0_PE            ; LMSW can switch protection on, but not off
        lmsw    cx
        xor     edx, edx
        smsw    dx
        lmsw    ax
        or      ecx, CR0_PE
        movzx   ecx, cx
        cmp     edx, ecx
        CHECK   e, "LMSW: the lower half of CR0 %hh, and PE cannot be cleared", edx
        ret
