"""Somebody at the guest's keyboard and mouse, at once or when it shows a text."""

from collections import deque
from collections.abc import Callable

from emu86.devices.vga import Vga
from emu86.machine.chardev import CharDevice
from emu86.machine.screen import ScreenWatch


class _Task:
    """What to do when the console or the screen has shown `after`; empty: at once."""

    def __init__(self, act: Callable[[], None], after: bytes) -> None:
        self.act = act
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
    """Types and moves what it is told to, one after another.

    wake: brings a guest that sleeps back, from any thread.
    """

    def __init__(self, vga: Vga, console: CharDevice, wake: Callable[[], None]) -> None:
        self._console = console
        self._wake = wake
        self._tasks: deque[_Task] = deque()
        self._watch = ScreenWatch(vga)

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or to wait for."""
        return bool(self._tasks)

    @property
    def awaited(self) -> bytes:
        """The text that has to be shown before anything else is done, if there is."""
        tasks = tuple(self._tasks)
        return tasks[0].after if tasks and not tasks[0].heard else b""

    def do(self, act: Callable[[], None], after: bytes) -> None:
        """Have `act` called between two instructions of the guest; from any thread.

        after: first wait until console or screen show this.
        """
        task = _Task(act, after)
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
        """Do what its time has come for; tell whether there was any.

        now: virtual ns; last: look at the screen though that is not due.
        """
        worked = False
        while self._tasks:
            task = self._tasks[0]
            if not task.heard and not self._watch.look(now, last=last):
                break
            self._watch.expect("")
            self._tasks.popleft()
            task.act()
            worked = True
            if self._tasks:
                self._begin()
        return worked
