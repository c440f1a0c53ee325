; A floppy that loads the ELF kernel behind its boot sector, as its simplest loader would:
; sector by sector by INT 13h, then to 1 MiB, where all of the kernel's one segment goes,
; and into it as Multiboot has it. 1.44 MB; IMAGE names the file, END is the segment's.
        bits    16
        org     7C00h
start:  xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 7C00h
        mov     [drive], dl
        mov     ax, 1000h
        mov     es, ax
        mov     si, 1                   ; number of the sector
.read:  mov     ax, si
        mov     bl, 18
        div     bl                      ; AH sector, AL side and track
        mov     cl, ah
        inc     cl
        mov     dh, al
        and     dh, 1
        shr     al, 1
        mov     ch, al
        mov     dl, [drive]
        xor     bx, bx
        mov     ax, 0201h
        int     13h
        jc      $
        mov     ax, es
        add     ax, 32
        mov     es, ax
        inc     si
        cmp     si, SECTORS
        jbe     .read
        mov     dx, 3F2h                ; the motor off
        mov     al, 0Ch
        out     dx, al
        mov     ax, 2401h               ; A20
        int     15h
        cli
        lgdt    [gdt.register]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     8:.protected
        bits    32
.protected:
        mov     ax, 10h
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     fs, ax
        mov     gs, ax
        mov     esi, 10000h
        mov     edi, 100000h
        mov     ecx, SECTORS * 128
        cld
        rep     movsd
        mov     ecx, END
        sub     ecx, edi
        xor     eax, eax
        rep     stosb
        mov     eax, 2BADB002h
        mov     ebx, information
        jmp     dword [100018h]         ; the entry of an ELF file

        align   4
information:
        dd      4, 0, 0, 0, command     ; flags: a command line
command:db      "script", 0
drive:  db      0
        align   8
gdt:    dq      0, 00CF9A000000FFFFh, 00CF92000000FFFFh
.register:
        dw      23
        dd      gdt
        times   510 - ($ - $$) db 0
        dw      0AA55h

kernel: incbin  IMAGE
        align   512, db 0
SECTORS equ     ($ - kernel) / 512
        times   1440 * 1024 - ($ - $$) db 0
