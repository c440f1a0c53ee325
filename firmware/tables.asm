; tables.asm - the board's ROM for kernels that are given directly: no BIOS runs.
;
; Copyright (C) the emu86 authors.  SPDX-License-Identifier: GPL-2.0-or-later
;
; Nothing here runs by itself: kernels are started by a boot loader.

        org     0

TABLES          equ     0FF000h         ; where the board has it; 4 KiB, to 1 MiB
BIOS_SEGMENT    equ     0FF00h

%include "lib/tables.inc"

; -- What a PC's ROM has at fixed places (IBM PC/AT Technical Reference, section 5) -------

        times   0F53h - ($ - tables_start) db 0FFh
        iret                            ; F000:FF53: where unused vectors lead

        times   0FF5h - ($ - tables_start) db 0FFh
        db      "01/01/26"              ; F000:FFF5: its date
        db      0FFh
        db      0FCh                    ; F000:FFFE: the model, a PC/AT
        db      0FFh
