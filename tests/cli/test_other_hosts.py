"""Hosts that are no x86-64 Linux: `support/another_host.py` plays them.

That shows what emu86 asks for and may not have. It does not show that Unicorn's library
is the same there.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from emu86 import ConfigError
from emu86.cpu import probe
from emu86.cpu.library import Abilities
from support import another_host
from support.assembler import assemble
from support.flat import send

# A Multiboot kernel that says "ok" and ends with the debug exit.
KERNEL = f"""
bits 32
org 0x100000
mb: dd 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000), mb, mb, end, end, entry
entry:
    {send(b"ok")}
    mov al, 0
    out 0xf4, al
    jmp $
end:
"""


def run(system, *arguments):
    return subprocess.run(
        [sys.executable, another_host.__file__, system, *arguments],
        input=b"!",
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("system", ["windows", "macos", "aarch64"])
def test_a_run_without_a_terminal(system, tmp_path):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(assemble(KERNEL))
    done = run(system, "run", "--debug-exit", str(kernel))
    assert done.stdout == b"ok", done.stderr.decode()
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"emu86: compiled code: it needs x86-64 Linux")
    assert done.stderr.count(b"CPython handles all exits, slowly\n") == 1


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_mistakes_there(system, tmp_path):
    missing = run(system, "run", "--kernel", str(tmp_path / "none"))
    assert missing.returncode == 2
    assert b"standard output" not in missing.stderr
    told = missing.stderr.splitlines()
    assert [line for line in told if b"CPython handles" not in line] == told[-1:]


def test_another_machine_code_has_the_public_api_alone(monkeypatch):
    assert probe.probe().live
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert probe.probe() == Abilities.none()


def test_no_proc_no_live_state(monkeypatch):
    def refuse(path, *_arguments, **_options):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert probe.probe() == Abilities.none()


def test_another_layout_is_refused_in_one_line(monkeypatch):
    """Of what uc_context_save saves: nothing can be done without it."""
    monkeypatch.setattr("emu86.cpu.offsets.CR", 8)
    with pytest.raises(ConfigError, match="^unicorn: this build keeps"):
        probe.probe()


def test_an_error_of_the_host_is_not_standard_outputs(monkeypatch, capfd):
    from emu86 import cli

    def fail(_context):
        raise FileNotFoundError(2, "No such file or directory", "/somewhere")

    monkeypatch.setattr(cli.commands, "invoke", fail)
    monkeypatch.setattr(sys, "argv", ["emu86", "exits"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capfd.readouterr().err == (
        "emu86: [Errno 2] No such file or directory: '/somewhere'\n"
    )
