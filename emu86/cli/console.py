"""The user's terminal as the far end of the guest's serial line.

In a terminal every key goes to the guest, Ctrl-C too; Ctrl-A is kept for emu86 itself.
A pipe or file is fed to the guest as it is.
"""

import contextlib
import errno
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Final, Self

from emu86.cli.display import LEAVE, Display, keys_of
from emu86.cli.output import write_pages, write_screenshot
from emu86.cli.terminal import can_move, is_terminal, say
from emu86.errors import ConfigError

# Windows has neither raw terminals nor all signals, and its `select` knows no pipes:
# there a terminal keeps its own line editing, and Ctrl-A is a key like any other.
try:
    import termios
    import tty
except ImportError:
    _POSIX = False
else:
    _POSIX = True

if TYPE_CHECKING:
    from emu86 import Machine

_ESCAPE: Final = 0x01  # Ctrl-A
_CHUNK: Final = 4096  # bytes read, and bytes of a pipe that may wait for the guest
_KEPT: Final = 64 << 10  # bytes of a serial line that is not shown
_TYPED: Final = 1 << 20  # bytes of a terminal that may wait for the guest

_ESC: Final = 0x1B
_ENDS: Final = b"\r\n\x1b"  # of a line: Enter, and Esc
_RUBOUTS: Final = "\b\x7f"

HELP: Final = """\
Ctrl-A x       quit
Ctrl-A i       status: time, exits, where the guest is
Ctrl-A p       write the picture of --screenshot now
Ctrl-A g       write the page tables of --pages now
Ctrl-A t       show the screen, or the serial line
Ctrl-A r       reset: start the kernel anew
Ctrl-A z       pause, and go on
Ctrl-A d       change a medium: a CD or a floppy
Ctrl-A h       this help
Ctrl-A Ctrl-A  send Ctrl-A to the guest
"""

_SIGHUP, _SIGPIPE = 1, 13
_CAUGHT: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCONT")
    if hasattr(signal, name)
)


class Keys:
    """What is typed, less what is meant for emu86.

    command: told the key that followed Ctrl-A; asks: whether a line follows Ctrl-A d,
    whose keys it is told one by one, each behind a "d".
    """

    def __init__(self, command: Callable[[str], None], *, asks: bool) -> None:
        self._command = command
        self._asks = asks
        self._escaped = False
        self._in_line = False

    def filter(self, data: bytes) -> bytes:
        """Return the bytes of `data` for the guest, after doing the commands in it."""
        guest = bytearray()
        for byte in data:
            if self._in_line:
                self._in_line = byte not in _ENDS
                self._command("d" + chr(byte))
            elif self._escaped:
                self._escaped = False
                self._in_line = self._asks and byte == ord("d")
                if byte == _ESCAPE:
                    guest.append(byte)
                else:
                    self._command(chr(byte))
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                guest.append(byte)
        return bytes(guest)


class Console:
    """Standard input and output wired to `machine` while the `with` block lasts.

    A terminal is put into raw mode and given back as it was, however the block is
    left. SIGINT, SIGTERM, SIGHUP and a terminal or reader that has gone away stop the
    machine: `status` is then the exit status to end with, else None. What Ctrl-A asks
    for stops it, too, and is done by `serve`. screenshot, pages: the files of those
    options; display: begin with the guest's screen, and keys for its keyboard; serial:
    where the serial line is, "stdio" is here: elsewhere it is not fed.
    """

    def __init__(
        self,
        machine: "Machine",
        screenshot: str | None = None,
        pages: str | None = None,
        *,
        display: bool = False,
        serial: str = "stdio",
    ) -> None:
        self._machine = machine
        self._starts_with_screen = display
        self._serial = serial
        self._feeds = serial == "stdio"
        self._display = Display(machine, self._write)
        self._unseen = b""  # what the guest has sent while the screen was shown
        self._screenshot = screenshot
        self._pages = pages
        self.has_shown = False  # anything that the guest has sent
        self.status: int | None = None
        self.gone = False  # nobody is left to be told anything
        self.quit = False
        self.error: OSError | None = None  # of standard output
        self._lost = False  # whether what was typed found no room
        self._line = b""  # what the guest has shown since its last new line
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()  # keys after Ctrl-A
        self._until: float | None = None  # when no key is waited for any more
        self._saved: list[int | list[bytes | int]] | None = None
        self._handlers: dict[int, signal._HANDLER] = {}
        self._wake = os.pipe()
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)

    def __enter__(self) -> Self:
        for number in _CAUGHT:
            self._handlers[number] = signal.signal(number, self._on_signal)
        if _POSIX and is_terminal(0):
            self._saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)
        if self._starts_with_screen:
            self._display.enter()
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._wake[1], b"\0")
        if _POSIX:
            self._reader.join()  # elsewhere it waits for input until the process ends
        self._leave_screen()
        self._restore()
        for end in self._wake:
            os.close(end)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def show(self, data: bytes) -> None:
        """Write what the guest has sent to standard output.

        Behind a signal, too: it may have been sent before.
        """
        if self.gone or self.error is not None:
            return
        self.has_shown = True
        self._line = (self._line + data).rpartition(b"\n")[2][-_CHUNK:]
        if self._display.active:
            self._unseen = (self._unseen + data)[-_KEPT:]
        else:
            self._write(data)

    @property
    def at_line_start(self) -> bool:
        """Whether what the guest has shown ends with a new line."""
        return not self._line

    def tell(self, text: str) -> None:
        """Show a line of emu86's own, in the thread that runs the machine.

        On a terminal it stands between lines of the guest, else on standard error.
        """
        if self._saved is None:
            say(text)
        else:
            self._tell(text)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(1, rest) :]
                except BlockingIOError:
                    select.select([], [1], [])
        except OSError as error:
            # What reads us has left, or the terminal is gone; neither is news to it.
            if error.errno == errno.EPIPE:
                self._hang_up(_SIGPIPE)
            elif error.errno == errno.EIO:
                self._hang_up(_SIGHUP)
            else:
                self.error = error
                self._ask("")

    def _read(self) -> None:
        """Feed standard input to the guest: the reader thread."""
        keys = Keys(self._key, asks=bool(self._machine.drives))
        while True:
            # While the guest lags behind, look again soon instead of reading on. But a
            # terminal has keys for emu86 behind those for the guest.
            lags = self._feeds and self._machine.console_waiting >= _CHUNK
            reads = self._saved is not None or (self._feeds and not lags)
            watched = [0] if reads else []
            again = 0.02 if lags and not reads else None
            try:
                if _POSIX:
                    ready, _, _ = select.select(
                        [*watched, self._wake[0]], [], [], again
                    )
                else:
                    ready = watched
                    time.sleep(0 if watched else 0.02)
                if self._wake[0] in ready:
                    return
                data = os.read(0, _CHUNK) if ready else b""
            except OSError as error:
                if self._saved is not None and error.errno == errno.EIO:
                    self._hang_up(_SIGHUP)
                return
            if ready and not data:
                # The end of a pipe ends nothing; that of a terminal is a hang-up.
                if self._saved is not None:
                    self._hang_up(_SIGHUP)
                return
            if self._saved is not None:
                data = keys.filter(data)
                if self._display.active:
                    self._type(data)
                    continue
                data = self._that_fits(data)
            if self._feeds:
                self._machine.console_input(data)

    def _type(self, data: bytes) -> None:
        """Type on the guest's keyboard what came from the terminal."""
        self._display.uncover()
        for named, key in keys_of(data):
            if named:
                self._machine.press(key)
            else:
                self._machine.type(key)

    def _that_fits(self, data: bytes) -> bytes:
        """Return what there is room for; tell, once, that the rest is lost."""
        room = max(_TYPED - self._machine.console_waiting, 0)
        if len(data) > room and not self._lost:
            self._lost = True
            self._ask("lost")
        return data[:room]

    # -- what is asked for by Ctrl-A ---------------------------------------------------

    def _key(self, key: str) -> None:
        """Take a key that followed Ctrl-A: the reader thread."""
        if key == "x":
            self.quit = True
        if key[0] in "xipgrtzdh?":
            self._ask(key)

    def _ask(self, key: str) -> None:
        """Have the machine stop, and `serve` do what is asked for.

        key: that was typed, "lost" to tell of keys that are, or "", nothing.
        """
        self._asked.put(key)
        self._machine.stop()

    @property
    def _ends(self) -> bool:
        return self.quit or self.status is not None or self.error is not None

    def serve(self, until: float | None = None) -> bool:
        """Do what was asked for, the machine being stopped; tell whether it goes on.

        until: when nothing more is waited for, by `time.monotonic`.
        """
        self._until = until
        while not self._ends and not self._asked.empty():
            self._do(self._asked.get())
        return not self._ends

    def _do(self, key: str) -> None:
        if key == "z":
            self._tell("paused; Ctrl-A z goes on")
            while not self._ends:
                asked = self._next()
                if asked is None:
                    return
                if asked == "z":
                    self._tell("going on")
                    return
                self._do(asked)
        elif key == "i":
            self._tell(self._status_line())
        elif key == "p":
            self._tell(self._photograph())
        elif key == "g":
            self._tell(self._map())
        elif key == "d" and not self._machine.drives:
            self._tell("there is no drive whose medium can be changed")
        elif key == "d":
            covered = self._display.active
            if covered:
                self._change_view()  # where the user is asked
            answer = self._change_medium()
            if covered and not self._ends:
                self._change_view()
                self._tell(answer)
            else:
                self._write(f"emu86: {answer}\r\n".encode() + self._line)
        elif key == "t" and self._display.active and not self._feeds:
            where = "not there" if self._serial == "none" else f"in {self._serial}"
            self._tell(f"the serial line is {where}")
        elif key == "t":
            self._change_view()
        elif key == "lost":
            self._tell("the guest does not take what is typed: the rest is lost")
        elif key == "r":
            if not self._display.active:
                begin = b"" if self.at_line_start else b"\r\n"
                self._line = b""
                self._write(begin)
                self._tell("reset")
            self._machine.reset()
        elif key:
            self._say(HELP)

    def _change_view(self) -> None:
        """Show the screen instead of the serial line, or the other way round."""
        if self._display.active:
            self._display.leave()
            unseen, self._unseen = self._unseen, b""
            self._write(unseen)
        elif can_move(1):
            self._display.enter()
        else:
            self._tell("this terminal cannot show a screen")

    def _leave_screen(self) -> None:
        """Show the serial line in the end, and behind it the screen's last text."""
        if self._display.active:
            self._change_view()
            rows = [row.rstrip() for row in self._machine.screen.lines]
            text = "\r\n".join(rows).rstrip()
            if text:
                begin = "" if self.at_line_start else "\r\n"
                self._line = b""
                self._write(f"{begin}{text}\r\n".encode())

    def _photograph(self) -> str:
        """Write the screenshot; return what to say of it."""
        path = self._screenshot
        if path is None:
            return "there is no file for it: start with --screenshot FILE"
        if path == "-":  # where the guest's own output goes
            return "--screenshot - is written at the end; --screenshot FILE now, too"
        try:
            problem = write_screenshot(self._machine, path)
        except ConfigError as error:
            return str(error)
        return problem or f"the screen is in {path}"

    def _map(self) -> str:
        """Write the page tables; return what to say of it."""
        path = self._pages
        if path is None:
            return "there is no file for it: start with --pages FILE"
        try:
            write_pages(self._machine, path)
        except ConfigError as error:
            return str(error)
        return f"the page tables are in {path}"

    def _change_medium(self) -> str:
        """Have the user name another medium, and put it in; return what came of it.

        Keys come as `Keys` has them.
        """
        drives = self._machine.drives
        lines = [f"emu86: {name}: {file or 'empty'}" for name, file in drives.items()]
        lines.append("emu86: [DRIVE] FILE puts it in, DRIVE takes it out, Esc: nothing")
        line = self._line_of_user("\n".join(lines) + "\n> ").strip()
        if not line:
            return "all stays as it is"
        name, _, file = line.partition(" ")
        if name not in drives:
            name, file = next(iter(drives)), line
        try:
            self._machine.insert(name, file.strip() or None)
        except ConfigError as error:
            return str(error)
        return f"{name}: {self._machine.drives[name] or 'empty'}"

    def _next(self) -> str | None:
        """Wait for what is asked for next; None: the time is over."""
        if self._until is None:
            return self._asked.get()
        try:
            return self._asked.get(timeout=max(self._until - time.monotonic(), 0))
        except queue.Empty:
            return None

    def _line_of_user(self, prompt: str) -> str:
        """Return a line that the user types now; "" if that is given up."""
        line = b""
        begin = "" if self.at_line_start else "\n"
        self._write((begin + prompt).replace("\n", "\r\n").encode())
        while not self._ends:
            key = self._next()
            if key is None:
                break
            if len(key) != len("d?"):
                continue  # not of the line
            letter = key[1:]
            if ord(letter) in _ENDS:
                self._write(b"\r\n")
                return "" if ord(letter) == _ESC else os.fsdecode(line)
            if letter in _RUBOUTS:
                self._write(b"\b \b" if line else b"")
                line = line[:-1]
            elif letter >= " ":
                byte = letter.encode("latin-1")
                self._write(byte)
                line += byte
        return ""

    def _status_line(self) -> str:
        machine = self._machine
        exits = sum(exit_.count for exit_ in machine.stats.exits.values())
        state = "halted" if machine.vcpu.halted else "busy"
        where = f"at {machine.vmm.where()}, {state}"
        return f"{machine.now / 1e9:.1f} s of guest time, {exits:,} exits, {where}"

    def _tell(self, text: str) -> None:
        self._say(f"emu86: {text}\n")

    def _say(self, text: str) -> None:
        """Show lines of emu86's own, and then again the line that they broke into."""
        if self._display.active:
            self._display.say(text)
            return
        begin = "" if self.at_line_start else "\n"
        self._write((begin + text).replace("\n", "\r\n").encode() + self._line)

    # -- the end -----------------------------------------------------------------------

    def _hang_up(self, as_if: int) -> None:
        self.gone = True
        self._leave(128 + as_if)

    def _leave(self, status: int) -> None:
        self.status = status
        self._ask("")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM, _SIGHUP):
            # A shell that had us stopped may have changed the modes.
            if self._saved is not None:
                with contextlib.suppress(termios.error):
                    tty.setraw(0, termios.TCSADRAIN)
            self._display.uncover()
        elif self.status is not None:
            # Asked again: whatever keeps us from ending is not waited for.
            with contextlib.suppress(OSError):
                os.write(1, LEAVE if self._display.active else b"")
            self._restore()
            os._exit(128 + number)
        elif number == _SIGHUP:
            self._hang_up(_SIGHUP)
        else:
            self._leave(128 + number)

    def _restore(self) -> None:
        if self._saved is not None:
            # A terminal that is gone needs no restoring.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
