"""gdb's remote protocol: a guest that gdb stops, looks at, and lets go on.

Source: GDB manual, appendix E "Remote Protocol".
"""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emu86.machine.looking import Looker
from emu86.machine.loop import Stop
from emu86.observe.monitor import Monitor
from emu86.observe.packets import LONGEST, Link
from emu86.observe.target import Target
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.machine.machine import Machine

_TRAP, _INT, _SEGV = 5, 2, 11  # gdb's signals
_SUPPORTED: Final = (
    f"PacketSize={LONGEST:x};qXfer:features:read+;qXfer:memory-map:read+;"
    "QStartNoAckMode+;swbreak+;hwbreak+;vContSupported+"
)
_BREAKS, _WRITE = ("0", "1"), "2"  # of Z: breakpoints, and the watchpoint for writes
_TRAPS: Final = ("step", "breakpoint", "watchpoint")
_TEXTS: Final = {  # of what gdb's signals do not say
    "triple fault": "emu86: triple fault {}; continue to let it reset\n",
    "panic": "emu86: the guest's kernel panicked: {}\n",
}


class Refused(Exception):  # noqa: N818 (it is what gdb is told)
    """What cannot be done for gdb: E01."""


class GdbServer:
    """A machine that gdb may stop. `run` stands for the machine's.

    address: [HOST:]PORT or the path of a Unix socket; waits: nothing runs before gdb
    has come and says so. quits: gdb has killed the guest; paused: seconds of the host
    that the guest was stopped. Raises ConfigError if it cannot listen there.
    """

    def __init__(self, machine: "Machine", address: str, *, waits: bool) -> None:
        self._machine = machine
        self._debugger = machine.debugger
        self._target = Target(machine)
        self._monitor = Monitor(machine)
        self._running = False
        self._waits = waits  # for gdb to come, or to say what to do
        self._steps = False
        self._there = False
        self._physical = False  # addresses of memory are
        self._stopped = f"S{_TRAP:02x}"
        self._ended: Stop | None = None  # that gdb has been told of
        self.killed = False
        self.paused = 0.0
        self.link = Link(address, self._called)

    def close(self) -> None:
        """Let gdb go."""
        self.link.close()

    def _called(self) -> None:
        """Have the machine stop for gdb: the link's thread."""
        if self._running:
            self._machine.stop()
        self._machine.wake()

    # -- running -----------------------------------------------------------------------

    def run(self, until: bytes | None, timeout: float | None, *, panics: bool) -> Stop:
        """Run the machine as `Machine.run` does, and stop for gdb in between."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._waits or self.link.waits:
                began = time.monotonic()
                asked = self._machine.wait(lambda: self.link.waits)
                if not asked:
                    return Stop("interrupted")
                self._take(self.link.took())
                stopped = time.monotonic() - began
                self.paused += stopped
                end = None if end is None else end + stopped
                if self.killed:
                    return Stop("interrupted", 0, "killed by gdb")
            if self._ended is not None:
                ended, self._ended = self._ended, None
                return ended
            left = None if end is None else max(end - time.monotonic(), 0)
            stop = self._go(until, left, panics=panics)
            if stop is not None:
                return stop

    def _go(
        self, until: bytes | None, timeout: float | None, *, panics: bool
    ) -> Stop | None:
        """Run or step; return how it ended if that is nothing of gdb's."""
        machine = self._machine
        self._running = True
        if self.link.waits:
            machine.stop()
        steps, self._steps = self._steps, False
        if steps:
            stop = machine.step(timeout=timeout)
        else:
            stop = machine.run(until, timeout, panics=panics)
        self._running = False
        if stop.reason == "interrupted":
            return None if self.link.waits else stop
        if not self._there:
            return None if stop.reason in _TRAPS else stop
        if stop.reason in _TRAPS:
            self._report(self._trapped(stop))
            return None
        if stop.reason in _TEXTS:
            self._say(_TEXTS[stop.reason].format(stop.detail))
            self._report(f"T{_SEGV:02x}thread:1;")
            self._ended = stop
            return None
        if stop.reason not in ("timeout", "until"):
            self.link.send(b"W%02x" % (stop.code & 0xFF))
        return stop

    def _trapped(self, stop: Stop) -> str:
        """Return the packet that tells of a trap."""
        why = ""
        if stop.reason == "breakpoint":
            why = "swbreak:;"
        elif stop.reason == "watchpoint":
            why = f"watch:{stop.address:x};"
        return f"T{_TRAP:02x}thread:1;{why}"

    def _report(self, packet: str) -> None:
        self._stopped = packet
        self._waits = True
        self.link.send(packet.encode())

    def _say(self, text: str) -> None:
        self.link.send(b"O" + text.encode().hex().encode())

    # -- what gdb says -----------------------------------------------------------------

    def _take(self, what: bytes | str | None) -> None:
        if what == "come":
            self._there = self._waits = True
            self._stopped = f"S{_TRAP:02x}"
            self._physical = False
        elif what == "break":
            if self._there and not self._waits:
                self._report(f"T{_INT:02x}thread:1;")
        elif what == "gone":
            if self._there:
                self._let_go()
        elif isinstance(what, bytes):
            try:
                reply = self._do(what.decode("latin-1"))
            except (Refused, ValueError, IndexError):
                reply = "E01"
            if reply is not None:
                self.link.send(reply.encode("latin-1"))

    def _let_go(self) -> None:
        """Have the guest run on without gdb, which has put nothing into it."""
        self._there = self._waits = self._steps = False
        self._debugger.clear()
        self._monitor.clear()

    def _do(self, packet: str) -> str | None:
        """Do what a packet asks for; return the answer, "" for what there is not."""
        for start, method in self._COMMANDS.items():
            if packet.startswith(start):
                return method(self, packet[len(start) :])
        return ""

    def _why(self, _rest: str) -> str:
        return self._stopped

    def _read_registers(self, _rest: str) -> str:
        return self._target.read_all().hex()

    def _write_registers(self, rest: str) -> str:
        return _ok(self._target.write_all(bytes.fromhex(rest)))

    def _read_register(self, rest: str) -> str:
        return self._target.read(int(rest, 16)).hex()

    def _write_register(self, rest: str) -> str:
        number, _, data = rest.partition("=")
        return _ok(self._target.write(int(number, 16), bytes.fromhex(data)))

    def _read_memory(self, rest: str) -> str:
        address, size = _numbers(rest)
        size = min(size, LONGEST // 2)
        looker = Looker(self._machine.vmm)
        if self._physical:
            data = looker.read_physical(address, size)
        else:
            data = looker.read(address & looker.mask, size)
        return data.hex() if data or not size else "E0e"

    def _write_memory(self, rest: str) -> str:
        where, _, data = rest.partition(":")
        return self._write(where, bytes.fromhex(data))

    def _write_binary(self, rest: str) -> str:
        where, _, data = rest.partition(":")
        return self._write(where, data.encode("latin-1"))

    def _write(self, where: str, data: bytes) -> str:
        address, size = _numbers(where)
        if size != len(data):
            raise Refused
        if self._physical:
            self._machine.write_physical(address, data)
        elif size:
            mask = Looker(self._machine.vmm).mask
            self._machine.write_virtual(address & mask, data)
        return "OK"

    # -- going on ----------------------------------------------------------------------

    def _continue(self, rest: str) -> None:
        self._go_from(rest, steps=False)

    def _step(self, rest: str) -> None:
        self._go_from(rest, steps=True)

    def _continue_signal(self, rest: str) -> None:
        self._go_from(rest.partition(";")[2], steps=False)

    def _step_signal(self, rest: str) -> None:
        self._go_from(rest.partition(";")[2], steps=True)

    def _go_from(self, address: str, *, steps: bool) -> None:
        if address:
            name = "rip" if "rip" in self._machine.registers else "eip"
            self._machine.set_register(name, int(address, 16))
        self._waits, self._steps = False, steps

    def _resume(self, rest: str) -> str | None:
        """Take vCont, whose first action is that of the one thread that there is."""
        if rest == "?":
            return "vCont;c;C;s;S"
        action = rest[1:2]
        if not rest.startswith(";") or action not in "cCsS":
            return ""
        self._go_from("", steps=action in "sS")
        return None

    # -- breakpoints -------------------------------------------------------------------

    def _insert(self, rest: str) -> str:
        return self._break(rest, inserts=True)

    def _remove(self, rest: str) -> str:
        return self._break(rest, inserts=False)

    def _break(self, rest: str, *, inserts: bool) -> str:
        kind, address, size = rest.partition(";")[0].split(",")
        if kind == _WRITE:
            watch = self._debugger.watch if inserts else self._debugger.unwatch
            watch(self._address(address), int(size, 16), physical=self._physical)
            return "OK"
        if kind not in _BREAKS:
            return ""
        act = self._debugger.break_at if inserts else self._debugger.remove
        act(self._address(address), physical=self._physical)
        return "OK"

    def _address(self, text: str) -> int:
        mask = x86.MASK64 if self._target.wide else x86.MASK32
        return int(text, 16) & mask

    # -- questions ---------------------------------------------------------------------

    def _supported(self, _rest: str) -> str:
        return _SUPPORTED

    def _no_acknowledgments(self, _rest: str) -> str:
        self.link.acknowledges = False
        return "OK"

    def _features(self, rest: str) -> str:
        name, _, where = rest.partition(":")
        if name != "target.xml":
            return "E00"
        return _part(self._target.xml, where)

    def _memory_map(self, rest: str) -> str:
        """Have all addresses be RAM: what is mapped where, only the tables know."""
        length = (1 << 64) - 1 if self._target.wide else 1 << 32
        text = (
            '<?xml version="1.0"?><memory-map>'
            f'<memory type="ram" start="0x0" length="{length:#x}"/></memory-map>'
        )
        return _part(text.encode(), rest.partition(":")[2])

    def _is_physical(self, _rest: str) -> str:
        return str(int(self._physical))

    def _set_physical(self, rest: str) -> str:
        self._physical = rest == "1"
        return "OK"

    def _command(self, rest: str) -> str:
        text = self._monitor.do(bytes.fromhex(rest).decode(errors="replace"))
        for start in range(0, len(text), LONGEST // 4):
            self._say(text[start : start + LONGEST // 4])
        return "OK"

    def _detach(self, _rest: str) -> None:
        self.link.send(b"OK")
        self._let_go()

    def _kill(self, _rest: str) -> None:
        self.killed = True
        self._waits = False

    def _kill_process(self, _rest: str) -> str:
        self._kill("")
        return "OK"

    def _yes(self, _rest: str) -> str:
        return "OK"

    # By the start of a packet; those that begin with another's come first.
    _COMMANDS: Final[dict[str, Callable[["GdbServer", str], str | None]]] = {
        "?": _why,
        "g": _read_registers,
        "G": _write_registers,
        "p": _read_register,
        "P": _write_register,
        "m": _read_memory,
        "M": _write_memory,
        "X": _write_binary,
        "vCont": _resume,
        "vKill": _kill_process,
        "c": _continue,
        "C": _continue_signal,
        "s": _step,
        "S": _step_signal,
        "Z": _insert,
        "z": _remove,
        "D": _detach,
        "k": _kill,
        "H": _yes,
        "T": _yes,
        "qSupported": _supported,
        "QStartNoAckMode": _no_acknowledgments,
        "qXfer:features:read:": _features,
        "qXfer:memory-map:read:": _memory_map,
        "qfThreadInfo": lambda _self, _rest: "m1",
        "qsThreadInfo": lambda _self, _rest: "l",
        "qAttached": lambda _self, _rest: "1",
        "qC": lambda _self, rest: "" if rest else "QC1",
        "qqemu.PhyMemMode": _is_physical,
        "Qqemu.PhyMemMode:": _set_physical,
        "qRcmd,": _command,
    }


def _ok(done: bool) -> str:
    return "OK" if done else "E01"


def _numbers(text: str) -> tuple[int, int]:
    found = re.fullmatch("([0-9a-fA-F]+),([0-9a-fA-F]+)", text)
    if found is None:
        raise Refused
    return int(found[1], 16), int(found[2], 16)


def _part(data: bytes, where: str) -> str:
    """Return what qXfer asks for: a part, and whether there is more."""
    offset, size = _numbers(where)
    part = data[offset : offset + min(size, LONGEST - 8)]
    more = "m" if offset + len(part) < len(data) else "l"
    return more + part.decode("latin-1")
