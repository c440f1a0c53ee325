; bios.asm - the BIOS: what a PC runs from reset until a boot sector takes over, and
;            the services that boot loaders, DOS and teaching kernels call afterwards.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; The ROM is 64 KiB, at F0000h; all of its code runs in real mode with CS = F000h.
; Read in this order:
;
;   data.inc      the data area at 40:0, and how a service begins and ends
;   post.inc      power-on self test: from the reset vector to INT 19h
;   boot.inc      INT 18h, 19h: the boot order, the menu, boot sectors
;   time.inc      INT 08h, 1Ah, 70h: the timer's ticks and the clock
;   keyboard.inc  INT 09h, 16h: scan codes to characters
;   video.inc     INT 10h: modes, cursor, palette;  text.inc, pixels.inc, vbe.inc its rest
;   disk.inc      INT 13h: what is common;  ata.inc, floppy.inc, cdrom.inc the drives
;   system.inc    INT 11h, 12h, 15h: memory, A20, moves, power
;   ports.inc     INT 14h, 17h: serial and parallel ports
;   mouse.inc     INT 15h, AH C2h: the PS/2 mouse
;   fonts.inc     the characters;  ../lib/tables.inc what 32-bit kernels look for
;
; It runs on any PC with an ISA bus and a 486; for instance
;
;     qemu-system-i386 -M isapc -vga std -bios bios.bin -fda floppy.img
;
; Sources: IBM PC/AT Technical Reference (1985), section 5; IBM PS/2 and PC BIOS
;          Interface Technical Reference (1991); Ralf Brown's Interrupt List; others
;          are named where they are used.

        cpu     486
        bits    16
        org     0

ROM_SEGMENT     equ     0F000h

%include "data.inc"

rom:
        db      "emu86 BIOS", 0

%include "post.inc"
%include "boot.inc"
%include "time.inc"
%include "keyboard.inc"
%include "video.inc"
%include "text.inc"
%include "pixels.inc"
%include "vbe.inc"
%include "disk.inc"
%include "ata.inc"
%include "floppy.inc"
%include "cdrom.inc"
%include "system.inc"
%include "ports.inc"
%include "mouse.inc"
%include "fonts.inc"

        align   16, db 0
TABLES          equ     ROM_SEGMENT * 16 + (tables_start - rom)
BIOS_SEGMENT    equ     ROM_SEGMENT
%include "lib/tables.inc"
        bits    16

; -- What a PC's ROM has at fixed places -----------------------------------------------------
; Programs that know the IBM PC/AT jump to these addresses without the vectors.

%macro AT_ADDRESS 1
        times   %1 - ($ - rom) db 0FFh
%endmacro

        AT_ADDRESS 0E05Bh
        jmp     post
        AT_ADDRESS 0E2C3h
        jmp     int_02
        AT_ADDRESS 0E3FEh
        jmp     int_13
        AT_ADDRESS 0E6F2h
        jmp     int_19
        AT_ADDRESS 0E6F5h
configuration:                          ; INT 15h, AH C0h returns its address
        dw      8                       ; bytes that follow
        db      0FCh, 1, 0              ; a PC/AT; revision
        db      74h                     ; two 8259As, a clock, INT 15h AH 4Fh and 83h; extended data area
        db      40h                     ; INT 16h AH 09h
        times   3 db 0
        AT_ADDRESS 0E739h
        jmp     int_14
        AT_ADDRESS 0E82Eh
        jmp     int_16
        AT_ADDRESS 0E987h
        jmp     int_09
        AT_ADDRESS 0EC59h
        jmp     int_13
        AT_ADDRESS 0EF57h
        jmp     int_0e
        AT_ADDRESS 0EFC7h
floppy_parameters:                      ; INT 1Eh points here: 1.44 MB
        db      0AFh                    ; step rate 3 ms, unload 240 ms
        db      02h                     ; load 4 ms, DMA
        db      25h                     ; ticks until the motor stops
        db      2                       ; 512 bytes in a sector
        db      18                      ; sectors of a track
        db      1Bh, 0FFh, 6Ch          ; gap, data length, gap when formatting
        db      0F6h                    ; what a formatted sector is filled with
        db      15                      ; ms until the head rests
        db      8                       ; eighths of a second until the motor runs
        AT_ADDRESS 0EFD2h
        jmp     int_17
        AT_ADDRESS 0F065h
        jmp     int_10
        AT_ADDRESS 0F841h
        jmp     int_12
        AT_ADDRESS 0F84Dh
        jmp     int_11
        AT_ADDRESS 0F859h
        jmp     int_15
        AT_ADDRESS 0FA6Eh
font_8x8_low:                           ; the first 128 characters
        incbin  "8x8.bin", 0, 1024
        AT_ADDRESS 0FE6Eh
        jmp     int_1a
        AT_ADDRESS 0FEA5h
        jmp     int_08
        AT_ADDRESS 0FF53h
no_service:
        iret
        AT_ADDRESS 0FFF0h
        jmp     ROM_SEGMENT:post        ; where the processor begins
        db      "01/01/26"              ; the ROM's date
        db      0FFh
        db      0FCh                    ; the model: a PC/AT
        db      0FFh
