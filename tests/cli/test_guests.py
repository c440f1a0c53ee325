"""Real guests on the real machine, by the real command."""

import lzma
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

GUESTS = Path(__file__).parents[2] / "build" / "guests"
EMU86 = [sys.executable, "-m", "emu86", "run"]
PROMPT = b"emu86# "
PATIENCE = 120


class Session:
    """A guest, and somebody who reads what it shows and types what it asks for."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [*EMU86, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.shown = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def until(self, text):
        """Read on until `text` is shown; return what was shown before it."""
        end = time.monotonic() + PATIENCE
        output = self.process.stdout.fileno()
        while text not in self.shown:
            ready, _, _ = select.select([output], [], [], end - time.monotonic())
            assert ready, f"no {text} in {self.shown[-2000:]!r}"
            more = os.read(output, 65536)
            assert more, f"ended without {text}: {self.shown[-2000:]!r}"
            self.shown += more
        before, _, self.shown = self.shown.partition(text)
        return before.decode()

    def type(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def do(self, command):
        """Have the shell do `command`; return what it shows, its echo left away."""
        self.type(command)
        return self.until(PROMPT).partition("\n")[2]

    def end(self):
        """Wait for the end; return the exit status and the last words."""
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err.decode().splitlines()[-1]


def test_the_teaching_kernel_runs_its_script():
    result = subprocess.run(
        EMU86,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0
    assert b"checks passed" in result.stdout
    assert b"FAIL" not in result.stdout
    assert b"the guest powered off" in result.stderr


@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_the_teaching_kernel_has_a_prompt(technique):
    with Session("--append", "prompt", "--technique", technique) as session:
        session.until(b"> ")
        session.type("help")
        session.until(b"> ")
        session.type("poweroff")
        assert session.end()[0] == 0


@pytest.fixture
def linux():
    """Give the options for Debian's kernel with an interactive initramfs."""
    kernel, initrd = GUESTS / "vmlinuz", GUESTS / "initrd.cpio"
    if not kernel.exists():
        assert not os.environ.get("CI"), "tools/fetch_guests.py has not run"
        pytest.skip("no guests: run tools/fetch_guests.py")
    return ("--kernel", kernel, "--initrd", initrd, "--append", "console=ttyS0")


@pytest.mark.guest
@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_linux(linux, technique):
    with Session(*linux, "--technique", technique, "--memory", "256M") as session:
        session.until(PROMPT)
        assert "hello 3" in session.do("echo hello $((1+2))")
        shown = session.do("ldt; sigs; userio")
        for program in ("ldt", "tls", "signals", "userio"):
            assert f"{program}-ok" in shown
        storm = (
            "i=0; while [ $i -lt 1000 ]; do busybox true || echo bad; i=$((i+1)); done"
        )
        assert "bad" not in session.do(storm)
        session.do("dd if=/dev/zero of=/tmp/f bs=1M count=64")
        # SHA-256 of 64 MiB of zeros
        digest = "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"
        assert digest in session.do("sha256sum /tmp/f")
        trouble = session.do("dmesg | grep -E 'Oops|BUG:|WARNING:|Call Trace'")
        assert not any(word in trouble for word in ("Oops:", "[ cut here ]", "Call"))
        session.type("poweroff -f")
        session.until(b"reboot: ")
        assert session.end()[0] == 0


@pytest.mark.guest
def test_linux_reboots(linux):
    with Session(*linux) as session:
        session.until(PROMPT)
        session.type("reboot -f")
        status, words = session.end()
        assert status == 0
        assert "reset" in words


@pytest.mark.guest
def test_vmlinux(linux, tmp_path):
    image = linux[1].read_bytes()
    # setup_sects, payload_offset and payload_length of the boot protocol
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start:][: int.from_bytes(image[0x24C:0x250], "little")]
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(lzma.LZMADecompressor().decompress(payload))
    with Session("--kernel", vmlinux, *linux[2:]) as session:
        assert "Linux version" in session.until(b"Kernel command line: console=ttyS0")
        session.until(b"Freeing initrd memory: 2")


@pytest.mark.guest
def test_until_the_prompt(linux):
    command = [*EMU86, *linux, "--until", "GUEST-READY"]
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0
    assert result.stdout.endswith(b"GUEST-READY")
