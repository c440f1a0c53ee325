; A process that has the stage's pages and nothing else, and runs what stands there.
;
; An ELF file of one page, for `nasm -f bin -O1`. Descriptor 0: a byte asks for a run; 1: a
; byte answers; 2: the memory that is shared with the asking process (`cage.py` has its
; layout). Every exception and the end of a run, an INT3, come as a signal: its handler
; keeps the registers, the vector and CR2 that Linux gives it, and waits for more.
        bits 64
        org 0x6b5a0000          ; where no address that a test makes up is near

STACK   equ 0x2e000             ; the stage's stack page, offset 0 of the file
WORDS   equ 0x6b5a1000          ; what is given and kept, offset 1000h
FRAMES  equ 0x3b5a6b5a0000      ; where signals are delivered, not shared
CODE    equ 0x40000             ; offset 2000h
DATA    equ 0x50000             ; offset 3000h
GIVEN   equ WORDS               ; 16 general registers, RFLAGS, bits of the code
KEPT    equ WORDS + 0x100       ; the signal, then Linux's 23 words of a sigcontext
TICKS   equ WORDS + 0x300
TOP     equ WORDS + 0x1000
END     equ 0x7ffffffff000      ; of a user's addresses

SIGPROF equ 27

header: db 0x7f, "ELF", 2, 1, 1, 0
        dq 0
        dw 2, 62
        dd 1
        dq start, loaded - header, 0
        dd 0
        dw 64, 56, 1, 0, 0, 0
loaded:
        dd 1, 5                 ; PT_LOAD, readable and executable
        dq 0, header, header, whole, whole, 0x1000

start:  mov ebx, places
.map:   mov edi, [rbx]
        mov esi, 0x1000
        mov edx, [rbx + 8]
        mov r10d, 0x11          ; MAP_SHARED | MAP_FIXED
        mov r8d, 2
        mov r9d, [rbx + 4]
        mov eax, 9              ; mmap
        syscall
        cmp rax, rdi
        jne failed
        add ebx, 12
        cmp ebx, placed
        jne .map
        mov rdi, FRAMES
        mov esi, 0x8000
        mov edx, 3
        mov r10d, 0x32          ; MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
        mov r8, -1
        xor r9d, r9d
        mov eax, 9
        syscall
        cmp rax, rdi
        jne failed
        mov esp, TOP
        mov rdi, FRAMES + 0x8000
        mov rsi, END - FRAMES - 0x8000
        mov eax, 11             ; munmap: the stack of the process, the vDSO
        syscall
        mov edi, alternate
        xor esi, esi
        mov eax, 131            ; sigaltstack
        syscall
        test eax, eax
        jnz failed
        mov ebx, signals
.catch: movzx edi, byte [rbx]
        mov esi, action
        xor edx, edx
        mov r10d, 8
        mov eax, 13             ; rt_sigaction
        syscall
        inc ebx
        cmp ebx, signaled
        jne .catch
        mov edi, 2              ; ITIMER_PROF
        mov esi, timer
        xor edx, edx
        mov eax, 38             ; setitimer
        syscall
        mov edi, 22             ; PR_SET_SECCOMP: read, write, exit and sigreturn alone,
        mov esi, 1              ; where no other filter is in the way
        mov eax, 157            ; prctl
        syscall

serve:  mov esp, TOP
        xor edi, edi
        lea esi, [TICKS + 8]
        mov edx, 1
        xor eax, eax            ; read
        syscall
        cmp eax, 1
        jne failed
        and dword [TICKS], 0
        mov eax, 0x2b
        mov ds, eax
        mov es, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        fninit
        ldmxcsr [mxcsr]
        cmp dword [GIVEN + 17 * 8], 64
        jne .narrow
        push qword [GIVEN + 16 * 8]
        popfq
        mov rax, [GIVEN]
        mov rcx, [GIVEN + 8]
        mov rdx, [GIVEN + 16]
        mov rbx, [GIVEN + 24]
        mov rsp, [GIVEN + 32]
        mov rbp, [GIVEN + 40]
        mov rsi, [GIVEN + 48]
        mov rdi, [GIVEN + 56]
        mov r8, [GIVEN + 64]
        mov r9, [GIVEN + 72]
        mov r10, [GIVEN + 80]
        mov r11, [GIVEN + 88]
        mov r12, [GIVEN + 96]
        mov r13, [GIVEN + 104]
        mov r14, [GIVEN + 112]
        mov r15, [GIVEN + 120]
        jmp CODE
.narrow:
        push 0x23
        push narrow
        retfq

failed: mov edi, 1
        mov eax, 60             ; exit
        syscall

handler:
        cmp edi, SIGPROF
        jne keep
        inc dword [TICKS]
        cmp dword [TICKS], 2
        jae keep
        add rsp, 8
        mov eax, 15             ; rt_sigreturn
        syscall
keep:   mov [KEPT], edi
        lea rsi, [rdx + 40]
        mov edi, KEPT + 8
        mov ecx, 23
        rep movsq
        mov esp, TOP
        mov edi, 1
        lea esi, [TICKS + 8]
        mov edx, 1
        mov eax, 1              ; write
        syscall
        jmp serve

        bits 32
narrow: push dword [GIVEN + 16 * 8]
        popfd
        mov eax, [GIVEN]
        mov ecx, [GIVEN + 8]
        mov edx, [GIVEN + 16]
        mov ebx, [GIVEN + 24]
        mov esp, [GIVEN + 32]
        mov ebp, [GIVEN + 40]
        mov esi, [GIVEN + 48]
        mov edi, [GIVEN + 56]
        jmp CODE

        align 8
        bits 64
places: dd STACK, 0, 7, WORDS, 0x1000, 3, CODE, 0x2000, 5, DATA, 0x3000, 7
placed:
alternate:
        dq FRAMES, 0, 0x8000
action: dq handler, 0x5c000004, handler, 0      ; SIGINFO, RESTORER, ONSTACK, RESTART,
timer:  dq 0, 200000, 0, 200000                 ; NODEFER; seconds and microseconds
mxcsr:  dd 0x1f80
signals:
        db 4, 5, 7, 8, 11, SIGPROF
signaled:
whole   equ $ - header
