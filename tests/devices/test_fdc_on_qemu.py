"""The floppy controller answers as QEMU's does, to a boot sector that gives commands.

Left out is what QEMU has otherwise: sectors that are not there, DUMPREG, FORMAT TRACK.
"""

import shutil
import subprocess

import pytest

from emu86 import Machine, images
from support.assembler import assemble

QEMU = shutil.which("qemu-system-i386")
SECONDS = 120  # a guest that hangs ends then

# Bytes of commands; how many bytes DMA has, if it has any, and which way.
COMMANDS = (
    ("10", 0), ("03 DF 02", 0), ("08", 0), ("01", 0), ("94", 0), ("14", 0),
    ("07 00", 0), ("08", 0), ("08", 0), ("0F 00 05", 0), ("08", 0), ("04 00", 0),
    ("04 04", 0), ("E6 00 05 00 03 02 12 1B FF", 1024),
    ("46 00 05 00 12 02 12 1B FF", 512), ("46 04 05 01 12 02 12 1B FF", 512),
    ("C6 00 05 00 12 02 12 1B FF", 512), ("C6 04 05 01 12 02 12 1B FF", 512),
    ("C6 00 05 00 11 02 12 1B FF", 2048), ("C5 00 05 00 04 02 12 1B FF", -512),
    ("0F 04 00", 0), ("08", 0), ("04 00", 0),
    ("E6 00 00 00 01 02 12 1B FF", 512),
)  # fmt: skip

PROGRAM = """
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    sti
    mov ax, 0x0203
    mov bx, 0x7e00
    mov cx, 2
    mov dx, 0
    int 0x13
    mov dx, 0x3f2
    mov al, 0x1c
    out dx, al
    mov dx, 0x3f7
    mov al, 0
    out dx, al
    mov si, table
next:
    lodsb
    test al, al
    jz reset
    mov cl, al
    mov ch, 0
    lodsb
    out 11, al      ; mode
    mov al, 6
    out 10, al
    out 12, al
    mov al, 0
    out 4, al
    mov al, 0x90
    out 4, al
    lodsb
    out 5, al
    lodsb
    out 5, al
    mov al, 0
    out 0x81, al
    mov al, 2
    out 10, al
give:
    mov dx, 0x3f4
.wait:
    in al, dx
    and al, 0xc0
    cmp al, 0x80
    jne .wait
    inc dx
    lodsb
    out dx, al
    loop give
    call answer
    jmp next
reset:
    mov dx, 0x3f2
    mov al, 0
    out dx, al
    mov al, 0x1c
    out dx, al
    hlt
    hlt
    mov cx, 5
.sense:
    mov dx, 0x3f5
    mov al, 8
    out dx, al
    call answer
    loop .sense
    mov ax, 0x2000
    mov dx, 0x604
    out dx, ax
    mov al, 0
    out 0xf4, al
    jmp $

answer:             ; say all that the controller answers, once it is not busy
    hlt             ; it may need a while until it is
.wait:
    mov dx, 0x3f4
    in al, dx
    mov ah, al
    and al, 0xd0
    cmp al, 0x10
    je .wait
    cmp al, 0xd0
    jne .end
    inc dx
    in al, dx
    mov ah, al
    shr al, 4
    call digit
    mov al, ah
    call digit
    jmp .wait
.end:
    mov al, 10
    mov dx, 0x3f8
    out dx, al
    ret
digit:
    and al, 15
    cmp al, 10
    jb .low
    add al, 7
.low:
    add al, '0'
    mov dx, 0x3f8
    out dx, al
    ret
    times 510 - ($ - $$) db 0
    dw 0xaa55
table:
"""


def floppy(path):
    lines = []
    for command, size in COMMANDS:
        data = bytes.fromhex(command)
        count = (abs(size) - 1) & 0xFFFF
        mode = 0x4A if size < 0 else 0x46
        values = [len(data), mode, count & 0xFF, count >> 8, *data]
        lines.append("db " + ", ".join(map(str, values)))
    image = assemble(PROGRAM + "\n".join(lines) + "\ndb 0\n")
    path.write_bytes(image.ljust(1440 << 10, b"\0"))
    return path


def answers(said):
    """Each answer; behind a track's last sector QEMU says "seek end", and head 0."""
    all_ = [bytearray.fromhex(line.decode()) for line in said.split()]
    for answer in all_:
        if len(answer) == 7:
            answer[0] &= ~0x24
    return all_


@pytest.mark.skipif(QEMU is None, reason="qemu-system-i386 is not installed")
def test_it_answers_as_qemus(tmp_path):
    path = floppy(tmp_path / "floppy.img")
    machine = Machine("4M", bios=images.bios(), floppies=[path])
    said = bytearray()
    machine.on_console(said.extend)
    assert machine.run(timeout=SECONDS).reason == "poweroff"
    machine.close()
    ours = path.read_bytes()
    floppy(path)
    heard = tmp_path / "heard"
    command = [QEMU, "-M", "isapc", "-m", "16", "-display", "none", "-boot", "a"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    command += ["-serial", f"file:{heard}"]
    command += ["-drive", f"if=floppy,format=raw,file={path}"]
    subprocess.run(["timeout", str(SECONDS), *command], check=False)
    assert said.count(b"\n") == len(COMMANDS) + 5
    assert answers(said) == answers(heard.read_bytes())
    assert ours == path.read_bytes()
