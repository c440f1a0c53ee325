"""Kernels as `ld` links them: what QEMU starts, emu86 starts."""

import shutil
import subprocess

import pytest

from emu86 import Machine

LD, NASM, QEMU = map(shutil.which, ("ld", "nasm", "qemu-system-i386"))
SOURCE = """
    bits 32
    section .text
    align 4
    dd 0x1BADB002, 0, -0x1BADB002
    global _start
_start:
    mov eax, [number]
    add eax, [empty]
    out 0xf4, al
    cli
    hlt
    section .data
number: dd 42
    section .bss
empty: resd 100
"""
LAYOUTS = (
    "-Ttext 0x100000",  # its first segment, the headers, begins at FF000h
    "-Ttext 0x100000 -z noseparate-code",  # as that, with the code in the same segment
    "-N -Ttext 0x100000",
    "-pie -Ttext 0x100000",  # what gcc makes by itself; GRUB starts it, QEMU 7.2 fails
    "-Ttext 0x7c00",
    "-Ttext 0x1000",  # its headers lie over the real-mode vectors
    "-Ttext 0x90000 -Tdata 0x9fd00",  # data over the extended BIOS data area
)

pytestmark = pytest.mark.skipif(not (LD and NASM), reason="no ld, or no nasm")


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernel.asm").write_text(SOURCE)
    subprocess.run([NASM, "-f", "elf32", "kernel.asm"], cwd=folder, check=True)

    def link(layout):
        command = [LD, "-m", "elf_i386", *layout.split(), "kernel.o", "-o", "kernel"]
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True)
        if done.returncode:
            pytest.skip(f"no ld for i386: {done.stderr.decode()}")
        return folder / "kernel"

    return link


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_starts(link, layout):
    machine = Machine(memory=2 << 20, debug_exit=True)
    machine.load_kernel(link(layout))
    assert machine.run(timeout=60).code == 42


@pytest.mark.not_quick
@pytest.mark.skipif(not QEMU, reason="qemu-system-i386 is not installed")
@pytest.mark.parametrize("layout", [one for one in LAYOUTS if "-pie" not in one])
def test_it_starts_in_qemu(link, layout):
    command = [QEMU, "-M", "isapc", "-cpu", "pentium3,-apic", "-kernel", link(layout)]
    command += ["-m", "2", "-display", "none", "-device", "isa-debug-exit,iobase=0xf4"]
    done = subprocess.run(["timeout", "60", *command], check=False)
    assert done.returncode == 42 << 1 | 1
