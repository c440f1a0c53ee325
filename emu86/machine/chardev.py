"""Character devices: what a serial line is connected to (QEMU's word).

The guest's end, a UART, is connected to one as its front end. Whoever shows what the
guest writes subscribes to it, and whoever types for the guest, from any thread, sends
to it. So a terminal, a screen and a web page can share a line.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from emu86.rings.observers import as_it_is

_Watcher = Callable[[bytes], None]
EVERY: Final = bytes(range(256))


class Frontend(Protocol):
    """The guest's end: takes characters, and says whether it will (RTS)."""

    @property
    def ready(self) -> bool:
        """Whether the guest lets its peer send."""
        ...

    @property
    def waiting(self) -> bytes:
        """What was received and found no room yet."""
        ...

    def receive(self, data: bytes) -> None:
        """Take characters."""
        ...

    def watch(self, urgent: bytes) -> None:
        """Send these characters at once, others soon; those before them first."""
        ...


class CharDeviceState(NamedTuple):
    """What was sent to the guest and is not delivered yet."""

    pending: bytes


class CharDevice:
    """A line to the guest, shared by all who watch it or type on it.

    guard: makes of a callback what is called in its stead.
    """

    def __init__(self) -> None:
        self.guard: Callable[[_Watcher], _Watcher] = as_it_is
        self.on_input: Callable[[], None] = _nothing
        """Called when there is something to deliver, by the thread that sends it."""
        self._frontend: Frontend | None = None
        self._subscribers: list[_Watcher] = []
        self._pending: deque[bytes] = deque()  # safe to fill and empty from any thread
        self._expected = b""
        self._found: Callable[[], None] = _nothing
        self._tail = b""
        self._urgent = b""

    def connect(self, frontend: Frontend) -> None:
        """Have `frontend` as the guest's end."""
        self._frontend = frontend
        self._tell_urgent()

    def _tell_urgent(self) -> None:
        """Tell the guest's end for which bytes somebody waits."""
        if self._frontend is not None:
            self._frontend.watch(self._urgent + self._expected[-1:])

    # -- from the guest ----------------------------------------------------------------

    def subscribe(self, callback: _Watcher, urgent: bytes = EVERY) -> None:
        """Have `callback` told of all bytes that the guest writes.

        urgent: those of which it is told at once; of others, soon, and maybe of several
        in one call.
        """
        self._subscribers.append(self.guard(callback))
        self._urgent += urgent
        self._tell_urgent()

    def expect(self, text: bytes, found: Callable[[], None]) -> None:
        """Call `found` once, when the guest has written `text` from now on.

        What is expected already goes on being expected. Empty: nothing is any more.
        """
        if text != self._expected:
            self._tail = b""
        self._expected = text
        self._found = found
        self._tell_urgent()

    def write(self, data: bytes) -> None:
        """Take bytes that the guest writes; an urgent one is the last."""
        for subscriber in self._subscribers:
            subscriber(data)
        if self._expected:
            self._tail = (self._tail + data)[-len(self._expected) :]
            if self._tail == self._expected:
                self._expected = b""
                self._tell_urgent()
                self._found()

    # -- to the guest ------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Type `data`, from any thread; it is queued until `deliver`."""
        if data:
            self._pending.append(data)
            self.on_input()

    def deliver(self) -> None:
        """Give the guest what was sent, if it is ready for it."""
        while self.deliverable:
            assert self._frontend is not None
            self._frontend.receive(self._pending.popleft())

    @property
    def deliverable(self) -> bool:
        """Whether there is something to deliver, and the guest is ready for it."""
        frontend = self._frontend
        return bool(self._pending and frontend is not None and frontend.ready)

    @property
    def waits(self) -> bool:
        """Whether something that was sent is not delivered yet."""
        return bool(self._pending)

    @property
    def waiting(self) -> int:
        """How many bytes that were sent the guest has not received yet."""
        beyond = 0 if self._frontend is None else len(self._frontend.waiting)
        return sum(map(len, self._pending)) + beyond

    # -- its state ---------------------------------------------------------------------

    def save(self) -> CharDeviceState:
        """Return what is not delivered yet; who watches is no part of it."""
        return CharDeviceState(b"".join(self._pending))

    def restore(self, state: CharDeviceState) -> None:
        """Have that to deliver, and nothing else."""
        self._pending.clear()
        if state.pending:
            self._pending.append(state.pending)


def _nothing() -> None:
    """Stand for a callback that nobody has set."""
