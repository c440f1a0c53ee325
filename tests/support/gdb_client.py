"""A gdb of our own, as small as its protocol lets one be, and a machine for it."""

import socket
import threading
from contextlib import contextmanager

from emu86.observe.gdb import GdbServer
from emu86.observe.packets import framed, unescaped

PATIENCE = 60


class Client:
    """Sends packets and takes the answers."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._data = b""
        self.said = ""  # what the machine has had shown

    def close(self):
        self.socket.close()

    def send(self, packet):
        """Send one, and have it acknowledged."""
        self.socket.sendall(framed(packet.encode("latin-1")))
        assert self._byte() == b"+"

    def receive(self):
        """The next packet that is no output."""
        while True:
            while self._byte() != b"$":
                pass
            data = b""
            while (byte := self._byte()) != b"#":
                data += byte
            self._byte(), self._byte()
            self.socket.sendall(b"+")
            text = unescaped(data).decode("latin-1")
            if not (text.startswith("O") and text != "OK"):
                return text
            self.said += bytes.fromhex(text[1:]).decode()

    def _byte(self):
        if not self._data:
            self._data = self.socket.recv(4096)
            assert self._data, "the machine has hung up"
        byte, self._data = self._data[:1], self._data[1:]
        return byte

    def __call__(self, packet):
        """Send a packet; return the answer."""
        self.send(packet)
        return self.receive()

    def monitor(self, command):
        """What a monitor command shows."""
        self.said = ""
        assert self("qRcmd," + command.encode().hex()) == "OK"
        return self.said


@contextmanager
def served(machine, path, *, waits=True, **options):
    """A machine that runs in a thread, for gdb at `path`: the server, and its stops."""
    server = GdbServer(machine, str(path), waits=waits)
    stops = []
    thread = threading.Thread(
        target=lambda: stops.append(
            server.run(None, PATIENCE, panics=False, **options)
        ),
        daemon=True,
    )
    thread.start()
    server.stops = stops
    server.thread = thread
    try:
        yield server
    finally:
        machine.stop()
        thread.join(PATIENCE)
        server.close()
    assert not thread.is_alive()
