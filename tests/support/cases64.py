"""Many small cases in 64-bit and compatibility mode, as `cases` has them in 32 bits.

Each starts in the same state, at the ring and in the mode that it asks for, and ends
with the first exception or interrupt, which is INT 40h if nothing else comes.
"""

import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from emu86 import Machine
from support.assembler import assemble
from support.cases import LOG, MEMORY

RECORD = 512
CPU = "n270,+lm,+syscall,+nx,+cx16,-apic"
_GUEST = Path(__file__).with_suffix(".asm").read_text()
_STACKS = (0x220000, 0x228000, 0x230000, 0x238000)
_CODE = {64: (0x08, 0x19, 0x2A, 0x3B), 32: (0x68, 0, 0, 0x83)}
_DATA = (0x10, 0x21, 0x32, 0x43)
_GPRS = (
    "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rdi", "rsi", "rbp", "rbx",
    "rdx", "rcx", "rax",
)  # fmt: skip
_FIELDS = (
    "ss after", "gs", "fs", "es", "ds", *_GPRS, "vector", "error", "rip", "cs",
    "rflags", "rsp", "ss", "tr", "ldtr", "cr0", "cr2", "cr3", "cr4", "efer",
    "fs base", "gs base", "kernel gs base", "rsp after",
)  # fmt: skip
_SELECTORS = ("ss after", "gs", "fs", "es", "ds", "cs", "ss", "tr", "ldtr")
_SCRATCH = 16


@dataclass(frozen=True)
class Case:
    """One piece of code: its name, assembly, ring, mode, and RFLAGS to start with."""

    name: str
    code: str
    ring: int = 0
    bits: int = 64
    flags: int = 0x2


def image(cases, *, cr0=0x80010031, cr4=0x20):
    """The guest for these cases."""
    table = "".join(
        f"dq case_{i}\ndw {_DATA[case.ring]}, {_CODE[case.bits][case.ring]}, 0, 0\n"
        f"dq {_STACKS[case.ring]}, {case.flags:#x}\n"
        for i, case in enumerate(cases)
    )
    code = "".join(
        f"bits {case.bits}\ncase_{i}:\n{case.code}\nint 0x40\n"
        for i, case in enumerate(cases)
    )
    return assemble(
        _GUEST.format(
            log=LOG, record=RECORD, count=len(cases), table=table, code=code,
            cr0=cr0, cr4=cr4,
        )
    )  # fmt: skip


def records(raw, count):
    """The registers and the scratch memory of each record of a log."""
    found = []
    for i in range(count):
        words = struct.unpack_from("<64Q", raw, i * RECORD)
        record = dict(zip(_FIELDS, words, strict=False))
        for name in _SELECTORS:
            record[name] &= 0xFFFF
        at = len(_FIELDS)
        record["scratch"] = words[at : at + _SCRATCH]
        found.append(record)
    return found


def on_emu86(cases, *, cpu="atom", options=None, **setup):
    """The records of these cases under emu86."""
    built = Machine(memory=MEMORY, debug_exit=True, cpu=cpu, **options or {})
    built.load_kernel(image(cases, **setup))
    stop = built.run(timeout=300)
    assert stop.reason == "debug exit", stop
    return records(built.read_physical(LOG, len(cases) * RECORD), len(cases))


@cache
def on_qemu(cases, *, has="", **setup):
    """The records of these cases on QEMU's own CPU; skips the test without QEMU.

    has: more of the CPU's features, in QEMU's words.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    with tempfile.TemporaryDirectory() as folder:
        kernel, log = Path(folder, "kernel"), Path(folder, "log")
        kernel.write_bytes(image(cases, **setup))
        command = [qemu, "-M", "isapc", "-cpu", CPU + has, "-m", "16"]
        command += ["-display", "none", "-no-reboot", "-kernel", kernel]
        command += ["-debugcon", f"file:{log}", "-serial", "null", "-monitor", "none"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        subprocess.run(["timeout", "20", *command], check=False, capture_output=True)
        raw = log.read_bytes()
    assert len(raw) == len(cases) * RECORD, "QEMU's guest did not reach its end"
    return records(raw, len(cases))


def differences(cases, ours, theirs, ignore=(), *, hidden=0):
    """What is not the same in two lists of records, one line for each.

    QEMU sets no RF in the flags that a fault pushes. hidden: bits of RAX and RFLAGS
    that may differ.
    """
    lines = []
    masks = {"rflags": ~(0x10000 | hidden), "rax": ~hidden}
    for case, our, their in zip(cases, ours, theirs, strict=True):
        if our["scratch"] != their["scratch"]:
            left, right = ([f"{v:x}" for v in r["scratch"]] for r in (our, their))
            lines.append(f"{case.name}: scratch {left}, not {right}")
        lines += [
            f"{case.name}: {name} {our[name]:#x}, not {their[name]:#x}"
            for name in _FIELDS
            if name not in ignore and (our[name] ^ their[name]) & masks.get(name, -1)
        ]
    return lines
