"""Privileged and sensitive instructions, told from what they do.

After Popek and Goldberg (1974) and Robin and Irvine (2000). Each form of each system
instruction runs on the bare machine at every CPL and with one privileged resource at a
time changed. *Privileged*: every form traps at CPL 3 with IOPL 0, none at CPL 0.
*Behaviour-sensitive*: what a form does depends on the CPL or on a resource that the
guest's user must not see. *Control-sensitive*: at CPL 0 it changes such a resource.
A technique is right about a form if the guest's kernel and its users cannot tell it
from the bare machine.
"""

import struct
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Final

from emu86.rings.errata import ERRATA
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32, mov, push
from emu86.testing.equivalence import HIDDEN
from emu86.testing.outcome import Event, Outcome, differences
from emu86.testing.run import run
from emu86.testing.stage import State

TECHNIQUES: Final = ("trap", "patch", "iopl")
_AT: Final = stage.DATA
_ALIEN: Final = 0x60000  # where the other GDT or IDT stands
_LEFT: Final = 0x18  # a selector of the GDT: ring 3's code, with RPL 0


def _at(opcode: str, reg: int) -> bytes:
    """An instruction with its operand at DATA."""
    return bytes.fromhex(opcode) + bytes([reg << 3 | 5]) + i32(_AT)


@dataclass(frozen=True)
class Form:
    """One form of an instruction, with what must come before and stand at DATA."""

    name: str
    code: bytes
    before: tuple[bytes, ...] = ()
    data: bytes = b""


def _with_ax(name: str, selectors: tuple[int, ...], code: str) -> tuple[Form, ...]:
    """A form for each selector in AX."""
    return tuple(Form(name, bytes.fromhex(code), (mov(x86.EAX, s),)) for s in selectors)


_TABLE: Final = struct.pack("<HI", 0x7F, stage.LDT)
_BOTH: Final = (stage.DATA0, stage.DATA3)
_HERE: Final = stage.CODE + 0x40  # far transfers go there, to an INT3
_CONFORMING: Final = 0x78


def _far(selector: int) -> bytes:
    return i32(_HERE) + struct.pack("<H", selector)


FORMS: Final = (
    Form("CLI", b"\xfa"),
    Form("STI", b"\xfb"),
    Form("HLT", b"\xf4"),
    Form("CLTS", b"\x0f\x06"),
    Form("INVD", b"\x0f\x08"),
    Form("WBINVD", b"\x0f\x09"),
    Form("INVLPG", _at("0f01", 7)),
    Form("LGDT", _at("0f01", 2), data=_TABLE),
    Form("LIDT", _at("0f01", 3), data=struct.pack("<HI", 0x3FF, stage.IDT)),
    *_with_ax("LLDT", (0, stage.LDT_SELECTOR), "0f00d0"),
    *_with_ax("LTR", (stage.TSS_SELECTOR,), "0f00d8"),
    *_with_ax("LMSW", (0x33,), "0f01f0"),
    *(
        Form(f"MOV from CR{n}", bytes([0x0F, 0x20, 0xC0 | n << 3]))
        for n in (0, 2, 3, 4)
    ),
    *(
        Form(f"MOV to CR{n}", bytes([0x0F, 0x22, 0xC0 | n << 3]), (mov(0, value),))
        for n, value in ((0, 0x33), (2, 0x1234), (3, stage.PD | 8), (4, 0x10))
    ),
    Form("MOV from DR", b"\x0f\x21\xf8"),
    Form("MOV to DR", b"\x0f\x23\xc0", (mov(0, 0x1234),)),
    Form("RDMSR", b"\x0f\x32", (mov(x86.ECX, 0x17),)),
    Form("WRMSR", b"\x0f\x30", (mov(x86.ECX, 0x8B), mov(0, 0), mov(x86.EDX, 0))),
    Form("RDPMC", b"\x0f\x33", (mov(x86.ECX, 0),)),
    Form("IN", b"\xec", (mov(x86.EDX, 0x60),)),
    Form("OUT", b"\xee", (mov(x86.EDX, 0x80),)),
    Form("INS", b"\x6c", (mov(x86.EDX, 0x60), mov(x86.EDI, _AT))),
    Form("OUTS", b"\x6e", (mov(x86.EDX, 0x80), mov(x86.ESI, _AT))),
    Form("SGDT", _at("0f01", 0)),
    Form("SIDT", _at("0f01", 1)),
    Form("SLDT", _at("0f00", 0)),
    Form("STR", _at("0f00", 1)),
    Form("SMSW", _at("0f01", 4)),
    Form("SMSW", b"\x0f\x01\xe0", (mov(0, x86.MASK32),)),
    Form("PUSHF", b"\x9c"),
    Form("POPF", b"\x9d", (push(0x202),)),
    Form("POPF", b"\x9d", (push(0x3002),)),
    *_with_ax("LAR", _BOTH, "0f02d8"),
    *_with_ax("LSL", _BOTH, "0f03d8"),
    *_with_ax("VERR", _BOTH, "0f00e0"),
    *_with_ax("VERW", _BOTH, "0f00e8"),
    Form("ARPL", b"\x63\xd8", (mov(0, 0x10), mov(x86.EBX, 3))),
    Form("MOV from Sreg", b"\x8c\xc8"),
    Form("MOV from Sreg", b"\x8c\xd0"),
    Form("PUSH Sreg", b"\x0e"),
    Form("PUSH Sreg", b"\x16"),
    *_with_ax("MOV to Sreg", (*_BOTH, 0), "8ed8"),
    *_with_ax("MOV to SS", _BOTH, "8ed0"),
    *(Form("POP Sreg", b"\x1f", (push(s),)) for s in _BOTH),
    *(Form("POP SS", b"\x17", (push(s),)) for s in _BOTH),
    *(
        Form("LDS, LES, LFS, LGS", _at("c5", 3), data=i32(7) + struct.pack("<H", s))
        for s in _BOTH
    ),
    *(Form("LSS", _at("0fb2", 3), data=i32(7) + struct.pack("<H", s)) for s in _BOTH),
    *(
        Form("JMP far", b"\xea" + _far(s))
        for s in (stage.CODE0, stage.CODE3, _CONFORMING)
    ),
    *(
        Form("CALL far", b"\x9a" + _far(s))
        for s in (stage.CODE0, stage.CODE3, _CONFORMING)
    ),
    *(
        Form("RET far", b"\xcb", (push(s), push(_HERE)))
        for s in (stage.CODE0, stage.CODE3)
    ),
    *(
        Form("IRET", b"\xcf", (push(f), push(s), push(_HERE)))
        for s in (stage.CODE0, stage.CODE3)
        for f in (0x2, 0x202, 0x3002)
    ),
    Form(
        "IRET",
        b"\xcf",
        tuple(map(push, (stage.DATA3, stage.STACK3, 0x202, stage.CODE3, _HERE))),
    ),
    Form("INT n", b"\xcd\x80"),
    Form("INT n", b"\xcd\x30"),
    Form("INT3", b"\xcc"),
    Form("INT n", b"\xce", (b"\xb0\x7f", b"\x04\x01")),
    Form("CPUID", b"\x0f\xa2", (mov(0, 0), mov(x86.ECX, 0))),
    Form("SYSENTER", b"\x0f\x34"),
    Form("UD2", b"\x0f\x0b"),
)

NAMES: Final = tuple(dict.fromkeys(form.name for form in FORMS))
# What Robin and Irvine found; they count VERR and VERW as one.
ROBIN_IRVINE: Final = frozenset(
    {
        "SGDT", "SIDT", "SLDT", "SMSW", "PUSHF", "POPF", "LAR", "LSL", "VERR", "VERW",
        "POP Sreg", "PUSH Sreg", "CALL far", "JMP far", "INT n", "RET far", "STR",
        "MOV to Sreg", "MOV from Sreg",
    }
)  # fmt: skip

# One privileged resource at a time, by the name of what it changes in `observe`.
_BASE: Final = {"tr": stage.TSS_B_SELECTOR, "limit": 1, "skip": 0}
_VARIED: Final[dict[str, dict[str, Any]]] = {
    "IF": {"flags": 0x202},
    "IOPL": {"flags": 0x1002},
    "CR0": {"cr0": x86.CR0_TS},
    "CR4": {"cr4": x86.CR4_PSE},
    "GDTR": {"gdt": _ALIEN},
    "IDTR": {"idt": _ALIEN},
    "LDTR": {"ldtr": 0},
    "TR": {"tr": 0x28},
}
_RESOURCES: Final = {
    "cr0": "CR0", "cr2": "CR2", "cr3": "CR3", "cr4": "CR4", "gdtr.base": "GDTR",
    "gdtr.limit": "GDTR", "idtr.base": "IDTR", "idtr.limit": "IDTR", "ldtr": "LDTR",
    "tr": "TR",
}  # fmt: skip
_IF_IOPL: Final = {x86.IF: "IF", x86.IOPL: "IOPL"}
_SEEN: Final = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")


@dataclass(frozen=True)
class Class:
    """What was observed of one instruction, over all of its forms.

    traps: for each CPL, "never", "always" or "some" forms, with IOPL 0; user_iopl3: the
    same at CPL 3 with IOPL 3; vm86: in virtual-8086 mode with IOPL 0, "runs" or what it
    raises; privileged; behaviour: resources that it depends on, CPL among them;
    control: resources that it changes; wrong: by technique, what the guest sees
    otherwise than on the bare machine, empty if equivalence holds; engine: what the
    engine under emu86 does otherwise than a CPU, and the oracle corrects.
    """

    name: str
    traps: tuple[str, str, str, str]
    user_iopl3: str
    vm86: str
    privileged: bool
    behaviour: tuple[str, ...]
    control: tuple[str, ...]
    wrong: dict[str, str]
    engine: tuple[str, ...]

    @property
    def sensitive(self) -> bool:
        """Control- or behaviour-sensitive."""
        return bool(self.behaviour or self.control)

    @property
    def hole(self) -> bool:
        """Sensitive and not privileged: what Popek and Goldberg forbid."""
        return self.sensitive and not self.privileged

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"sensitive": self.sensitive, "hole": self.hole}


@cache
def _play(form: Form, technique: str, ring: int, **varied: Any) -> Outcome:  # noqa: ANN401 - fields of State
    program = b"".join(form.before) + form.code
    program = program.ljust(_HERE - stage.CODE, b"\x90") + b"\xcc"
    state = State(ring=ring, **_BASE | varied, patches=((_AT, form.data or bytes(8)),))
    return run(program, state, technique)


def _told(outcome: Outcome) -> Event | None:
    """The first event that tells of registers, or None if the machine halted."""
    return next((event for event in outcome.events if event.registers), None)


def _traps(form: Form, outcome: Outcome) -> bool:
    """Whether the form itself raised #GP, #NP, #SS or #UD instead of running."""
    start = stage.CODE + len(b"".join(form.before))
    event = _told(outcome)
    if event is None or event.what not in ("#GP", "#NP", "#SS", "#UD"):
        return False
    return event.registers["eip"] == start


def _effect(form: Form, outcome: Outcome, ignore: int = 0) -> tuple[object, ...]:
    """What can be told of a run, less where it stood: its rings, selectors, stacks.

    ignore: bits of EFLAGS that were varied.
    """
    if _traps(form, outcome):
        return ("traps",)
    event = _told(outcome)
    if event is None:
        return (outcome.end, len(outcome.events))
    registers = event.registers
    seen: list[object] = [event.what, event.value, registers["eip"]]
    seen += [registers[name] for name in _SEEN]
    seen.append(registers["eflags"] & ~ignore)
    seen.append(outcome.memory[_AT : _AT + 16])
    top = stage.STACK3 if registers["cs"] & 3 else stage.STACK0
    if registers["esp"] < top and form.name.startswith(("PUSH", "CALL")):
        place = registers["esp"]
        pushed = int.from_bytes(outcome.memory[place : place + 4], "little")
        seen.append(pushed & ~ignore if form.name == "PUSHF" else pushed)
    started = stage.CODE_OF
    if registers["cs"] not in started:
        seen.append(registers["cs"])
    seen.append([e.what for e in outcome.events if not e.registers])
    return tuple(seen)


def _summary(values: list[bool]) -> str:
    if all(values):
        return "always"
    return "some" if any(values) else "never"


def _behaviour(form: Form) -> set[str]:
    """The resources that a form's effect depends on."""
    found = set()
    at_ring = [_effect(form, _play(form, "bare", ring)) for ring in (0, 3)]
    if at_ring[0] != at_ring[1]:
        found.add("CPL")
    for name, varied in _VARIED.items():
        # What is varied shows in EFLAGS at any rate, but for what PUSHF has pushed.
        ignore = 0 if form.name == "PUSHF" else varied.get("flags", 2) ^ 2
        for ring in (0, 3):
            base, other = (
                _effect(form, _play(form, "bare", ring, **fields), ignore)
                for fields in ({}, varied)
            )
            if base != other:
                found.add(name)
    return found


def _control(form: Form) -> set[str]:
    """The resources that a form changes at CPL 0."""
    for varied in ({}, {"flags": 0x202}, {"cr0": x86.CR0_TS}):
        outcome = _play(form, "bare", 0, **varied)
        after = _told(outcome)
        before = _told(_play(Form("NOP", b"\x90"), "bare", 0, **varied))
        if after is None or before is None:
            return {"the run"}
        if _traps(form, outcome):
            continue
        found = {
            name
            for register, name in _RESOURCES.items()
            if after.registers[register] != before.registers[register]
        }
        changed = after.registers["eflags"] ^ before.registers["eflags"]
        found |= {name for bits, name in _IF_IOPL.items() if changed & bits}
        if any(not event.registers for event in outcome.events):
            found.add("ports")
        if found:
            return found
    return set()


def _vm86(form: Form) -> str:
    """What a form does in virtual-8086 mode: its prefixes make it 32-bit again."""
    code = b"".join(b"\x66\x67" + insn for insn in (*form.before, form.code))
    patches = ((_AT, form.data or bytes(8)),)
    state = State(flags=x86.VM | 2, tr=stage.TSS_B_SELECTOR, patches=patches)
    outcome = run(code + b"\xcc", state, "bare")
    what = outcome.events[0].what
    return "runs" if what == "#BP" else what


def _wrong(form: Form, technique: str) -> str:
    """What the guest sees otherwise: "" if nothing."""
    for ring, flags in ((0, 2), (0, 0x202), (3, 2), (3, 0x202), (3, 0x3002)):
        bare = _play(form, "bare", ring, flags=flags)
        other = _play(form, technique, ring, flags=flags)
        if technique == "iopl" and flags & x86.IOPL:
            # That it cannot give its users an IOPL stands in every frame.
            other = replace(other, memory=bare.memory)
        found = list(differences(bare, other, HIDDEN.get(technique, 0)))
        if found:
            # The first line may only say at which event the registers part.
            line = found[1] if found[0].endswith(":") else found[0]
            return f"CPL {ring}: {line.strip()}"
    return ""


def classify(name: str) -> Class:
    """Observe all forms of an instruction of FORMS; KeyError for another."""
    forms = [form for form in FORMS if form.name == name]
    if not forms:
        raise KeyError(name)
    traps = tuple(
        _summary([_traps(form, _play(form, "bare", ring)) for form in forms])
        for ring in range(4)
    )
    iopl3 = _summary(
        [_traps(form, _play(form, "bare", 3, flags=0x3002)) for form in forms]
    )
    behaviour: set[str] = set().union(*map(_behaviour, forms))
    control: set[str] = set().union(*map(_control, forms))
    vm86 = sorted({_vm86(form) for form in forms})
    wrong = {
        technique: next(filter(None, (_wrong(form, technique) for form in forms)), "")
        for technique in TECHNIQUES
    }
    privileged = traps[3] == "always" and traps[0] != "always"
    if privileged:
        # That it traps at CPL 3 is all that tells the CPL.
        behaviour.discard("CPL")
    return Class(
        name, (traps[0], traps[1], traps[2], traps[3]), iopl3, ", ".join(vm86),
        privileged, tuple(sorted(behaviour)), tuple(sorted(control)), wrong,
        tuple(one.engine for one in ERRATA if name in one.about),
    )  # fmt: skip


@cache
def table() -> list[Class]:
    """Observe every instruction."""
    return [classify(name) for name in NAMES]
