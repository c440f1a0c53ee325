"""The BIOS on a machine that is not ours: QEMU's ISA PC, from reset."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from emu86 import images
from support.assembler import assemble

QEMU = shutil.which("qemu-system-i386")
CHECKS = Path(__file__).parents[1] / "support" / "bios_checks.asm"
SECONDS = 60  # a BIOS that hangs is killed then


def media(directory):
    """The floppy and the disk that the checks run from and on."""
    floppy, disk = directory / "floppy.img", directory / "disk.img"
    floppy.write_bytes(assemble(CHECKS.read_text()).ljust(1440 << 10, b"\0"))
    sectors = (struct.pack("<I508x", number) for number in range(32768))
    disk.write_bytes(b"".join(sectors))
    return floppy, disk


@pytest.mark.skipif(QEMU is None, reason="qemu-system-i386 is not installed")
def test_it_keeps_its_promises_on_qemu(tmp_path):
    """INT 10h to 1Ah, as Ralf Brown's Interrupt List has them."""
    floppy, disk = media(tmp_path)
    said = tmp_path / "said"
    rom = Path(images.__file__).with_name("bios.bin")
    command = [QEMU, "-M", "isapc", "-m", "64", "-vga", "std", "-bios", str(rom)]
    command += ["-display", "none", "-serial", f"file:{said}", "-boot", "a"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    command += ["-drive", f"if=floppy,format=raw,file={floppy}"]
    command += ["-drive", f"if=ide,index=0,format=raw,file={disk}"]
    subprocess.run(["timeout", str(SECONDS), *command], check=False)
    lines = said.read_text().splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == ["over"]
    assert len(lines) == CHECKS.read_text().count("        CHECK   ") + 1


def test_what_programs_look_for_is_at_its_place():
    """IBM PC/AT Technical Reference (1985), section 5."""
    rom = images.bios()
    assert len(rom) == 1 << 16
    assert rom[0xFFF0] == 0xEA
    assert rom[0xFFF5:0xFFFD] == b"01/01/26"
    assert rom[0xFFFE] == 0xFC
    assert rom[0xFF53] == 0xCF
    assert rom[0xFA6E:][8 * ord("A") : 8 * ord("B")] != bytes(8)
    for entry in (0xE05B, 0xE6F2, 0xE82E, 0xEC59, 0xF065, 0xF841, 0xF859, 0xFE6E):
        assert rom[entry] == 0xE9, hex(entry)


def test_it_has_the_tables_that_kernels_look_for():
    rom = images.bios()
    for signature in (b"_32_", b"_SM_"):
        places = range(0, len(rom), 16)
        (place,) = [at for at in places if rom.startswith(signature, at)]
        length = 16 if signature == b"_32_" else rom[place + 5]
        assert sum(rom[place : place + length]) & 255 == 0
