; What a BIOS promises, asked of it from a boot sector: a line for each answer on COM1,
; "ok NAME" or "not ok NAME", then the end by port F4h.
;
; The machine: this floppy (1.44 MB) in drive 0, a disk of 16 MiB behind 80h whose sectors
; begin with their number, 64 MiB of memory.
        bits    16
        org     7C00h
SECTORS equ     12

start:  xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 7C00h
        mov     [drive], dl
        mov     es, ax
        mov     ax, 0200h + SECTORS     ; the rest, behind this sector
        mov     cx, 2
        mov     dh, 0
        mov     bx, 7E00h
        int     13h
        jc      $
        jmp     checks
drive:  db      0FFh
        times   510 - ($ - $$) db 0
        dw      0AA55h

; Say of the condition that it holds, or that it does not.
%macro CHECK 2
        j%1     %%ok
        mov     si, %%not
        jmp     %%say
%%not:  db      "not "
%%text: db      "ok ", %2, 10, 0
%%ok:   mov     si, %%text
%%say:  call    say
%endmacro

say:    push    ax
        push    dx
.next:  cs lodsb
        test    al, al
        jz      .done
        mov     dx, 3F8h
        out     dx, al
.wait:  mov     dx, 3FDh
        in      al, dx
        test    al, 20h
        jz      .wait
        jmp     .next
.done:  pop     dx
        pop     ax
        ret

checks: cmp     byte [drive], 0
        CHECK   e, "the drive is told in DL"

; -- INT 11h, 12h, 15h
        int     12h
        cmp     ax, 639
        CHECK   e, "639 KiB of base memory"
        int     11h
        test    al, 1
        CHECK   nz, "the equipment has a floppy drive"
        int     11h
        test    ah, 0Eh
        CHECK   nz, "the equipment has a serial port"
        mov     ah, 88h
        int     15h
        cmp     ax, 63 * 1024
        CHECK   be, "at most 63 MiB above 1 MiB"
        mov     ah, 88h
        int     15h
        cmp     ax, 60 * 1024
        CHECK   a, "and more than 60"
        mov     ax, 0E801h
        int     15h
        cmp     cx, 15 * 1024
        CHECK   e, "E801h: 15 MiB below 16"
        mov     ax, 0E801h
        int     15h
        cmp     dx, 47 * 16
        CHECK   a, "E801h: the rest above"
        xor     ebx, ebx
        xor     ebp, ebp
        xor     esi, esi
.map:   mov     eax, 0E820h
        mov     edx, "SMAP"
        mov     ecx, 20
        mov     di, buffer
        push    esi
        int     15h
        pop     esi
        jc      .mapped
        cmp     dword [buffer + 16], 1
        jne     .more
        inc     esi
        add     ebp, [buffer + 8]
.more:  test    ebx, ebx
        jnz     .map
.mapped:cmp     esi, 2
        CHECK   e, "E820h: two ranges of RAM"
        shr     ebp, 20
        cmp     ebp, 63
        CHECK   e, "E820h: 63 MiB and some"
        mov     ah, 0C0h
        int     15h
        cmp     byte [es:bx + 2], 0FCh
        CHECK   e, "the configuration says PC/AT"
        push    0
        pop     es
        mov     ax, 2402h
        int     15h
        CHECK   nc, "A20 can be asked for"
        mov     ax, 2400h
        int     15h
        mov     ax, 2402h
        int     15h
        test    al, al
        CHECK   z, "A20 is off"
        mov     ax, 0FFFFh
        mov     es, ax
        mov     byte [500h], 11h
        mov     byte [es:510h], 22h
        cmp     byte [500h], 22h
        CHECK   e, "and memory wraps at 1 MiB"
        mov     ax, 2401h
        int     15h
        mov     byte [500h], 11h
        mov     byte [es:510h], 22h
        cmp     byte [500h], 11h
        CHECK   e, "A20 is on, and it does not"
        xor     ax, ax
        mov     es, ax
        mov     ah, 87h
        mov     cx, 256
        mov     si, moves
        int     15h
        CHECK   nc, "a move to 2 MiB"
        mov     word [moves + 12h], 0   ; and back, elsewhere
        mov     byte [moves + 14h], 20h
        mov     word [moves + 1Ah], buffer
        mov     byte [moves + 1Ch], 0
        mov     ah, 87h
        mov     cx, 256
        mov     si, moves
        int     15h
        mov     si, 7C00h
        mov     di, buffer
        mov     cx, 256
        repe    cmpsw
        CHECK   e, "and back are the same bytes"
        mov     ah, 0EEh
        int     15h
        CHECK   c, "what INT 15h does not know fails"

; -- INT 1Ah, 08h
        mov     ah, 0
        int     1Ah
        mov     bx, dx
        mov     cx, 3
.ticks: sti
        hlt
        loop    .ticks
        mov     ah, 0
        int     1Ah
        sub     dx, bx
        cmp     dx, 2
        CHECK   ae, "the timer ticks"
        mov     word [es:1Ch * 4], on_tick
        mov     [es:1Ch * 4 + 2], cs
        mov     cx, 2
.user:  hlt
        loop    .user
        cmp     byte [ticked], 0
        CHECK   ne, "INT 1Ch is called"
        mov     ah, 2
        int     1Ah
        cmp     ch, 24h
        CHECK   b, "the hour is one"
        mov     ah, 4
        int     1Ah
        cmp     cx, 2020h
        CHECK   ae, "the year is one"

; -- INT 10h
        mov     ax, 3
        int     10h
        mov     ah, 0Fh
        int     10h
        cmp     ax, 5003h
        CHECK   e, "mode 3 has 80 columns"
        mov     ax, 0B800h
        mov     gs, ax
        mov     ah, 2
        mov     bh, 0
        mov     dx, 0A14h
        int     10h
        mov     ax, 0941h
        mov     bx, 001Eh
        mov     cx, 3
        int     10h
        cmp     dword [gs:(10 * 80 + 20) * 2 + 2], 1E411E41h
        CHECK   e, "characters with their attribute"
        mov     ah, 8
        mov     bh, 0
        int     10h
        cmp     ax, 1E41h
        CHECK   e, "a character is read"
        mov     ah, 3
        mov     bh, 0
        int     10h
        cmp     dx, 0A14h
        CHECK   e, "writing does not move the cursor"
        mov     ax, 0E42h
        mov     bx, 7
        int     10h
        cmp     word [gs:(10 * 80 + 20) * 2], 1E42h
        CHECK   e, "the teletype keeps the attribute"
        mov     ah, 3
        mov     bh, 0
        int     10h
        cmp     dx, 0A15h
        CHECK   e, "and moves the cursor"
        mov     ax, 0601h
        mov     bh, 4Eh
        mov     cx, 0A14h
        mov     dx, 0B16h
        int     10h
        cmp     word [gs:(11 * 80 + 20) * 2], 4E20h
        CHECK   e, "scrolling up brings a new row"
        mov     word [gs:(10 * 80 + 20) * 2], 1234h
        mov     ax, 0701h
        mov     bh, 4Eh
        mov     cx, 0A14h
        mov     dx, 0B16h
        int     10h
        cmp     word [gs:(11 * 80 + 20) * 2], 1234h
        CHECK   e, "scrolling down moves a row"
        mov     ah, 2
        mov     bh, 0
        mov     dx, 184Fh
        int     10h
        mov     word [gs:(24 * 80) * 2], 0755h
        mov     ax, 0E43h
        mov     bx, 7
        int     10h
        cmp     word [gs:(23 * 80) * 2], 0755h
        CHECK   e, "the teletype scrolls at the end"
        mov     ax, 1301h
        mov     bx, 002Fh
        mov     cx, 5
        mov     dx, 0203h
        mov     bp, string
        push    cs
        pop     es
        int     10h
        cmp     dword [gs:(2 * 80 + 3) * 2], 2F652F68h
        CHECK   e, "a string"
        mov     ax, 1112h
        mov     bx, 0
        int     10h
        push    40h
        pop     fs
        cmp     byte [fs:84h], 49
        CHECK   e, "50 rows with the small font"
        mov     ax, 13h
        int     10h
        mov     ax, 0A000h
        mov     gs, ax
        mov     ax, 0C2Ah
        mov     bx, 0
        mov     cx, 7
        mov     dx, 3
        int     10h
        cmp     byte [gs:3 * 320 + 7], 2Ah
        CHECK   e, "a pixel in mode 13h"
        mov     ah, 0Dh
        int     10h
        cmp     al, 2Ah
        CHECK   e, "is read"
        mov     ax, 1010h
        mov     bx, 17
        mov     dx, 1100h
        mov     cx, 2233h
        int     10h
        mov     ax, 1015h
        mov     bx, 17
        int     10h
        cmp     cx, 2233h
        CHECK   e, "a colour of the DAC"
        mov     ax, 12h
        int     10h
        mov     ax, 0C0Bh
        mov     bx, 0
        mov     cx, 77
        mov     dx, 470
        int     10h
        mov     ah, 0Dh
        mov     bx, 0
        int     10h
        cmp     al, 0Bh
        CHECK   e, "a pixel of sixteen colours"
        mov     ax, 0C8Fh
        mov     bx, 0
        int     10h
        mov     ah, 0Dh
        int     10h
        cmp     al, 4
        CHECK   e, "and by exclusive or"
        mov     di, buffer
        push    cs
        pop     es
        mov     dword [es:di], "VBE2"
        mov     ax, 4F00h
        int     10h
        cmp     ax, 4Fh
        CHECK   e, "there is a VBE"
        mov     ax, 4F01h
        mov     cx, 101h
        mov     di, buffer
        int     10h
        cmp     word [buffer + 18], 640
        CHECK   e, "mode 101h is 640 pixels wide"
        mov     ax, 4F02h
        mov     bx, 101h
        int     10h
        cmp     ax, 4Fh
        CHECK   e, "and is set"
        mov     byte [gs:100], 5Ah
        cmp     byte [gs:100], 5Ah
        CHECK   e, "its window is memory"
        mov     ax, 4F05h
        mov     bx, 0
        mov     dx, 2
        int     10h
        mov     byte [gs:100], 77h
        mov     ax, 4F05h
        mov     bx, 0
        mov     dx, 0
        int     10h
        cmp     byte [gs:100], 5Ah
        CHECK   e, "which moves"
        mov     ax, 3
        int     10h

; -- INT 16h
        mov     ah, 5
        mov     cx, 1E61h
        int     16h
        mov     ah, 1
        int     16h
        CHECK   nz, "a key that was put is there"
        mov     ah, 0
        int     16h
        cmp     ax, 1E61h
        CHECK   e, "and is read"
        mov     ah, 1
        int     16h
        CHECK   z, "once"
        mov     ah, 5
        mov     cx, 85E0h
        int     16h
        mov     ah, 11h
        int     16h
        CHECK   nz, "an extended key"
        mov     ah, 1
        int     16h
        CHECK   z, "is not one for old programs"

; -- INT 13h: floppy
        push    0
        pop     es
        mov     ah, 8
        mov     dl, 0
        int     13h
        cmp     cx, 4F12h
        CHECK   e, "a floppy of 80 tracks and 18 sectors"
        push    0
        pop     es
        mov     ah, 15h
        mov     dl, 0
        int     13h
        cmp     ah, 3
        CHECK   b, "its drive is one for floppies"
        mov     di, buffer
        mov     cx, 256
        mov     ax, 0C0DEh
        rep     stosw
        mov     ax, 0301h
        mov     bx, buffer
        mov     cx, 2A05h
        mov     dx, 0100h
        int     13h
        CHECK   nc, "a sector is written"
        mov     ax, 0201h
        mov     bx, buffer + 512
        mov     cx, 2A05h
        mov     dx, 0100h
        int     13h
        cmp     word [buffer + 512 + 510], 0C0DEh
        CHECK   e, "and read again"
        mov     ax, 0201h
        mov     bx, buffer
        mov     cx, 0013h
        mov     dx, 0000h
        int     13h
        CHECK   c, "there is no sector 19"
        mov     ax, 0206h
        mov     bx, buffer
        mov     cx, 2A12h
        mov     dx, 0000h
        int     13h
        cmp     word [buffer + 6 * 512 - 2], 0C0DEh
        CHECK   e, "sectors from side to side"
        mov     ah, 16h
        mov     dl, 0
        int     13h
        CHECK   nc, "the floppy was not changed"
        les     di, [1Eh * 4]
        cmp     byte [es:di + 4], 18
        CHECK   e, "INT 1Eh has parameters"
        mov     ah, 18h
        mov     cx, 4F12h
        mov     dl, 0
        int     13h
        CHECK   nc, "80 tracks of 18 sectors can be formatted"
        mov     [1Eh * 4], di
        mov     [1Eh * 4 + 2], es
        push    0
        pop     es
        mov     di, buffer
        mov     eax, 0201014Fh          ; track 79, head 1, sector 1, 512 bytes
.name:  stosd
        add     eax, 10000h
        cmp     di, buffer + 18 * 4
        jb      .name
        mov     ax, 0512h
        mov     bx, buffer
        mov     cx, 4F01h
        mov     dx, 0100h
        int     13h
        CHECK   nc, "a track is formatted"
        lds     si, [1Eh * 4]
        mov     di, buffer
        mov     cx, 11
        rep     movsb
        push    es
        pop     ds
        mov     byte [buffer + 4], 9
        push    dword [1Eh * 4]
        mov     dword [1Eh * 4], buffer
        mov     ax, 0201h
        mov     bx, buffer + 512
        mov     cx, 000Ah
        mov     dx, 0
        int     13h
        pop     dword [1Eh * 4]
        CHECK   c, "parameters of one's own count"
        mov     ax, 0201h
        mov     bx, 0FFF0h
        mov     cx, 1
        mov     dx, 0
        push    es
        push    1000h
        pop     es
        int     13h
        pop     es
        cmp     ah, 9
        CHECK   e, "DMA does not cross 64 KiB"

; -- INT 13h: disk
        mov     ah, 8
        mov     dl, 80h
        int     13h
        push    0
        pop     es
        cmp     dl, 1
        CHECK   e, "there is one disk"
        mov     ax, 0201h
        mov     bx, buffer
        mov     cx, 0102h               ; cylinder 1, sector 2
        mov     dx, 0380h               ; head 3
        int     13h
        mov     ah, 8
        mov     dl, 80h
        push    es
        int     13h
        pop     es
        movzx   eax, dh
        inc     ax                      ; heads
        add     ax, 3
        and     cx, 3Fh
        mul     cx
        inc     ax                      ; ((1 * heads + 3) * sectors) + 2 - 1
        cmp     ax, [buffer]
        CHECK   e, "cylinder, head and sector name a block"
        mov     ah, 41h
        mov     bx, 55AAh
        mov     dl, 80h
        int     13h
        cmp     bx, 0AA55h
        CHECK   e, "it has extensions"
        mov     ah, 42h
        mov     dl, 80h
        mov     si, packet
        int     13h
        CHECK   nc, "blocks are read"
        cmp     dword [buffer + 512], 1001
        CHECK   e, "by their number"
        mov     dword [buffer + 4], 12345678h
        mov     ax, 4300h
        mov     dl, 80h
        mov     si, packet
        int     13h
        mov     dword [buffer + 4], 0
        mov     ah, 42h
        mov     dl, 80h
        mov     si, packet
        int     13h
        cmp     dword [buffer + 4], 12345678h
        CHECK   e, "and written"
        mov     dword [packet + 8], 32768
        mov     ah, 42h
        mov     dl, 80h
        mov     si, packet
        int     13h
        CHECK   c, "there is none behind the end"
        mov     word [buffer], 1Eh
        mov     ah, 48h
        mov     dl, 80h
        mov     si, buffer
        int     13h
        cmp     dword [buffer + 16], 32768
        CHECK   e, "the disk's size"
        mov     ah, 15h
        mov     dl, 80h
        int     13h
        cmp     ah, 3
        CHECK   e, "a disk is a disk"
        mov     ah, 2
        mov     al, 1
        mov     dl, 85h
        int     13h
        CHECK   c, "there is no sixth"

; -- INT 14h, 17h
        mov     ah, 3
        mov     dx, 0
        int     14h
        test    ah, 60h
        CHECK   nz, "the serial port is ready"

        mov     si, over
        call    say
        mov     al, 0
        out     0F4h, al
        cli
        hlt

on_tick:inc     byte [cs:ticked]
        iret
ticked: db      0
over:   db      "over", 10, 0
string: db      "hello"
packet: dw      10h, 2
        dw      buffer, 0
        dq      1000
        align   8
moves:  times   16 db 0
        dw      0FFFFh, 7C00h           ; from 7C00h
        db      0, 93h
        dw      0
        dw      0FFFFh, 0               ; to 200000h
        db      20h, 93h
        dw      0
        times   16 db 0

        times   512 * (1 + SECTORS) - ($ - $$) db 0
buffer  equ     0B000h
