"""The run loop: the guest in slices of virtual time, devices and input in between."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from emu86.cpu.clock import USUAL
from emu86.cpu.state import RFLAGS
from emu86.machine.board import Board
from emu86.machine.chardev import CharDevice
from emu86.machine.kick import Kick
from emu86.machine.panic import ENDS, PanicWatch
from emu86.machine.realtime import RealTime
from emu86.machine.screen import ScreenWatch
from emu86.machine.typist import Typist
from emu86.notebook import table
from emu86.rings.technique.base import Technique
from emu86.spec import x86

_RESUMABLE: Final = (
    "until", "panic", "timeout", "interrupted",
    "step", "breakpoint", "watchpoint",
)  # fmt: skip
_SECOND: Final = 1_000_000_000  # ns
_SLICE: Final = 4_000_000  # virtual ns between looks at the host
_LONGEST_SLEEP: Final = 0.25  # seconds
_LONGEST_REST: Final = _SECOND // 4  # virtual ns of which compiled code sleeps some


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ended.

    reason: "until", "panic", "poweroff", "halted", "reset", "triple fault",
    "debug exit", "unsupported", "timeout" or "interrupted"; code: the value written to
    the debug exit port, else 0; detail: more words for a person, or empty; of "until"
    it is "on the screen" if the text was seen there. For a debugger, also "step",
    "breakpoint" and "watchpoint"; address: the one that one of these is about, or 0.
    """

    reason: str
    code: int = 0
    detail: str = ""
    address: int = field(default=0, repr=False)

    @property
    def resumable(self) -> bool:
        """Whether `Machine.run` can go on from here."""
        return self.reason in _RESUMABLE

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        rows = [("reason", self.reason), ("code", self.code), ("detail", self.detail)]
        rows.append(("address", self.address and f"{self.address:#x}"))
        return table("Stop", [row for row in rows if row[1]])


class RunLoop:
    """Runs one virtual CPU with its board and its console.

    realtime: virtual time keeps to the host's, and that of a halted CPU is slept, not
    skipped; wall, slept: seconds that runs have taken so far, and that the CPU was
    halted of them.
    """

    def __init__(
        self, vmm: Technique, board: Board, console: CharDevice, *, realtime: bool
    ) -> None:
        self._vmm = vmm
        self._board = board
        self._console = console
        self._clock = vmm.engine.clock
        self.realtime = realtime
        self._pace = RealTime(self._clock)
        self._kicked = Kick(vmm.engine)  # input has come, or a request to stop
        self._stop_asked = False
        self._found = False
        self._panic = PanicWatch(self._panicked)
        self._panics = False
        self._watch = ScreenWatch(board.vga)
        self.typist = Typist(board.vga, console, self.kick)
        self._error: BaseException | None = None  # of a callback, or Ctrl-C
        self.wall = 0.0
        self.slept = 0.0
        console.on_input = self.kick
        console.guard = vmm.observers.guard = self.guard
        console.subscribe(self._panic.take, ENDS)

    def stop(self) -> None:
        """End the run soon, from any thread; before a run, that run at its start."""
        self._stop_asked = True
        self.kick()

    def wait(self, ready: Callable[[], bool]) -> bool:
        """Wait between two runs until it is `ready`, of which `kick` is to tell.

        Returns False if `stop` is asked for instead.
        """
        while not self._stop_asked:
            self._kicked.clear()
            if ready():
                return True
            if not self._stop_asked:
                self._kicked.wait(threading.TIMEOUT_MAX)
        self._stop_asked = False
        return False

    def step(self, until: bytes, timeout: float | None, *, panics: bool) -> Stop:
        """Run one instruction, or until an event of its is delivered; else as `run`."""
        self._vmm.begin_step()
        try:
            return self.run(until, timeout, panics=panics)
        finally:
            self._vmm.end_step()

    def forget(self) -> None:
        """Take the guest for another one: what the last one showed tells no panic."""
        self._panic.forget()

    def kick(self) -> None:
        """Bring the CPU back from the guest or from sleep, as KVM does; any thread."""
        self._clock.stop_soon()
        self._kicked.set()

    def guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Return what calls a user's callback, and raises nothing in the guest's midst.

        The instruction is finished first. Then the run raises what the callback raised,
        and another run can go on.
        """

        def guarded(*arguments: object) -> None:
            try:
                callback(*arguments)
            except BaseException as error:  # noqa: BLE001 (raised again by run)
                self._fail(error)

        return guarded

    def _fail(self, error: BaseException) -> None:
        """Have the run raise `error` soon, unless it has an earlier one to raise."""
        if self._error is None:
            self._error = error
        self.kick()

    def _raise(self) -> None:
        """Raise what there is to raise, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """Let Ctrl-C, where it raises KeyboardInterrupt, do so between two slices.

        The second one, in a callback that does not end, raises it at once.
        """
        main = threading.current_thread() is threading.main_thread()
        raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if not (main and raises):
            yield
            return

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if isinstance(self._error, KeyboardInterrupt):
                raise KeyboardInterrupt
            self._fail(KeyboardInterrupt())

        signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _find(self) -> None:
        """Learn that the console has shown what was waited for."""
        self._found = True
        self._vmm.engine.stop()

    def _panicked(self) -> None:
        """Learn that the console has shown the last line of a Linux that panicked."""
        if self._panics:
            self._vmm.engine.stop()

    def run(self, until: bytes, timeout: float | None, *, panics: bool) -> Stop:
        """Run until console or screen show `until`, `timeout` wall seconds or the end.

        panics: a panic of Linux is an end, too.
        """
        start = time.monotonic()
        deadline = None if timeout is None else start + timeout
        longest = threading.TIMEOUT_MAX
        alarm = threading.Timer(min(timeout or 0, longest), self.kick)
        alarm.daemon = True
        if timeout is not None:
            alarm.start()
        rested = self._clock.rested
        self._found = False
        self._panics = panics
        self._console.expect(until, self._find)
        self._watch.expect(until.decode(errors="replace"))
        # Reference counting frees what an exit makes; looking for cycles is 5 % of a
        # run.
        collecting = gc.isenabled()
        gc.disable()
        if self.realtime:
            self._pace.start()
        else:
            self._clock.rate = USUAL
        try:
            with self._ctrl_c():
                stop = self._run(deadline)
            self._raise()
            return stop
        finally:
            self._vmm.unpatch()
            if collecting:
                gc.enable()
            alarm.cancel()
            self._vmm.may_rest(0)
            self.slept += (self._clock.rested - rested) / _SECOND
            self.wall += time.monotonic() - start

    def _run(self, deadline: float | None) -> Stop:
        """Run the guest, serving time and interrupts between two slices of it."""
        vmm, board = self._vmm, self._board
        while True:
            if vmm.pending_patch is None:
                # First: a stop that is asked for after the check ends the slice, and a
                # kick after it the sleep.
                self._begin_slice()
                self._kicked.clear()
            stop = self._reason_to_stop(deadline)
            if stop is not None:
                return stop
            if vmm.pending_patch is None:
                self._console.deliver()
                if self.typist.busy:
                    self.typist.work(self._clock.now)
                board.advance()
                vmm.sync_intr()
                if board.pic.intr:
                    vmm.interrupt()
                if vmm.vcpu.halted:
                    self._idle(deadline)
                    continue
                board.stop_in_time()
                if self.realtime:
                    looks = self._watch.expected or self.typist.busy
                    waits = looks or self._console.waits
                    vmm.may_rest(0 if waits else self._clock.now + _LONGEST_REST)
            vmm.run()

    def _begin_slice(self) -> None:
        if self.realtime:
            self._pace.pace()
        else:
            self._clock.run_for(_SLICE)

    def _reason_to_stop(self, deadline: float | None) -> Stop | None:
        self._raise()
        trap, self._vmm.debug.trap = self._vmm.debug.trap, None
        if trap is not None:
            return Stop(trap.reason, 0, trap.detail, trap.address)
        if self._found:
            self._found = False
            self._watch.expect("")
            return Stop("until")
        reason, detail = self._vmm.end or ("", "")
        if self._watch.expected and self._watch.look(self._clock.now, last=reason):
            self._console.expect(b"", self._find)
            return Stop("until", 0, "on the screen")
        panic = self._panic.settle(reason)
        if panic and self._panics:
            return Stop("panic", 0, panic)
        if reason:
            if reason == "debug exit":
                return Stop(reason, int(detail))
            return Stop(reason, 0, detail)
        if self._stop_asked:
            self._stop_asked = False
            return Stop("interrupted")
        if deadline is not None and time.monotonic() >= deadline:
            return Stop("timeout")
        return None

    def _idle(self, deadline: float | None) -> None:
        """Pass the time of a halted CPU to its next interrupt, or end the run."""
        vmm, due = self._vmm, self._board.deadline()
        if not vmm.q[RFLAGS] & x86.IF:
            vmm.finish("halted", f"at {vmm.where()}, interrupts off")
        elif self.realtime:
            self._sleep(due, deadline)
        elif due is not None and self._board.wakes:
            self._clock.advance_to(due)
        elif self.typist.work(self._clock.now, last=True):
            pass  # that is what it waits for
        elif not self._console.deliverable:
            vmm.finish("halted", f"at {vmm.where()}, waiting for nothing")

    def _sleep(self, due: int | None, deadline: float | None) -> None:
        """Sleep until an interrupt is due (virtual ns) or there is a kick, for a while.

        Virtual time is then the host's, if it was not ahead of that.
        """
        pace = self._pace
        seconds = _LONGEST_SLEEP if due is None else pace.left(due) / _SECOND
        seconds = min(seconds, _LONGEST_SLEEP)
        began = time.monotonic()
        if deadline is not None:
            seconds = min(seconds, deadline - began)
        if seconds > 0:
            self._kicked.wait(seconds)
        self.slept += time.monotonic() - began
        pace.slept(due)
