"""The packets of gdb's remote protocol, over a socket on which one gdb is at a time.

Source: GDB manual, appendix E "Remote Protocol" (Overview, Packet Acknowledgment).
"""

import contextlib
import os
import queue
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from emu86.errors import ConfigError

LONGEST: Final = 0x4000  # bytes of a packet, as PacketSize tells
_WAITING: Final = 16  # packets that are kept for the machine to stop
_PATIENCE: Final = 10  # seconds for gdb to take what it asked for
_BREAK: Final = 3  # Ctrl-C
_CHUNK: Final = 4096
_ESCAPE, _FLIP = ord("}"), 0x20


def checksum(data: bytes | bytearray) -> bytes:
    """Return the two digits behind the # of a packet."""
    return b"%02x" % (sum(data) & 0xFF)


def framed(data: bytes) -> bytes:
    """Return what is sent for a packet; what must be escaped is."""
    out = bytearray()
    for byte in data:
        if byte in b"#$}*":
            out += bytes([_ESCAPE, byte ^ _FLIP])
        else:
            out.append(byte)
    return b"$" + bytes(out) + b"#" + checksum(out)


def unescaped(data: bytes) -> bytes:
    """Return the content of a packet."""
    out = bytearray()
    flips = False
    for byte in data:
        if byte == _ESCAPE and not flips:
            flips = True
        else:
            out.append(byte ^ _FLIP if flips else byte)
            flips = False
    return bytes(out)


class Rubbish(Exception):  # noqa: N818 (it is what has come)
    """A packet that is longer than any may be."""


class Reader:
    """Takes bytes as they come, and finds the packets in them."""

    def __init__(self) -> None:
        self._data = b""

    def take(self, data: bytes) -> Iterator[bytes | None]:
        """Yield each packet, as it stands between $ and #; the byte 3 is Ctrl-C.

        None is one whose checksum is wrong. What is between packets is nothing. Raises
        Rubbish.
        """
        self._data += data
        while self._data:
            start = self._data.find(b"$")
            between = self._data if start < 0 else self._data[:start]
            if _BREAK in between:
                yield b"\x03"
            self._data = b"" if start < 0 else self._data[start:]
            end = self._data.find(b"#")
            if end < 0 or end + 2 >= len(self._data):
                if len(self._data) > LONGEST + 4:
                    raise Rubbish
                return
            packet, told = self._data[1:end], self._data[end + 1 : end + 3]
            self._data = self._data[end + 3 :]
            yield packet if told.lower() == checksum(packet) else None


class Link:
    """Listens at an address, and speaks to one gdb after the other.

    on_call: called, in a thread of the link's, when there is something for `took`.
    """

    def __init__(self, address: str, on_call: Callable[[], None]) -> None:
        self.address = address
        self._on_call = on_call
        self._server = _listen(address)
        self._path = address if "/" in address else ""
        self._gdb: socket.socket | None = None
        self._lock = threading.Lock()
        # Packets, beside what `took` tells of; only as many as may wait.
        self._taken: queue.Queue[bytes | str] = queue.Queue(_WAITING)
        self.acknowledges = True
        self._last = b""
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port, or 0."""
        name = self._server.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def took(self) -> bytes | str | None:
        """Return the next packet, or that gdb has "come" or "gone"; or None.

        "break" is Ctrl-C.
        """
        with contextlib.suppress(queue.Empty):
            return self._taken.get_nowait()
        return None

    @property
    def waits(self) -> bool:
        """Whether `took` has something."""
        return not self._taken.empty()

    def send(self, data: bytes) -> None:
        """Send a packet to gdb, if one is there."""
        self._last = framed(data)
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        gdb = self._gdb
        if gdb is None:
            return
        try:
            with self._lock:
                gdb.sendall(data)
        except OSError:
            self.hang_up()

    def hang_up(self) -> None:
        """Have gdb gone."""
        gdb = self._gdb
        if gdb is not None:
            with contextlib.suppress(OSError):
                gdb.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.hang_up()
        if self._path:
            Path(self._path).unlink(missing_ok=True)

    # -- the thread --------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._closed:
            try:
                gdb, _ = self._server.accept()
            except OSError:
                return  # it is closed
            with gdb:
                self._greet(gdb)
                with contextlib.suppress(OSError, Rubbish):  # it is gone, or is none
                    self._listen_to(gdb)
                self._gdb = None
            self._tell("gone")

    def _greet(self, gdb: socket.socket) -> None:
        patience = struct.pack("ll", _PATIENCE, 0)
        gdb.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        if gdb.family != socket.AF_UNIX:
            gdb.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.acknowledges = True
        self._gdb = gdb
        self._tell("come")

    def _listen_to(self, gdb: socket.socket) -> None:
        reader = Reader()
        while data := gdb.recv(_CHUNK):
            if data.endswith(b"-") and self._last:
                self._write(self._last)
            for packet in reader.take(data):
                if packet is None:
                    self._write(b"-" if self.acknowledges else b"")
                elif packet == b"\x03":
                    self._tell("break")
                else:
                    self._write(b"+" if self.acknowledges else b"")
                    self._tell(unescaped(packet))

    def _tell(self, what: bytes | str) -> None:
        self._taken.put(what)
        self._on_call()


def _listen(address: str) -> socket.socket:
    """Return a socket that listens; ConfigError, one line, if there can be none."""
    try:
        if "/" in address:
            return _listen_at_path(address)
        host, _, port = address.rpartition(":")
        host = host.strip("[]") or "localhost"
        if not port.isdecimal() or int(port) > 0xFFFF:
            message = f"gdb: {address!r} is neither [HOST:]PORT nor a path with a /"
            raise ConfigError(message)
        family, _, _, _, at = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM
        )[0]
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(server, at)
    except OSError as error:
        message = f"gdb: {address}: {error.strerror}"
        raise ConfigError(message) from None


def _listen_at_path(path: str) -> socket.socket:
    """Listen at a Unix socket; one that nobody listens at any more is replaced."""
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH110, PTH116
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            try:
                other.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
    return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)


def _bound(server: socket.socket, at: object) -> socket.socket:
    try:
        server.bind(at)  # type: ignore[arg-type]
        server.listen(1)
    except BaseException:
        server.close()
        raise
    return server
