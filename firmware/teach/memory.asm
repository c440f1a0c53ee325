; memory.asm - what ring 0 sees of its page tables, and of its own code.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; One page of virtual memory serves for all experiments; its PTE leads to one or the
; other of two frames.  The processor keeps what it has looked up (the TLB), so after
; a PTE is changed it must be told: INVLPG for one page, MOV CR3 for all.
;
; Source: Intel SDM Vol. 3A, 4.6 (access rights), 4.8 (A and D), 4.10.4 (invalidation),
;         8.1.3 (self- and cross-modifying code).

EXPERIMENT      equ     00200000h       ; behind the image, in the kernel's page table

section .bss
        alignb  PAGE_SIZE
frame_1:        resb    PAGE_SIZE
frame_2:        resb    PAGE_SIZE
code_frame:     resb    PAGE_SIZE       ; code that is written while it runs

section .text

; Let EXPERIMENT lead to EAX (frame + rights), and say so to the processor.
map_experiment:
        mov     [kernel_table + (EXPERIMENT >> 12) * 4], eax
        invlpg  [EXPERIMENT]
        ret

check_memory:
        HEADING "Do the page tables rule?"
        mov     dword [frame_1], 11111111h
        mov     dword [frame_2], 22222222h
        mov     eax, frame_1 + PTE_P + PTE_W
        call    map_experiment
        mov     eax, [EXPERIMENT]
        cmp     eax, 11111111h
        CHECK   e, "the page leads to the first frame: %x", eax
        mov     eax, frame_2 + PTE_P + PTE_W
        call    map_experiment
        mov     eax, [EXPERIMENT]
        cmp     eax, 22222222h
        CHECK   e, "PTE changed, INVLPG: it leads to the second: %x", eax
        mov     dword [kernel_table + (EXPERIMENT >> 12) * 4], frame_1 + PTE_P + PTE_W
        mov     eax, cr3
        mov     cr3, eax
        mov     eax, [EXPERIMENT]
        cmp     eax, 11111111h
        CHECK   e, "PTE changed, MOV CR3: it leads to the first again: %x", eax
        mov     dword [EXPERIMENT + 4], 33333333h
        mov     eax, [frame_1 + 4]
        cmp     eax, 33333333h
        CHECK   e, "written there, read in the frame itself: %x", eax

        mov     ebx, frame_1 + PTE_P + PTE_W
        mov     eax, ebx
        call    map_experiment
        mov     ecx, [kernel_table + (EXPERIMENT >> 12) * 4]
        cmp     ecx, ebx
        CHECK   e, "PTE %x: not accessed, not dirty", ecx
        mov     eax, [EXPERIMENT]
        mov     ecx, [kernel_table + (EXPERIMENT >> 12) * 4]
        lea     edx, [ebx + PTE_A]
        cmp     ecx, edx
        CHECK   e, "PTE %x: after a read, accessed", ecx
        mov     [EXPERIMENT], eax
        mov     ecx, [kernel_table + (EXPERIMENT >> 12) * 4]
        lea     edx, [ebx + PTE_A + PTE_D]
        cmp     ecx, edx
        CHECK   e, "PTE %x: after a write, accessed and dirty", ecx

        mov     eax, frame_1 + PTE_P    ; read only
        call    map_experiment
        EXPECT  VECTOR_PF, 3, EXPERIMENT, "CR0.WP on: read only means ring 0, too"
        mov     dword [EXPERIMENT], 44444444h
        RESUME
        mov     eax, cr0
        and     eax, ~CR0_WP
        mov     cr0, eax
        mov     dword [EXPERIMENT], 55555555h
        or      eax, CR0_WP
        mov     cr0, eax
        mov     eax, [frame_1]
        cmp     eax, 55555555h
        CHECK   e, "CR0.WP off: ring 0 may write it, and finds %x", eax
        EXPECT  VECTOR_PF, 3, EXPERIMENT, "CR0.WP on again: read only again"
        mov     dword [EXPERIMENT], 66666666h
        RESUME
        xor     eax, eax
        call    map_experiment
        EXPECT  VECTOR_PF, 0, EXPERIMENT, "PTE cleared: nothing is there any more"
        mov     eax, [EXPERIMENT]
        RESUME
        EXPECT  VECTOR_PF, 0, 0, "a null pointer, read by the kernel"
        mov     eax, [0]
        RESUME
        EXPECT  VECTOR_PF, 2, boot_guard, "the page under the kernel's stack, written"
        mov     dword [boot_guard], 0
        RESUME
        EXPECT  VECTOR_PF, 3, image_start, "the kernel's own code, written: read only"
        mov     dword [image_start], 0
        RESUME

; Code written as data.  The processor must notice that it has fetched, or somebody has
; translated, what is no longer there.
check_code:
        HEADING "Does rewritten code run as rewritten?"
        mov     esi, .template
        mov     edi, code_frame
        mov     ecx, .template_end - .template
        rep     movsb
        call    code_frame
        cmp     eax, 1
        CHECK   e, "code copied to a page: returns %d", eax
        mov     dword [code_frame + 1], 2
        call    code_frame
        cmp     eax, 2
        CHECK   e, "its operand overwritten: returns %d", eax
        mov     eax, code_frame + PTE_P + PTE_W
        call    map_experiment
        mov     dword [EXPERIMENT + 1], 3
        xor     eax, eax
        cpuid                           ; other address, same bytes: must serialise
        call    code_frame
        cmp     eax, 3
        CHECK   e, "overwritten by another virtual address: returns %d", eax
        call    EXPERIMENT
        cmp     eax, 3
        CHECK   e, "and called by that address: returns %d", eax
        mov     eax, code_frame + (.rewrite - .template)
        call    eax
        cmp     eax, 4
        CHECK   e, "code that overwrites what comes right behind it: returns %d", eax
        mov     esi, 1000
        xor     edi, edi
.again: mov     [code_frame + 1], esi   ; and many times over
        call    code_frame
        add     edi, eax
        dec     esi
        jnz     .again
        cmp     edi, 1000 * 1001 / 2
        CHECK   e, "rewritten 1000 times: the sum is %d", edi
        xor     eax, eax
        jmp     map_experiment

.template:
        mov     eax, 1
        ret
.rewrite:
        mov     dword [code_frame + (.operand - .template)], 4
        jmp     .behind
.behind:
        db      0B8h                    ; MOV EAX, and this
.operand:
        dd      1
        ret
.template_end:
