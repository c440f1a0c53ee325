"""How far the guest's clock is from the host's, on a terminal: `make clock`.

Debian's kernel runs on a pseudo-terminal, and one other process keeps a CPU of the host
busy. The guest sleeps 5 s, compresses for a minute and makes system calls for a minute.
Its uptime is read before and after, beside the host's monotonic clock. The status is 1
if a difference is more than 50 ms and 1 %.
"""

import argparse
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GUESTS = Path(__file__).parents[1] / "build" / "guests"
# The second line has the answer, the first one shows what was typed.
READ = b"read u _ </proc/uptime; echo T=$u=\r"
CASES = {
    "sleep 5": "sleep 5",
    "a minute of gzip": "timeout 60 sh -c 'while gzip -c /bin/busybox; do :; done'"
    " >/dev/null",
    "a minute of system calls": "timeout 60 dd if=/dev/zero of=/dev/null bs=1"
    " 2>/dev/null",
}


class Terminal:
    """The guest at a terminal, and somebody who types."""

    def __init__(self, log: Path) -> None:
        self.keyboard, line = pty.openpty()
        emu86 = [sys.executable, "-m", "emu86", "run", "--append", "console=ttyS0"]
        kernel = ["--kernel", GUESTS / "vmlinuz", "--initrd", GUESTS / "initrd.cpio"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*emu86, *map(str, kernel)], stdin=line, stdout=line, stderr=errors
            )
        self.shown = b""

    def wait_for(self, text: bytes) -> None:
        """Read on until `text` is shown."""
        while text not in self.shown:
            ready, _, _ = select.select([self.keyboard], [], [], 300)
            if not ready:
                sys.exit(f"no {text!r} in {self.shown[-500:]!r}")
            self.shown += os.read(self.keyboard, 4096)
        self.shown = self.shown.partition(text)[2]

    def clocks(self) -> tuple[float, float]:
        """Return the guest's uptime and the host's clock, in seconds."""
        os.write(self.keyboard, READ)
        self.wait_for(b"\nT=")
        host = time.monotonic()
        while b"=" not in self.shown:
            self.shown += os.read(self.keyboard, 4096)
        uptime, _, self.shown = self.shown.partition(b"=")
        self.wait_for(b"emu86# ")
        return float(uptime), host

    def do(self, command: str) -> None:
        """Have the shell do a command."""
        os.write(self.keyboard, command.encode() + b"\r")
        self.wait_for(b"\n")
        self.wait_for(b"emu86# ")


def measure(terminal: Terminal) -> bool:
    """Print a line for each case; tell whether all are near enough."""
    near = True
    terminal.wait_for(b"emu86# ")
    terminal.do("stty cols 999; dmesg -n 1")
    for name, command in CASES.items():
        guest, host = terminal.clocks()
        terminal.do(command)
        guest_after, host_after = terminal.clocks()
        passed, real = guest_after - guest, host_after - host
        off = passed - real
        print(
            f"{name:25} guest {passed:7.2f} s  host {real:7.2f} s  {1000 * off:+.0f} ms"
        )
        near &= abs(off) < 0.05 + 0.01 * real
    return near


def main() -> int:
    """Measure, with a busy process beside."""
    with (
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy,
        tempfile.TemporaryDirectory() as folder,
    ):
        terminal = Terminal(Path(folder) / "errors")
        try:
            return 0 if measure(terminal) else 1
        finally:
            terminal.process.kill()
            busy.kill()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(main())
