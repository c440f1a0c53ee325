; teach.asm - a small 32-bit protected-mode kernel, made to be read.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; It shows on the serial line what rings, traps and page tables do: programs in ring 3
; try what they may not, the kernel reports each fault and lets them go on; then the
; kernel examines itself; then two tasks take turns by the timer's tick alone.
;
;   reading order   this file           from the boot loader to the prompt
;                   traps.asm           IDT, the way into the kernel and out again
;                   faults.asm          exceptions: expected ones, and the other kind
;                   chips.asm           8259A, 8254: the tick; the serial input
;                   tasks.asm           two tasks, four states, six system calls
;                   user.asm            what runs in ring 3
;                   checks.asm          what ring 0 sees of the processor
;                   memory.asm          what ring 0 sees of the page tables
;                   prompt.asm          teach>
;   ../lib          image.inc serial.inc segments.inc paging.inc machine.inc
;
; Command line: the word `script` runs everything once and powers off.
;
;   virtual memory  00000000  nothing: a null pointer is a fault
;                   00100000  kernel code and constants     ring 0, read only
;                   .....     kernel data, stacks, tables   ring 0, read and write
;                   00200000  one page to experiment with (memory.asm)
;                   40000000  user code                     ring 3, read only
;                   40010000  user data                     ring 3, read and write
;                   40020000  user stacks, a hole under each

%include "lib/image.inc"
%include "lib/serial.inc"
%include "lib/segments.inc"
%include "lib/paging.inc"
%include "lib/machine.inc"

; CHECK condition, "text", argument, ...    a line "ok: text" or "WRONG: text",
; counted; the condition is a condition code, as in Jcc.
%macro CHECK 2-*
        set%1   byte [verdict]
        call    print_verdict
        PRINTLN %{2:-1}
%endmacro

; HEADING "text"
%macro HEADING 1
        [section .rodata]
%%title: db     %1, 0
        __SECT__
        PRINTLN `\n== %s ==`, %%title
%endmacro

%include "teach/traps.asm"
%include "teach/faults.asm"
%include "teach/chips.asm"
%include "teach/tasks.asm"
%include "teach/user.asm"
%include "teach/checks.asm"
%include "teach/memory.asm"
%include "teach/prompt.asm"

section .data
verdict:        db      0               ; 1: the last check held
scripted:       db      0               ; 1: nobody is there, run all and power off
        align   4
checks:         dd      0
checks_failed:  dd      0

; Every kernel stack has an unmapped page under it.  A stack that grows too far then
; hits nothing instead of quietly destroying its neighbour.
section .bss
        alignb  PAGE_SIZE
boot_guard:     resb    PAGE_SIZE
                resb    2 * PAGE_SIZE
boot_stack:                             ; stacks grow down: named after their top

section .text

; The boot loader jumps here: ring 0, paging off, interrupts off,
; EAX = MULTIBOOT_LOADER_MAGIC, EBX = its boot information.
start:
        mov     esp, boot_stack
        cld
        push    eax
        call    uart_init
        pop     eax
        cmp     eax, MULTIBOOT_LOADER_MAGIC
        je      .multiboot
        PRINTLN "teach: EAX = %x: this kernel wants a Multiboot loader", eax
        jmp     stop
.multiboot:
        call    keep_command_line
        call    init_idt
        mov     eax, boot_stack
        call    load_segments
        call    init_directory
        call    map_image
        call    unmap_guards
        call    map_user_stacks
        call    paging_on
        call    init_pics
        call    init_timer
        call    init_serial_input
        sti

        PRINTLN "teach: a small protected-mode kernel, made to be read"
        mov     eax, cs
        mov     ebx, cr3
        PRINTLN "CS %hh  GDT %x  IDT %x  TSS %x  directory %x", \
                eax, gdt, idt, tss, ebx
        mov     edi, .script
        call    find_word
        jc      prompt
        mov     byte [scripted], 1
        call    run_everything
        PRINTLN "teach: powering off"
        jmp     power_off

section .rodata
.script: db     "script", 0
section .text

; The whole lecture, and its result.
run_everything:
        call    begin_checks
        call    show_rings
        call    show_sensitive
        call    show_tasks
        call    show_timer
        jmp     end_checks

begin_checks:
        mov     dword [checks], 0
        mov     dword [checks_failed], 0
        ret

end_checks:
        cmp     dword [checks_failed], 0
        jne     .failed
        PRINTLN `\nteach: all %d checks passed`, [checks]
        ret
.failed:
        PRINTLN `\nteach: %d of %d checks FAILED`, [checks_failed], [checks]
        ret

; "ok: " or "WRONG: " by [verdict]; the caller says of what.
print_verdict:
        inc     dword [checks]
        cmp     byte [verdict], 0
        je      .wrong
        PRINT   "ok: "
        ret
.wrong: inc     dword [checks_failed]
        PRINT   "WRONG: "
        ret

; Is the word at EDI among those of the command line?  CF = 0: yes.
find_word:
        mov     esi, command_line
.word:  mov     edx, edi
.letter:
        lodsb
        mov     cl, [edx]
        inc     edx
        cmp     al, ' '
        ja      .compare
        test    cl, cl                  ; both words end here
        jz      .found
.end:   test    al, al
        jnz     .word
        stc
        ret
.compare:
        cmp     al, cl
        je      .letter
.skip:  lodsb                           ; another word: on to its end
        cmp     al, ' '
        ja      .skip
        jmp     .end
.found: clc
        ret

; Take the guard pages out of the page table.  (Before paging is on: no INVLPG.)
unmap_guards:
        mov     esi, .pages
.next:  lodsd
        test    eax, eax
        jz      .done
        call    find_pte
        mov     dword [edi], 0
        jmp     .next
.done:  ret

section .rodata
        align   4
.pages: dd      boot_guard, task_a_guard, task_b_guard, 0

FAULTS          equ     fault_number    ; all EXPECTs are behind us

IMAGE_END
