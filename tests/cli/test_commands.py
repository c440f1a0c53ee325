"""What needs no machine."""

import os
import re
import subprocess
import sys

import pytest

from emu86 import ConfigError

pytestmark = pytest.mark.not_quick


def emu86(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "emu86", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"]])
def test_help(arguments):
    result = emu86(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: emu86" in result.stdout


def test_help_has_a_line_for_each_status():
    lines = emu86("run", "--help").stdout.splitlines()
    statuses = [line.split()[0] for line in lines if re.match("  [0-9N]", line)]
    assert statuses == ["128+n", "3", "0", "4", "1", "3", "N", "0"]


def test_version():
    assert emu86("--version").stdout == "emu86 0.1.0\n"


def test_help_needs_nothing_heavy():
    program = (
        "import sys; from emu86 import cli; "
        "print(sorted({'numba', 'numpy', 'unicorn', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout == "[]\n"


def test_exits_shows_the_table():
    result = emu86("exits")
    assert result.returncode == 0
    for mnemonic in ("CLI", "POPF", "LGDT", "INS"):
        assert mnemonic in result.stdout


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        (["0f22d8"], ["0f 22 d8  mov cr3, eax", "MOV to CR", "privileged", "#GP(0)"]),
        (["0x9D"], ["popfd", "POPF", "sensitive", "Patched before it first runs"]),
        (["fa", "90"], ["fa  cli", "(then 90, not looked at)"]),
        (["90"], ["Runs natively"]),
    ],
)
def test_explain(code, parts):
    result = emu86("explain", *code)
    assert (result.returncode, result.stderr) == (0, "")
    for part in parts:
        assert part in result.stdout


@pytest.mark.parametrize(
    ("code", "mistake"),
    [
        (["xyz"], "'xyz' is not hexadecimal"),
        (["0f"], "0f is no instruction"),
        (["0fff"], "0f ff is no instruction"),
        ([""], "nothing is no instruction"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_explained(code, mistake):
    result = emu86("explain", *code)
    assert result.returncode == 2
    assert result.stderr.startswith("emu86: ")
    assert mistake in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["exits"], ["explain", "fa"]])
def test_nobody_reads(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "emu86", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert result.stderr == b""


def test_every_record_explains_itself():
    from emu86.cli.explain import explain
    from emu86.rings.insn.table import RECORDS

    for record in RECORDS:
        opcode = record.opcodes[0]
        code = opcode.to_bytes(2, "big").lstrip(b"\0")
        modrm = bytes([(record.reg & 7 if record.reg >= 0 else 0) << 3])
        for operand in (modrm, bytes([modrm[0] | 0xC0])):
            try:
                lines = list(explain(code + operand + bytes(8)))
            except ConfigError:
                continue  # this form, memory or register, does not exist
            assert any(line.startswith(f"{record.mnemonic} (") for line in lines)
            break
        else:
            pytest.fail(f"{record.mnemonic} has no explanation")
