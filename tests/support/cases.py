"""A guest that runs many small pieces of code and writes down how each ended.

The same image runs under emu86 and on QEMU, so QEMU says what must be written down.
Every case starts from the same state: pristine descriptor tables, known registers, at
the ring it asks for. It ends with the first exception or interrupt (INT 40h is put
after it), but for #DB, which are counted and traced.
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
from emu86.cpu.library import Abilities
from support.assembler import assemble

LOG = 0x300000
RECORD = 256
SWEEP = 0x200  # first selector of descriptors that a test gives
MEMORY = 16 << 20
# The rest of a case runs at ring 3.
TO_USER = """
    push dword DATA3
    push dword STACK3
    push dword 2
    push dword CODE3
    push .user
    iretd
    .user:
    mov eax, DATA3
    mov ds, eax
"""


@dataclass(frozen=True)
class Case:
    """One piece of code: its name, assembly, ring, and EFLAGS to start with."""

    name: str
    code: str
    ring: int = 0
    flags: int = 0x2


_FIELDS = (
    "gs", "fs", "es", "ds", "edi", "esi", "ebp", "_", "ebx", "edx", "ecx", "eax",
    "vector", "error", "eip", "cs", "eflags", "esp", "ss", "tr", "ldtr", "cr0", "cr2",
    "cr3", "cr4", "traced",
)  # fmt: skip
_SCRATCH, _TRACE = 16, 20


@dataclass(frozen=True)
class Record:
    """How a case ended: registers at its end, its scratch memory, its trace.

    trace: for each #DB its offset in the case, 16 bits, and DR6's bits above them.
    """

    registers: dict[str, int]
    scratch: tuple[int, ...]
    trace: tuple[int, ...]

    def __getitem__(self, name):
        return self.registers[name]


def descriptor(base, limit, access, flags=0xC):
    """The two doublewords of a descriptor; `flags`: G, D/B, L and AVL."""
    low = limit & 0xFFFF | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | access << 8 | limit & 0xF0000 | flags << 20
    return low, high | base & 0xFF000000


_GUEST = Path(__file__).with_suffix(".asm").read_text()

# All the tables again, for what a case may have done to them.
_PAGING = """
    mov edi, PT
    mov eax, 7
    mov ecx, 2048
.map:
    stosd
    add eax, 4096
    loop .map
    mov edi, PD
    mov eax, PT + 7
    stosd
    add eax, 4096
    stosd
    xor eax, eax
    mov ecx, 1022
    rep stosd
    mov eax, PD
    mov cr3, eax
"""

# The same with PAE and NX: the PDPT at PD, one directory, then four page tables at PT,
# of which cases may change the entry of 703000h alone.
_PAGING_PAE = """
    cmp dword [index], 0
    jne .mapped
    mov edi, PT
    mov eax, 7
    mov ecx, 2048
.map:
    mov [edi], eax
    mov dword [edi + 4], 0
    add edi, 8
    add eax, 4096
    loop .map
.mapped:
    xor eax, eax
    mov dword [PT + 0x703 * 8], 0x703007
    mov dword [PT + 0x703 * 8 + 4], eax
    mov dword [PD], PDE + 1
    mov edi, PD + 4
    mov ecx, 1023
    rep stosd
    mov ecx, 4
.table:
    mov edx, ecx
    shl edx, 12
    lea edx, [edx + PT - 0x1000 + 7]
    mov [PDE - 8 + ecx * 8], edx
    mov [PDE - 4 + ecx * 8], eax
    loop .table
    mov edi, PDE + 32
    mov ecx, 1016
    rep stosd
    mov ecx, 0xC0000080
    mov eax, 0x800
    xor edx, edx
    wrmsr
    mov eax, 0x20
    mov cr4, eax
    mov eax, PD
    mov cr3, eax
"""
_PAGINGS = {False: "", True: _PAGING, "pae": _PAGING_PAE}


def image(cases, *, sweeps=(), paging=False, cr0=0x31, cr4=0):
    """The guest for these cases; `sweeps`: descriptors that stand from SWEEP on.

    paging: in all cases; "pae": with PAE and NX.
    """
    if paging == "pae":
        cr4 |= 0x20
    table = "".join(
        f"dd case_{i}, {case.ring}, {case.flags:#x}, 0\n"
        for i, case in enumerate(cases)
    )
    code = "".join(
        f"case_{i}:\n{case.code}\nint 0x40\n" for i, case in enumerate(cases)
    )
    return assemble(
        _GUEST.format(
            sweep=SWEEP,
            log=LOG,
            record=RECORD,
            count=len(cases),
            table=table,
            code=code,
            cr0=cr0 | (1 << 31 if paging else 0),
            cr4=cr4,
            cr3=0x248000 if paging else 0,
            paging=_PAGINGS[paging],
            tables="PDE equ 0x249000\nPT equ 0x24A000"
            if paging == "pae"
            else "PT equ 0x249000",
            sweeps="".join(f"dd {low:#x}, {high:#x}\n" for low, high in sweeps),
        )
    )


def machine(kernel, **options):
    """A machine with this kernel loaded."""
    built = Machine(**{"memory": MEMORY, "debug_exit": True} | options)
    built.load_kernel(kernel)
    return built


def records(raw, count):
    """The records of a log."""
    found = []
    for i in range(count):
        words = struct.unpack_from("<64I", raw, i * RECORD)
        registers = dict(zip(_FIELDS, words, strict=False))
        for name in ("gs", "fs", "es", "ds", "cs", "ss", "tr", "ldtr"):
            registers[name] &= 0xFFFF
        del registers["_"]
        at = len(_FIELDS)
        traced = min(registers["traced"], _TRACE)
        found.append(
            Record(
                registers,
                words[at : at + _SCRATCH],
                words[at + _SCRATCH : at + _SCRATCH + traced],
            )
        )
    return found


def on_emu86(cases, *, sweeps=(), paging=False, options=None, **setup):
    """The records of these cases under emu86."""
    built = machine(
        image(cases, sweeps=sweeps, paging=paging, **setup), **options or {}
    )
    stop = built.run(timeout=300)
    assert stop.reason == "debug exit", stop
    return records(built.read_physical(LOG, len(cases) * RECORD), len(cases))


@cache
def on_qemu(cases, *, sweeps=(), paging=False, cpu="pentium3,-apic", **setup):
    """The records of these cases on QEMU's own CPU; skips the test without QEMU.

    QEMU 7.2 does not set RF in the flags that a fault pushes. The SDM does (Vol. 3B
    17.3.1.1), and `differences` leaves RF out.
    """
    qemu = shutil.which("qemu-system-i386")
    if qemu is None:
        pytest.skip("qemu-system-i386 is not installed")
    with tempfile.TemporaryDirectory() as folder:
        kernel, log = Path(folder, "kernel"), Path(folder, "log")
        kernel.write_bytes(image(cases, sweeps=sweeps, paging=paging, **setup))
        command = [qemu, "-M", "isapc", "-cpu", cpu, "-m", "16"]
        command += ["-display", "none", "-no-reboot", "-kernel", kernel]
        command += ["-debugcon", f"file:{log}", "-serial", "null", "-monitor", "none"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        command = ["timeout", "20", *command]
        subprocess.run(command, check=False, capture_output=True)
        raw = log.read_bytes()
    assert len(raw) == len(cases) * RECORD, "QEMU's guest did not reach its end"
    return records(raw, len(cases))


def differences(cases, ours, theirs, ignore=(), *, hidden=0):
    """What is not the same in two lists of records, one line for each.

    hidden: bits of EAX and EFLAGS that may differ.
    """
    lines = []
    masks = {"eflags": ~(0x10000 | hidden), "eax": ~hidden}
    for case, our, their in zip(cases, ours, theirs, strict=True):
        for name, value in their.registers.items():
            if name not in ignore and (our[name] ^ value) & masks.get(name, -1):
                lines.append(f"{case.name}: {name} {our[name]:#x}, not {value:#x}")
        for name in ("scratch", "trace"):
            left, right = getattr(our, name), getattr(their, name)
            if name not in ignore and left != right:
                left, right = ([f"{v:x}" for v in values] for values in (left, right))
                lines.append(f"{case.name}: {name} {left}, not {right}")
    return lines


TECHNIQUES = {
    "patch": {},
    "iopl": {"technique": "iopl"},
    "public API only": {"abilities": Abilities.none()},
}


def check(cases, technique, ignore=(), **setup):
    """Assert that the cases end under emu86 as they do on QEMU."""
    theirs = on_qemu(cases, **setup)
    ours = on_emu86(cases, options=TECHNIQUES[technique], **setup)
    # With IOPL raised it shows in PUSHF, and the guest's own stays 0.
    hidden = 0x3000 if technique == "iopl" else 0
    lines = differences(cases, ours, theirs, ignore, hidden=hidden)
    assert not lines, "\n".join(lines[:40])
