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
