"""ROMs that start a PC at its reset vector, and what they say on COM1.

The same ROM runs under emu86 and on QEMU, so QEMU says what has to come.
"""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from emu86 import Machine
from support.assembler import assemble

SIZE = 0x10000
# What each case of a ROM begins with: a stack, segments at 0, and all vectors the same.
ROM = """
bits 16
org 0
%macro show 1          ; the low word of something, with AX, DX and flags as they were
    pushf
    push ax
    push dx
    push word %1
    pop ax
    mov dx, 0x3f8
    out dx, al
    mov al, ah
    out dx, al
    pop dx
    pop ax
    popf
%endmacro
%macro vector 2        ; number, handler
    mov word [4 * %1], %2
    mov word [4 * %1 + 2], cs
%endmacro
%macro say 1
    push ax
    push dx
    mov dx, 0x3f8
    mov al, %1
    out dx, al
    pop dx
    pop ax
%endmacro
begin:
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x7000
    push word 2
    popf
    xor di, di
    mov cx, 256
.fill:
    mov ax, unexpected
    stosw
    mov ax, cs
    stosw
    loop .fill
    xor eax, eax
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    jmp bp
unexpected:
    say '!'
    xor ax, ax
    mov ds, ax
    jmp word [0x6f00]
"""
END = """
    mov dx, 0x3f8
    mov al, '$'
    out dx, al
    mov al, 0
    out 0xf4, al
    cli
    hlt
"""


def rom(cases: dict[str, str], size: int = SIZE) -> bytes:
    """A ROM that runs pieces of code, each from the same state, one after another.

    Each says `=` at its end, or `!` if an interrupt or exception comes that it has no
    handler for.
    """
    text = ROM + "start:\n    mov al, 0xff\n    out 0x21, al\n    out 0xa1, al\n"
    for i, code in enumerate(cases.values()):
        text += f"""
.begin{i}:
    xor ax, ax
    mov ds, ax
    mov word [0x6f00], .end{i}
    mov bp, .case{i}
    jmp begin
.case{i}:
    mov bp, 0
{code.replace(".", f".c{i}_").replace("@", ".")}
    say '='
.end{i}:
"""
    text += (
        END
        + f"""
times {size - 16} - ($ - $$) db 0xcc
    jmp 0xf000:start
times {size} - ($ - $$) db 0xff
"""
    )
    return assemble(text)


def on_emu86(image: bytes, **options: object) -> tuple[bytes, str]:
    """What a ROM says on COM1 under emu86, and why its run has ended."""
    machine = Machine(memory=16 << 20, bios=image, debug_exit=True, **options)
    said = bytearray()
    machine.on_console(said.extend)
    stop = machine.run(timeout=60)
    return bytes(said), f"{stop.reason} {stop.detail}".strip()


@cache
def on_qemu(image: bytes) -> bytes:
    """What a ROM says on COM1 on QEMU; skips the test without QEMU."""
    qemu = shutil.which("qemu-system-i386")
    if qemu is None:
        pytest.skip("qemu-system-i386 is not installed")
    with tempfile.TemporaryDirectory() as folder:
        bios, said = Path(folder, "bios"), Path(folder, "said")
        bios.write_bytes(image)
        command = [qemu, "-M", "isapc", "-cpu", "pentium3,-apic", "-m", "16"]
        command += ["-bios", bios, "-display", "none", "-no-reboot", "-vga", "none"]
        command += ["-serial", f"file:{said}", "-monitor", "none", "-net", "none"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        subprocess.run(["timeout", "20", *command], check=False, capture_output=True)
        return said.read_bytes()
