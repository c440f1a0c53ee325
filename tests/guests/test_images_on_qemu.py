"""The kernels on a machine that is not ours: QEMU, where ring 0 is ring 0.

What a kernel claims here it must also claim under emu86.
"""

import shutil
import subprocess
from collections.abc import Iterator
from typing import Self

import pytest

from emu86 import images

QEMU = shutil.which("qemu-system-i386")
SECONDS = 60  # a kernel that hangs is killed then

pytestmark = pytest.mark.skipif(
    QEMU is None, reason="qemu-system-i386 is not installed"
)


class Guest:
    """One run of a kernel; its console is a pair of pipes.

    It is killed at the end: the ISA PC has nothing that switches it off.
    """

    def __init__(self, name: str, command_line: str = "") -> None:
        assert QEMU is not None
        command = [QEMU, "-M", "isapc", "-cpu", "pentium3,-apic", "-m", "16"]
        command += ["-kernel", str(images.path(name)), "-append", command_line]
        command += ["-display", "none", "-monitor", "none", "-serial", "stdio"]
        self.process = subprocess.Popen(
            ["timeout", str(SECONDS), *command, "-no-reboot"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def until(self, end: str) -> str:
        """Everything since the last call, through `end`; what there is if QEMU ends."""
        assert self.process.stdout is not None
        start = len(self.output)
        while end not in self.output[start:]:
            char = self.process.stdout.read(1)
            if not char:
                break
            if char != b"\r":
                self.output += char.decode("latin-1")
        return self.output[start:]

    def type(self, text: str) -> None:
        """Type it, and Enter."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\r".encode())
        self.process.stdin.flush()


@pytest.fixture
def prompt() -> Iterator[Guest]:
    with Guest("teach") as guest:
        assert guest.until("teach> ").endswith("teach> ")
        yield guest


@pytest.fixture(scope="module")
def script() -> str:
    with Guest("teach", "script") as guest:
        return guest.until("powering off\n")


def test_every_check_of_the_script_holds(script: str) -> None:
    lines = script.splitlines()
    checks = [line for line in lines if line.startswith(("ok: ", "WRONG: "))]
    assert not [line for line in checks if line.startswith("WRONG")]
    assert lines[-2:] == [
        f"teach: all {len(checks)} checks passed",
        "teach: powering off",
    ]
    assert len(checks) > 80
    assert max(map(len, lines)) <= 79


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("#GP(0) general protection;", "CLI: "),
        ("#GP(0) general protection;", "HLT: "),
        ("#GP(0) general protection;", "IN AL,DX: "),
        ("#GP(0) general protection;", "MOV EAX,CR0: "),
        ("#GP(10Ah) of IDT gate 21h;", "INT 21h: "),
        ("#PF(7) write, user, protection; CR2=", "write to a kernel page: "),
        ("#PF(4) fetch, user, not present; CR2=40300000", "jump to where nothing"),
        ("#UD undefined opcode;", "UD2: "),
        ("#DE divide error;", "DIV by zero"),
    ],
)
def test_ring_3_is_answered_by_a_fault(script: str, fault: str, claim: str) -> None:
    lines = script.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"ok: {claim}"))
    assert lines[at - 1].startswith(f"  {fault}")
    assert lines[at - 1].endswith("CS=1Bh ring 3")


@pytest.mark.parametrize(
    "line",
    [
        "ok: MOV EAX,CS gives 8h: RPL 0, ring 0",
        "ok: POPF of 0002: EFLAGS 00000002, IF is 0",
        "ok: PTE changed, INVLPG: it leads to the second: 22222222",
        "ok: CR0.WP off: ring 0 may write it, and finds 55555555",
        "ok: a null pointer, read by the kernel",
        "ok: overwritten by another virtual address: returns 3",
    ],
)
def test_ring_0_sees_itself(script: str, line: str) -> None:
    assert line in script.splitlines()


def test_tasks_take_turns(script: str) -> None:
    turns = [line for line in script.splitlines() if " writes line " in line]
    assert turns == [f"  {who} writes line {n}" for n in range(1, 5) for who in "AB"]


def test_prompt_runs_commands_and_edits_lines(prompt: Guest) -> None:
    prompt.type("help")
    assert "  poweroff    switch the machine off\n" in prompt.until("teach> ")
    prompt.type("xx\x15ringq\x7fs")
    assert "teach: all 21 checks passed\n" in prompt.until("teach> ")
    prompt.type("regs")
    assert "PG WP NE ET MP PE\n" in prompt.until("teach> ")
    prompt.type("pages 40010000")
    assert "virtual 40010000 is physical 00" in prompt.until("teach> ")
    prompt.type("pages 0")
    assert "virtual 00000000 is not mapped\n" in prompt.until("teach> ")
    prompt.type("pages 123456789")
    assert "1 to 8 hex digits\n" in prompt.until("teach> ")
    prompt.type("xx\x03regs")  # Ctrl-C
    assert "teach> xx^C\nteach> regs\n" in "teach> " + prompt.until("MP PE\n")
    prompt.until("teach> ")
    prompt.type("x\x1b[A")  # cursor up
    assert "PG WP NE ET MP PE\n" in prompt.until("MP PE\n")
    prompt.until("teach> ")
    prompt.type("tic\x1b[D\x1b[3~\x1bOCks")  # cursor left, Delete, cursor right
    assert "seconds\n" in prompt.until("teach> ")
    prompt.type("frobnicate")
    assert "no such command: frobnicate\n" in prompt.until("teach> ")
    prompt.type("all")
    assert "checks passed\n" in prompt.until("teach> ")


def test_an_unexpected_fault_is_dumped(prompt: Guest) -> None:
    prompt.type("fault")
    text = prompt.until("CR4=")
    assert "#PF(0) read, kernel, not present; CR2=40300000" in text
    assert "EIP=" in text


@pytest.mark.parametrize("command", ["triple", "reboot"])
def test_reset_ends_the_run(prompt: Guest, command: str) -> None:
    prompt.type(command)
    prompt.until("(nothing says this)")
    assert prompt.process.wait() == 0  # -no-reboot


def test_spin_computes_its_checksum() -> None:
    with Guest("spin", "1") as guest:
        text = guest.until("checksum FF19C74A\n")
    assert text == (
        "spin: 1 million iterations in ring 3\nspin: done, checksum FF19C74A\n"
    )


def test_exits_goes_through_its_series() -> None:
    with Guest("exits", "100") as guest:
        lines = guest.until("section end 0\n").splitlines()
    assert [line.split() for line in lines] == [
        *(["section", name, "100"] for name in SERIES),
        ["section", "end", "0"],
    ]


def test_exits_goes_through_one_series() -> None:
    with Guest("exits", "only=in 7") as guest:
        assert guest.until("section end 0\n").split()[:3] == ["section", "in", "7"]


SERIES = (
    "nothing",
    "cli_sti",
    "mov_from_cr0",
    "mov_to_cr3",
    "invlpg",
    "in",
    "out",
    "pushf_popf",
    "int80_ring0",
    "int80_ring3",
    "sgdt",
    "cpuid",
    "rdtsc",
    "callret",
    "page_fill",
    "ptemod",
    "pgfault",
    "divzero",
)
