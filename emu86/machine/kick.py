"""Calls to come back from sleep: Python's, and that of compiled code."""

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress

from emu86.cpu.engine import Engine
from emu86.native import abi


def _nothing(_semaphore: int) -> int:
    return -1


class Kick:
    """A call to come back from sleep, from any thread; one thread waits for it.

    A `threading.Event` would cost half as much again for each wait. Compiled code waits
    by a semaphore in the control block, where the C library has what that takes (glibc
    from 2.30 on); elsewhere it does not sleep.
    """

    def __init__(self, engine: Engine) -> None:
        self._held = threading.Lock()
        self._post: Callable[[int], int] = _nothing
        self._try: Callable[[int], int] = _nothing
        shared = engine.shared
        self._semaphore = ctypes.addressof(shared.kick)
        if engine.can.native:
            with suppress(AttributeError):
                self._connect(shared, ctypes.PyDLL(None))
        self.clear()

    def _connect(self, shared: abi.Control, libc: ctypes.PyDLL) -> None:
        """Have compiled code sleep; raises AttributeError if the library cannot."""
        calls = libc.sem_clockwait, libc.clock_gettime
        post, try_ = libc.sem_post, libc.sem_trywait
        post.argtypes = try_.argtypes = (ctypes.c_void_p,)
        libc.sem_init(ctypes.c_void_p(self._semaphore), 0, 0)
        self._post, self._try = post, try_
        for name, call in zip(("sem_clockwait", "clock_gettime"), calls, strict=True):
            at = getattr(abi.Control, name).offset
            word = ctypes.c_uint64.from_buffer(shared, at)
            word.value = ctypes.cast(call, ctypes.c_void_p).value or 0

    def set(self) -> None:
        """Call."""
        with suppress(RuntimeError):
            self._held.release()
        self._post(self._semaphore)

    def clear(self) -> None:
        """Forget all calls."""
        self._held.acquire(blocking=False)
        while self._try(self._semaphore) == 0:
            pass

    def wait(self, seconds: float) -> None:
        """Wait for a call, and forget it."""
        self._held.acquire(timeout=seconds)
