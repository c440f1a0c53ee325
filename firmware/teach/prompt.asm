; prompt.asm - the prompt on the serial line.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later

LINE_MAX        equ     60
ESCAPE          equ     27
BIT_SIZE        equ     16              ; mask and name, see print_bits
KEYBOARD_STATUS equ     64h             ; i8042: read status, write command
INPUT_FULL      equ     02h             ; it has not taken the last command yet
PULSE_RESET     equ     0FEh            ; pulse its output P20, the reset line

struc Command
.word:          resb    12
.routine:       resd    1
.help:          resb    48
endstruc

; COMMAND "word", routine, "what it does"
%macro COMMAND 3
%%start:
        db      %1
        times   Command.routine - ($ - %%start) db 0
        dd      %2
        db      %3
        times   Command_size - ($ - %%start) db 0
%endmacro

section .bss
line:           resb    LINE_MAX + 1
last_line:      resb    LINE_MAX + 1    ; what was entered before

section .rodata
        align   4
commands:
        COMMAND "help",      command_help,      "this list"
        COMMAND "all",       run_everything,    "everything, as the word `script` does"
        COMMAND "rings",     command_rings,     "what ring 3 may not do"
        COMMAND "sensitive", command_sensitive, "what ring 0 sees of itself"
        COMMAND "tasks",     command_tasks,     "two tasks take turns by the timer"
        COMMAND "ticks",     command_ticks,     "ticks since the start, 100 a second"
        COMMAND "regs",      command_regs,      "control, flags and table registers"
        COMMAND "pages",     command_pages,     "pages 40010000: PDE, PTE of an address"
        COMMAND "fault",     command_fault,     "a fault nobody expects: dump, and stop"
        COMMAND "triple",    command_triple,    "a fault without an IDT: reset"
        COMMAND "halt",      command_halt,      "CLI and HLT: nothing wakes it again"
        COMMAND "reboot",    command_reboot,    "reset by the keyboard controller"
        COMMAND "poweroff",  command_poweroff,  "switch the machine off"
commands_end:

section .text

prompt:
        PRINTLN "Type `help` for the commands."
.again: mov     esp, boot_stack
        PRINT   "teach> "
        call    read_line
        mov     esi, line
        call    skip_blanks
        cmp     byte [esi], 0
        je      .again
        mov     ebx, commands
.look:  mov     edi, ebx
        call    match_word
        jnc     .found
        add     ebx, Command_size
        cmp     ebx, commands_end
        jb      .look
        PRINTLN "no such command: %s", esi
        jmp     .again
.found: call    skip_blanks             ; ESI = what follows the word
        call    [ebx + Command.routine]
        jmp     .again

; A line into `line`, without its end.  Backspace takes one character back, Ctrl-U all,
; Ctrl-C begins a new line, and cursor up brings the line entered before.
read_line:
        xor     edi, edi
.next:  call    get_char
        cmp     al, ESCAPE
        je      .escape
        cmp     al, 'C' - 40h
        je      .cancel
        cmp     al, 13
        je      .done
        cmp     al, 10
        je      .done
        cmp     al, 8
        je      .back
        cmp     al, 127
        je      .back
        cmp     al, 'U' - 40h
        je      .kill
        cmp     al, ' '
        jb      .next
        cmp     al, 126
        ja      .next
        cmp     edi, LINE_MAX
        jae     .next
        mov     [line + edi], al
        inc     edi
        call    put_char
        jmp     .next
.back:  test    edi, edi
        jz      .next
        call    .rub_out
        jmp     .next
.kill:  test    edi, edi
        jz      .next
        call    .rub_out
        jmp     .kill
.done:  mov     byte [line + edi], 0
        mov     esi, line
        test    edi, edi
        jz      .end
        mov     edi, last_line
.keep:  lodsb
        stosb
        test    al, al
        jnz     .keep
.end:   jmp     put_newline

.cancel:
        mov     byte [line], 0
        PRINT   "^C"
        jmp     put_newline

; A key of a terminal: ESC [ or ESC O, parameters, a letter.  A is cursor up.
.escape:
        call    get_char
        cmp     al, '['
        je      .letter
        cmp     al, 'O'
        jne     .next
.letter:
        call    get_char
        cmp     al, 'A' - 1
        jbe     .letter                 ; digits and semicolons
        cmp     al, 'A'
        jne     .next
.clear: test    edi, edi
        jz      .recall
        call    .rub_out
        jmp     .clear
.recall:
        mov     al, [last_line + edi]
        mov     [line + edi], al
        test    al, al
        jz      .next
        inc     edi
        call    put_char
        jmp     .recall

.rub_out:
        dec     edi
        PRINT   {8, " ", 8}
        ret

skip_blanks:
        cmp     byte [esi], ' '
        jne     .done
        inc     esi
        jmp     skip_blanks
.done:  ret

; Does the text at ESI begin with the word at EDI?  CF = 0: yes, and ESI is behind it.
match_word:
        push    esi
.next:  mov     al, [edi]
        test    al, al
        jz      .end
        cmp     al, [esi]
        jne     .no
        inc     esi
        inc     edi
        jmp     .next
.end:   cmp     byte [esi], ' '
        ja      .no
        add     esp, 4                  ; (clears CF)
        clc
        ret
.no:    pop     esi
        stc
        ret

command_help:
        mov     esi, commands
.next:  PRINT   "  %s", esi
        lea     edi, [esi + Command.help]
        mov     ecx, esi                ; pad the word to its field
.skip:  inc     ecx
        cmp     byte [ecx], 0
        jne     .skip
        neg     ecx
        lea     ecx, [ecx + esi + Command.routine]
.pad:   mov     al, ' '
        call    put_char
        loop    .pad
        PRINTLN "%s", edi
        add     esi, Command_size
        cmp     esi, commands_end
        jb      .next
        ret

command_rings:
        call    begin_checks
        call    show_rings
        jmp     end_checks

command_sensitive:
        call    begin_checks
        call    show_sensitive
        jmp     end_checks

command_tasks:
        call    begin_checks
        call    show_tasks
        jmp     end_checks

command_ticks:
        mov     eax, [ticks]
        mov     ecx, TICKS_PER_SECOND
        xor     edx, edx
        div     ecx
        PRINTLN "  %d ticks: %d seconds", [ticks], eax
        ret

command_regs:
        mov     eax, cr0
        PRINT   "  CR0 %x ", eax
        mov     esi, cr0_bits
        call    print_bits
        mov     eax, cr2
        mov     ecx, cr3
        PRINTLN "  CR2 %x   CR3 %x", eax, ecx
        mov     eax, cr4
        PRINT   "  CR4 %x ", eax
        mov     esi, cr4_bits
        call    print_bits
        pushf
        pop     eax
        mov     ecx, eax
        and     ecx, EFLAGS_IOPL
        shr     ecx, 12
        PRINT   "  EFL %x  IOPL=%d", eax, ecx
        mov     esi, eflags_bits
        call    print_bits
        sgdt    [table_register]
        mov     eax, [table_register + 2]
        movzx   ecx, word [table_register]
        PRINTLN "  GDTR base %x limit %hh", eax, ecx
        sidt    [table_register]
        mov     eax, [table_register + 2]
        movzx   ecx, word [table_register]
        PRINTLN "  IDTR base %x limit %hh", eax, ecx
        xor     eax, eax
        str     ax
        xor     ecx, ecx
        sldt    cx
        mov     edx, cs
        mov     edi, ss
        movzx   edx, dx
        movzx   edi, di
        PRINTLN "  TR %hh  LDTR %hh  CS %hh  SS %hh  ESP %x", eax, ecx, edx, edi, esp
        ret

; The names of the bits that are set in EAX, by the table at ESI; and a new line.
print_bits:
        mov     ecx, [esi]
        jecxz   .done
        test    eax, ecx
        jz      .next
        lea     ecx, [esi + 4]
        PRINT   " %s", ecx
.next:  add     esi, BIT_SIZE
        jmp     print_bits
.done:  jmp     put_newline

command_pages:
        call    parse_hex
        jc      .usage
        mov     ebx, eax
        shr     eax, 22
        lea     edx, [page_directory + eax * 4]
        mov     ecx, [edx]
        PRINT   "  PDE %d at %x: %x ", eax, edx, ecx
        mov     eax, ecx
        mov     esi, pte_bits
        call    print_bits
        mov     eax, ebx
        call    find_pte
        test    edi, edi
        jz      .absent
        shr     eax, 12
        and     eax, 3FFh
        mov     ecx, [edi]
        PRINT   "  PTE %d at %x: %x ", eax, edi, ecx
        mov     eax, ecx
        mov     esi, pte_bits
        call    print_bits
        test    eax, PTE_P
        jz      .absent
        and     eax, -PAGE_SIZE
        mov     ecx, ebx
        and     ecx, PAGE_SIZE - 1
        or      eax, ecx
        PRINTLN "  virtual %x is physical %x", ebx, eax
        ret
.absent:
        PRINTLN "  virtual %x is not mapped", ebx
        ret
.usage: PRINTLN "pages wants a virtual address of 1 to 8 hex digits"
        ret

; The hex number at ESI  ->  EAX; CF = 1: it is none.
parse_hex:
        xor     eax, eax
        xor     ecx, ecx
.next:  movzx   edx, byte [esi]
        inc     esi
        or      dl, 20h                 ; letters to lower case; digits have that bit
        cmp     dl, 20h                 ; a blank, or the end of the text
        je      .end
        sub     dl, '0'
        cmp     dl, 9
        jbe     .digit
        sub     dl, 'a' - '0' - 10
        cmp     dl, 10
        jb      .bad
        cmp     dl, 15
        ja      .bad
.digit: shl     eax, 4
        or      eax, edx
        inc     ecx
        cmp     ecx, 8
        jbe     .next
.bad:   stc
        ret
.end:   cmp     ecx, 1                  ; CF = 1: no digit at all
        ret

command_fault:
        mov     eax, [UNMAPPED]
        ret

; An exception with no IDT to look it up in is a double fault, which is looked up in
; the same place: a triple fault, and the processor shuts down.  The board resets it.
command_triple:
        PRINTLN "teach: triple fault"
        lidt    [.no_idt]
        int3
section .rodata
.no_idt: dw     0
        dd      0
section .text

command_halt:
        PRINTLN "teach: halted"
        jmp     stop

command_reboot:
        PRINTLN "teach: rebooting"
        mov     ecx, 10000h
.wait:  in      al, KEYBOARD_STATUS
        test    al, INPUT_FULL
        loopnz  .wait
        mov     al, PULSE_RESET
        out     KEYBOARD_STATUS, al
        jmp     stop

command_poweroff:
        PRINTLN "teach: powering off"
        jmp     power_off

; Bits and their names, BIT_SIZE bytes each.
%macro BIT 2
%%start:
        dd      1 << %1
        db      %2
        times   BIT_SIZE - ($ - %%start) db 0
%endmacro

section .rodata
        align   4
cr0_bits:
        BIT     31, "PG"
        BIT     30, "CD"
        BIT     29, "NW"
        BIT     18, "AM"
        BIT     16, "WP"
        BIT     5, "NE"
        BIT     4, "ET"
        BIT     3, "TS"
        BIT     2, "EM"
        BIT     1, "MP"
        BIT     0, "PE"
        dd      0
cr4_bits:
        BIT     10, "OSXMM"
        BIT     9, "OSFXSR"
        BIT     8, "PCE"
        BIT     7, "PGE"
        BIT     6, "MCE"
        BIT     5, "PAE"
        BIT     4, "PSE"
        BIT     3, "DE"
        BIT     2, "TSD"
        BIT     1, "PVI"
        BIT     0, "VME"
        dd      0
eflags_bits:
        BIT     21, "ID"
        BIT     18, "AC"
        BIT     17, "VM"
        BIT     14, "NT"
        BIT     11, "OF"
        BIT     10, "DF"
        BIT     9, "IF"
        BIT     8, "TF"
        BIT     7, "SF"
        BIT     6, "ZF"
        BIT     4, "AF"
        BIT     2, "PF"
        BIT     0, "CF"
        dd      0
pte_bits:
        BIT     8, "global"
        BIT     6, "dirty"
        BIT     5, "accessed"
        BIT     4, "PCD"
        BIT     3, "PWT"
        BIT     2, "user"
        BIT     1, "write"
        BIT     0, "present"
        dd      0
