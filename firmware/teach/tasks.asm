; tasks.asm - tasks, the scheduler and the system calls.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; A task that does not run is nothing but a trap frame on its own kernel stack.  To
; switch tasks is to leave a trap by another task's frame.  Task 0 is the kernel
; itself, which waits in HLT and gets the processor when nobody else wants it.
;
; The scheduler takes the processor away from ring 3, and from the waiting kernel;
; never from a kernel at work, so the kernel needs no locks.

struc Task
.frame:         resd    1               ; where it goes on
.state:         resd    1
.wake:          resd    1               ; the tick that ends its sleep
.stack:         resd    1               ; top of its kernel stack, for TSS.ESP0
.user_stack:    resd    1               ; top of its stack in ring 3
.preempted:     resd    1               ; times the timer took the processor away
.calls:         resd    1               ; system calls made
endstruc

TASK_FREE       equ     0
TASK_READY      equ     1
TASK_SLEEPING   equ     2
TASKS           equ     3

; The number is in EAX, an argument in EBX, the result in EAX.
SYS_EXIT        equ     0
SYS_WRITE       equ     1               ; EBX = text, ended by a zero byte
SYS_GETPID      equ     2
SYS_YIELD       equ     3
SYS_SLEEP       equ     4               ; EBX = ticks
SYS_NO_FAULT    equ     5               ; EBX = number of a fault that did not come
SYS_EXAMINED    equ     6               ; EBX = 1 as it should be; ECX = which claim
SYSCALLS        equ     7

EFAULT          equ     14              ; "bad address", as Unix calls it
ENOSYS          equ     38              ; "no such call"

USER_STACK_A    equ     40022000h       ; one page each; the page below is a hole
USER_STACK_B    equ     40024000h

section .data
        align   4
task_0: dd      0, TASK_READY, 0, boot_stack, 0, 0, 0
task_a: dd      0, TASK_FREE, 0, task_a_stack, USER_STACK_A, 0, 0
task_b: dd      0, TASK_FREE, 0, task_b_stack, USER_STACK_B, 0, 0
current:        dd      task_0
live_tasks:     dd      0

section .bss
        alignb  PAGE_SIZE
task_a_guard:   resb    PAGE_SIZE
                resb    PAGE_SIZE
task_a_stack:
task_b_guard:   resb    PAGE_SIZE
                resb    PAGE_SIZE
task_b_stack:
user_stack_pages: resb  2 * PAGE_SIZE   ; (through this address only ring 0 gets at it)

section .text

map_user_stacks:
        mov     eax, USER_STACK_A - PAGE_SIZE
        mov     edx, user_stack_pages + PTE_P + PTE_W + PTE_U
        mov     ecx, USER_STACK_A
        call    map_range
        mov     eax, USER_STACK_B - PAGE_SIZE
        mov     ecx, USER_STACK_B       ; EDX is at the second page now
        jmp     map_range

; Make the task at ESI ready to start at EAX in ring 3: build the frame that it would
; have, had it been interrupted just before its first instruction.
spawn:
        mov     edi, [esi + Task.stack]
        sub     edi, Frame_size
        mov     [esi + Task.frame], edi
        push    edi
        push    eax
        mov     ecx, Frame_size / 4
        xor     eax, eax
        rep     stosd
        pop     eax
        pop     edi
        mov     [edi + Frame.eip], eax
        mov     dword [edi + Frame.cs], USER_CS
        mov     dword [edi + Frame.eflags], EFLAGS_IF + EFLAGS_FIXED
        mov     eax, [esi + Task.user_stack]
        mov     [edi + Frame.user_esp], eax
        mov     dword [edi + Frame.user_ss], USER_DS
        mov     dword [edi + Frame.ds], USER_DS
        mov     dword [edi + Frame.es], USER_DS
        mov     dword [esi + Task.preempted], 0
        mov     dword [esi + Task.calls], 0
        mov     dword [esi + Task.state], TASK_READY
        inc     dword [live_tasks]
        ret

; Let the tasks run until all have ended.  Called with interrupts off, so that none
; starts before all are there; returns with interrupts on.
run_tasks:
        cmp     dword [live_tasks], 0
        je      .done
        sti
        hlt                             ; the tick takes the processor from here
        cli
        jmp     run_tasks
.done:  sti
        ret

; The tick: EBX = frame that it interrupted; returns the frame to go on with.
preempt:
        test    byte [ebx + Frame.cs], 3
        jnz     .user
        cmp     dword [live_tasks], 0
        je      keep                    ; the kernel is at work: let it
        jmp     schedule
.user:  mov     esi, [current]
        call    schedule
        cmp     esi, [current]
        je      keep
        inc     dword [esi + Task.preempted]
keep:   ret

; The next ready task, round robin; task 0 if there is none.  EBX as above.
schedule:
        push    esi
        mov     esi, [current]
        mov     [esi + Task.frame], ebx
        mov     ecx, TASKS
.next:  add     esi, Task_size
        cmp     esi, task_0 + TASKS * Task_size
        jb      .look
        mov     esi, task_a             ; task 0 takes no part in the round
.look:  cmp     dword [esi + Task.state], TASK_READY
        je      .take
        loop    .next
        mov     esi, task_0
.take:  mov     [current], esi
        mov     ebx, [esi + Task.frame]
        mov     eax, [esi + Task.stack]
        mov     [tss.esp0], eax         ; its next trap from ring 3 lands there
        pop     esi
        ret

wake_sleepers:
        mov     esi, task_a
.next:  cmp     dword [esi + Task.state], TASK_SLEEPING
        jne     .other
        mov     eax, [ticks]
        sub     eax, [esi + Task.wake]
        js      .other
        mov     dword [esi + Task.state], TASK_READY
.other: add     esi, Task_size
        cmp     esi, task_0 + TASKS * Task_size
        jb      .next
        ret

; INT 80h: EBX = frame; returns the frame to go on with.
system_call:
        mov     esi, [current]
        inc     dword [esi + Task.calls]
        mov     ecx, [ebx + Frame.eax]
        mov     eax, -ENOSYS
        cmp     ecx, SYSCALLS
        jae     .done
        call    [.calls + ecx * 4]
.done:  ret

section .rodata
        align   4
.calls: dd      sys_exit, sys_write, sys_getpid, sys_yield, sys_sleep
        dd      sys_no_fault, sys_examined
section .text

; Each call: EBX = frame, ESI = the calling task.  The result goes into its frame.
sys_exit:
        mov     dword [esi + Task.state], TASK_FREE
        dec     dword [live_tasks]
        jmp     schedule

sys_yield:
        mov     dword [ebx + Frame.eax], 0
        jmp     schedule

sys_sleep:
        mov     dword [ebx + Frame.eax], 0
        mov     eax, [ebx + Frame.ebx]
        add     eax, [ticks]
        mov     [esi + Task.wake], eax
        mov     dword [esi + Task.state], TASK_SLEEPING
        jmp     schedule

sys_getpid:
        mov     eax, esi
        sub     eax, task_0
        xor     edx, edx
        mov     ecx, Task_size
        div     ecx
        mov     [ebx + Frame.eax], eax
        ret

; A kernel must not read for a program what the program could not read itself: every
; byte's page is looked up first.  Result: how many characters, or -EFAULT.
sys_write:
        mov     esi, [ebx + Frame.ebx]
        mov     dword [ebx + Frame.eax], 0
.next:  mov     eax, esi
        call    user_may_read
        jc      .bad
        mov     al, [esi]
        test    al, al
        jz      .done
        call    put_char
        inc     esi
        inc     dword [ebx + Frame.eax]
        jmp     .next
.bad:   mov     dword [ebx + Frame.eax], -EFAULT
.done:  ret

; May ring 3 read at EAX?  CF = 0: yes.
user_may_read:
        mov     ecx, eax
        shr     ecx, 22
        mov     ecx, [page_directory + ecx * 4]
        and     ecx, PTE_P | PTE_U
        cmp     ecx, PTE_P | PTE_U
        jne     .no
        call    find_pte
        mov     ecx, [edi]
        and     ecx, PTE_P | PTE_U
        cmp     ecx, PTE_P | PTE_U
        jne     .no
        clc
        ret
.no:    stc
        ret

sys_no_fault:
        mov     eax, [ebx + Frame.ebx]
        cmp     eax, FAULTS
        jae     .done
        imul    eax, eax, Fault_size
        mov     byte [verdict], 0
        call    print_verdict
        PRINTLN "no fault came: %s", [fault_table + eax + Fault.text]
.done:  ret

sys_examined:
        mov     ecx, [ebx + Frame.ecx]
        cmp     ecx, CLAIMS
        jae     .done
        cmp     dword [ebx + Frame.ebx], 1
        CHECK   e, "%s", [user_claims + ecx * 4]
.done:  ret

; A and B, with nothing but the timer to make them take turns (user.asm).
show_tasks:
        HEADING "Two tasks in ring 3, one processor, and the timer"
        cli
        mov     dword [task_lines], 0
        mov     dword [task_turn], 1
        mov     esi, task_a
        mov     eax, task_program
        call    spawn
        mov     esi, task_b
        mov     eax, task_program
        call    spawn
        mov     ebp, [ticks]
        call    run_tasks
        sub     ebp, [ticks]
        neg     ebp
        cmp     dword [task_lines], 2 * TASK_ROUNDS
        CHECK   e, "A and B wrote %d lines in turn, each spinning till its turn came", \
                [task_lines]
        mov     eax, [task_a + Task.preempted]
        mov     edx, [task_b + Task.preempted]
        lea     ecx, [eax + edx]
        cmp     ecx, 2 * TASK_ROUNDS - 2
        CHECK   ae, "the timer took the processor from A %d times, from B %d times", \
                eax, edx
        cmp     ebp, 2 * TASK_ROUNDS - 2 + TASK_SLEEP
        CHECK   ae, "%d ticks went by, %d of them while A slept", ebp, TASK_SLEEP
        mov     eax, [task_a + Task.calls]
        cmp     eax, TASK_ROUNDS + 4
        CHECK   e, "A made %d system calls, B %d", eax, [task_b + Task.calls]
        ret
