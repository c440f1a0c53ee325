"""The command `emu86` on a machine that does what its command line says.

The words of --append, run one after another:

    say:TEXT     the guest prints TEXT (\\n and \\r by name)
    echo         it echoes what is typed until it has seen "."
    wait         it does nothing until it is stopped
    late:TEXT    it prints a character, and the others once it is stopped
    print:TEXT   the guest prints TEXT on its printer
    debug:TEXT   the guest writes TEXT to the debug console
    media:TEXT   TEXT is told of an image
    draw:TEXT    the guest's screen shows TEXT; draw: is a picture
    load:TIME    loading has taken so many seconds (the first word only)
    deaf:N       N bytes more than were typed wait for the guest
    tell         it prints what the machine was made with
    debugtell    that on its debug console
    REASON       it ends for this reason; code:N gives its code

A reset goes on with the words behind the one that ended the run.
"""

import queue
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import emu86
from emu86 import cli, images
from emu86.devices.vga import ATTRIBUTE, Vga
from emu86.devices.vga_memory import WINDOW
from emu86.machine import boot, symbols
from emu86.machine.profile import Spent
from emu86.machine.screen import CHARACTERS, Screen


@dataclass
class Stop:
    reason: str
    code: int = 0
    detail: str = ""


@dataclass
class ExitStat:
    count: int
    ns: int


@dataclass
class Stats:
    exits: dict = field(
        default_factory=lambda: {"CLI": ExitStat(1000, 10**6), "HLT": ExitStat(0, 0)}
    )
    blocks: int = 61000
    patched: dict = field(default_factory=lambda: {"POPF": 12, "PUSHF": 150})
    shadow: dict = field(
        default_factory=lambda: {"fills": 10, "drops": 20, "resynced": 30}
    )
    guest_share: float | None = None
    wall_s: float = 0.5
    cpu: str = "pentium3"

    def to_dict(self):
        return {"wall_s": self.wall_s}


@dataclass
class Profile:
    known: list

    def spent(self):
        return [
            Spent(0, "do_idle", "", False, 30, 750_000, 0),
            Spent(0, "do_idle", "IN", False, 1000, 1_000_000, 8_000_000),
            Spent(3, "page 08048000h", "CLI", True, 250, 250_000, 0),
        ]

    def folded(self):
        return "ring 0;do_idle 30\n"


@dataclass
class Report:
    nothing: str = ""

    def __str__(self):
        return "0 → 3\nall of it"


class Machine:
    def __init__(self, **options):
        self.options = options
        self.script = []
        self.stats = Stats()
        self.window = memoryview(bytearray(WINDOW))
        self.vga = Vga(self.window, lambda _plain: None, images.font())
        self.typed = queue.Queue()
        self.print = lambda _data: None
        self.waiting = 0
        self.awaited = b""
        self.stopped = False
        self.now = 1_500_000_000
        self.vmm = SimpleNamespace(where=lambda: "0010:c0100000")
        cdrom = options.get("cdrom")
        self.drives = {} if cdrom is None else {"cdrom": cdrom}
        self.vcpu = SimpleNamespace(halted=True)

    def load_kernel(self, kernel, *, append="", initrd=None):
        boot.read("kernel", kernel)
        self.script = append.split()
        if self.script and self.script[0].startswith("load:"):
            time.sleep(float(self.script.pop(0).removeprefix("load:")))
        self.options["initrd"] = initrd

    @property
    def screen(self):
        return Screen(self.vga)

    def draw(self, text):
        if not text:  # attribute controller 10h: graphics
            for value in (0x30, 0x01):
                self.vga.write(ATTRIBUTE, 1, value, 0)
        shown = [CHARACTERS.index(one) for one in text if one in CHARACTERS]
        self.window[0x18000 : 0x18000 + 2 * len(shown) : 2] = bytes(shown)

    def type(self, text, after=None):
        self.keys = [*getattr(self, "keys", []), (after, text)]
        self.options["keys"] = self.keys
        self.awaited = self.awaited or after or b""
        if after is None:
            self.draw("".join(key for _, key in self.keys))

    def press(self, names, after=None):
        self.type(f"<{names}>", after)

    def on_console(self, callback, **_):
        self.print = callback

    def on_media_error(self, callback):
        self.tell_of_media = callback

    def on_print(self, callback):
        self.print_on_paper = callback

    def on_debug_console(self, callback):
        self.debug = callback

    def stop_printer(self):
        self.print_on_paper = None

    def insert(self, drive, file):
        if file == "wrong":
            raise emu86.ConfigError("cdrom: wrong: it is wrong")
        self.drives[drive] = file or ""

    def close(self):
        self.closed = True

    def console_input(self, data):
        for byte in data:
            self.typed.put(byte)

    @property
    def console_waiting(self):
        return self.typed.qsize() + self.waiting

    def profile(self, *files):
        for file in files:
            symbols.read(file)
        return Profile([] if not files else list(files))

    def why_fault(self):
        return SimpleNamespace(walks=("why: a walk",))

    def pages(self):
        from emu86.machine import pages  # it takes long

        at = 0x400000
        run = pages.Run(at, at + 0x1000, "urwx", "ur--", 0x1000, 0, pages.DIRTY)
        return pages.Pages("32-bit paging", 0x101000, 0, (run,))

    def tables(self):
        from emu86.machine import tables

        return tables.Tables(("no GDT",), ())

    def measure(self):
        self.stats.guest_share = 0.6

    def stop(self):
        self.stopped = True

    def report(self):
        return Report()

    def reset(self):
        self.print(b"again\n")

    def run(self, until=None, timeout=None, *, panics=False):
        self.options |= {"panics": panics, "timeout": timeout}
        end = time.monotonic() + (60 if timeout is None else timeout)
        shown = b""
        while self.script:
            word = self.script.pop(0)
            kind, _, text = word.partition(":")
            if kind == "print":
                self.print_on_paper(text.encode())
            elif kind == "debug":
                self.debug(text.replace("\\n", "\n").encode())
            elif kind == "media":
                self.tell_of_media(text)
            elif kind == "say":
                data = text.replace("\\n", "\n").replace("\\r", "\r").encode()
                self.print(data)
                shown += data
            elif kind == "tell":
                self.print(repr(sorted(self.options.items())).encode() + b"\r\n")
            elif kind == "debugtell":
                self.debug(repr(sorted(self.options.items())).encode())
            elif kind == "echo":
                seen = b""
                while not self.stopped and b"." not in seen:
                    try:
                        seen += bytes([self.typed.get(timeout=0.02)])
                    except queue.Empty:
                        continue
                    self.print(seen[-1:])
                shown += seen
            elif kind in ("wait", "late"):
                if text:
                    self.print(text[:1].encode())
                while not self.stopped and time.monotonic() < end:
                    time.sleep(0.01)
                if text:
                    self.print(text[1:].encode())
            elif kind == "deaf":
                self.waiting = int(text)
            elif kind == "draw":
                self.draw(text)
            elif kind == "code":
                return Stop("debug exit", int(text))
            else:
                return Stop(kind.replace("-", " "))
            if self.stopped:
                self.stopped = False
                if kind in ("wait", "late") or (kind == "echo" and b"." not in seen):
                    self.script.insert(0, word)
                return Stop("interrupted")
            if until is not None and until in shown:
                return Stop("until")
        return Stop("timeout")


emu86.Machine = Machine
cli.main()
