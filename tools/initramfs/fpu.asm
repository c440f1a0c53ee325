; The floating-point state of one's own: two processes with different roundings take
; turns 2000 times, every x87 and XMM register in use; then a fault of the x87 unit.

%include "user.inc"

        cpu p3

start:  mov     eax, 1
        cpuid
        and     edx, 1 << 25
        mov     [sse], edx

        step
        syscall SYS_fork
        mov     [child], eax
        mov     esi, up
        test    eax, eax
        jnz     .own
        mov     esi, down
.own    mov     [own], esi

        ; x87: ST0..ST7 count up from base, base + 1 ..; the control word rounds our way
        fninit
        fldcw   [esi + MODE.x87]
        mov     ecx, 8
.fill   fild    dword [esi + MODE.base]
        mov     [number], ecx
        fiadd   dword [number]
        loop    .fill
        ; XMM0..XMM7 the same, four times over
        cmp     dword [sse], 0
        je      .filled
        ldmxcsr [esi + MODE.sse]
        movups  xmm0, [esi + MODE.vector]
        movups  xmm7, [ones]
        movups  xmm1, xmm0
        addps   xmm1, xmm7
        %assign i 2
        %rep 6
        movups  xmm %+ i, xmm1
        addps   xmm %+ i, xmm0
        %assign i i + 1
        %endrep
.filled: mov    ebp, 2000
.turn   fiadd   dword [one]
        fincstp
        cmp     dword [sse], 0
        je      .yield
        movups  xmm1, [ones]
        addps   xmm7, xmm1
.yield  syscall SYS_sched_yield
        dec     ebp
        jnz     .turn

        ; 2000 is 250 rounds of eight registers
        step
        mov     esi, [own]
        fnstcw  [number]
        mov     ax, [number]
        cmp     ax, [esi + MODE.x87]
        jne     bad
        mov     ebx, 1
.check  fistp   dword [number]
        mov     eax, [esi + MODE.base]
        lea     eax, [eax + ebx + 250]
        cmp     [number], eax
        jne     bad
        inc     ebx
        cmp     ebx, 9
        jb      .check
        ; 1/3 in single precision shows the rounding
        step
        fld1
        fidiv   dword [three]
        fstp    dword [number]
        mov     eax, [esi + MODE.third]
        cmp     [number], eax
        jne     bad

        cmp     dword [sse], 0
        je      .meet
        step
        stmxcsr [number]
        mov     eax, [number]
        and     eax, ~0x3F              ; less the flags of what has happened
        cmp     eax, [esi + MODE.sse]
        jne     bad
        ; XMM2..XMM6 are untouched, XMM7 has counted, in every lane
        step
        movups  xmm0, [esi + MODE.vector]
        movups  xmm1, xmm0
        addps   xmm1, xmm0
        movups  xmm3, [ones]
        addps   xmm1, xmm3
        cmpneqps xmm2, xmm1
        movmskps eax, xmm2
        test    eax, eax
        jnz     bad
        cmpneqps xmm6, xmm1
        movmskps eax, xmm6
        test    eax, eax
        jnz     bad
        movups  xmm3, [turns]
        addps   xmm1, xmm3
        cmpneqps xmm7, xmm1
        movmskps eax, xmm7
        test    eax, eax
        jnz     bad
        step
        movups  xmm0, [ones]
        movups  xmm1, [threes]
        divps   xmm0, xmm1
        movups  [lanes], xmm0
        mov     eax, [esi + MODE.third]
        cmp     [lanes], eax
        jne     bad
        cmp     [lanes + 12], eax
        jne     bad

.meet   cmp     dword [child], 0
        jne     .wait
        syscall SYS_exit, 0
.wait   step
        syscall SYS_waitpid, [child], status, 0
        cmp     dword [status], 0
        jne     bad

        ; an x87 fault comes with the next instruction that waits for it
        catch   SIGFPE
        fninit
        fldcw   [unmasked]
        fld1
        fldz
        fdivp   st1
        faults  fwait, SIGFPE, 16
        fninit
        finish  "fpu"

struc MODE
.x87    resw    1
.spare  resw    1
.sse    resd    1
.third  resd    1
.base   resd    1
.vector resd    4
endstruc

; Round up, extended precision, and round down, single precision: SDM Vol. 1 8.1.5,
; 10.2.3. All exceptions are masked.
up      dw      0x0B7F, 0
        dd      0x5F80, 0x3EAAAAAB, 1000
        dd      1.0, 2.0, 3.0, 4.0
down    dw      0x047F, 0
        dd      0x3F80, 0x3EAAAAAA, -5000
        dd      -7.0, -8.0, -9.0, -10.0
ones    dd      1.0, 1.0, 1.0, 1.0
threes  dd      3.0, 3.0, 3.0, 3.0
turns   dd      2000.0, 2000.0, 2000.0, 2000.0
one     dd      1
three   dd      3
unmasked dw     0x037B

        handlers
        section .bss
sse     resd    1
child   resd    1
own     resd    1
number  resd    1
status  resd    1
lanes   resd    4
        program_end
