"""ROMs that start a PC: its BIOS, and the display's, which the BIOS is offered."""

from os import PathLike
from pathlib import Path
from typing import Final

from emu86 import config
from emu86.errors import ConfigError
from emu86.machine import boot

Source = bytes | bytearray | str | PathLike[str]

# Where the display's ROM is looked for, beside the BIOS: names of SeaBIOS's files.
_BESIDE: Final = ("vgabios-isavga.bin", "vgabios.bin")
_SIGNATURE: Final = b"\x55\xaa"
_MOST: Final = 64 << 10
# The name that SeaBIOS looks for, which runs all that is in that folder.
_FILE: Final = "vgaroms/vgabios.bin"


def read(bios: Source | None, vga_bios: Source | None) -> tuple[bytes | None, bytes]:
    """Return the bytes of a BIOS, or None, and of a display's ROM, or none of them.

    Without `vga_bios` that is the one beside the file of the BIOS, if there is one.
    Raises ConfigError if one cannot be read, or be what it is said to be.
    """
    rom = None if bios is None else boot.read("bios", bios)
    if rom is not None:
        try:
            config.check_rom(len(rom))
        except ConfigError as error:
            raise boot.name(error, bios=bios) from None
    if vga_bios is None and isinstance(bios, str | PathLike):
        vga_bios = _beside(Path(bios))
    if vga_bios is None or vga_bios == b"":
        return rom, b""
    if rom is None:
        raise ConfigError("vga_bios: only a BIOS can use it, and there is none")
    vga_rom = boot.read("vga_bios", vga_bios)
    if not vga_rom.startswith(_SIGNATURE) or len(vga_rom) > _MOST:
        what = "is no ROM of a display: that begins with 55h AAh, and has at most 64K"
        raise boot.name(ConfigError(f"vga_bios: {what}"), vga_bios=vga_bios)
    return rom, vga_rom


def _beside(bios: Path) -> Path | None:
    """Return the first file of those names that is beside a BIOS."""
    found = (bios.with_name(name) for name in _BESIDE)
    return next((path for path in found if path.is_file()), None)


def files(vga_rom: bytes) -> dict[str, bytes]:
    """Return what the fw_cfg device offers a BIOS, by name."""
    return {_FILE: vga_rom} if vga_rom else {}
