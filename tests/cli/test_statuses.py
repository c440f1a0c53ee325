"""The exit status of `emu86 run` and what it says, by small guests of its own."""

import json
import os
import re
import time

import pytest

from emu86 import Machine
from emu86.cli import commands
from support.assembler import assemble

_POWEROFF = "mov dx, 0x604\nmov ax, 0x2000\nout dx, ax\njmp $\n"
_TRIPLE_FAULT = "lidt [none]\nint3\nnone: dw 0, 0, 0\n"
_RESET = "mov al, 0xfe\nout 0x64, al\njmp $\n"
_PANIC = 'text "[    2.4] ---[ end Kernel panic - not syncing: x ]---"\n'
_PANIC_N = 'text "[    2.4] Kernel panic - not syncing: x"\n'

_HEADER = """
bits 32
org 0x100000
header:
    dd 0x1BADB002, 1 << 16, -(0x1BADB002 + (1 << 16))
    dd header, header, end, end, start
%macro text 1
    mov esi, %%text
%%next:
    lodsb
    mov dx, 0x3f8
    out dx, al
    test al, al
    jnz %%next
    jmp %%over
%%text: db %1, 10, 0
%%over:
%endmacro
start:
"""


@pytest.fixture
def emu86(tmp_path, capfd):
    """Run a guest by the command line: its status, output and last words."""

    def run(code, *options):
        kernel = tmp_path / "kernel"
        kernel.write_bytes(assemble(_HEADER + code + "\nend:\n"))
        words = ["run", "--kernel", os.fspath(kernel), "--memory", "2M"]
        status = commands.main([*words, *options], standalone_mode=False)
        out, err = capfd.readouterr()
        *report, last = err.splitlines()
        run.report = "\n".join(report)
        return status or 0, out, last.removeprefix("emu86: ")

    return run


@pytest.mark.parametrize(
    ("code", "options", "status", "words"),
    [
        (_POWEROFF, "", 0, "the guest powered off (by port 604h)"),
        ("cli\nhlt", "", 0, "the guest halted (at 0010:00100022, interrupts off)"),
        (_RESET, "", 0, "the guest reset the machine (by the keyboard controller)"),
        ("mov al, 1\nout 0x92, al\njmp $", "", 0, "the guest reset the machine"),
        (_TRIPLE_FAULT, "", 4, "the guest reset the machine by a triple fault"),
        (_PANIC + "jmp $", "", 4, "the guest's kernel panicked (not syncing: x)"),
        (_PANIC_N + _RESET, "", 4, "the guest's kernel panicked (not syncing: x)"),
        (_PANIC_N + _RESET, "--on-reset reboot", 4, "the guest's kernel panicked"),
        (_PANIC_N + _RESET, "--keep-going", 0, "the guest reset the machine"),
        (_PANIC_N + _TRIPLE_FAULT, "--until hi", 4, "the guest's kernel panicked"),
        ("jmp $", "--timeout 0.01", 3, "the time is over"),
        ('text "hi"\njmp $', "--until hi", 0, "the console has shown 'hi'"),
        (_POWEROFF, "--until hi", 3, "the guest powered off"),
        ("cli\nhlt", "--until hi", 3, "the guest halted"),
        (_RESET, "--until hi", 3, "the guest reset the machine"),
        (_TRIPLE_FAULT, "--until hi", 4, "the guest reset the machine by a triple"),
        (_PANIC + "jmp $", "--until hi", 4, "the guest's kernel panicked"),
        (_PANIC + "jmp $", "--until panic", 0, "the console has shown 'panic'"),
        ("jmp $", "--until hi --timeout 0.01", 3, "the time is over"),
    ],
)
def test_how_a_run_ends(emu86, code, options, status, words):
    found, _, last = emu86(code, *options.split())
    assert (found, last[: len(words)]) == (status, words)
    died = words.split(" (")[0].endswith(("fault", "triple", "panicked"))
    assert bool(emu86.report) == died, "others get their one line"
    assert emu86.report.count("\n") < 32


def test_a_triple_fault_says_why(emu86):
    emu86("lidt [none]\nmov eax, 0x100\nmov ds, eax\nnone: dw 0, 0, 0")
    chain = " ".join(emu86.report.split())
    assert " mov ds, ax: beyond the GDT's limit 1Fh → #DF: IDT" in chain
    assert "\n> 00100" in emu86.report


def test_who_runs_in_zeros_until_the_time_is_over_is_told(emu86):
    status, _, last = emu86("call 0x180000", "--timeout", "0.5")
    assert (status, last[:16]) == (3, "the time is over")
    assert "a jump into nothing: zeros at EIP" in emu86.report


@pytest.mark.parametrize(
    ("out", "options", "status"),
    [
        ("mov al, 0\nout 0xf4, al", "--debug-exit", 0),
        ("mov al, 5\nout 0xf4, al", "--debug-exit", 5),
        ("mov eax, 0x1234\nout 0xf4, ax", "--debug-exit", 0x34),
        ("mov eax, -2\nout 0xf4, eax", "--debug-exit", 0xFE),
        ("mov al, 0\nout 0xf4, al", "--debug-exit --until hi", 3),
        ("mov al, 0\nout 0xf4, al", "--debug-exit-qemu", 1),
        ("mov al, 0x10\nout 0xf4, al", "--debug-exit-qemu", 33),
        ("mov eax, 0x11\nout 0xf4, eax", "--debug-exit-qemu", 35),
        ("mov ax, 0x1234\nout 0xf4, ax", "--debug-exit-qemu", 0x69),
        ("mov al, 0x10\nout 0xf4, al", "--debug-exit-qemu --until hi", 3),
        (_TRIPLE_FAULT, "--debug-exit", 4),
        (_TRIPLE_FAULT, "--debug-exit-qemu", 4),
    ],
)
def test_debug_exit(emu86, out, options, status):
    assert emu86(out + "\njmp $", *options.split())[0] == status


def test_without_debug_exit_there_is_no_such_port(emu86):
    assert emu86("mov al, 7\nout 0xf4, al\n" + _POWEROFF)[0] == 0


@pytest.mark.parametrize("how", [_RESET, _TRIPLE_FAULT])
def test_a_reboot_starts_the_kernel_anew(emu86, how):
    code = f'text "hello"\n{how}'
    status, out, last = emu86(code, "--on-reset", "reboot", "--timeout", "0.5")
    assert status == 3
    assert out.count("hello") > 1
    assert last.startswith("the time is over, after 0.")
    status, out, _ = emu86(code, "--on-reset", "exit")
    assert out.count("hello") == 1


def test_the_time_of_reboots_is_told_of_too(emu86, monkeypatch):
    clock, reset = time.monotonic, Machine.reset
    late = []

    def slow_reset(machine):
        late.append(100)
        reset(machine)

    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(late))
    monkeypatch.setattr(Machine, "reset", slow_reset)
    status, _, last = emu86(_RESET, "--on-reset", "reboot", "--timeout", "150")
    assert status == 3
    assert re.match(
        r"the time is over, after 2\d\d\.\d s, 2 reboots and \d+ exits", last
    )


def test_who_keeps_going_outlives_a_panic(emu86):
    code = f'{_PANIC}text "more"\n{_POWEROFF}'
    status, out, _ = emu86(code, "--keep-going")
    assert status == 0
    assert "more" in out


@pytest.mark.parametrize(
    ("code", "options", "told"),
    [
        ("mov al, 4\nout 0xf4, al", "--debug-exit", (4, "debug exit", 4, "")),
        (_PANIC, "", (4, "panic", 0, "not syncing: x")),
        (_POWEROFF, "--until x", (3, "poweroff", 0, "by port 604h")),
        ("jmp $", "--timeout 0.01", (3, "timeout", 0, "")),
    ],
)
def test_json_tells_equal_statuses_apart(emu86, tmp_path, code, options, told):
    path = tmp_path / "json"
    emu86(code + "\njmp $", *options.split(), "--stats-json", str(path))
    found = json.loads(path.read_text())
    assert tuple(map(found.get, ("status", "stop", "code", "detail"))) == told
    assert found["wall_s"] > 0
