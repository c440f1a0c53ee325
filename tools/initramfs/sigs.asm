; Every fault that a user program can take as a signal, with its trap number and,
; where there is one, its error code and address.

%include "user.inc"

%macro  overflow 0
        mov     al, 0x7F
        add     al, al
        into
%endmacro

start:  catch   SIGSEGV
        catch   SIGILL
        catch   SIGFPE
        catch   SIGTRAP
        catch   SIGUSR1

        ; #PF: a read of nothing, a write to nothing, a write to this code
        faults  {mov eax, [0x10]}, SIGSEGV, 14
        cmp     dword [error], 4
        jne     bad
        cmp     dword [address], 0x10
        jne     bad
        faults  {mov [0x20], eax}, SIGSEGV, 14
        cmp     dword [error], 6
        jne     bad
        faults  {mov [start], eax}, SIGSEGV, 14
        cmp     dword [error], 7
        jne     bad
        cmp     dword [address], start
        jne     bad
        ; the kernel's memory is there, but not for users
        faults  {mov eax, [0xC0100000]}, SIGSEGV, 14

        xor     edx, edx
        xor     ecx, ecx
        faults  {div ecx}, SIGFPE, 0
        mov     eax, 0x80000000
        mov     edx, -1
        mov     ecx, -1
        faults  {idiv ecx}, SIGFPE, 0
        faults  ud2, SIGILL, 6

        ; INT n through a gate that is not for users: #GP with the gate's number
        faults  {int 14}, SIGSEGV, 13
        cmp     dword [error], 14 * 8 + 2
        jne     bad
        faults  overflow, SIGSEGV, 4
        mov     eax, 5
        faults  {bound eax, [bounds]}, SIGSEGV, 5
        mov     eax, 0x1234
        faults  {mov ds, ax}, SIGSEGV, 13
        cmp     dword [error], 0x1234
        jne     bad

        ; INT3: the handler returns behind it
        step
        mov     dword [signal], 0
        int3
        cmp     dword [signal], SIGTRAP
        jne     bad
        cmp     dword [trap], 3
        jne     bad

        ; TF: a trap after each of three instructions
        step
        mov     dword [count], 0
        mov     dword [steps], 3
        pushf
        or      dword [esp], 0x100
        popf
        nop
        nop
        nop
        nop
        cmp     dword [count], 3
        jne     bad
        cmp     dword [trap], 1
        jne     bad
        pushf
        pop     eax
        test    eax, 0x100
        jnz     bad

        ; from another process, that is: from the kernel
        step
        mov     dword [signal], 0
        syscall SYS_getpid
        syscall SYS_kill, eax, SIGUSR1
        cmp     dword [signal], SIGUSR1
        jne     bad

        ; and many times
        step
        mov     dword [count], 0
        mov     edi, 500
.again  mov     dword [resume], .next
        mov     eax, [0x10]
.next   dec     edi
        jnz     .again
        cmp     dword [count], 500
        jne     bad
        finish  "signals"

bounds  dd      0, 4
        handlers
        program_end
