"""Media: images of disks, CDs and floppies in files of the host.

An image is opened with a lock, so that no second emu86 writes to it or reads what
changes: one that is written is locked for all others, those that are only read share
their lock. Writes go to the file at once, so they outlive this process; `flush` has the
host put them on its disk.
"""

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from emu86 import config
from emu86.errors import ConfigError
from emu86.machine.boot import foreign

# Windows has no flock: there an image is not locked.
try:
    import fcntl
except ImportError:
    _LOCKS = False
else:
    _LOCKS = True

CD_SECTOR: Final = 2048
_LARGEST: Final = config.SECTOR << 48  # what a disk can name

# What packed files begin with: where, with what, and their names.
_PACKED: Final = (
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"PK\x03\x04", "zip"),
)
_HEADER: Final = 128


class ImageState(NamedTuple):
    """What is known of an image: its file then, and the writes that it does not have.

    changed: the time of its last change, in ns, or 0 if nothing is written to it.
    """

    size: int
    changed: int
    written: dict[int, bytes]


class Image:
    """A raw image in a file: a `devices.medium.Medium`.

    what: the word for it in messages; writes: a name in `config.WRITES`; tell: takes a
    line for the user about each error of the host, of those alike the first one. Raises
    ConfigError, one clear line, if the file cannot be such an image.
    """

    def __init__(
        self,
        what: str,
        path: str | os.PathLike[str],
        *,
        writes: str,
        tell: Callable[[str], None],
        sector: int = config.SECTOR,
    ) -> None:
        self.path = os.fspath(path)
        self._what = what
        self._tell = tell
        self._told: set[tuple[str, int | None]] = set()
        self._discards = writes == "discard"
        self._sector = sector
        self.read_only = writes == "refuse"
        self._written: dict[int, bytes] = {}  # sectors that are not in the file
        shares = self.read_only or self._discards
        self._file = self._open(os.O_RDONLY if shares else os.O_RDWR)
        self.close = weakref.finalize(self, os.close, self._file)
        """Give the file and its lock back; called again it does nothing."""
        try:
            self._lock(shares=shares)
            self.size = 0
            self.measure()
        except BaseException:
            self.close()
            raise

    # -- opening -----------------------------------------------------------------------

    def _wrong(self, how: str) -> ConfigError:
        return ConfigError(f"{self._what}: {self.path}: {how}")

    def _open(self, mode: int) -> int:
        if not self.path:
            raise ConfigError(f"{self._what}: the name of its file is empty")
        try:
            kind = Path(self.path).stat().st_mode
            if stat.S_ISREG(kind) or stat.S_ISBLK(kind):
                return os.open(self.path, mode | getattr(os, "O_BINARY", 0))
        except OSError as error:
            how = error.strerror or str(error)
            if mode == os.O_RDWR and error.errno in (
                errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY,
            ):  # fmt: skip
                how = f"cannot be written ({how}); --discard-writes only reads it"
            raise self._wrong(how) from None
        except ValueError as error:  # a null in the name
            raise self._wrong(str(error)) from None
        raise self._wrong("is no file with an image")

    def _lock(self, *, shares: bool) -> None:
        if not _LOCKS:
            return
        try:
            how = fcntl.LOCK_SH if shares else fcntl.LOCK_EX
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._wrong("is in use by another emu86") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise self._wrong(f"cannot be locked: {error.strerror}") from None

    def is_file(self, path: str) -> bool:
        """Whether a path is that of the file that is open; a file may be replaced."""
        try:
            return os.path.samestat(os.fstat(self._file), Path(path).stat())
        except (OSError, ValueError):
            return False

    def measure(self) -> None:
        """See how large the image is; raises ConfigError if it is none any more."""
        try:
            size = os.lseek(self._file, 0, os.SEEK_END)
            head = os.pread(self._file, _HEADER, 0)
        except OSError as error:
            raise self._wrong(error.strerror or str(error)) from None
        if not size:
            raise self._wrong("is empty")
        for at, begins, name in foreign.DISK_FORMATS:
            if head[at:].startswith(begins):
                raise self._wrong(
                    f"is a {name} image, not a raw one;"
                    " qemu-img convert -O raw makes one of it"
                )
        for at, begins, name in _PACKED:
            if head[at:].startswith(begins):
                raise self._wrong(f"is compressed by {name}; unpack it first")
        if size % self._sector:
            raise self._wrong(
                f"is truncated: its {size:,} bytes are no multiple of {self._sector}"
            )
        if size > _LARGEST:
            raise self._wrong(f"is too large: a disk has at most {_LARGEST:,} bytes")
        self.size = size

    # -- Medium ------------------------------------------------------------------------

    def finish(self) -> None:
        """Have all on the host's disk, and give the file back; again: do nothing."""
        if self.close.alive:
            with contextlib.suppress(OSError):  # which the user has been told
                self.flush()
            self.close()

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes, by whole sectors."""
        with self._telling("reading"):
            data = self._read_file(offset, size)
        if not self._written:
            return data
        found = bytearray(data)
        for at in range(0, size, self._sector):
            written = self._written.get(offset + at)
            if written is not None:
                found[at : at + self._sector] = written
        return bytes(found)

    def _read_file(self, offset: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = os.pread(self._file, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the file has become shorter")
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, by whole sectors, to the file or to what is discarded."""
        if self._discards:
            for at in range(0, len(data), self._sector):
                self._written[offset + at] = data[at : at + self._sector]
            return
        with self._telling("writing"):
            rest, at = memoryview(data), offset
            while rest:
                done = os.pwrite(self._file, rest, at)
                rest, at = rest[done:], at + done

    def flush(self) -> None:
        """Have what was written on the host's disk."""
        if not (self._discards or self.read_only):
            with self._telling("flushing"):
                os.fsync(self._file)

    @contextlib.contextmanager
    def _telling(self, doing: str) -> Iterator[None]:
        """Tell the user of an error of the host, which goes on to the drive."""
        try:
            yield
        except OSError as error:
            if (doing, error.errno) not in self._told:
                self._told.add((doing, error.errno))
                why = error.strerror or str(error)
                self._tell(
                    f"{self._what}: {self.path}: {doing}: {why};"
                    " the guest is told of an error"
                )
            raise

    # -- state -------------------------------------------------------------------------

    def save(self) -> ImageState:
        """Return what the file does not have, and what tells whether it is the same."""
        known = os.fstat(self._file)
        return ImageState(self.size, known.st_mtime_ns, dict(self._written))

    def restore(self, state: ImageState) -> None:
        """Become what was saved; raises ConfigError if the file is another one now."""
        now = self.save()
        if (now.size, now.changed) != (state.size, state.changed):
            raise self._wrong("has changed since the state was saved")
        self._written = dict(state.written)
