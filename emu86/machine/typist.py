"""Somebody at the guest's keyboard: types at once, or when the guest shows a text."""

from collections import deque
from collections.abc import Callable, Sequence

from emu86.machine.board import Board
from emu86.machine.chardev import CharDevice
from emu86.machine.screen import ScreenWatch


class _Task:
    """Keys to type when the console or the screen has shown `after`; empty: at once."""

    def __init__(self, strokes: Sequence[bytes], after: bytes) -> None:
        self.strokes = strokes
        self.after = after
        self.is_next = False
        self.heard = not after
        self._tail = b""

    def hear(self, data: bytes) -> None:
        """Take what the console shows; it counts from when this is what comes next."""
        if self.is_next and not self.heard:
            self._tail += data
            self.heard = self.after in self._tail
            self._tail = self._tail[-len(self.after) :]


class Typist:
    """Types what it is given, one after another.

    wake: brings a guest that sleeps back, from any thread.
    """

    def __init__(
        self, board: Board, console: CharDevice, wake: Callable[[], None]
    ) -> None:
        self._board = board
        self._console = console
        self._wake = wake
        self._tasks: deque[_Task] = deque()
        self._watch = ScreenWatch(board.vga)

    @property
    def busy(self) -> bool:
        """Whether there is something to type, or to wait for."""
        return bool(self._tasks)

    def type(self, strokes: Sequence[bytes], after: bytes) -> None:
        """Type, from any thread, what the keys of each stroke send.

        after: first wait until console or screen show this.
        """
        task = _Task(strokes, after)
        if after:
            self._console.subscribe(task.hear, after[-1:])
        self._tasks.append(task)
        self._begin()
        self._wake()

    def _begin(self) -> None:
        """Begin to wait for what comes next."""
        task = self._tasks[0]
        if not task.is_next:
            task.is_next = True
            self._watch.expect(task.after.decode(errors="replace"))

    def work(self, now: int, *, last: bool = False) -> bool:
        """Type what its time has come for; tell whether there was any.

        now: virtual ns; last: look at the screen though that is not due.
        """
        worked = False
        while self._tasks:
            task = self._tasks[0]
            if not task.heard and not self._watch.look(now, last=last):
                break
            self._watch.expect("")
            self._tasks.popleft()
            self._board.type(task.strokes)
            worked = True
            if self._tasks:
                self._begin()
        return worked
