"""SeaBIOS, unmodified, with its ROM for the display: what it boots, and its reset."""

import pytest

from emu86 import Machine
from support.assembler import assemble
from support.places import GUESTS

pytestmark = pytest.mark.guest("seabios.bin")

BIOS = GUESTS / "seabios.bin"
PATIENCE = 240  # wall seconds, on a machine that is busy otherwise

# Counts its starts at 500h, and restarts the PC once, as old programs do, at FFFF:0.
SECTOR = """
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    inc word [0x500]
    mov si, text
next:
    lodsb
    test al, al
    jz done
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp next
done:
    cmp word [0x500], 2
    je off
    jmp 0xffff:0
off:
    mov ax, 0x2000
    mov dx, 0x604
    out dx, ax
    hlt
text: db 'a boot sector says hello', 0
times 510 - ($ - $$) db 0
dw 0xaa55
times 64 * 512 - ($ - $$) db 0
"""


def test_a_boot_sector_twice_and_its_log(tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(assemble(SECTOR))
    machine = Machine(memory="16M", bios=BIOS, disks=[disk], debug_console=True)
    log = bytearray()
    machine.on_debug_console(log.extend)
    assert machine.run(timeout=PATIENCE).reason == "triple fault"
    machine.reset()
    assert machine.run(timeout=PATIENCE).reason == "poweroff"
    assert log.count(b"SeaBIOS (version") == 4  # in its log twice, and on its screen
    assert b"Found QEMU fw_cfg" in log
    assert b"Start SeaVGABIOS" in log
    assert log.count(b"Booting from Hard Disk") == 2
    assert "a boot sector says hello" in machine.screen.text
