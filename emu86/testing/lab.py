"""Labs: small guests that a sensitive instruction leads astray, step by step.

There is one, by the same name, for each instruction that `emu86 classify` calls a hole,
and one for each port instruction; in 64-bit code one for the way in by SYSCALL, too.
Each lab runs on the bare machine, under `trap` and under `patch`. Each line shows what
an instruction did, and the exits that it took.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Final

import capstone

from emu86.errors import unknown
from emu86.rings.decode import decode
from emu86.rings.insn.table import find
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import absolute, i32, mov, mov64, push
from emu86.testing.image import ram_image
from emu86.testing.outcome import differences
from emu86.testing.run import Trace, Traced, run
from emu86.testing.stage import State

_AT: Final = stage.DATA
_CAPSTONE: Final = {32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
_BASES: Final = "gs.base", "kernel_gs_base"
_SHOWN: Final = {
    32: (*x86.GPR_NAMES, "eflags", *x86.SEGMENT_NAMES),
    64: (*x86.GPR_NAMES64, "rflags", *x86.SEGMENT_NAMES, *_BASES),
}


@dataclass(frozen=True)
class Lab:
    """A guest: what it asks, its instructions, the sensitive one, where it starts.

    right: why `trap` needs no patch to be right about it, or empty: it is wrong; price:
    why `patch` is wrong about it, too, or empty: it is right.
    """

    question: str
    code: tuple[bytes, ...]
    sensitive: bytes
    state: State
    right: str = ""
    price: str = ""


_STI, _CLI, _INT80, _HLT = b"\xfb", b"\xfa", b"\xcd\x80", b"\xf4"
_RDTSC, _SMSW = b"\x0f\x31", b"\x66\x0f\x01\xe0"
_READ_FLAGS: Final = (b"\x9c", b"\x58")  # pushf; pop eax
_DATA0_IN_AX: Final = mov(x86.EAX, stage.DATA0)
_DATA3_IN_AX: Final = mov(x86.EAX, stage.DATA3)

_SELECTORS: Final = "the engine holds the guest's own selectors"
_FLAGS: Final = "the engine holds the guest's own flags"
_PRICE: Final = (
    "the price of ring compression: to a kernel in ring 1 the shadow tables give its"
    " segments a DPL of 1, and so an RPL of 1 passes; loads of SS alone are patched"
)
_GATES: Final = "events go through the guest's own IDT, by its rules"
_FAR: Final = "no shadow table has the kernel's code, so it traps"
_SS64: Final = (
    "in 64-bit code `trap` patches loads of SS, too: a null selector is no fault there,"
    " and would take the engine's CPL to 0"
)
_WAY_IN: Final = (
    "SWAPGS and SYSRET trap outside ring 0, and at SYSCALL the engine calls the VMM"
)


def _in_ax(selector: int) -> tuple[bytes, ...]:
    return (mov(x86.EAX, selector),)


def _pushed(selector: int) -> tuple[bytes, ...]:
    return (push(selector),)


def _pointed64(selector: int) -> tuple[bytes, ...]:
    return mov64(x86.EAX, selector << 32 | stage.DATA), b"\x50"


def _pointed(selector: int) -> tuple[bytes, ...]:
    return push(selector), push(stage.DATA)


class _Maker:
    """Makes labs of 32-bit or of 64-bit code."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.wide = bits == 64
        self.rex = b"\x48" if self.wide else b""
        self.kernel = State(
            mode="long" if self.wide else "protected",
            limit=1,
            tr=stage.TSS_B64_SELECTOR if self.wide else stage.TSS_B_SELECTOR,
        )
        self.user = replace(self.kernel, ring=3)

    def one(
        self, question: str, *code: bytes, sensitive: bytes = b"", right: str = ""
    ) -> Lab:
        """Make a kernel's; sensitive: if it is not the last instruction of `code`."""
        whole = (*code, _CLI, _HLT)
        return Lab(question, whole, sensitive or code[-1], self.kernel, right)

    def table(self, question: str, reg: int) -> Lab:
        """Make one of SGDT or SIDT, and of the base that it has stored."""
        store = b"\x0f\x01" + absolute(reg, _AT, self.bits)
        load = self.rex + b"\x8b" + absolute(x86.EAX, _AT + 2, self.bits)
        return self.one(question, store, load, sensitive=store)

    def loads(
        self,
        register: str,
        ready: Callable[[int], tuple[bytes, ...]],
        load: bytes,
        *,
        right: str = "",
        price: str = "",
    ) -> Lab:
        """Load a segment register with the kernel's data, and so with an RPL of 1."""
        good, bad = ready(stage.DATA0), ready(stage.DATA0 | 1)
        return Lab(
            f"The kernel loads {register} with a segment of DPL 0, then with RPL 1:"
            " is that refused?",
            (*good, load, *bad, load, _CLI, _HLT),
            load,
            self.kernel,
            right,
            price,
        )

    def port(self, does: str, *code: bytes) -> Lab:
        """Make a user's of a port."""
        question = f"A user without permission {does}: is it kept from it?"
        return Lab(question, (*code, _INT80), code[-1], self.user)

    def far(self, question: str, opcode: str, *after: bytes) -> Lab:
        """Make one of a far jump or call to what is right behind it.

        opcode: of 32-bit code, with the address in it; after: what looks then.
        """
        before: tuple[bytes, ...] = ()
        if self.wide:  # there it is in memory, and on the stack for once
            transfer = b"\x48\xff" + {"ea": b"\x2c", "9a": b"\x1c"}[opcode] + b"\x24"
            before = push(stage.CODE0), push(stage.CODE + 2 * 5 + len(transfer))
        else:
            here = struct.pack("<IH", stage.CODE + 7, stage.CODE0)
            transfer = bytes.fromhex(opcode) + here
        return self.one(
            question, *before, transfer, *after, sensitive=transfer, right=_FAR
        )


def _in_both(make: _Maker) -> dict[str, Lab]:
    """Return the labs that there are in 32-bit and in 64-bit code."""
    pg = x86.CR0_PG if make.wide else 0
    ss = _SS64 if make.wide else ""
    vm86 = "" if make.wide else "; but in virtual-8086 mode its PUSHFD shows VM"
    back = make.rex + b"\xcb"
    return {
        "POPF": make.one(
            "Interrupts are on. The kernel restores flags with IF clear: are they off?",
            _STI, push(2), b"\x9d", *_READ_FLAGS, sensitive=b"\x9d",
        ),
        "PUSHF": make.one(
            "The kernel switches interrupts on and saves its flags: is IF set in them?",
            _STI, *_READ_FLAGS, sensitive=b"\x9c", right=_FLAGS + vm86,
        ),
        # Through an interrupt gate: the IRET is in its handler.
        "IRET": Lab(
            "A user with interrupts on calls the kernel 3 times. Are they on"
            " afterwards?",
            (b"\xcd\x83", b"\xcd\x83", b"\xcd\x83"), make.rex + b"\xcf",
            State(mode=make.kernel.mode, ring=3, flags=0x202, limit=4, skip=0),
        ),
        "SGDT": make.table("Where does the kernel find its GDT?", 0),
        "SIDT": make.table("Where does the kernel find its IDT?", 1),
        "SLDT": make.one("Which LDT is loaded?", b"\x0f\x00\xc0"),
        "STR": make.one("Which task runs?", b"\x0f\x00\xc8"),
        "SMSW": make.one(
            "The kernel has cleared NE (20h) in CR0: is it clear?",
            mov(x86.EAX, x86.CR0_ET | x86.CR0_PE | pg), b"\x0f\x22\xc0", _SMSW,
        ),
        "LAR": make.one(
            "Which rights has the kernel's data segment?",
            _DATA0_IN_AX, b"\x0f\x02\xd8",
        ),
        "LSL": make.one(
            "How long is the users' data segment?", _DATA3_IN_AX, b"\x0f\x03\xd8"
        ),
        "VERR": make.one(
            "May the kernel read its users' data segment (ZF)?",
            _DATA3_IN_AX, b"\x0f\x00\xe0",
        ),
        "VERW": make.one(
            "May the kernel write its users' data segment (ZF)?",
            _DATA3_IN_AX, b"\x0f\x00\xe8",
        ),
        "MOV from Sreg": make.one(
            "In which ring is the kernel?", b"\x8c\xc8", right=_SELECTORS
        ),
        "MOV to Sreg": make.loads("DS", _in_ax, b"\x8e\xd8", price=_PRICE),
        "MOV to SS": make.loads("SS", _in_ax, b"\x8e\xd0", right=ss),
        "LSS": make.loads(
            "SS", _pointed64 if make.wide else _pointed, b"\x0f\xb2\x1c\x24", right=ss
        ),
        "JMP far": make.far(
            "A far jump within the kernel: which CS does it find there?",
            "ea", b"\x8c\xc8",
        ),
        "CALL far": make.far(
            "A far call within the kernel: which CS has it pushed?",
            "9a", b"\x58", b"\x58",
        ),
        "RET far": make.one(
            "A far return within the kernel: which CS does it find there?",
            push(stage.CODE0), push(stage.CODE + 2 * 5 + len(back)), back,
            b"\x8c\xc8", sensitive=back, right=_FAR,
        ),
        "INT n": Lab(
            "A user calls the kernel: does it get there?", (_INT80,), _INT80,
            make.user, _GATES,
        ),
        "RDTSC": Lab(
            "How long does CLI take, by the TSC? (An instruction takes 100 ns here.)",
            (_RDTSC, b"\x89\xc3", _CLI, _RDTSC, b"\x29\xd8", _HLT), _RDTSC,
            replace(make.kernel, interrupts=()),
            "the engine asks the VMM for the time; what an exit takes shows, but here"
            " none takes any",
        ),
        "IN": make.port("reads a port", b"\xe4\x60"),
        "OUT": make.port("writes to a port", b"\xe6\x80"),
        "INS": make.port(
            "reads a port into memory", mov(x86.EDX, 0x60), mov(x86.EDI, _AT), b"\x6c"
        ),
        "OUTS": make.port(
            "writes memory to a port", mov(x86.EDX, 0x80), mov(x86.ESI, _AT), b"\x6e"
        ),
    }  # fmt: skip


def _in_32() -> dict[str, Lab]:
    """Return those of 32-bit code alone."""
    make = _Maker(32)
    return {
        "PUSH Sreg": make.one(
            "In which ring is the kernel?", b"\x0e", b"\x58", sensitive=b"\x0e",
            right=_SELECTORS,
        ),
        "POP Sreg": make.loads("ES", _pushed, b"\x07", price=_PRICE),
        "POP SS": make.loads("SS", _pushed, b"\x17"),
        "LDS, LES, LFS, LGS": make.loads(
            "DS", _pointed, b"\xc5\x1c\x24", price=_PRICE
        ),
        "INTO": Lab(
            "The overflow's gate is the kernel's alone: is a user kept from it?",
            (b"\xb0\x7f", b"\x04\x01", b"\xce"), b"\xce", make.user, _GATES,
        ),
    }  # fmt: skip


def _in_64() -> dict[str, Lab]:
    """Return those of 64-bit code alone."""
    make = _Maker(64)
    return {
        "PUSH Sreg": make.one(
            "Which segment is in FS?",
            b"\x0f\xa0",
            b"\x58",
            sensitive=b"\x0f\xa0",
            right=_SELECTORS,
        ),
        "POP Sreg": make.loads("FS", _pushed, b"\x0f\xa1", price=_PRICE),
        "LFS, LGS": make.loads("FS", _pointed64, b"\x0f\xb4\x1c\x24", price=_PRICE),
        "SYSCALL, SWAPGS, SYSRET": _way_in(make.kernel),
    }


def _way_in(state: State) -> Lab:
    """Return the lab of a system call of 64-bit code: a kernel, its user, and back."""
    kernel = (
        mov(x86.ECX, x86.MSR_LSTAR), mov(x86.EAX, 0), mov(x86.EDX, 0), b"\x0f\x30",
        mov(x86.ECX, 0), b"\x41\xbb" + i32(0x202), b"\x48\x0f\x07",
    )  # fmt: skip
    user = b"\x0f\x05", _INT80
    entry = (
        b"\x0f\x01\xf8", b"\x65\x48\x8b\x04\x25" + i32(0),  # swapgs; mov rax, gs:0
        b"\x0f\x01\xf8", b"\x48\x0f\x07",
    )  # fmt: skip
    start = state.at + len(b"".join(kernel))
    first, *rest = kernel
    rest[0] = mov(x86.EAX, start + len(b"".join(user)))
    rest[3] = mov(x86.ECX, start)
    own = (_AT, struct.pack("<Q", 0xC0FFEE))  # where KERNEL_GS_BASE points
    return Lab(
        "The kernel goes to its user by SYSRET, and the user calls it by SYSCALL. Does"
        " the kernel find its own data (C0FFEEh) by GS, and the user its IF set again?",
        (first, *rest, *user, *entry), b"\x0f\x05",
        replace(state, patches=(own,)), _WAY_IN,
    )  # fmt: skip


LABS: Final = _in_both(_Maker(32)) | _in_32()
LABS64: Final = _in_both(_Maker(64)) | _in_64()


def show(name: str, bits: int = 32) -> Iterator[str]:
    """Yield the lines of a lab; bits: of its code, 32 or 64.

    ValueError if there is none of that name.
    """
    labs = LABS64 if bits == 64 else LABS
    if name not in labs:
        message = f"lab: {unknown(name, labs)}"
        raise ValueError(message)
    lab = labs[name]
    program = b"".join(lab.code)
    insn = decode(lab.sensitive, bits)
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
    bits = lab.state.bits
    ip = "rip" if bits == 64 else "eip"
    program = b"".join(lab.code)
    inside = range(lab.state.at, lab.state.at + len(program))
    image = ram_image(program, lab.state)
    decoder = capstone.Cs(capstone.CS_ARCH_X86, _CAPSTONE[bits])
    one: Traced | None = None
    exits: list[str] = []
    booting = [step.registers[ip] for step in trace].index(lab.state.at)
    for following in [*trace[booting:], None]:
        same = one and following and one.registers[ip] == following.registers[ip]
        if one is not None:
            exits += one.exits
        at = one.registers[ip] if one is not None else 0
        shown = at in inside or image.startswith(lab.sensitive, at)
        if one is not None and not same and shown:
            insn = next(decoder.disasm(image[at : at + x86.LONGEST_INSN], at), None)
            text = "?" if insn is None else f"{insn.mnemonic} {insn.op_str}"
            changed = _changes(one, following, bits)
            taken = f"   [exit: {', '.join(exits)}]" if exits else ""
            yield f"   {at:08X}  {text:32} {changed}{taken}".rstrip()
        if not same:
            exits = []
        one = following


def _changes(before: Traced, after: Traced | None, bits: int) -> str:
    if after is None:
        return ""
    old, new = before.registers, after.registers
    return ", ".join(
        f"{name} {old[name]:X}h -> {new[name]:X}h"
        for name in _SHOWN[bits]
        if name not in ("esp", "rsp") and old[name] != new[name]
    )
