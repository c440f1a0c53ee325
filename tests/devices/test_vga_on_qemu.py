"""What a kernel draws in graphics modes looks on QEMU's VGA as it does on ours."""

import shutil
import socket
import subprocess

import pytest

from devices.test_vga_picture import MODES
from emu86 import Machine
from support.assembler import assemble

pytestmark = pytest.mark.not_quick

KERNEL = """
bits 32
org 0x100000
header: dd 0x1badb002, 0x10000, -0x1badb002 - 0x10000
dd header, header, 0, 0, start
%macro registers 3-*  ; port, first index, values
    mov edx, %1
    mov ah, %2
%rep %0 - 2
    mov al, %3
    xchg al, ah
    out dx, ax
    xchg al, ah
    inc ah
%rotate 1
%endrep
%endmacro
%macro one 3  ; port, index, value
    mov edx, %1
    mov ax, %2 | (%3) << 8
    out dx, ax
%endmacro
start:
"""


def setting(mode):
    """Assembly that sets a mode, and a palette of 256 colours."""
    misc, sequencer, crtc, five, six, control = MODES[mode]
    crtc = bytes.fromhex(crtc.replace(" ", "00" * 6))
    lines = [f"mov edx, 0x3c2\nmov al, {misc}\nout dx, al"]
    for index, value in enumerate(bytes.fromhex(sequencer), 1):
        lines.append(f"one 0x3c4, {index}, {value}")
    lines.append("one 0x3d4, 0x11, 0")
    for index, value in enumerate(crtc):
        lines.append(f"one 0x3d4, {index}, {value}")
    for index, value in ((0, 0), (1, 0), (3, 0), (4, 0), (5, five), (6, six), (8, 255)):
        lines.append(f"one 0x3ce, {index}, {value}")
    lines.append("mov edx, 0x3da\nin al, dx\nmov edx, 0x3c0")
    attributes = [*range(16), control, 0, 3 if mode == "04h" else 15, 0, 0]
    for index, value in enumerate(attributes):
        lines.append(f"mov al, {index}\nout dx, al\nmov al, {value}\nout dx, al")
    lines.append("""
        mov al, 0x20
        out dx, al
        mov edx, 0x3c6
        mov al, 0xff
        out dx, al
        mov edx, 0x3c8
        mov al, 0
        out dx, al
        inc edx
        mov ecx, 768
        colour: mov al, cl
        imul eax, eax, 37
        shr eax, 2
        and al, 0x3f
        out dx, al
        loop colour
    """)
    return "\n".join(lines)


# What is drawn: bytes that differ, into the planes that a mask lets through.
FILL = """
mov edi, {start}
mov ecx, {size}
mov eax, {seed}
{label}: imul eax, eax, 69069
inc eax
mov edx, eax
shr edx, 16
mov [edi], dl
inc edi
loop {label}
"""


def fill(start, size, seed):
    return FILL.format(start=start, size=size, seed=seed, label=f"fill{seed}")


def planes(size):
    return "".join(
        f"one 0x3c4, 2, {1 << n}\none 0x3ce, 4, {n}\n" + fill(0xA0000, size, n + 1)
        for n in range(4)
    )


UNCHAINED = "one 0x3c4, 4, 6\none 0x3d4, 0x14, 0\none 0x3d4, 0x17, 0xe3\n"
# A block copied by the latches, and lines drawn by set/reset through a mask.
LATCHES = """
one 0x3c4, 2, 15
one 0x3ce, 5, 1
mov esi, 0xa0000
mov edi, 0xa0000 + 80 * 100
mov ecx, 100
rep movsb
one 0x3ce, 5, 0
one 0x3ce, 0, 5
one 0x3ce, 1, 15
one 0x3ce, 8, 0x3c
mov ecx, 60
mov edi, 0xa0000 + 80 * 50
line: xchg al, [edi]
inc edi
loop line
"""
PICTURES = {
    "13h": ("13h", fill(0xA0000, 64000, 5)),
    "unchained": ("13h", UNCHAINED + planes(16000)),
    "12h": ("12h", planes(38400)),
    "latches": ("12h", planes(38400) + LATCHES),
    "0Dh": ("0Dh", planes(8000)),
    "04h": ("04h", fill(0xB8000, 16384, 6)),
}


QEMU = shutil.which("qemu-system-i386")
DONE = "mov edx, 0x3f8\nmov al, 'k'\nout dx, al\ncli\nhlt\n"


def on_qemu(kernel, tmp_path):
    """Width, height and pixels of QEMU's screen, once the kernel is done."""
    monitor, dump = tmp_path / "monitor", tmp_path / "screen.ppm"
    command = [QEMU, "-M", "isapc", "-m", "16", "-vga", "std", "-display", "none"]
    command += ["-kernel", str(kernel), "-serial", "stdio", "-net", "none"]
    command += ["-monitor", f"unix:{monitor},server=on,wait=off"]
    with subprocess.Popen(
        ["timeout", "60", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as qemu:
        assert qemu.stdout.read(1) == b"k"
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(monitor))
            line.sendall(f"screendump {dump}\nquit\n".encode())
            qemu.wait(60)
    kind, size, _most, pixels = dump.read_bytes().split(b"\n", 3)
    assert kind == b"P6"
    width, height = map(int, size.split())
    return width, height, pixels


SIX_BITS = bytes(level >> 2 for level in range(256))


def shrunk(width, height, pixels, like):
    """A picture without the columns and rows that are shown twice, in six bits."""
    across, down = width // like.width, height // like.height
    assert (across * like.width, down * like.height) == (width, height)
    out = bytearray(len(like.rgb))
    for part in range(3):
        rows = (pixels[3 * y * width + part : 3 * (y + 1) * width : 3 * across]
                for y in range(0, height, down))  # fmt: skip
        out[part::3] = b"".join(rows)
    return out.translate(SIX_BITS)


@pytest.mark.skipif(QEMU is None, reason="qemu-system-i386 is not installed")
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_qemus(name, tmp_path):
    """But for the low bits of a level: of six bits each makes eight its own way."""
    mode, body = PICTURES[name]
    kernel = tmp_path / "kernel"
    kernel.write_bytes(assemble(KERNEL + setting(mode) + body + DONE))
    machine = Machine(memory=16 << 20)
    machine.load_kernel(kernel)
    assert machine.run(timeout=300).reason == "halted"
    ours = machine.screen.image
    theirs = shrunk(*on_qemu(kernel, tmp_path), ours)
    assert len(set(ours.rgb)) > 10
    mine = ours.rgb.translate(SIX_BITS)
    if mine != theirs:
        wrong = [at // 3 for at in range(len(mine)) if mine[at] != theirs[at]]
        places = [divmod(at, ours.width)[::-1] for at in dict.fromkeys(wrong)]
        pytest.fail(f"{len(places)} pixels differ, the first at {places[:5]}")
