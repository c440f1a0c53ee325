"""Our BIOS boots what is on a disk."""

import subprocess
import sys

import pytest

from emu86 import Machine, images
from support.assembler import assemble

HELLO = """
bits 16
org 0x7c00
    mov si, text
    mov ah, 0x0e
    mov bx, 7
next:
    lodsb
    test al, al
    jz done
    int 0x10
    mov dx, 0x3f8
    out dx, al
    jmp next
done:
    mov ax, 0x2000
    mov dx, 0x604
    out dx, ax
    jmp $
text: db 'a boot sector says hello', 0
times 510 - ($ - $$) db 0
dw 0xaa55
times 4096 * 512 - ($ - $$) db 0
"""


@pytest.fixture
def disk(tmp_path):
    """The path of a disk whose boot sector says hello and powers off."""
    path = tmp_path / "disk.img"
    path.write_bytes(assemble(HELLO))
    return path


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ud2", "Invalid opcode at 0000:7C00"),
        ("div cl", "Division by zero or overflow"),
    ],
)
def test_the_bios_says_where_a_boot_sector_fails(tmp_path, code, text):
    path = tmp_path / "disk.img"
    sector = f"bits 16\norg 0x7c00\n{code}\ntimes 510 - ($ - $$) db 0\ndw 0xaa55\n"
    path.write_bytes(assemble(sector))
    machine = Machine(memory="4M", bios=images.bios(), disks=[path])
    assert machine.run(timeout=120).reason == "halted"
    assert text in machine.screen.text


def test_a_boot_sector_writes_on_the_screen(disk):
    machine = Machine(memory="4M", bios=images.bios(), disks=[disk])
    assert machine.run(timeout=120).reason == "poweroff"
    assert "a boot sector says hello" in machine.screen.text


@pytest.mark.parametrize("option", [["--disk"], []])
def test_the_command_boots_a_disk_without_a_kernel(disk, option):
    command = [sys.executable, "-m", "emu86", "run", *option, disk]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"a boot sector says hello" in done.stdout
    found = f"{disk}: taken as by --disk"
    assert (found in done.stderr.decode()) == (not option)
    wrong = [*command, "--append", "quiet"]
    done = subprocess.run(wrong, capture_output=True, check=False, timeout=120)
    assert done.returncode == 2
    assert b"are a kernel's: there is none" in done.stderr


OFF = """
off:
    mov ax, 0x2000
    mov dx, 0x604
    out dx, ax
    hlt
"""
DESCRIPTORS = """
table: dw 31
       dd gdt
align 8
gdt: dq 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00009a000000ffff
"""
# 4 GiB segments in real mode: a word above 1 MiB and back.
UNREAL = """
    cli
    lgdt [table]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 16
    mov ds, bx
    and al, 0xfe
    mov cr0, eax
    xor bx, bx
    mov ds, bx
    mov ax, 0x2402
    int 0x15
    mov ax, 0x2401
    int 0x15
    mov dword [dword 0x200000], 0x12345678
    mov eax, [dword 0x200000]
    mov [0x500], eax
"""
# There 32-bit code writes, and the BIOS serves a call after it is left.
AND_BACK = """
    cli
    lgdt [table]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword 8:flat
bits 32
flat:
    mov ax, 16
    mov ds, ax
    mov dword [0x200000], 0x12345678
    mov ecx, [0x200000]
    jmp 24:leave
bits 16
leave:
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    jmp 0:real
real:
    xor ax, ax
    mov ds, ax
    mov [0x500], ecx
    sti
    mov ax, 0x0e21
    mov bx, 7
    int 0x10
"""
MODE_13 = """
    mov ax, 0x13
    int 0x10
    mov ax, 0xa000
    mov es, ax
    xor di, di
    mov cx, 320 * 200
    mov al, 4
    rep stosb
    mov dword [0x500], 0x12345678
"""


@pytest.mark.parametrize(
    "code", [UNREAL, AND_BACK, MODE_13], ids=["unreal", "and back", "mode 13h"]
)
def test_boot_sectors_of_the_usual_kinds(tmp_path, code):
    path = tmp_path / "disk.img"
    begin = "bits 16\norg 0x7c00\nxor ax, ax\nmov ds, ax\nmov ss, ax\nmov sp, 0x7c00\n"
    end = "times 510 - ($ - $$) db 0\ndw 0xaa55\n"
    path.write_bytes(assemble(begin + code + OFF + DESCRIPTORS + end))
    machine = Machine(memory="4M", bios=images.bios(), disks=[path])
    assert machine.run(timeout=120).reason == "poweroff"
    assert machine.read_physical(0x500, 4) == bytes.fromhex("78563412")
    if code == MODE_13:
        image = machine.screen.image
        assert (image.width, image.height) in {(320, 200), (320, 400), (640, 400)}
        assert image.rgb == bytes.fromhex("aa0000") * (image.width * image.height)
    elif code == AND_BACK:
        assert "!" in machine.screen.text


MOUSE = """
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    int 0x11
    mov [0x600], ax
    mov ax, 0xc205              ; packets of 3 bytes, and a reset
    mov bh, 3
    int 0x15
    mov [0x602], bx
    mov ax, 0xc207
    mov bx, handler
    int 0x15
    mov ax, 0xc200
    mov bh, 1
    int 0x15
    mov [0x604], ah
    mov ax, 0x0e00 + '!'
    int 0x10
more:
    hlt
    cmp byte [0x605], 0
    je more
    cli
    hlt
handler:                        ; DS is the BIOS's
    mov bp, sp
    mov ax, [bp + 10]
    mov [cs:0x606], al
    mov ax, [bp + 8]
    mov [cs:0x607], al
    mov ax, [bp + 6]
    mov [cs:0x608], al
    mov byte [cs:0x605], 1
    retf
times 510 - ($ - $$) db 0
dw 0xaa55
times 4096 * 512 - ($ - $$) db 0
"""


def test_the_bios_tells_of_the_mouse(tmp_path):
    """INT 11h and INT 15h, AX C200h to C207h (Ralf Brown's Interrupt List)."""
    path = tmp_path / "disk.img"
    path.write_bytes(assemble(MOUSE))
    machine = Machine(bios=images.bios(), disks=[path], writes="discard")
    machine.move(5, 3, buttons=["left"], after=b"!")
    assert machine.run(timeout=60).reason == "halted"
    equipment, _, *told = machine.read_physical(0x600, 9)
    assert equipment & 0x04
    assert bytes(told) == bytes.fromhex("aa 00 00 01 29 05 fd")
