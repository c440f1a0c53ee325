"""Labs: small guests that a sensitive instruction leads astray, step by step.

There is one, by the same name, for each instruction that `emu86 classify` calls a hole,
and one for each port instruction. Each lab runs on the bare machine, under `trap` and
under `patch`. Each line shows what an instruction did, and the exits that it took.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

import capstone

from emu86.errors import unknown
from emu86.rings.decode import decode
from emu86.rings.insn.table import find
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32, mov, push
from emu86.testing.image import ram_image
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

    right: why `trap` needs no patch to be right about it, or empty: it is wrong; price:
    why `patch` is wrong about it, too, or empty: it is right.
    """

    question: str
    code: tuple[bytes, ...]
    sensitive: bytes
    state: State = _KERNEL
    right: str = ""
    price: str = ""


def _load(register: int, place: int) -> bytes:
    """MOV r32, [place]."""
    return bytes([0x8B, register << 3 | 5]) + i32(place)


def _store(opcode: bytes, reg: int) -> bytes:
    return opcode + bytes([reg << 3 | 5]) + i32(_AT)


_STI, _CLI, _INT80, _HLT = b"\xfb", b"\xfa", b"\xcd\x80", b"\xf4"
_RDTSC, _SMSW = b"\x0f\x31", b"\x66\x0f\x01\xe0"
_READ_FLAGS: Final = (b"\x9c", b"\x58")  # pushf; pop eax
_DATA0_IN_AX: Final = mov(x86.EAX, stage.DATA0)
_DATA3_IN_AX: Final = mov(x86.EAX, stage.DATA3)
_HERE: Final = struct.pack("<IH", stage.CODE + 7, stage.CODE0)

_SELECTORS: Final = "the engine holds the guest's own selectors"
_PRICE: Final = (
    "the price of ring compression: to a kernel in ring 1 the shadow tables give its"
    " segments a DPL of 1, and so an RPL of 1 passes; loads of SS alone are patched"
)
_GATES: Final = "events go through the guest's own IDT, by its rules"
_FAR: Final = "no shadow table has the kernel's code, so it traps"


def _in_ax(selector: int) -> tuple[bytes, ...]:
    return (mov(x86.EAX, selector),)


def _pushed(selector: int) -> tuple[bytes, ...]:
    return (push(selector),)


def _pointed(selector: int) -> tuple[bytes, ...]:
    return push(selector), push(stage.DATA)


def _loaded_twice(
    register: str,
    ready: Callable[[int], tuple[bytes, ...]],
    load: bytes,
    price: str = "",
) -> Lab:
    """Load a segment register with the kernel's data, and so with an RPL of 1."""
    good, bad = ready(stage.DATA0), ready(stage.DATA0 | 1)
    return Lab(
        f"The kernel loads {register} with a segment of DPL 0, then with RPL 1:"
        " is that refused?",
        (*good, load, *bad, load, _CLI, _HLT),
        load,
        price=price,
    )


LABS: Final[dict[str, Lab]] = {
    "POPF": Lab(
        "Interrupts are on. The kernel restores flags with IF clear: are they off?",
        (_STI, push(2), b"\x9d", *_READ_FLAGS, _CLI, _HLT), b"\x9d",
    ),
    "PUSHF": Lab(
        "The kernel switches interrupts on and saves its flags: is IF set in them?",
        (_STI, *_READ_FLAGS, _CLI, _HLT), b"\x9c",
        right="the engine holds the guest's own flags; but in virtual-8086 mode its"
        " PUSHFD shows VM",
    ),
    # Through an interrupt gate: the IRET is in its handler.
    "IRET": Lab(
        "A user with interrupts on calls the kernel 3 times. Are they on afterwards?",
        (b"\xcd\x83", b"\xcd\x83", b"\xcd\x83"), b"\xcf",
        State(ring=3, flags=0x202, limit=4, skip=0),
    ),
    "SGDT": Lab(
        "Where does the kernel find its GDT?",
        (_store(b"\x0f\x01", 0), _load(0, _AT + 2), _CLI, _HLT), _store(b"\x0f\x01", 0),
    ),
    "SIDT": Lab(
        "Where does the kernel find its IDT?",
        (_store(b"\x0f\x01", 1), _load(0, _AT + 2), _CLI, _HLT), _store(b"\x0f\x01", 1),
    ),
    "SLDT": Lab("Which LDT is loaded?", (b"\x0f\x00\xc0", _CLI, _HLT), b"\x0f\x00\xc0"),
    "STR": Lab("Which task runs?", (b"\x0f\x00\xc8", _CLI, _HLT), b"\x0f\x00\xc8"),
    "SMSW": Lab(
        "The kernel has cleared NE (20h) in CR0: is it clear?",
        (mov(x86.EAX, x86.CR0_ET | x86.CR0_PE), b"\x0f\x22\xc0", _SMSW, _CLI, _HLT),
        _SMSW,
    ),
    "LAR": Lab(
        "Which rights has the kernel's data segment?",
        (_DATA0_IN_AX, b"\x0f\x02\xd8", _CLI, _HLT), b"\x0f\x02\xd8",
    ),
    "LSL": Lab(
        "How long is the users' data segment?",
        (_DATA3_IN_AX, b"\x0f\x03\xd8", _CLI, _HLT), b"\x0f\x03\xd8",
    ),
    "VERR": Lab(
        "May the kernel read its users' data segment (ZF)?",
        (_DATA3_IN_AX, b"\x0f\x00\xe0", _CLI, _HLT), b"\x0f\x00\xe0",
    ),
    "VERW": Lab(
        "May the kernel write its users' data segment (ZF)?",
        (_DATA3_IN_AX, b"\x0f\x00\xe8", _CLI, _HLT), b"\x0f\x00\xe8",
    ),
    "MOV from Sreg": Lab(
        "In which ring is the kernel?", (b"\x8c\xc8", _CLI, _HLT), b"\x8c\xc8",
        right=_SELECTORS,
    ),
    "PUSH Sreg": Lab(
        "In which ring is the kernel?", (b"\x0e", b"\x58", _CLI, _HLT), b"\x0e",
        right=_SELECTORS,
    ),
    "MOV to Sreg": _loaded_twice("DS", _in_ax, b"\x8e\xd8", _PRICE),
    "MOV to SS": _loaded_twice("SS", _in_ax, b"\x8e\xd0"),
    "POP Sreg": _loaded_twice("ES", _pushed, b"\x07", _PRICE),
    "POP SS": _loaded_twice("SS", _pushed, b"\x17"),
    "LDS, LES, LFS, LGS": _loaded_twice("DS", _pointed, b"\xc5\x1c\x24", _PRICE),
    "LSS": _loaded_twice("SS", _pointed, b"\x0f\xb2\x1c\x24"),
    "JMP far": Lab(
        "A far jump within the kernel: which CS does it find there?",
        (b"\xea" + _HERE, b"\x8c\xc8", _CLI, _HLT), b"\xea" + _HERE, right=_FAR,
    ),
    "CALL far": Lab(
        "A far call within the kernel: which CS has it pushed?",
        (b"\x9a" + _HERE, b"\x58", b"\x58", _CLI, _HLT), b"\x9a" + _HERE, right=_FAR,
    ),
    "RET far": Lab(
        "A far return within the kernel: which CS does it find there?",
        (push(stage.CODE0), push(stage.CODE + 11), b"\xcb", b"\x8c\xc8", _CLI, _HLT),
        b"\xcb", right=_FAR,
    ),
    "INT n": Lab(
        "A user calls the kernel: does it get there?", (_INT80,), _INT80, _USER,
        right=_GATES,
    ),
    "INTO": Lab(
        "The overflow's gate is the kernel's alone: is a user kept from it?",
        (b"\xb0\x7f", b"\x04\x01", b"\xce"), b"\xce", _USER, right=_GATES,
    ),
    "RDTSC": Lab(
        "How long does CLI take, by the TSC? (An instruction takes 100 ns here.)",
        (_RDTSC, b"\x89\xc3", _CLI, _RDTSC, b"\x29\xd8", _HLT), _RDTSC,
        State(limit=1, tr=stage.TSS_B_SELECTOR, interrupts=()),
        right="the engine asks the VMM for the time; what an exit takes shows, but here"
        " none takes any",
    ),
    "IN": Lab(
        "A user without permission reads a port: is it kept from it?",
        (b"\xe4\x60", _INT80), b"\xe4\x60", _USER,
    ),
    "OUT": Lab(
        "A user without permission writes to a port: is it kept from it?",
        (b"\xe6\x80", _INT80), b"\xe6\x80", _USER,
    ),
    "INS": Lab(
        "A user without permission reads a port into memory: is it kept from it?",
        (mov(x86.EDX, 0x60), mov(x86.EDI, _AT), b"\x6c", _INT80), b"\x6c", _USER,
    ),
    "OUTS": Lab(
        "A user without permission writes memory to a port: is it kept from it?",
        (mov(x86.EDX, 0x80), mov(x86.ESI, _AT), b"\x6e", _INT80), b"\x6e", _USER,
    ),
}  # fmt: skip


def show(name: str) -> Iterator[str]:
    """Yield the lines of a lab; ValueError if there is none of that name."""
    if name not in LABS:
        message = f"lab: {unknown(name, LABS)}"
        raise ValueError(message)
    lab = LABS[name]
    program = b"".join(lab.code)
    insn = decode(lab.sensitive, 32)
    record = find(insn) if insn is not None else None
    yield f"{name}: {lab.question}"
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
        why = {"trap": lab.right, "patch": lab.price}.get(technique)
        if why:
            yield from wrap(
                f"({why})", 79, initial_indent="   ", subsequent_indent="   "
            )
        yield from _steps(trace, lab)
        for event in outcome.events:
            yield f"   {event}"
        for line in wrong[:4]:
            yield f"   bare {line.strip()}"


def _steps(trace: Trace, lab: Lab) -> Iterator[str]:
    """Yield a line for each instruction of the program: what it changed, its exits.

    And for the lab's own, where it is in a handler.
    """
    program = b"".join(lab.code)
    inside = range(lab.state.at, lab.state.at + len(program))
    image = ram_image(program, lab.state)
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    one: Traced | None = None
    exits: list[str] = []
    booting = [step.registers["eip"] for step in trace].index(lab.state.at)
    for following in [*trace[booting:], None]:
        same = one and following and one.registers["eip"] == following.registers["eip"]
        if one is not None:
            exits += one.exits
        eip = one.registers["eip"] if one is not None else 0
        shown = eip in inside or image.startswith(lab.sensitive, eip)
        if one is not None and not same and shown:
            insn = next(decoder.disasm(image[eip : eip + x86.LONGEST_INSN], eip), None)
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
