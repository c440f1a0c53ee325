"""The second oracle: the host's own CPU runs a ring-3 program, in a child process.

On x86-64 Linux a 64-bit process may jump to 32-bit code through the segment that the
kernel keeps for 32-bit processes. The program stands where it stands on the stage, with
the stage's data page and stack around it, so it computes with the same addresses.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from dataclasses import dataclass
from functools import cache
from typing import Final

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32
from emu86.testing.stage import State

_CS32: Final = 0x23
_DS32: Final = 0x2B
_CS64: Final = 0x33
_STACK: Final = stage.STACK3 - x86.PAGE_SIZE
_STUBS: Final = (
    0x30000  # 64-bit code in, 32-bit entry, 64-bit code out, a page of words
)
_ENTRY: Final = _STUBS + 0x400
_OUT: Final = _STUBS + 0x800
_WORDS: Final = _STUBS + x86.PAGE_SIZE
_GIVEN: Final = _WORDS + 0x10
_RESULT: Final = _WORDS + 0x40
_REGIONS: Final = (
    (_STACK, x86.PAGE_SIZE),
    (_STUBS, 2 * x86.PAGE_SIZE),
    (stage.CODE, x86.PAGE_SIZE),
    (stage.DATA, x86.PAGE_SIZE),
)
_PROT_ALL: Final = 7
_SHARED_ANONYMOUS_NOREPLACE: Final = 0x1 | 0x20 | 0x100000
# What a user may give POPF and get back as it was.
_USER_FLAGS: Final = x86.ARITHMETIC_FLAGS | x86.DF | x86.ID
_SIGNALS: Final = {
    signal.SIGFPE: "#DE", signal.SIGILL: "#UD", signal.SIGTRAP: "#BP",
    signal.SIGSEGV: "#GP or #PF", signal.SIGBUS: "#GP or #PF",
}  # fmt: skip


@dataclass(frozen=True)
class HostOutcome:
    """How a program ended: "done" or an exception; its registers, data and stack.

    registers: general ones and eflags, empty unless it is done; data: the page at
    `stage.DATA`; stack: the page below `stage.STACK3`.
    """

    end: str
    registers: dict[str, int]
    data: bytes
    stack: bytes


@cache
def missing() -> str:
    """Return why this host cannot be the oracle, or "" if it can."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return f"no x86-64 Linux, but {platform.machine()} {sys.platform}"
    try:
        _map()
    except OSError as error:
        return f"no memory at the stage's addresses: {error.strerror}"
    outcome = run_on_host(b"\x40", State(registers={"eax": 41}))  # inc eax
    if outcome.registers.get("eax") != 42:
        return f"no 32-bit code segment: {outcome.end}"
    return ""


@cache
def _map() -> None:
    """Map the pages, once: shared with children, where nothing else stands."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
        ctypes.c_long,
    )  # fmt: skip
    for at, size in _REGIONS:
        got = libc.mmap(at, size, _PROT_ALL, _SHARED_ANONYMOUS_NOREPLACE, -1, 0)
        if got != at:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    _write(_STUBS, _way_in())
    _write(_ENTRY, _entry())
    _write(_OUT, _way_out())


def _write(at: int, data: bytes) -> None:
    ctypes.memmove(at, data, len(data))


def _way_in() -> bytes:
    """64-bit code: save what a call must keep, and go to the 32-bit entry."""
    out = b"\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57"  # push rbx, rbp, r12 to r15
    out += b"\x48\x89\x24\x25" + i32(_WORDS)  # mov [_WORDS], rsp
    out += b"\x68" + i32(_CS32) + b"\x68" + i32(_ENTRY)
    return out + b"\x48\xcb"  # retfq


def _entry() -> bytes:
    """32-bit code: load segments, flags and registers, and go to the program."""
    out = b"\xb8" + i32(_DS32) + b"\x8e\xd8\x8e\xc0\x8e\xd0"
    out += b"\xbc" + i32(_WORDS + 0x800)  # a stack that nobody looks at
    out += b"\xff\x35" + i32(_GIVEN + 32) + b"\x9d"  # push dword [flags]; popf
    for register in range(8):
        out += bytes([0x8B, register << 3 | 5]) + i32(_GIVEN + 4 * register)
    return out + b"\xea" + struct.pack("<IH", stage.CODE, _CS32)


def _way_out() -> bytes:
    """64-bit code: give back what a call must keep."""
    out = b"\x48\x8b\x24\x25" + i32(_WORDS)  # mov rsp, [_WORDS]
    out += b"\x68" + i32(0x202) + b"\x9d"  # push 202h; popfq
    return out + b"\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3"


def _epilogue() -> bytes:
    """32-bit code after the program: keep its registers and flags."""
    out = b""
    for register in range(8):
        out += bytes([0x89, register << 3 | 5]) + i32(_RESULT + 4 * register)
    out += b"\xbc" + i32(_WORDS + 0x800)  # mov esp, somewhere
    out += b"\x9c\x58" + b"\xa3" + i32(_RESULT + 32)  # pushf; pop eax; mov [...], eax
    return out + b"\xea" + struct.pack("<IH", _OUT, _CS64)


def run_on_host(program: bytes, state: State) -> HostOutcome:
    """Run a program of 32-bit user code on this CPU, from the registers of `state`.

    What lies outside the stage's code, data and stack page is not there. Of `state`
    only registers, flags and patches of those pages count.
    """
    _map()
    filler = b"\xcc" * x86.PAGE_SIZE
    for at in (stage.CODE, stage.DATA, _STACK):
        _write(at, filler)
    for at, data in state.patches:
        _write(at, data)
    _write(stage.CODE, program + _epilogue())
    given = [state.registers.get(name, 0) for name in x86.GPR_NAMES]
    given[x86.ESP] = stage.STACK3
    flags = state.flags & _USER_FLAGS | 0x202
    _write(_GIVEN, struct.pack("<9I", *given, flags))
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(5)
        ctypes.CFUNCTYPE(None)(_STUBS)()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    data, stack = (ctypes.string_at(at, x86.PAGE_SIZE) for at in (stage.DATA, _STACK))
    if status:
        end = _SIGNALS.get(signal.Signals(-status), f"signal {-status}")
        return HostOutcome(end, {}, data, stack)
    words = struct.unpack("<9I", ctypes.string_at(_RESULT, 36))
    registers = dict(zip((*x86.GPR_NAMES, "eflags"), words, strict=True))
    return HostOutcome("done", registers, data, stack)
