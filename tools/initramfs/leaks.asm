; What the sensitive instructions show to a user: nothing here traps on a CPU without
; UMIP, so a VMM that only traps shows its own tables, and none can tell it.

%include "user.inc"

; show "name", SIZE: prints the SIZE bytes at `value`, the highest first
%macro  show 2
        mov     dword [size], %2
        mov     dword [name], %1
        call    print_value
        mov     dword [value], 0
        mov     dword [value + 4], 0
%endmacro

start:  sgdt    [value]
        show    "sgdt", 6
        sidt    [value]
        show    "sidt", 6
        sldt    [value]
        show    "sldt", 2
        str     [value]
        show    "str ", 2
        smsw    [value]
        show    "smsw", 2
        pushf
        pop     dword [value]
        show    "pshf", 4
        mov     [value], cs
        show    "cs  ", 2
        mov     [value], ss
        show    "ss  ", 2
        ; the TSS, a code segment of the kernel, and one's own data segment
        mov     ecx, selectors
.next   mov     esi, [ecx]
        lar     eax, esi
        call    keep
        show    "lar ", 5
        lsl     eax, esi
        call    keep
        show    "lsl ", 5
        verr    si
        call    keep
        show    "verr", 5
        verw    si
        call    keep
        show    "verw", 5
        add     ecx, 4
        cmp     ecx, selectors_end
        jb      .next
        syscall SYS_exit, 0

; ZF and, if it is set, EAX into `value`
keep:   mov     dword [value], 0
        setz    [value + 4]
        jnz     .not
        mov     [value], eax
.not    xor     eax, eax
        ret

print_value:
        pusha
        mov     byte [name + 4], ' '
        mov     edi, line
        mov     esi, [size]
.byte   mov     al, [value + esi - 1]
        aam     16
        xchg    al, ah
        mov     ebx, digits
        xlatb
        xchg    al, ah
        xlatb
        xchg    al, ah
        stosw
        dec     esi
        jnz     .byte
        mov     byte [edi], 10
        sub     edi, name - 1
        syscall SYS_write, 1, name, edi
        popa
        ret

digits  db      "0123456789abcdef"
selectors:
        dd      0x80, 0x60, 0x7B, 0x73, 0
selectors_end:

        section .bss
value   resb    8
size    resd    1
name    resb    5
line    resb    20
        program_end
