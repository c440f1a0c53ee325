"""The drives of a machine, and the images in them, which may be changed."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Final

from emu86 import config
from emu86.devices.atapi import CdRom
from emu86.devices.floppy_drive import DRIVE_1440K, FORMATS, FloppyDrive
from emu86.errors import ConfigError, unknown
from emu86.machine import layout
from emu86.machine.media import CD_SECTOR, Image, ImageState

_CDROM: Final = "cdrom"
_DRIVES: Final = ("360K", "1.2M", "720K", "1.44M", "2.88M")  # from type 1 on


class Drives:
    """Disks, a CD-ROM drive and floppy drives, with their images.

    disks, cdrom, floppies, writes: see `Machine`, which has checked them; tell: takes a
    line about each error of the host. Raises ConfigError for an image that cannot be
    used, and gives those back that were opened.
    """

    def __init__(
        self,
        disks: Sequence[str],
        cdrom: str | None,
        floppies: Sequence[str],
        writes: str,
        tell: Callable[[str], None],
    ) -> None:
        self._writes = writes
        self._tell = tell
        self._closed = False
        self._images: dict[str, Image] = {}  # by the names that messages have
        with ExitStack() as opened:  # a mistake with one closes the others
            opened.callback(self._give_back)
            for number, path in enumerate(disks):
                name = f"disk {number}"
                self._images[name] = Image(name, path, writes=writes, tell=tell)
            self.disks = list(self._images.values())
            """The images of the IDE disks, two to a channel."""
            self.cdrom: CdRom | None = None
            if cdrom is not None:
                self.cdrom = CdRom(self._open(_CDROM, cdrom), layout.IDE_CDROM)
            self.floppies: list[FloppyDrive] = []
            for number, path in enumerate(floppies):
                image = self._open(f"floppy{number}", path)
                kind = DRIVE_1440K if image is None else _type_for(image)
                self.floppies.append(FloppyDrive(kind, image))
            opened.pop_all()

    def _open(self, name: str, path: str) -> Image | None:
        """Open an image for a drive, "": none, and keep it."""
        if not path:
            return None
        sector = CD_SECTOR if name == _CDROM else config.SECTOR
        writes = "refuse" if name == _CDROM else self._writes
        image = Image(name, path, writes=writes, tell=self._tell, sector=sector)
        if name != _CDROM and image.size not in FORMATS:
            image.close()
            raise ConfigError(
                f"{name}: {path}: its {image.size:,} bytes are no floppy's; truncate"
                " -s 1440K makes a smaller one a floppy of 1.44M"
            )
        self._images[name] = image
        return image

    @property
    def changeable(self) -> dict[str, str]:
        """The drives whose media can be changed, by name: their files, "" for none."""
        names = [f"floppy{number}" for number in range(len(self.floppies))]
        if self.cdrom is not None:
            names.insert(0, _CDROM)
        paths = {name: image.path for name, image in self._images.items()}
        return {name: paths.get(name, "") for name in names}

    @property
    def cd_file(self) -> str | None:
        """The file of the CD, "" of none; None without a drive."""
        return self.changeable.get(_CDROM)

    @property
    def floppy_files(self) -> tuple[str, ...]:
        """The files of the floppies, "" of none."""
        files = self.changeable
        return tuple(files[name] for name in files if name != _CDROM)

    def insert(self, name: str, file: str | PathLike[str] | None) -> None:
        """Put another medium into a drive; see `Machine.insert`."""
        if self._closed:
            raise ConfigError("insert: this machine is closed")
        drives = self.changeable
        if name not in drives:
            why = unknown(name, drives) if drives else "there is no drive"
            raise ConfigError(f"insert: {why}")
        path = "" if file is None else config.medium(name, file)
        drive = self._drive(name)
        if isinstance(drive, CdRom) and drive.locked:
            raise ConfigError(f"{name}: the guest holds its door locked")
        old = self._images.get(name)
        if old is not None and path and old.is_file(path):
            old.measure()
            image: Image | None = old
        else:
            image = self._replace(name, path, drive)
        drive.insert(image)

    def _drive(self, name: str) -> CdRom | FloppyDrive:
        if self.cdrom is not None and name == _CDROM:
            return self.cdrom
        return self.floppies[int(name.removeprefix("floppy"))]

    def _replace(
        self, name: str, path: str, drive: CdRom | FloppyDrive
    ) -> Image | None:
        """Open another image for a drive, and give the old one back."""
        old = self._images.pop(name, None)
        try:
            image = self._open(name, path)
            if image is not None and isinstance(drive, FloppyDrive):
                self._check_fits(name, image, drive)
        except ConfigError:
            self._images.pop(name, None)
            if old is not None:
                self._images[name] = old
            raise
        if old is not None:
            old.finish()
        return image

    def _check_fits(self, name: str, image: Image, drive: FloppyDrive) -> None:
        if drive.kind not in FORMATS[image.size].drives:
            image.close()
            takes = _DRIVES[_type_for(image) - 1]
            raise ConfigError(
                f"{name}: {image.path}: needs a drive of {takes}, and this one is of"
                f" {_DRIVES[drive.kind - 1]}"
            )

    def close(self) -> None:
        """Give all files back, flushed; nothing can be put in any more."""
        self._closed = True
        for image in self._images.values():
            image.finish()

    def _give_back(self) -> None:
        for image in self._images.values():
            image.close()

    def save(self) -> dict[str, ImageState]:
        """Return what is known of each image."""
        return {name: image.save() for name, image in self._images.items()}

    def restore(self, states: dict[str, ImageState]) -> None:
        """Have the images be as they were; raises ConfigError for one that is not."""
        for name, state in states.items():
            self._images[name].restore(state)


def _type_for(image: Image) -> int:
    """Return the type of drive that a floppy gets: the one that is most common."""
    return FORMATS[image.size].drives[0]
