"""Labs: small guests that a sensitive instruction leads astray, step by step.

Each runs on the bare machine, under `trap` and under `patch`; what every instruction
did is shown beside the exits that it took.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import capstone

from emu86.rings.decode import decode
from emu86.rings.table import find
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32, mov, push
from emu86.testing.outcome import differences
from emu86.testing.run import Trace, Traced, run
from emu86.testing.stage import State

_AT: Final = stage.DATA
_KERNEL: Final = State(limit=1, tr=stage.TSS_B_SELECTOR)
_USER: Final = State(ring=3, limit=1, tr=stage.TSS_B_SELECTOR)
_SHOWN: Final = (*x86.GPR_NAMES, "eflags", *x86.SEGMENT_NAMES)


@dataclass(frozen=True)
class Lab:
    """A guest: what it asks, its instructions, the sensitive one, where it starts.

    right: why `trap` needs no patch to be right about it, or empty: it is wrong.
    """

    question: str
    code: tuple[bytes, ...]
    sensitive: bytes
    state: State = _KERNEL
    right: str = ""


def _load(register: int, place: int) -> bytes:
    """MOV r32, [place]."""
    return bytes([0x8B, register << 3 | 5]) + i32(place)


def _store(opcode: bytes, reg: int) -> bytes:
    return opcode + bytes([reg << 3 | 5]) + i32(_AT)


_STI, _CLI, _INT80, _HLT = b"\xfb", b"\xfa", b"\xcd\x80", b"\xf4"
_LDS, _LSS, _RDTSC = b"\xc5\x1c\x24", b"\x0f\xb2\x1c\x24", b"\x0f\x31"
_READ_FLAGS: Final = (b"\x9c", b"\x58")  # pushf; pop eax
_DATA0_IN_AX: Final = b"\xb8" + i32(stage.DATA0)
_DATA3_IN_AX: Final = b"\xb8" + i32(stage.DATA3)
_HERE: Final = struct.pack("<IH", stage.CODE + 7, stage.CODE0)

_SELECTORS: Final = "the engine holds the guest's own selectors"
_LOADS: Final = "the shadow tables give a kernel in ring 1 what ring 0 may load"
_GATES: Final = "events go through the guest's own IDT, by its rules"
_FAR: Final = "no shadow table has the kernel's code, so it traps"

LABS: Final[dict[str, Lab]] = {
    "popf": Lab(
        "Interrupts are on. The kernel restores flags with IF clear: are they off?",
        (_STI, push(2), b"\x9d", *_READ_FLAGS, _CLI, _HLT), b"\x9d",
    ),
    "pushf": Lab(
        "The kernel switches interrupts on and saves its flags: is IF set in them?",
        (_STI, *_READ_FLAGS, _CLI, _HLT), b"\x9c",
        right="the engine holds the guest's own flags",
    ),
    # Through an interrupt gate, whose handler ends with IRET.
    "iret": Lab(
        "A user with interrupts on calls the kernel, thrice. Are they on afterwards?",
        (b"\xcd\x83", b"\xcd\x83", b"\xcd\x83"), b"\xcf",
        State(ring=3, flags=0x202, limit=4, skip=0),
    ),
    "sgdt": Lab(
        "Where does the kernel find its GDT?",
        (_store(b"\x0f\x01", 0), _load(0, _AT + 2), _CLI, _HLT), _store(b"\x0f\x01", 0),
    ),
    "sidt": Lab(
        "Where does the kernel find its IDT?",
        (_store(b"\x0f\x01", 1), _load(0, _AT + 2), _CLI, _HLT), _store(b"\x0f\x01", 1),
    ),
    "sldt": Lab("Which LDT is loaded?", (b"\x0f\x00\xc0", _CLI, _HLT), b"\x0f\x00\xc0"),
    "str": Lab("Which task runs?", (b"\x0f\x00\xc8", _CLI, _HLT), b"\x0f\x00\xc8"),
    "smsw": Lab(
        "What does CR0 hold? (The SDM leaves the upper half undefined.)",
        (b"\xb8\xff\xff\xff\xff", b"\x0f\x01\xe0", _CLI, _HLT), b"\x0f\x01\xe0",
    ),
    "lar": Lab(
        "Which rights has the kernel's data segment?",
        (_DATA0_IN_AX, b"\x0f\x02\xd8", _CLI, _HLT), b"\x0f\x02\xd8",
    ),
    "lsl": Lab(
        "How long is the users' data segment?",
        (_DATA3_IN_AX, b"\x0f\x03\xd8", _CLI, _HLT), b"\x0f\x03\xd8",
    ),
    "verr": Lab(
        "May the kernel read its users' data segment (ZF)?",
        (_DATA3_IN_AX, b"\x0f\x00\xe0", _CLI, _HLT), b"\x0f\x00\xe0",
    ),
    "verw": Lab(
        "May the kernel write its users' data segment (ZF)?",
        (_DATA3_IN_AX, b"\x0f\x00\xe8", _CLI, _HLT), b"\x0f\x00\xe8",
    ),
    "mov": Lab(
        "In which ring is the kernel?", (b"\x8c\xc8", _CLI, _HLT), b"\x8c\xc8",
        right=_SELECTORS,
    ),
    "push": Lab(
        "In which ring is the kernel?", (b"\x0e", b"\x58", _CLI, _HLT), b"\x0e",
        right=_SELECTORS,
    ),
    "pop": Lab(
        "The kernel loads its data segment into ES: can it?",
        (push(stage.DATA0), b"\x07", _CLI, _HLT), b"\x07", right=_LOADS,
    ),
    "lds": Lab(
        "The kernel loads a pointer into its data segment: can it?",
        (push(stage.DATA0), push(stage.DATA), _LDS, _CLI, _HLT), _LDS, right=_LOADS,
    ),
    "lss": Lab(
        "The kernel loads a pointer to another stack: is SS what it has loaded?",
        (push(stage.DATA0), push(stage.STACK0), _LSS, b"\x8c\xd0", _CLI, _HLT), _LSS,
        right=_SELECTORS,
    ),
    "jmp": Lab(
        "A far jump within the kernel: which CS does it find there?",
        (b"\xea" + _HERE, b"\x8c\xc8", _CLI, _HLT), b"\xea" + _HERE, right=_FAR,
    ),
    "call": Lab(
        "A far call within the kernel: which CS has it pushed?",
        (b"\x9a" + _HERE, b"\x58", b"\x58", _CLI, _HLT), b"\x9a" + _HERE, right=_FAR,
    ),
    "ret": Lab(
        "A far return within the kernel: which CS does it find there?",
        (push(stage.CODE0), push(stage.CODE + 11), b"\xcb", b"\x8c\xc8", _CLI, _HLT),
        b"\xcb", right=_FAR,
    ),
    "int": Lab(
        "A user calls the kernel: does it get there?", (_INT80,), _INT80, _USER,
        right=_GATES,
    ),
    "into": Lab(
        "The overflow's gate is the kernel's alone: is a user kept from it?",
        (b"\xb0\x7f", b"\x04\x01", b"\xce"), b"\xce", _USER, right=_GATES,
    ),
    "rdtsc": Lab(
        "How long does CLI take, by the TSC? (An instruction takes 100 ns here.)",
        (_RDTSC, b"\x89\xc3", _CLI, _RDTSC, b"\x29\xd8", _HLT), _RDTSC,
        State(limit=1, tr=stage.TSS_B_SELECTOR, interrupts=()),
        right="the engine asks the VMM for the time; what an exit takes shows, but here"
        " none takes any",
    ),
    "in": Lab(
        "A user without permission reads a port: is it kept from it?",
        (b"\xe4\x60", _INT80), b"\xe4\x60", _USER,
    ),
    "out": Lab(
        "A user without permission writes to a port: is it kept from it?",
        (b"\xe6\x80", _INT80), b"\xe6\x80", _USER,
    ),
    "ins": Lab(
        "A user without permission reads a port into memory: is it kept from it?",
        (mov(x86.EDX, 0x60), mov(x86.EDI, _AT), b"\x6c", _INT80), b"\x6c", _USER,
    ),
    "outs": Lab(
        "A user without permission writes memory to a port: is it kept from it?",
        (mov(x86.EDX, 0x80), mov(x86.ESI, _AT), b"\x6e", _INT80), b"\x6e", _USER,
    ),
}  # fmt: skip


def show(name: str) -> Iterator[str]:
    """Yield the lines of a lab; KeyError for one that there is not."""
    lab = LABS[name]
    program = b"".join(lab.code)
    insn = decode(lab.sensitive, wide=True)
    record = find(insn) if insn is not None else None
    yield f"{name.upper()}: {lab.question}"
    if record is not None:
        yield f"{record.mnemonic}: {record.doc} (SDM {record.sdm})"
    oracle = run(program, lab.state, "bare")
    for technique in ("bare", "trap", "patch"):
        trace: Trace = []
        outcome = run(program, lab.state, technique, trace)
        yield ""
        wrong = list(differences(oracle, outcome))
        verdict = "" if technique == "bare" else ": WRONG" if wrong else ": right"
        yield f"== {technique}{verdict}"
        if technique == "trap" and lab.right:
            yield f"   ({lab.right})"
        yield from _steps(trace, program)
        for event in outcome.events:
            yield f"   {event}"
        for line in wrong[:4]:
            yield f"   bare {line.strip()}"


def _steps(trace: Trace, program: bytes) -> Iterator[str]:
    """Yield a line for each instruction of the program: what it changed, its exits."""
    inside = range(stage.CODE, stage.CODE + len(program))
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    one: Traced | None = None
    exits: list[str] = []
    for following in [*trace, None]:
        same = one and following and one.registers["eip"] == following.registers["eip"]
        if one is not None:
            exits += one.exits
        if one is not None and not same and one.registers["eip"] in inside:
            eip = one.registers["eip"]
            insn = next(decoder.disasm(program[eip - stage.CODE :], eip), None)
            text = "?" if insn is None else f"{insn.mnemonic} {insn.op_str}"
            changed = _changes(one, following)
            taken = f"   [exit: {', '.join(exits)}]" if exits else ""
            yield f"   {eip:08X}  {text:32} {changed}{taken}".rstrip()
        if not same:
            exits = []
        one = following


def _changes(before: Traced, after: Traced | None) -> str:
    if after is None:
        return ""
    old, new = before.registers, after.registers
    return ", ".join(
        f"{name} {old[name]:X}h -> {new[name]:X}h"
        for name in _SHOWN
        if name != "esp" and old[name] != new[name]
    )
