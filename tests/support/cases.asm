; The guest of guest.py, which fills in what stands in braces.
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
TSS1 equ 0x50
TSS16 equ 0x58
LDT0 equ 0x60
CODE16 equ 0x68
DATA16 equ 0x70
GATE32 equ 0x78
GATE16 equ 0x80
TASK1 equ 0x88
CONFORM equ 0x90
ABSENT equ 0x98
EXECONLY equ 0xA0
READONLY equ 0xA8
BASED equ 0xB0
GATECONF equ 0xB8
GATESAME equ 0xC0
TASK16 equ 0xC8
FRESH equ 0xD0
GATE2 equ 0xD8
HIGH0 equ 0xE0
LDATA3 equ 0x0F
LCODE3 equ 0x17
LDATA0 equ 0x1C
SWEEP equ {sweep}

GDT equ 0x200000
IDT equ 0x210000
LDT equ 0x211000
TSS equ 0x212000
TSSB equ 0x213000
TSSC equ 0x214000
SCRATCH equ 0x215000
STACK0 equ 0x220000
STACK1 equ 0x228000
STACK2 equ 0x230000
STACK3 equ 0x238000
STACKB equ 0x240000
PD equ 0x248000
{tables}
LOG equ {log}

mb: dd 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000), mb, mb, image_end, image_end, entry

entry:
    cli
    cld
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
next:
    cli
    cld
    mov esp, STACK0
{paging}
    mov ebx, [index]
    cmp ebx, {count}
    jae finish
    mov esi, first_gdt
    mov edi, GDT
    mov ecx, (first_gdt_end - first_gdt) / 4
    rep movsd
    mov esi, first_idt
    mov edi, IDT
    mov ecx, 512
    rep movsd
    mov esi, first_ldt
    mov edi, LDT
    mov ecx, 16
    rep movsd
    mov esi, first_tss
    mov edi, TSS
    mov ecx, 3 * 1024
    rep movsd
    xor eax, eax
    mov edi, SCRATCH
    mov ecx, 64
    rep stosd
    mov eax, {cr0}
    mov cr0, eax
    mov eax, {cr4}
    mov cr4, eax
    xor eax, eax
    mov cr2, eax
    mov dr7, eax
    mov dr6, eax
    lgdt [gdtr]
    lidt [idtr]
    jmp CODE0:.here
.here:
    mov eax, DATA0
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, STACK0
    mov eax, LDT0
    lldt ax
    mov eax, TSS0
    ltr ax
    mov dword [traced], 0
    shl ebx, 4
    add ebx, cases
    mov ecx, [ebx + 4]
    jecxz .same
    mov eax, [data + ecx * 4]
    push eax
    push dword [stacks + ecx * 4]
.same:
    push dword [ebx + 8]
    push dword [code + ecx * 4]
    push dword [ebx]
    mov eax, [data + ecx * 4]
    mov fs, eax
    mov gs, eax
    mov es, eax
    mov ds, eax
    mov eax, 0xA0A0A0A0
    mov ecx, 0xC1C1C1C1
    mov edx, 0xD2D2D2D2
    mov ebx, 0xB3B3B3B3
    mov ebp, 0xE5E5E5E5
    mov esi, 0x56565656
    mov edi, 0xD7D7D7D7
    iretd

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
    pushad
    push ds
    push es
    push fs
    push gs
    mov eax, DATA0
    mov ds, eax
    mov es, eax
    cld
    cmp dword [esp + 48], 1
    je .trace
.end:
    mov edi, [log]
    mov esi, esp
    mov ecx, 17
    ss rep movsd
    test byte [esp + 60], 3
    jz .inner
    mov ecx, 2
    ss rep movsd
    jmp .outer
.inner:
    lea eax, [esp + 68]
    stosd
    mov eax, ss
    stosd
.outer:
    str eax
    stosd
    sldt eax
    stosd
    mov eax, cr0
    stosd
    mov eax, cr2
    stosd
    mov eax, cr3
    stosd
    mov eax, cr4
    stosd
    mov eax, [traced]
    stosd
    mov esi, SCRATCH
    mov ecx, 16
    rep movsd
    mov esi, trace
    mov ecx, 20
    rep movsd
    mov edi, [log]
    mov ebx, [index]
    shl ebx, 4
    mov eax, [cases + ebx]
    sub [edi + 56], eax
    add dword [log], {record}
    inc dword [index]
    jmp next
.trace:
    mov eax, [traced]
    cmp eax, 20
    jae .end
    mov ecx, [esp + 56]
    mov ebx, [index]
    shl ebx, 4
    sub ecx, [cases + ebx]
    mov edx, dr6
    and edx, 0xe00f
    shl edx, 16
    mov dx, cx
    mov [trace + eax * 4], edx
    xor eax, eax
    mov dr6, eax
    inc dword [traced]
    mov eax, dr0                ; a breakpoint before an instruction is left by RF
    cmp eax, [esp + 56]
    jne .back
    or dword [esp + 64], 0x10000
.back:
    pop gs
    pop fs
    pop es
    pop ds
    popad
    add esp, 8
    iretd

gate_target:
    int 0x40
task_target:
    int 0x40
task_return:
    iretd
    int 0x41

align 4
index: dd 0
log: dd LOG
traced: dd 0
trace: times 20 dd 0
code: dd CODE0, CODE1, CODE2, CODE3
data: dd DATA0, DATA1, DATA2, DATA3
stacks: dd STACK0, STACK1, STACK2, STACK3
gdtr: dw first_gdt_end - first_gdt - 1
    dd GDT
idtr: dw 0x7ff
    dd IDT

align 8
first_gdt:
%macro segment_ 3  ; base, access, flags
    dw 0xffff, (%1) & 0xffff
    db ((%1) >> 16) & 0xff, %2, 0x0f | (%3) << 4, ((%1) >> 24) & 0xff
%endmacro
%macro system_ 3  ; base, limit, access
    dw %2, (%1) & 0xffff
    db ((%1) >> 16) & 0xff, %3, 0, ((%1) >> 24) & 0xff
%endmacro
%macro gate_ 4  ; selector, offset, access, count
    dw (%2 - mb + 0x100000) & 0xffff, %1
    db %4, %3
    dw (%2 - mb + 0x100000) >> 16
%endmacro
    dq 0
    segment_ 0, 0x9b, 0xc
    segment_ 0, 0x93, 0xc
    segment_ 0, 0xbb, 0xc
    segment_ 0, 0xb3, 0xc
    segment_ 0, 0xdb, 0xc
    segment_ 0, 0xd3, 0xc
    segment_ 0, 0xfb, 0xc
    segment_ 0, 0xf3, 0xc
    system_ TSS, 0x7f, 0x89
    system_ TSSB, 0x7f, 0x89
    system_ TSSC, 0x2b, 0x81
    system_ LDT, 0x3f, 0x82
    segment_ 0x100000, 0x9b, 0x0   ; CODE16
    segment_ 0x218000, 0x93, 0x0   ; DATA16
    gate_ CODE0, gate_target, 0xec, 2
    dw gate_target - mb, HIGH0, 0xe402, 0  ; GATE16
    dw 0, TSS1, 0xe500, 0          ; TASK1
    segment_ 0, 0x9f, 0xc          ; CONFORM
    segment_ 0, 0x73, 0xc          ; ABSENT
    segment_ 0, 0xf9, 0xc          ; EXECONLY
    segment_ 0, 0xf1, 0xc          ; READONLY
    segment_ SCRATCH, 0xf3, 0xc    ; BASED
    gate_ CONFORM, gate_target, 0xec, 0
    gate_ CODE3, gate_target, 0xec, 0
    dw 0, TSS16, 0xe500, 0
    segment_ 0, 0xf2, 0xc          ; FRESH: accessed bit clear
    gate_ CODE2, gate_target, 0xec, 1
    segment_ 0x100000, 0x9b, 0xc
    times SWEEP - ($ - first_gdt) db 0
{sweeps}
first_gdt_end:

align 8
first_idt:
%assign i 0
%rep 256
  %if (i >= 3 && i <= 4) || (i >= 0x40 && i < 0x50)
    gate_ CODE0, stub_%+ i, 0xee, 0
  %else
    gate_ CODE0, stub_%+ i, 0x8e, 0
  %endif
  %assign i i + 1
%endrep

first_ldt:
    dq 0
    segment_ SCRATCH, 0xf3, 0xc
    segment_ 0, 0xfb, 0xc
    segment_ SCRATCH, 0x93, 0xc
    times 64 - ($ - first_ldt) db 0

first_tss:
    dd 0, STACK0, DATA0, STACK1, DATA1, STACK2, DATA2, {cr3}
    times 0x66 - ($ - first_tss) db 0
    dw 0x68
    dd 0, 0, 0
    times 4096 - ($ - first_tss) db 0
second_tss:
    dd 0, STACKB, DATA0, STACK1, DATA1, STACK2, DATA2
    dd {cr3}, task_target, 0x2, 1, 2, 3, 4, STACKB, 6, 7, 8
    dd DATA3, CODE0, DATA0, DATA0, BASED, 0, LDT0
    times 0x66 - ($ - second_tss) db 0
    dw 0x68
    times 4096 - ($ - second_tss) db 0
third_tss:
    dw 0, 0xF000, DATA16, 0, 0, 0, 0
    dw task16 - mb, 0x2, 1, 2, 3, 4, 0xE000, 6, 7, 8
    dw DATA0, CODE16, DATA16, DATA0, LDT0
    times 4096 - ($ - third_tss) db 0
bits 16  ; a 16-bit TSS leaves the upper halves undefined
task16:
    movzx eax, ax
    movzx ecx, cx
    movzx edx, dx
    movzx ebx, bx
    movzx esp, sp
    movzx ebp, bp
    movzx esi, si
    movzx edi, di
    int 0x40
bits 32

%assign i 0
%rep 256
stub_%+ i:
  %if i == 8 || (i >= 10 && i <= 14) || i == 17
  %else
    push dword 0xdeadbeef
  %endif
    push dword i
    jmp taken
  %assign i i + 1
%endrep

align 4
cases:
{table}

{code}
times 16 nop
image_end:
