; bios.asm - the board's ROM: what a 32-bit kernel looks for below 1 MiB.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; Nothing here runs by itself: kernels are started by a boot loader.  What they find
; is a BIOS32 Service Directory with the PCI BIOS, which answers as it does on a board
; where no PCI device is, and SMBIOS tables with the board's name.
;
; A kernel calls the services at whatever linear address it has mapped the ROM, so the
; code uses no address of its own.
;
; Sources: "Standard BIOS 32-bit Service Directory Proposal" 0.4; PCI BIOS
;          Specification 2.1, section 3; System Management BIOS Specification 2.4.

        bits    32
        org     0

ROM     equ     0FF000h                 ; where the board has it; 4 KiB, to 1 MiB
SIZE    equ     1000h

%define at(label)       (ROM + (label - rom))
%define sum(value)      (((value) & 255) + ((value) >> 8 & 255) + ((value) >> 16 & 255) + ((value) >> 24 & 255))

rom:

; -- BIOS32 Service Directory: found by its signature, on 16 bytes ----------------------

        db      "_32_"
        dd      at(directory)
        db      0                       ; revision
        db      1                       ; length in 16 bytes
        db      -(sum("_32_") + sum(at(directory)) + 1) & 255
        times   5 db 0

; -- SMBIOS entry point -----------------------------------------------------------------

smbios:
        db      "_SM_"
        db      -(sum("_SM_") + 1Fh + 2 + 4 + sum(LARGEST)) & 255
        db      1Fh, 2, 4               ; length, version
        dw      LARGEST
        times   6 db 0                  ; revision of this entry point, reserved
        db      "_DMI_"
        db      -(sum("_DMI") + "_" + sum(TABLES) + sum(at(tables)) + COUNT + 24h) & 255
        dw      TABLES
        dd      at(tables)
        dw      COUNT
        db      24h                     ; version 2.4, in BCD

COUNT   equ     3
LARGEST equ     system - tables

        align   16, db 0

; Each structure: type, length, handle; its fields; its strings, and a NUL after them.
; A field that is a string holds its number, 0 for none.
tables:
        db      0, 18h                  ; BIOS information
        dw      0
        db      1, 2                    ; vendor, version
        dw      ROM >> 4                ; segment
        db      3                       ; date
        db      0                       ; size: 64 KiB
        dq      8                       ; its characteristics are not told
        dw      0
        db      0, 1, 0FFh, 0FFh        ; release 0.1; no embedded controller
        db      "emu86", 0, "0.1", 0, "01/01/2026", 0, 0
system:
        db      1, 1Bh                  ; system information
        dw      1
        db      1, 2, 0, 0              ; manufacturer, product; no version, serial number
        times   16 db 0                 ; no UUID
        db      6                       ; woken by the power switch
        db      0, 0                    ; no SKU, no family
        db      "emu86", 0, "ISA PC", 0, 0
        db      127, 4                  ; the end
        dw      2
        db      0, 0
tables_end:
TABLES  equ     tables_end - tables

; -- The directory: EAX names a service, BL is 0 ----------------------------------------
; Out: AL 0, EBX and ECX where the service is and how long, EDX its entry from there.

directory:
        test    bl, bl
        jnz     .function
        cmp     eax, "$PCI"
        jne     .absent
        mov     ebx, ROM
        mov     ecx, SIZE
        mov     edx, pci - rom
        mov     al, 0
        retf
.absent:
        mov     al, 80h                 ; no such service
        retf
.function:
        mov     al, 81h                 ; no such function of the directory
        retf

; -- PCI BIOS: AX is the function; AH tells how it went, and CF whether it failed -------

pci:
        cmp     ax, 0B101h
        je      .present
        cmp     ax, 0B102h              ; find a device, find a class code
        jb      .unsupported
        cmp     ax, 0B103h
        jbe     .absent
        cmp     ax, 0B108h
        jb      .unsupported
        je      .byte
        cmp     ax, 0B10Ah
        jb      .word
        je      .dword
        cmp     ax, 0B10Dh              ; writes to no device are lost
        jbe     .done
.unsupported:
        mov     ah, 81h
        stc
        retf
.absent:
        mov     ah, 86h                 ; no such device
        stc
        retf
.present:
        mov     edx, "PCI "
        mov     bx, 210h                ; version 2.10
        mov     cl, 0                   ; the last bus
        mov     al, 0                   ; neither configuration mechanism is there
.done:
        mov     ah, 0
        clc
        retf
.byte:
        mov     cl, 0FFh                ; what a bus reads where nothing drives it
        jmp     .done
.word:
        mov     cx, 0FFFFh
        jmp     .done
.dword:
        mov     ecx, 0FFFFFFFFh
        jmp     .done

; -- What a PC's ROM has at fixed places (IBM PC/AT Technical Reference, section 5) -------

        times   0F53h - ($ - rom) db 0FFh
        iret                            ; F000:FF53: where unused vectors lead

        times   0FF5h - ($ - rom) db 0FFh
        db      "01/01/26"              ; F000:FFF5: its date
        db      0FFh
        db      0FCh                    ; F000:FFFE: the model, a PC/AT
        db      0FFh
