"""Real guests on the real machine, by the real command."""

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time

import pytest

from support.places import child
from support.shell import APPEND, INITRD, KERNEL

EMU86 = [sys.executable, "-m", "emu86", "run"]
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
    return ("--kernel", KERNEL, "--initrd", INITRD, "--append", APPEND)


@pytest.mark.guest
def test_linux_reboots(linux):
    with Session(*linux) as session:
        session.until(b"emu86# ")
        session.type("reboot -f")
        status, words = session.end()
        assert status == 0
        assert "reset" in words


@pytest.mark.guest
@pytest.mark.parametrize(
    "technique", ["patch", pytest.param("iopl", marks=pytest.mark.slow)]
)
def test_linux_in_a_terminal(linux, technique):
    """What is typed key by key, at a terminal, to the very end."""
    keyboard, line = pty.openpty()
    before = termios.tcgetattr(line)
    with subprocess.Popen(
        [*EMU86, *linux, "--technique", technique],
        stdin=line,
        stdout=line,
        stderr=line,
        start_new_session=True,
    ) as process:
        screen = b""

        def see(text):
            nonlocal screen
            end = time.monotonic() + PATIENCE
            while text not in screen:
                wait = max(end - time.monotonic(), 0)
                ready, _, _ = select.select([keyboard], [], [], wait)
                assert ready, f"no {text} in {screen[-2000:]!r}"
                screen += os.read(keyboard, 4096)
            screen = screen.partition(text)[2]

        def type_(text):
            for key in text:
                os.write(keyboard, bytes([key]))
                see(bytes([key]))
            os.write(keyboard, b"\r")

        try:
            see(b"emu86# ")
            type_(b"echo 6 times 7 is $((6*7))")
            see(b"\n6 times 7 is 42\r\n")
            see(b"emu86# ")
            type_(b"(sleep 1; echo now) & sleep 1000000")
            see(b"\nnow\r\n")
            os.write(keyboard, b"\x03")
            see(b"emu86# ")
            type_(b"poweroff -f")
            see(b"reboot: System halted")
            see(b"the guest halted")
            assert process.wait(PATIENCE) == 0
            assert termios.tcgetattr(line) == before
        finally:
            process.kill()
            os.close(keyboard)
            os.close(line)


@pytest.mark.guest
def test_until_the_prompt_and_what_memory_that_takes(linux, tmp_path):
    told = tmp_path / "memory"
    words = ["--technique", "iopl", "--until", "GUEST-READY", "--memory", "512M"]
    command, env = child("memory", told, "run", *linux, *words)
    result = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0
    assert result.stdout.endswith(b"GUEST-READY")
    memory = json.loads(told.read_text())
    assert 20 < memory["ram"] < 80  # what the guest has touched of it
    assert memory["peak"] - memory["ram"] < 100


@pytest.mark.slow
@pytest.mark.guest
def test_linux_without_a_root_panics():
    result = subprocess.run(
        [*EMU86, "--kernel", KERNEL, "--append", APPEND, "--timeout", str(PATIENCE)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert result.returncode == 4
    assert result.stdout.splitlines()[-1].endswith(b" on unknown-block(0,0) ]---")
    *report, last = result.stderr.decode().splitlines()
    why = "not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    assert last.startswith(f"emu86: the guest's kernel panicked ({why}), after ")
    assert len(report) < 24
    assert report[0].startswith("the last exceptions: ")
    assert any(line.startswith("> c") for line in report)
