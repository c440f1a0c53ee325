"""Test vectors of a processor in MOO files: what passes, and what is said of the rest.

The results are the SDM's: Vol. 2A and 2B, each instruction's "Operation" and "Flags".
"""

import gzip
import subprocess
import sys

import pytest

from emu86.testing import moo
from emu86.testing.real_mode import RealMode
from support.moo import file, masks, vector

CS, IP = 0x1234, 0x100
CODE = CS * 16 + IP
STATE = {
    "eax": 0, "ebx": 0, "ecx": 0, "edx": 0, "cs": CS, "ss": 0x2000, "ds": 0x3000,
    "es": 0x4000, "esp": 0x800, "ebp": 0, "esi": 0, "edi": 0, "eip": IP, "eflags": 2,
}  # fmt: skip
HLT = 0xF4


def case(index, name, code, then, *, ram=(), after=(), wide=False, **state):
    """A vector: its code at CS:IP, and HLT behind it, where it ends."""
    code = bytes.fromhex(code)
    memory = {CODE + i: byte for i, byte in enumerate((*code, HLT))} | dict(ram)
    then = {"eip": IP + len(code) + 1} | then
    mask, exception = state.pop("mask", None), state.pop("exception", None)
    return vector(
        index,
        name,
        (STATE | state, memory),
        (then, dict(after)),
        wide=wide,
        mask=mask,
        exception=exception,
    )


WIDE = dict.fromkeys(("cr0", "cr3", "fs", "gs", "dr6", "dr7"), 0)
GOOD = (
    case(0, "add ax, bx", "01d8", {"eax": 0x8000, "eflags": 0x896}, eax=0x7FFF, ebx=1),
    case(1, "movsb", "a4", {"esi": 0x11, "edi": 0}, ram={0x30010: 0x5A},
         after={0x4FFFF: 0x5A}, esi=0x10, edi=0xFFFF),
    case(2, "pop es", "07", {"es": 0xBEEF, "esp": 0x802},
         ram={0x20800: 0xEF, 0x20801: 0xBE}),
    case(3, "in al, dx", "ec", {"eax": 0xFF}, edx=0x300),
)  # fmt: skip
# Division by zero: to the handler at 0050:0010, which is HLT; the flags are undefined.
FAULT = case(
    0, "div bl", "f6f3",
    {"eip": 0x11, "cs": 0x50, "esp": 0x7FA},
    ram={0: 0x10, 1: 0, 2: 0x50, 3: 0, 0x510: HLT},
    after={0x207FA: IP & 0xFF, 0x207FB: IP >> 8, 0x207FC: CS & 0xFF, 0x207FD: CS >> 8,
           0x207FE: 0xD7, 0x207FF: 0x08},
    exception=(0, 0x207FE),
)  # fmt: skip
INC = case(
    0, "inc eax", "6640", {"eax": 0, "eflags": 0x56}, wide=True, eax=0xFFFFFFFF, **WIDE
)
# AND leaves AF undefined: here a processor has set it.
AND = case(
    1, "and ax, bx", "21d8", {"eax": 0x10, "eflags": 0x12}, eax=0x30, ebx=0x11,
    mask={"eflags": 0xFFEF},
)  # fmt: skip
WRONG = case(7, "nop", "90", {"eax": 0x1234})


@pytest.mark.parametrize("technique", ["bare", "trap", "patch", "iopl"])
def test_vectors(technique, tmp_path):
    files = {
        "00.MOO": file(*GOOD),
        "F6.6.MOO": file(FAULT, extra=masks({"eflags": 0xF702})),
        "6640.moo": file(INC, AND),
        "90.moo": file(WRONG, GOOD[0]),
    }
    machine = RealMode(technique)
    found = {}
    for name, data in files.items():
        tmp_path.joinpath(f"{name}.gz").write_bytes(gzip.compress(data))
        form = moo.run(tmp_path / f"{name}.gz", machine)
        found[form.name] = form.passed, form.masked, form.failed, form.first
    assert found == {
        "00": (4, 0, 0, ""),
        "F6.6": (0, 1, 0, ""),
        "6640": (1, 1, 0, ""),
        "90": (1, 0, 1, "test 7, nop: eax 0, not 1234"),
    }


@pytest.mark.parametrize(
    ("vectors", "line"),
    [
        (case(0, "a", "07", {"es": 1, "esp": 0x802}), "es 0, not 1"),
        (case(0, "a", "90", {}, after={5: 1}), "memory at 5 00, not 01"),
        (case(0, "a", "ebfe", {}), "it does not halt: budget"),
        (case(0, "a", "f9", {}), "eflags 1, not 0"),
    ],
)  # fmt: skip
def test_what_fails(vectors, line, tmp_path):
    path = tmp_path / "a.moo"
    path.write_bytes(file(vectors))
    form = moo.run(path, RealMode())
    assert (form.failed, form.first) == (1, f"test 0, a: {line}")


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "emu86.testing.moo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_command(tmp_path):
    tmp_path.joinpath("00.moo").write_bytes(file(*GOOD))
    head = "form         pass masked   fail\n"
    assert command(tmp_path) == (0, f"{head}00              4      0      0\n", "")
    tmp_path.joinpath("90.MOO").write_bytes(file(WRONG))
    status, shown, _ = command(tmp_path, "--most", 1, "--technique", "patch")
    assert status == 1
    assert shown.endswith(
        "00              1      0      0\n"
        "90              0      0      1  test 7, nop: eax 0, not 1234\n"
    )


def test_mistakes(tmp_path):
    whole = file(*GOOD)
    for name, data, line in (
        ("cut", whole[:-3], "it ends inside of a chunk"),
        ("header", whole + b"TES", "it ends inside of a chunk's header"),
        ("other", b"ELF", "it is no MOO file"),
        ("short", file(b"TEST\2\0\0\0ab"), "a chunk is not as long as it has to be"),
        ("bare", file(vector(3, "a", ({}, {}), ({}, {}))), "test 3 does not say all"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(moo.MooError, match=line) as told:
            moo.read(path)
        assert str(told.value).startswith(str(path))
    for data in (b"MOO ", gzip.compress(whole)[:40]):
        path = tmp_path / "a.gz"
        path.write_bytes(data)
        with pytest.raises(moo.MooError, match=r"a\.gz: "):
            moo.read(path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "moo: nowhere: no such folder\n"),
        ([".", "--technique", "x"], "x"),
        ([".", "--cpu", "z80"], "z80"),
        ([".", "--most", "0"], "--most"),
        ([], "FOLDER"),
    ],
)
def test_mistakes_of_the_command(arguments, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("00.moo").write_bytes(file(*GOOD))
    status, shown, error = command(*arguments)
    assert (status, shown, error.count("\n")) == (2, "", 1)
    assert line in error


def test_an_empty_folder(tmp_path):
    assert command(tmp_path)[::2] == (2, f"moo: {tmp_path}: has no MOO file\n")
