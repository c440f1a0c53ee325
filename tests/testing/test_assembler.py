"""`emu86.testing.asm`: nasm's words, and what a caller gets wrong."""

import shutil

import pytest

from emu86.testing import State, asm, run, stage

if shutil.which("nasm") is None:
    pytest.skip("nasm is not installed", allow_module_level=True)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("mov eax, 1", "b801000000"),
        ("cli; hlt", "faf4"),
        ("cli ; no comment: a line of its own\nhlt", "faf4"),
        ("popf; iret; push cs", "9dcf0e"),
        ("call far [eax]; jmp 8:0x1000", "ff18 ea001000000800"),
        ("l: jmp short l; dd l", "ebfe 00000400"),
        ("", ""),
    ],
)
def test_code(text, code):
    assert asm(text) == bytes.fromhex(code)


def test_where_and_how_wide():
    assert asm("dd $", 0x1000) == b"\0\x10\0\0"
    assert asm("mov ax, 1", bits=16) == b"\xb8\1\0"
    assert asm("mov rax, cr3", bits=64) == b"\x0f\x20\xd8"


def test_it_runs_where_a_program_stands():
    outcome = run(asm("mov ebx, [word_]; cli; hlt; word_: dd 42"), State(limit=1))
    assert (outcome.end, outcome.registers["ebx"]) == ("halted", 42)
    assert outcome.registers["eip"] == stage.CODE + 8


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("foo bar",), ValueError, "assembly: line 1: .*instruction expected"),
        (("nop; mov eax, x",), ValueError, "assembly: line 2: symbol `x' not defined"),
        (("\n\nmov eax, [",), ValueError, "assembly: line 3: "),
        ((b"nop",), TypeError, "text: b'nop' is of type bytes, not str"),
        (("nop", -1), ValueError, "at: -1 is below 0"),
        (("nop", 0, 8), ValueError, "bits: 8 is not 16, 32 or 64"),
    ],
)
def test_mistakes(arguments, kind, message):
    with pytest.raises(kind, match=message):
        asm(*arguments)


def test_without_nasm(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"nasm is not installed \(on Debian: apt"):
        asm("nop; nop; nop")
