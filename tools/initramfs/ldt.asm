; Segments of one's own: an LDT entry in FS and a TLS entry of the GDT in GS, kept
; apart between two processes that take turns 1000 times.

%include "user.inc"

start:
        ; FS: LDT entry 3
        step
        syscall SYS_modify_ldt, 1, ldt_entry, 16
        test    eax, eax
        jnz     bad
        mov     dword [ldt_data + 4], 0x1D7
        mov     eax, 3 * 8 + 7
        mov     fs, eax
        step
        cmp     dword [fs:4], 0x1D7
        jne     bad
        mov     dword [fs:8], 42
        step
        cmp     dword [ldt_data + 8], 42
        jne     bad
        ; the entry as the kernel shows it: its base is ours
        step
        syscall SYS_modify_ldt, 0, shown, 64
        cmp     eax, 4 * 8
        jl      bad
        movzx   eax, word [shown + 3 * 8 + 2]
        cmp     ax, (ldt_data - DATA) + (DATA & 0xFFFF)
        jne     bad
        ; LAR and LSL see it, VERW says that it can be written
        step
        mov     eax, 3 * 8 + 7
        lsl     ecx, eax
        jnz     bad
        cmp     ecx, 0xFFF
        jne     bad
        verw    ax
        jnz     bad
        ; a selector past the end of the LDT
        step
        mov     eax, 600 * 8 + 7
        lar     ecx, eax
        jz      bad
        print   "ldt-ok"

        ; GS: a TLS entry; a child with the same entry number and another base
        step
        mov     dword [tls], -1
        mov     dword [tls + 4], parent_data
        mov     dword [tls + 8], 0xFFF
        mov     dword [tls + 12], 0x51
        syscall SYS_set_thread_area, tls
        test    eax, eax
        jnz     bad
        mov     dword [parent_data], 'par'
        mov     dword [child_data], 'chi'
        step
        syscall SYS_fork
        mov     [child], eax
        test    eax, eax
        jnz     .load
        mov     dword [tls + 4], child_data
        syscall SYS_set_thread_area, tls
        test    eax, eax
        jnz     bad
.load   mov     eax, [tls]
        lea     eax, [eax * 8 + 3]
        mov     gs, eax
        mov     edi, 'par'
        cmp     dword [child], 0
        jne     .own
        mov     edi, 'chi'
.own    mov     [ldt_data + 4], edi
        mov     ebp, 1000
.turn   cmp     [gs:0], edi
        jne     bad
        cmp     [fs:4], edi
        jne     bad
        syscall SYS_sched_yield
        dec     ebp
        jnz     .turn
        cmp     dword [child], 0
        jne     .wait
        syscall SYS_exit, 0
.wait   step
        syscall SYS_waitpid, [child], status, 0
        cmp     dword [status], 0
        jne     bad
        finish  "tls"

; struct user_desc: number, base, limit, flags (32-bit data, usable)
ldt_entry dd    3, ldt_data, 0xFFF, 0x41

        section .bss
shown   resb    64
tls     resd    4
child   resd    1
status  resd    1
ldt_data    resb 4096
parent_data resb 4096
child_data  resb 4096
        program_end
