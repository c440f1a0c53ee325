"""The ROM of a display beside that of a BIOS, and what a BIOS is told of it."""

import pytest

from emu86 import ConfigError, Machine, images
from emu86.machine import rom

DISPLAY = b"\x55\xaa\x01".ljust(512, b"\0")


@pytest.fixture
def bios(tmp_path):
    path = tmp_path / "bios.bin"
    path.write_bytes(images.bios())
    return path


@pytest.mark.parametrize("name", ["vgabios.bin", "vgabios-isavga.bin"])
def test_one_beside_the_file_is_found(bios, name):
    assert rom.read(bios, None) == (images.bios(), b"")
    bios.with_name(name).write_bytes(DISPLAY)
    assert rom.read(bios, None) == rom.read(str(bios), None) == (images.bios(), DISPLAY)
    assert rom.read(bios, b"") == (images.bios(), b"")
    assert rom.read(images.bios(), None) == (images.bios(), b"")


def test_the_bios_finds_it(bios):
    """The second key that a file can have is none's."""
    bios.with_name("vgabios.bin").write_bytes(DISPLAY)
    machine = Machine(memory="4M", bios=bios)
    for board in (machine.board, Machine.restore(machine.save()).board):
        board.port_write(0x510, 2, 0x20)
        assert bytes(board.port_read(0x511, 1) for _ in range(512)) == DISPLAY
        board.port_write(0x510, 2, 0x21)
        assert board.port_read(0x511, 1) == 0


def test_without_a_bios_there_is_no_fw_cfg():
    assert Machine(memory="4M").board.ports.name(0x510) is None


@pytest.mark.parametrize("data", [b"\0\0", DISPLAY.ljust((64 << 10) + 1, b"\0")])
def test_what_is_none(bios, data):
    path = bios.with_name("vgabios.bin")
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"vga_bios: {path}: is no ROM of a display"):
        Machine(bios=bios)
    with pytest.raises(ConfigError, match="vga_bios: is no ROM of a display"):
        Machine(bios=bios, vga_bios=data)


def test_one_without_a_bios():
    with pytest.raises(ConfigError, match="vga_bios: only a BIOS can use it"):
        Machine(vga_bios=DISPLAY)


def test_a_guest_says_something_on_the_debug_console():
    """MOV AL, 41h; OUT E9h; MOV DX, 402h; OUT; CLI; HLT."""
    machine = Machine(memory="1M", debug_console=True)
    said = bytearray()
    machine.on_debug_console(said.extend)
    machine.load_flat(bytes.fromhex("b041 e6e9 66ba0204 ee fa f4"), 0x10000)
    assert machine.run().reason == "halted"
    assert said == b"AA"
    assert Machine(memory="1M").board.ports.name(0x402) is None
