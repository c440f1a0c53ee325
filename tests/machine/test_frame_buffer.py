"""A mode of VBE that a boot sector sets, drawn into by 32-bit code."""

import pytest

from emu86 import Machine, images
from support.assembler import assemble

SECTOR = """
bits 16
org 0x7c00
        mov ax, 0x4f02
        mov bx, 0x410f          ; 320 by 200, 24 bits, linear
        int 0x10
        cmp ax, 0x4f
        jne done
        cli
        xor ax, ax
        mov ds, ax
        lgdt [gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp 8:protected
bits 32
protected:
        mov ax, 16
        mov ds, ax
        mov es, ax
        mov edi, 0xe0000000
        mov eax, 0x0000ff00     ; green; bytes of the next pixel follow
        mov ecx, 3
        cld
        rep stosd
        mov byte [0xe0000000 + 960 * 199 + 959], 0xff
        inc byte [0xe0000002]
        mov ebx, [0xe0000000]
done:   cli
        hlt
align 8
gdt:    dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr:   dw 23
        dd gdt
times 510 - ($ - $$) db 0
dw 0xaa55
"""


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl"])
def test_a_boot_sector_draws_into_the_linear_frame_buffer(tmp_path, technique):
    path = tmp_path / "disk.img"
    path.write_bytes(assemble(SECTOR))
    machine = Machine(
        memory="4M", bios=images.bios(), disks=[path], technique=technique
    )
    assert machine.run(timeout=60).reason == "halted"
    assert machine.registers["ebx"] == 0x0001FF00
    screen = machine.screen
    assert not screen.is_text
    shown = screen.image
    assert (shown.width, shown.height) == (320, 200)
    # Blue, green, red in memory: 00 ff 01, 00 00 ff, 00 00 00, ff 00 00.
    assert shown.rgb[:12] == bytes.fromhex("01ff00 ff0000 000000 0000ff")
    assert shown.rgb[-3:] == bytes.fromhex("ff0000")
    saved = machine.save()
    machine.close()
    restored = Machine.restore(saved)
    assert restored.screen.image == shown
