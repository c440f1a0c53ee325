; The guest of cases64.py, which fills in what stands in braces.
bits 32
org 0x100000
CODE0 equ 0x08
DATA0 equ 0x10
CODE1 equ 0x19
DATA1 equ 0x21
CODE2 equ 0x2A
DATA2 equ 0x32
CODE3 equ 0x3B
DATA3 equ 0x43
TSS0 equ 0x48
LDT0 equ 0x58
COMPAT0 equ 0x68
GATE0 equ 0x70
COMPAT3 equ 0x83
CONFORM equ 0x88
ABSENT equ 0x90
BOTH equ 0x98
BASED equ 0xA0
CODE16 equ 0xA8
TSS1 equ 0xB0
GATEBAD equ 0xC0
BADBASE equ 0xD0
GATECONF equ 0xE0
USER32 equ 0xF3
USERDATA equ 0xFB
USER64 equ 0x103
LDATA3 equ 0x0F
LCODE3 equ 0x17

GDT equ 0x200000
IDT equ 0x210000
LDT equ 0x211000
TSS equ 0x212000
SCRATCH equ 0x215000
PML4 equ 0x216000
PDPT equ 0x217000
PD equ 0x218000
PDPTH equ 0x219000
PT equ 0x21A000
STACK0 equ 0x220000
STACK1 equ 0x228000
STACK2 equ 0x230000
STACK3 equ 0x238000
IST1 equ 0x240000
IST2 equ 0x248008
LOG equ {log}
HIGH equ 0xFFFFFFFF80000000     ; the first 16 MiB again
PAGE equ 0xE00000               ; alone in its 2 MiB, with a page table, and one behind it

mb: dd 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000), mb, mb, image_end, image_end, entry

entry:
    cli
    cld
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
    mov esp, STACK0
    mov edi, PML4
    mov ecx, 5 * 1024
    xor eax, eax
    rep stosd
    mov dword [PML4], PDPT + 7
    mov dword [PML4 + 511 * 8], PDPTH + 7
    mov dword [PDPT], PD + 7
    mov dword [PDPTH + 510 * 8], PD + 7
    mov edi, PD
    mov eax, 0xE7
    mov ecx, 7
.map:
    stosd
    mov dword [edi], 0
    add edi, 4
    add eax, 0x200000
    loop .map
    mov dword [PD + 7 * 8], PT + 7
    mov eax, 0x20
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xC0000080
    mov eax, 0x901
    xor edx, edx
    wrmsr
    mov eax, 0x80000011
    mov cr0, eax
    lgdt [first_gdtr]
    jmp CODE0:next

bits 64
next:
    cli
    cld
    mov eax, DATA0
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, STACK0
    mov ebx, [index]
    cmp ebx, {count}
    jae finish
    mov eax, CODE0              ; what a case has done to the running CS
    push rax
    push .here
    retfq
.here:
    mov esi, first_gdt
    mov edi, GDT
    mov ecx, (first_gdt_end - first_gdt) / 8
    rep movsq
    mov esi, first_idt
    mov edi, IDT
    mov ecx, 512
    rep movsq
    mov esi, first_ldt
    mov edi, LDT
    mov ecx, 8
    rep movsq
    mov esi, first_tss
    mov edi, TSS
    mov ecx, 14
    rep movsq
    xor eax, eax
    mov edi, SCRATCH
    mov ecx, 32
    rep stosq
    mov dword [PT], PAGE + 7
    mov dword [PT + 8], PAGE + 0x1000 + 7
    mov eax, {cr0}
    mov cr0, rax
    mov eax, {cr4}
    mov cr4, rax
    mov dword [PML4], PDPT + 7
    mov eax, PML4
    mov cr3, rax
    xor eax, eax
    mov cr2, rax
    lgdt [gdtr]
    lidt [idtr]
    mov eax, LDT0
    lldt ax
    mov eax, TSS0
    ltr ax
    shl ebx, 5
    add ebx, cases
    mov eax, DATA3
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov esi, msrs
.msr:
    mov ecx, [rsi]
    mov eax, [rsi + 4]
    mov edx, [rsi + 8]
    jrcxz .set
    wrmsr
    add esi, 12
    jmp .msr
.set:
    movzx eax, word [rbx + 8]
    push rax
    push qword [rbx + 16]
    push qword [rbx + 24]
    movzx eax, word [rbx + 10]
    push rax
    push qword [rbx]
    mov rax, 0xA0A0A0A0A0A0A0A0
    mov rcx, 0xC1C1C1C1C1C1C1C1
    mov rdx, 0xD2D2D2D2D2D2D2D2
    mov rbx, 0xB3B3B3B3B3B3B3B3
    mov rbp, 0xE5E5E5E5E5E5E5E5
    mov rsi, 0x5656565656565656
    mov rdi, 0xD7D7D7D7D7D7D7D7
    mov r8, 0x0808080808080808
    mov r9, 0x0909090909090909
    mov r10, 0x1010101010101010
    mov r11, 0x1111111111111111
    mov r12, 0x1212121212121212
    mov r13, 0x1313131313131313
    mov r14, 0x1414141414141414
    mov r15, 0x1515151515151515
    iretq

finish:
    in al, 0xe9
    cmp al, 0xe9
    jne .out
    mov esi, LOG
    mov ecx, {count} * {record}
    mov edx, 0xe9
    rep outsb
.out:
    xor eax, eax
    out 0xf4, al
    jmp $

taken:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    xor eax, eax
    mov eax, ds
    push rax
    mov eax, es
    push rax
    mov eax, fs
    push rax
    mov eax, gs
    push rax
    mov eax, ss                 ; as the delivery left it
    push rax
    cld
    mov edi, [log]
    mov rsi, rsp
    mov ecx, 20 + 7
    rep movsq
    str eax
    stosq
    sldt eax
    stosq
    mov rax, cr0
    stosq
    mov rax, cr2
    stosq
    mov rax, cr3
    stosq
    mov rax, cr4
    stosq
    mov esi, read_msrs
.msr:
    mov ecx, [rsi]
    jrcxz .read
    rdmsr
    mov [rdi], eax
    mov [rdi + 4], edx
    add edi, 8
    add esi, 4
    jmp .msr
.read:
    mov rax, rsp                ; how the frame was aligned
    stosq
    mov esi, SCRATCH
    mov ecx, 16
    rep movsq
    mov edi, [log]
    mov ebx, [index]
    shl ebx, 5
    mov eax, [cases + rbx]
    sub [rdi + 22 * 8], rax
    add dword [log], {record}
    inc dword [index]
    mov eax, next
    jmp rax

gate_target:
    int 0x40
syscall_target:
    int 0x41
high_target equ HIGH + gate_target

align 8
index: dq 0
log: dq LOG
msrs:
    dd 0xC0000080, 0xD01, 0
    dd 0xC0000081, 0, USER32 << 16 | CODE0
    dd 0xC0000082, syscall_target, 0
    dd 0xC0000083, syscall_target, 0
    dd 0xC0000084, 0x257fd5, 0
    dd 0xC0000100, 0, 0
    dd 0xC0000101, SCRATCH, 0
    dd 0xC0000102, 0x33445566, 0x1122
    dd 0
read_msrs: dd 0xC0000080, 0xC0000100, 0xC0000101, 0xC0000102, 0
gdtr: dw first_gdt_end - first_gdt - 1
    dq GDT
idtr: dw 0xfff
    dq IDT
first_gdtr: dw first_gdt_end - first_gdt - 1
    dq first_gdt

%macro segment_ 3  ; base, access, flags
    dw 0xffff, (%1) & 0xffff
    db ((%1) >> 16) & 0xff, %2, 0x0f | (%3) << 4, ((%1) >> 24) & 0xff
%endmacro
%macro system_ 4  ; base, limit, access, the upper half
    dw %2, (%1) & 0xffff
    db ((%1) >> 16) & 0xff, %3, 0, ((%1) >> 24) & 0xff
    dq %4
%endmacro
%macro gate_ 4  ; selector, offset, access, IST
    dw (%2 - mb + 0x100000) & 0xffff, %1
    db %4, %3
    dw (%2 - mb + 0x100000) >> 16
    dq 0
%endmacro
align 8
first_gdt:
    dq 0
    segment_ 0, 0x9b, 0xa
    segment_ 0, 0x93, 0xc
    segment_ 0, 0xbb, 0xa
    segment_ 0, 0xb3, 0xc
    segment_ 0, 0xdb, 0xa
    segment_ 0, 0xd3, 0xc
    segment_ 0, 0xfb, 0xa
    segment_ 0, 0xf3, 0xc
    system_ TSS, 0x67, 0x89, 0
    system_ LDT, 0x3f, 0x82, 0
    segment_ 0, 0x9b, 0xc          ; COMPAT0
    gate_ CODE0, gate_target, 0xec, 0
    segment_ 0, 0xfb, 0xc          ; COMPAT3
    segment_ 0, 0x9f, 0xa          ; CONFORM
    segment_ 0, 0x73, 0xc          ; ABSENT
    segment_ 0, 0x9b, 0xe          ; BOTH
    segment_ SCRATCH, 0xf3, 0xc    ; BASED
    segment_ 0x100000, 0x9b, 0x0   ; CODE16
    system_ TSS, 0x67, 0x89, 0     ; TSS1
    gate_ COMPAT0, gate_target, 0xec, 0
    system_ LDT, 0x3f, 0x82, 0x8000
    gate_ CONFORM, gate_target, 0xec, 0
    segment_ 0, 0xfb, 0xc          ; USER32
    segment_ 0, 0xf3, 0xc
    segment_ 0, 0xfb, 0xa
first_gdt_end:

align 8
first_idt:
%assign i 0
%rep 256
  %if (i >= 3 && i <= 4) || (i >= 0x40 && i < 0x50)
    %assign access 0xee + (i == 0x44)
  %else
    %assign access 0x8e
  %endif
  %assign ist (i == 0x42) + 2 * (i == 0x43)
    gate_ CODE0, stub_%+ i, access, ist
  %assign i i + 1
%endrep

align 8
first_ldt:
    dq 0
    segment_ SCRATCH, 0xf3, 0xc
    segment_ 0, 0xfb, 0xa
    times 64 - ($ - first_ldt) db 0

first_tss:
    dd 0
    dq STACK0, STACK1, STACK2, 0, IST1, IST2, 0, 0, 0, 0, 0, 0
    dd 0, 0x680000

%assign i 0
%rep 256
stub_%+ i:
  %if i == 8 || (i >= 10 && i <= 14) || i == 17
  %else
    push qword 0x1234567
  %endif
    push qword i
    jmp taken
  %assign i i + 1
%endrep

align 8
cases:                          ; of each: code, SS and CS, RSP, RFLAGS
{table}

{code}
times 16 nop
image_end:
