"""The one home of the board's ports, interrupt lines and ROM: an ISA PC without PCI.

Source: IBM PC/AT Technical Reference; "ISA System Architecture", tables of I/O ports.
Everything else is not there: PCI's configuration ports CF8h-CFFh read as ones.
"""

from typing import Final

DMA_BYTES: Final = range(0x10)
PIC_MASTER: Final = range(0x20, 0x22)
PIT: Final = range(0x40, 0x44)
I8042: Final = range(0x60, 0x65, 4)
SPEAKER: Final = range(0x61, 0x62)
RTC: Final = range(0x70, 0x72)
POST_CODE: Final = range(0x80, 0x81)
DMA_PAGES: Final = range(0x81, 0x90)
SYSTEM_CONTROL_A: Final = range(0x92, 0x93)
PIC_SLAVE: Final = range(0xA0, 0xA2)
DMA_WORDS: Final = range(0xC0, 0xE0)  # registers two addresses apart
COPROCESSOR: Final = range(0xF0, 0xF2)
# The debug console, where Bochs has it and where SeaBIOS looks for it.
DEBUG_CONSOLE: Final = (range(0xE9, 0xEA), range(0x402, 0x403))
DEBUG_EXIT: Final = range(0xF4, 0xF8)
LPT1: Final = range(0x378, 0x37B)
COM1: Final = range(0x3F8, 0x400)
# The channels of the disk controller: command block, control block, interrupt line.
IDE: Final = (
    (range(0x1F0, 0x1F8), range(0x3F6, 0x3F7), 14),
    (range(0x170, 0x178), range(0x376, 0x377), 15),
)
IDE_CDROM: Final = 2  # the number of the CD-ROM drive: the first of the second channel
FDC: Final = range(0x3F0, 0x3F6)
FDC_RATE: Final = range(0x3F7, 0x3F8)
DMA_FDC: Final = 2  # its channel
ELCR: Final = range(0x4D0, 0x4D2)
FW_CFG: Final = range(0x510, 0x512)
POWER: Final = range(0x604, 0x606)

VGA: Final = range(0x3B0, 0x3E0)

VGA_MEMORY: Final = range(0xA0000, 0xC0000)
DISPI: Final = range(0x1CE, 0x1D1)  # index, data: words
# Where an ISA board has the frame buffer of Bochs' interface: RAM ends below it.
FRAME_BUFFER: Final = range(0xE000_0000, 0xE080_0000)

ROM: Final = 0xFF000  # to 1 MiB; copied to RAM there, as a PC shadows its ROM

IRQ_PIT: Final = 0
IRQ_KEYBOARD: Final = 1
IRQ_COM1: Final = 4
IRQ_FDC: Final = 6
IRQ_LPT1: Final = 7
IRQ_RTC: Final = 8
IRQ_MOUSE: Final = 12
IRQ_FERR: Final = 13
