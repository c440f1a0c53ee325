"""Keyboard and mouse answer a kernel, and tell of movements, as QEMU's do."""

import shutil
import socket
import subprocess

import pytest

from emu86 import Machine
from support.assembler import assemble

pytestmark = pytest.mark.not_quick

# Each command: to the keyboard (0) or the mouse (D4h), the byte, how many answer it.
KERNEL = """
bits 32
org 0x100000
header: dd 0x1badb002, 0x10000, -0x1badb002 - 0x10000
dd header, header, 0, 0, start
start:
mov esp, 0x90000
mov bl, 0x60
call command
mov bl, 0x04
call data
mov esi, table
next:
movzx ebp, byte [esi + 2]
mov bl, [esi]
test bl, bl
jz .keyboard
call command
.keyboard:
mov bl, [esi + 1]
call data
.answer:
test ebp, ebp
jz .told
call get
call tell
dec ebp
jmp .answer
.told:
add esi, 3
cmp esi, end
jb next
mov bl, 'k'
call tell
mov ebp, {moved}
.moved:
call get
call tell
dec ebp
jnz .moved
cli
hlt
command:
call room
mov al, bl
out 0x64, al
ret
data:
call room
mov al, bl
out 0x60, al
ret
room:
in al, 0x64
test al, 2
jnz room
ret
get:  ; a byte, and whose it is
in al, 0x64
test al, 1
jz get
mov bh, al
in al, 0x60
mov bl, al
push ebx
and bh, 0x20
shr bh, 5
add bh, '0'
mov bl, bh
call tell
pop ebx
ret
tell:
mov edx, 0x3fd
in al, dx
test al, 0x20
jz tell
mov edx, 0x3f8
mov al, bl
out dx, al
ret
table: db {table}
end:
"""
KEYBOARD, MOUSE = 0, 0xD4
COMMANDS = [
    *((KEYBOARD, byte, answers) for byte, answers in (
        (0xFF, 2), (0xF5, 1), (0xF2, 3), (0xEE, 1), (0xED, 1), (7, 1), (0xF3, 1),
        (0x20, 1), (0xF0, 1), (0, 2), (0xF0, 1), (3, 1), (0xF0, 1), (0, 2), (0xFA, 1),
        (0xF0, 1), (1, 1), (0xF0, 1), (0, 2), (0xF6, 1), (0xF0, 1), (0, 2),
        (0xF4, 1), (0x05, 1),
    )),
    *((MOUSE, byte, answers) for byte, answers in (
        (0xFF, 3), (0xF2, 2), (0xE9, 4), (0xE8, 1), (3, 1), (0xE7, 1), (0xF3, 1),
        (40, 1), (0xE9, 4), (0xF0, 1), (0xE9, 4), (0xEB, 4), (0xEA, 1), (0xE6, 1),
        (0xEE, 1), (0x12, 1), (0xF2, 1), (0xEC, 1), (0xF2, 2),
        (0xF3, 1), (200, 1), (0xF3, 1), (100, 1), (0xF3, 1), (80, 1), (0xF2, 2),
        (0xF3, 1), (200, 1), (0xF3, 1), (200, 1), (0xF3, 1), (80, 1), (0xF2, 2),
        (0xF6, 1), (0xE9, 4), (0xF2, 2), (0xF4, 1), (0xE9, 4),
    )),
]  # fmt: skip
MOVES = (
    ({"dx": 5, "dy": 3}, "mouse_move 5 3"),
    ({"dx": -7, "dy": -120}, "mouse_move -7 -120"),
    ({"buttons": ["left"]}, "mouse_button 1"),
    ({"buttons": ["right"]}, "mouse_button 2"),
    ({}, "mouse_button 0"),
)
QEMU = shutil.which("qemu-system-i386")


def kernel():
    table = ",".join(str(byte) for command in COMMANDS for byte in command)
    return assemble(KERNEL.format(table=table, moved=4 * len(MOVES)))


def on_emu86(path):
    machine = Machine(memory=16 << 20)
    machine.load_kernel(path)
    said = bytearray()
    machine.on_console(said.extend)
    assert machine.run(until=b"k", timeout=300).reason == "until"
    for move, _ in MOVES:
        machine.move(**move)
    assert machine.run(timeout=300).reason == "halted"
    return bytes(said)


def on_qemu(path, tmp_path):
    monitor = tmp_path / "monitor"
    command = [QEMU, "-M", "isapc", "-m", "16", "-display", "none", "-net", "none"]
    command += ["-kernel", str(path), "-serial", "stdio"]
    command += ["-monitor", f"unix:{monitor},server=on,wait=off"]
    with subprocess.Popen(
        ["timeout", "60", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as qemu:
        said = b""
        while not said.endswith(b"k"):
            said += qemu.stdout.read(1) or pytest.fail(f"QEMU ended: {said!r}")
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(monitor))
            for _, move in MOVES:
                line.sendall(f"{move}\n".encode())
                said += qemu.stdout.read(8)  # a packet, each byte with whose it is
            line.sendall(b"quit\n")
            qemu.wait(60)
    return said


@pytest.mark.skipif(QEMU is None, reason="qemu-system-i386 is not installed")
def test_keyboard_and_mouse_answer_as_qemus(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(kernel())
    ours, theirs = on_emu86(path), on_qemu(path, tmp_path)
    assert ours.hex(" ", 2) == theirs.hex(" ", 2)
