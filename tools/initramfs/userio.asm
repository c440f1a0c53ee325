; What a user may not do, and ports: forbidden, allowed one by one (ioperm), allowed
; all (iopl). Port 80h, the POST code, is harmless and on every PC.

%include "user.inc"

start:  catch   SIGSEGV
        faults  cli, SIGSEGV, 13
        faults  sti, SIGSEGV, 13
        faults  hlt, SIGSEGV, 13
        faults  {in al, 0x80}, SIGSEGV, 13
        faults  {in eax, 0x80}, SIGSEGV, 13
        faults  {out 0x80, al}, SIGSEGV, 13
        mov     edx, 0x80
        faults  {in al, dx}, SIGSEGV, 13
        faults  {out dx, ax}, SIGSEGV, 13
        mov     edi, buffer
        faults  insb, SIGSEGV, 13
        mov     esi, buffer
        faults  outsb, SIGSEGV, 13
        faults  {mov eax, cr0}, SIGSEGV, 13
        faults  {mov cr3, eax}, SIGSEGV, 13
        faults  {mov eax, dr7}, SIGSEGV, 13
        faults  {lgdt [buffer]}, SIGSEGV, 13
        faults  {lidt [buffer]}, SIGSEGV, 13
        faults  {lldt ax}, SIGSEGV, 13
        faults  {ltr ax}, SIGSEGV, 13
        faults  {lmsw ax}, SIGSEGV, 13
        faults  clts, SIGSEGV, 13
        faults  {invlpg [buffer]}, SIGSEGV, 13
        faults  wbinvd, SIGSEGV, 13
        faults  rdmsr, SIGSEGV, 13
        faults  wrmsr, SIGSEGV, 13

        ; POPF may not change IF or IOPL, and says nothing
        step
        push    dword 0x3002
        popf
        pushf
        pop     eax
        and     eax, 0x2200             ; IF, IOPL's high bit: a VMM may show IOPL 1
        cmp     eax, 0x200
        jne     bad

        ; one port
        step
        syscall SYS_ioperm, 0x80, 1, 1
        test    eax, eax
        jnz     bad
        in      al, 0x80
        out     0x80, al
        faults  {in al, 0x81}, SIGSEGV, 13
        faults  {in ax, 0x80}, SIGSEGV, 13
        step
        syscall SYS_ioperm, 0x80, 1, 0
        test    eax, eax
        jnz     bad
        faults  {in al, 0x80}, SIGSEGV, 13

        ; all of them; Linux only opens the bitmap, and lets CLI do nothing
        step
        syscall SYS_iopl, 3
        test    eax, eax
        jnz     bad
        in      al, 0x80
        in      al, 0x81
        in      eax, 0x80
        cli
        pushf
        pop     eax
        and     eax, 0x2200             ; IF, IOPL's high bit: a VMM may show IOPL 1
        cmp     eax, 0x200
        jne     bad
        step
        syscall SYS_iopl, 0
        test    eax, eax
        jnz     bad
        faults  {in al, 0x80}, SIGSEGV, 13
        finish  "userio"

        handlers
        section .bss
buffer  resd    4
        program_end
