"""Privileged and sensitive instructions, classified by what they do.

After Popek and Goldberg (1974) and Robin and Irvine (2000). Each form of each system
instruction runs on the bare machine at every CPL and with one privileged resource at a
time changed. *Privileged*: every form traps at CPL 3 with IOPL 0, none at CPL 0.
*Behaviour-sensitive*: what a form does depends on the CPL or on a resource that the
guest's user must not see. *Control-sensitive*: at CPL 0 it changes such a resource.
A technique is right about a form if the guest's kernel and its users cannot tell it
from the bare machine, and so is the engine if it needs no correction.
"""

from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Any, Final

from emu86.config import DEPRIVILEGED
from emu86.errors import unknown
from emu86.rings.decode import decode
from emu86.rings.technique.errata import ERRATA, Erratum
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.equivalence import HIDDEN
from emu86.testing.forms import AT, FORMS, HERE, NAMES, Form
from emu86.testing.forms64 import FORMS64, NAMES64
from emu86.testing.outcome import Event, Outcome, differences
from emu86.testing.replay import NO_CHANGE, BareReplay, Change, Replay
from emu86.testing.run import run
from emu86.testing.stage import State

__all__ = [
    "FORMS", "FORMS64", "LEFT_OUT", "NAMES", "NAMES64", "ROBIN_IRVINE", "TECHNIQUES",
    "Class", "classify", "table",
]  # fmt: skip

TECHNIQUES: Final = DEPRIVILEGED
_ALIEN: Final = 0x60000  # where the other GDT or IDT stands
# What Robin and Irvine found; they count VERR and VERW as one.
ROBIN_IRVINE: Final = frozenset(
    {
        "SGDT", "SIDT", "SLDT", "SMSW", "PUSHF", "POPF", "LAR", "LSL", "VERR", "VERW",
        "POP Sreg", "PUSH Sreg", "CALL far", "JMP far", "INT n", "RET far", "STR",
        "MOV to Sreg", "MOV from Sreg",
    }
)  # fmt: skip

# What else x86 has.
LEFT_OUT: Final = frozenset(
    {"IRET", "INTO", "MOV to SS", "POP SS", "LSS", "LDS, LES, LFS, LGS", "RDTSC"}
)

# Handlers that halt at once.
_HALTING: Final = (stage.HANDLERS, b"\xf4" * 0x80)
# One privileged resource at a time, by the name of what it changes in `observe`.
_BASE: Final = {"tr": stage.TSS_B_SELECTOR}
_BASE64: Final = {"tr": stage.TSS_B64_SELECTOR}
_VARIED: Final[tuple[tuple[str, dict[str, Any], Change], ...]] = (
    ("IF", {"flags": 0x202}, NO_CHANGE),
    ("IOPL", {"flags": 0x3002}, NO_CHANGE),
    ("CR0", {"cr0": x86.CR0_TS}, NO_CHANGE),
    ("CR0", {"cr0": x86.CR0_TS | x86.CR0_MP}, NO_CHANGE),
    ("CR0", {"cr0": x86.CR0_EM}, NO_CHANGE),
    ("CR2", {}, Change(cr=((2, 0x5678),))),
    ("CR3", {}, Change(cr=((3, 0x5000),))),
    ("CR4", {"cr4": x86.CR4_PSE | x86.CR4_DE}, NO_CHANGE),
    ("CR4", {"cr4": x86.CR4_TSD | x86.CR4_PCE}, NO_CHANGE),
    ("CR4", {"cr4": x86.CR4_OSFXSR}, NO_CHANGE),
    ("GDTR", {"gdt": _ALIEN}, NO_CHANGE),
    ("IDTR", {"idt": _ALIEN}, NO_CHANGE),
    ("LDTR", {"ldtr": 0}, NO_CHANGE),
    ("TR", {"tr": stage.TSS_SELECTOR}, NO_CHANGE),
    # No breakpoint is enabled: BS of DR6, GE of DR7.
    ("DR", {}, Change(dr=((0, 1), (1, 2), (2, 3), (3, 4)))),
    ("DR", {}, Change(dr=((6, 0xFFFF4FF0), (7, 0x600)))),
    ("MSR", {}, Change(msr=((x86.MSR_PLATFORM_ID, 7), (x86.MSR_BIOS_SIGN_ID, 7)))),
    ("MSR", {}, Change(counter=7)),
    ("TSC", {}, Change(tsc=1 << 20)),
)  # fmt: skip
# In IA-32e mode: its tables stay, and the CPU model has no performance counters.
_VARIED64: Final = (
    *(one for one in _VARIED if one[0] not in ("CR3", "CR4")),
    ("CR3", {}, Change(cr=((3, stage.PML4 | 8),))),
    ("CR8", {}, Change(cr=((8, 5),))),
    ("CR4", {"cr4": x86.CR4_DE}, NO_CHANGE),
    ("CR4", {"cr4": x86.CR4_TSD}, NO_CHANGE),
    ("CR4", {"cr4": x86.CR4_OSFXSR}, NO_CHANGE),
)
_RESOURCES: Final = {
    "cr0": "CR0", "cr2": "CR2", "cr3": "CR3", "cr4": "CR4", "gdtr.base": "GDTR",
    "gdtr.limit": "GDTR", "idtr.base": "IDTR", "idtr.limit": "IDTR", "ldtr": "LDTR",
    "tr": "TR", "dr0": "DR", "dr1": "DR", "dr2": "DR", "dr3": "DR", "dr6": "DR",
    "dr7": "DR", "msr": "MSR", "pmu": "MSR", "tsc": "TSC", "efer": "MSR",
    "star": "MSR", "lstar": "MSR", "kernel_gs_base": "GS", "cr8": "CR8",
}  # fmt: skip
_IF_IOPL: Final = {x86.IF: "IF", x86.IOPL: "IOPL"}
# General registers that tell of an effect: all but the stack pointer.
_SEEN: Final = {
    "protected": [name for name in x86.GPR_NAMES if name != "esp"],
    "long": [name for name in x86.GPR_NAMES64 if name != "rsp"],
}
_NAMES: Final = {
    "protected": ("eip", "eflags", "esp"), "long": ("rip", "rflags", "rsp"),
}  # fmt: skip
_FAULTS: Final = ("#GP", "#NP", "#SS", "#UD", "#NM", "#TS", "#PF")
# Where a technique is held against the bare machine: ring, EFLAGS.
_STATES: Final = (
    (0, 2), (0, 0x202), (0, 0x3202), (1, 2), (1, 0x3202), (2, 0x202), (2, 0x3002),
    (3, 2), (3, 0x202), (3, 0x3202), (0, x86.VM | 2), (0, x86.VM | 0x3202),
)  # fmt: skip
# MOV AX, 5000h; MOV DS, AX; MOV ES, AX; MOV AX, 0: data in virtual-8086 mode.
_START86: Final = bytes.fromhex("b80050 8ed8 8ec0 b80000")


@dataclass(frozen=True)
class Class:
    """What was observed of one instruction, over all of its forms.

    bits: of the code, 32 or 64; traps: for each CPL, "never", "always" or "some" forms,
    with IOPL 0; user_iopl3: the same at CPL 3 with IOPL 3; vm86: in virtual-8086 mode
    with IOPL 0, and with IOPL 3, "runs" or what it raises, or "" in 64-bit code;
    privileged; behaviour: resources that it depends on, CPL among them; leaks: those of
    them whose change makes no trap, and the CPL; control: resources that it changes;
    wrong: by technique, what the guest sees otherwise than on the bare machine, empty
    if equivalence holds; engine: what the engine does otherwise than a CPU, each with
    where it was seen first.
    """

    name: str
    bits: int
    traps: tuple[str, str, str, str]
    user_iopl3: str
    vm86: tuple[str, str]
    privileged: bool
    behaviour: tuple[str, ...]
    leaks: tuple[str, ...]
    control: tuple[str, ...]
    wrong: dict[str, str]
    engine: tuple[str, ...]

    @property
    def sensitive(self) -> bool:
        """Control- or behaviour-sensitive."""
        return bool(self.behaviour or self.control)

    @property
    def hole(self) -> bool:
        """Not privileged, yet it leaks or changes what it must not.

        Who holds a resource that makes it trap or run is told, so that is no hole.
        """
        return bool(self.leaks or self.control) and not self.privileged

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"sensitive": self.sensitive, "hole": self.hole}


@cache
def _replay(technique: str, mode: stage.Mode) -> Replay:
    return Replay(technique, mode)


@cache
def _engine(erratum: Erratum | None, mode: stage.Mode) -> BareReplay:
    """The engine as it is, or with one erratum put right."""
    return BareReplay(mode, raw=erratum is None, erratum=erratum)


_bare_replay: Final = cache(BareReplay)


def _program(form: Form, *, virtual_8086: bool) -> tuple[bytes, int]:
    """Return a form's program, and where in it the form itself is."""
    *before, code = form.in_vm86 if virtual_8086 else (*form.before, form.code)
    ahead = (_START86 if virtual_8086 else b"") + b"".join(before)
    # What does not go elsewhere jumps to the INT3, where far transfers go.
    size = HERE - stage.CODE
    jump = bytes([0xEB, size - len(ahead + code) - 2])
    return (ahead + code + jump).ljust(size, b"\x90") + b"\xcc", len(ahead)


def _start(form: Form, ring: int, varied: dict[str, Any]) -> tuple[bytes, State]:
    """Return the program of a form and where it starts; varied: fields of State."""
    flags = varied.get("flags", 0) | form.flags | x86.FLAGS_FIXED
    program, _ = _program(form, virtual_8086=bool(flags & x86.VM))
    patches = (_HALTING, (AT, form.data or bytes(8)), *form.patches)
    patches += tuple(
        (place + _ALIEN - stage.GDT, data)
        for place, data in form.patches
        if place in range(stage.GDT, stage.LDT)
    )
    base = _BASE64 if form.mode == "long" else _BASE
    fields = base | form.state | varied | {"flags": flags, "patches": patches}
    return program, State(mode=form.mode, ring=ring, **fields)


def _play(
    form: Form,
    ring: int,
    change: Change = NO_CHANGE,
    **varied: Any,  # noqa: ANN401 - fields of State
) -> Outcome:
    """Play a form on the bare machine."""
    if varied.get("flags") == x86.FLAGS_FIXED:
        del varied["flags"]  # so that it is one run
    return _played(form, ring, change, tuple(varied.items()))


@lru_cache(maxsize=64)
def _played(
    form: Form, ring: int, change: Change, varied: tuple[tuple[str, Any], ...]
) -> Outcome:
    return _bare_replay(form.mode).play(*_start(form, ring, dict(varied)), change)


def _told(outcome: Outcome) -> Event | None:
    """The first event that tells of registers, or None if the machine halted."""
    return next((event for event in outcome.events if event.registers), None)


def _fault(form: Form, outcome: Outcome, *, virtual_8086: bool = False) -> str:
    """What the form itself raised instead of running: "" if it ran."""
    event = _told(outcome)
    if event is None or event.what not in _FAULTS:
        return ""
    start = _program(form, virtual_8086=virtual_8086)[1]
    at = start if virtual_8086 else stage.CODE + start
    eip, _, _ = _NAMES[form.mode]
    return event.what if event.registers[eip] == at else ""


def _effect(form: Form, outcome: Outcome, ignore: int = 0) -> tuple[object, ...]:
    """What can be told of a run, less where it stood: its rings, selectors, stacks.

    ignore: bits of EFLAGS that were varied.
    """
    fault = _fault(form, outcome)
    if fault:
        return ("traps", fault)
    event = _told(outcome)
    if event is None:
        return (outcome.end, len(outcome.events))
    registers = event.registers
    eip, eflags, esp = _NAMES[form.mode]
    seen: list[object] = [event.what, event.value, registers[eip]]
    seen += [registers[name] for name in _SEEN[form.mode]]
    seen.append(registers[eflags] & ~ignore)
    seen.append(outcome.memory[AT : AT + 16])
    top = stage.STACK3 if registers["cs"] & 3 else stage.STACK0
    if registers[esp] < top and form.name.startswith(("PUSH", "CALL")):
        place = registers[esp]
        pushed = int.from_bytes(outcome.memory[place : place + 4], "little")
        seen.append(pushed & ~ignore if form.name == "PUSHF" else pushed)
    started = stage.CODE64_OF if form.mode == "long" else stage.CODE_OF
    if registers["cs"] not in started:
        seen.append(registers["cs"])
    seen.append([e.what for e in outcome.events if not e.registers])
    return tuple(seen)


def _summary(values: list[bool]) -> str:
    if all(values):
        return "always"
    return "some" if any(values) else "never"


def _behaviour(form: Form) -> tuple[set[str], set[str]]:
    """The resources that a form's effect depends on, and those of them it leaks."""
    found, leaked = set(), set()
    inner, outer = (_effect(form, _play(form, ring)) for ring in (0, 3))
    if inner != outer and not inner[0] == outer[0] == "traps":
        found.add("CPL")
        leaked.add("CPL")
    for name, varied, change in _VARIED64 if form.mode == "long" else _VARIED:
        # What is varied shows in EFLAGS at any rate, but for what PUSHF has pushed.
        ignore = 0 if form.name == "PUSHF" else varied.get("flags", 2) ^ 2
        for ring in (0, 3):
            base = _effect(form, _play(form, ring), ignore)
            other = _effect(form, _play(form, ring, change, **varied), ignore)
            if base != other:
                found.add(name)
                if "traps" not in (base[0], other[0]):
                    leaked.add(name)
    return found, leaked


_NOP: Final = {
    "protected": Form("NOP", b"\x90"), "long": Form("NOP", b"\x90", mode="long"),
}  # fmt: skip


@lru_cache(maxsize=16)
def _before(
    mode: str,
    **fields: Any,  # noqa: ANN401 - fields of State
) -> dict[str, int]:
    """What registers hold where a form changes nothing."""
    outcome = _play(_NOP[mode], 0, **fields)
    told = _told(outcome)
    assert told is not None
    return outcome.registers | told.registers


def _control(form: Form) -> set[str]:
    """The resources that a form changes at CPL 0."""
    eip, eflags, _ = _NAMES[form.mode]
    for varied in ({}, {"flags": 0x202}, {"cr0": x86.CR0_TS}):
        outcome = _play(form, 0, NO_CHANGE, **varied)
        if _fault(form, outcome):
            continue
        event = _told(outcome)
        before = _before(form.mode, **form.state | varied)
        after = outcome.registers | (event.registers if event else {})
        if event is None and after[eip] in range(stage.CODE, HERE):
            return {"the run"}
        found = {
            name
            for register, name in _RESOURCES.items()
            if after.get(register) != before.get(register)
        }
        if event is not None:  # a task has flags of its own
            changed = after[eflags] ^ before[eflags]
            found |= {name for bits, name in _IF_IOPL.items() if changed & bits}
        if any(not event.registers for event in outcome.events):
            found.add("ports")
        if found:
            return found
    return set()


def _vm86(form: Form, iopl: int) -> set[str]:
    """What a form does in virtual-8086 mode: "runs", or what it raises."""
    if not form.in_vm86:
        return set()
    outcome = _play(form, 0, flags=x86.VM | iopl | 2)
    return {_fault(form, outcome, virtual_8086=True) or "runs"}


def _where(ring: int, flags: int) -> str:
    level = ", IOPL 3" if flags & x86.IOPL else ""
    return f"VM86{level}" if flags & x86.VM else f"CPL {ring}{level}"


def _first(one: Outcome, other: Outcome, hidden: int = 0) -> str:
    """Tell the first difference, "" if there is none."""
    found = list(differences(one, other, hidden))
    # The first line may only say at which event the registers part.
    return found[found[0].endswith(":")].strip() if found else ""


@lru_cache(maxsize=4)
def _clocked(form: Form, technique: str, ring: int, flags: int) -> Outcome:
    """Play a form that looks at the time, which goes by instructions."""
    program, state = _start(form, ring, {"flags": flags})
    return run(program, replace(state, interrupts=()), technique)


def _difference(form: Form, technique: str, ring: int, flags: int) -> str:
    """Tell what the guest sees otherwise under a technique, "" if nothing."""
    if form.clock:
        bare, other = (_clocked(form, t, ring, flags) for t in ("bare", technique))
    else:
        bare = _play(form, ring, flags=flags)
        other = _replay(technique, form.mode).play(
            *_start(form, ring, {"flags": flags})
        )
    if technique == "iopl" and flags & x86.IOPL:
        # That it cannot give its users an IOPL stands in every frame.
        events = list(other.events)
        for i, known in enumerate(bare.events[: len(events)]):
            events[i] = replace(events[i], pages=known.pages)
        other = replace(
            other, events=tuple(events), start=bare.start, memory=bare.memory
        )
    return _first(bare, other, HIDDEN.get(technique, 0))


def _mistake(form: Form, ring: int, flags: int) -> tuple[str, str]:
    """Tell which erratum of the engine shows, and how; both "" if none does."""
    start = _start(form, ring, {"flags": flags})
    bare = _play(form, ring, flags=flags)
    line = _first(bare, _engine(None, form.mode).play(*start))
    if not line:
        return "", ""
    insn = decode(form.code, 64 if form.mode == "long" else 32)
    for one in ERRATA:
        # The one that, put right, makes it right.
        concerns = insn is not None and insn.opcode in one.opcodes
        if concerns and not _first(bare, _engine(one, form.mode).play(*start)):
            return one.engine, line
    return "more than one thing", line


class _Observed:
    """What is seen of an instruction as one form after the other runs."""

    def __init__(self) -> None:
        self.traps: tuple[list[bool], ...] = ([], [], [], [])  # by CPL
        self.user_iopl3: list[bool] = []
        self.vm86: tuple[set[str], set[str]] = set(), set()
        self.behaviour: set[str] = set()
        self.leaks: set[str] = set()
        self.control: set[str] = set()
        self.wrong = dict.fromkeys(TECHNIQUES, "")
        self.engine: dict[str, str] = {}  # where each mistake was seen first

    def compare(self, form: Form) -> None:
        """Hold the techniques and the engine against the bare machine."""
        for ring, flags in _STATES:
            if flags & x86.VM and form.mode == "long":
                continue
            if not (form.in_vm86 if flags & x86.VM else ring in form.rings):
                continue
            where = _where(ring, flags)
            for technique in TECHNIQUES:
                if not self.wrong[technique]:
                    line = _difference(form, technique, ring, flags)
                    self.wrong[technique] = f"{where}: {line}" if line else ""
            mistake, line = _mistake(form, ring, flags)
            if mistake:
                self.engine.setdefault(mistake, f"{where}: {line}")
        if form.cpu is not None:
            ring, what, mistake = form.cpu
            outcome = _engine(None, form.mode).play(*_start(form, ring, {}))
            if _fault(form, outcome) != what:
                line = f"CPL {ring}: a CPU raises {what}, but it runs"
                self.engine.setdefault(mistake, line)

    def observe_form(self, form: Form) -> None:
        """Learn when a form traps, what it depends on and what it changes."""
        for ring, traps in enumerate(self.traps):
            traps.append(bool(_fault(form, _play(form, ring))))
        self.user_iopl3.append(bool(_fault(form, _play(form, 3, flags=0x3002))))
        for raised, iopl in zip(self.vm86, (0, x86.IOPL), strict=True):
            raised.update(_vm86(form, iopl))
        found, leaked = _behaviour(form)
        self.behaviour |= found
        self.leaks |= leaked
        self.control |= _control(form)


def classify(name: str, bits: int = 32) -> Class:
    """Observe all forms of an instruction of FORMS, or in 64-bit code of FORMS64.

    ValueError for another.
    """
    forms, names = (FORMS64, NAMES64) if bits == 64 else (FORMS, NAMES)
    if name not in names:
        message = f"instruction: {unknown(name, names)}"
        raise ValueError(message)
    seen = _Observed()
    for form in forms:
        if form.name == name:
            seen.compare(form)
            if form.classed:
                seen.observe_form(form)
    first, second, third, user = map(_summary, seen.traps)
    privileged = user == "always" and first != "always"
    if privileged:
        # That it traps at CPL 3 is all that tells the CPL.
        seen.behaviour.discard("CPL")
        seen.leaks.discard("CPL")
    without, with_iopl = (", ".join(sorted(found)) for found in seen.vm86)
    return Class(
        name, bits, (first, second, third, user), _summary(seen.user_iopl3),
        (without, with_iopl), privileged, tuple(sorted(seen.behaviour)),
        tuple(sorted(seen.leaks)), tuple(sorted(seen.control)), seen.wrong,
        tuple(f"{mistake} ({line})" for mistake, line in seen.engine.items()),
    )  # fmt: skip


@cache
def table(bits: int = 32) -> list[Class]:
    """Observe every instruction."""
    names = NAMES64 if bits == 64 else NAMES
    return [classify(name, bits) for name in names]
