"""Why a fault was raised: the walk that led to it, in words and as a picture.

The tables are walked as they are now. Source: SDM Vol. 3A sections 4.6, 4.7 (page
faults), 5.2, 5.5 (descriptors) and 6.13 (error codes).
"""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from emu86.machine.looking import Looker, met
from emu86.machine.reasons import GATES, IDT, LDT, kind
from emu86.machine.report import Report
from emu86.mmu.paging import Format, format_of, is_canonical
from emu86.notebook import svg
from emu86.rings.history import Event
from emu86.spec import x86
from emu86.spec.x86 import hexadecimal

if TYPE_CHECKING:
    from emu86.rings.technique.base import Technique

_BITS: Final = (
    (x86.PTE_P, "P"), (x86.PTE_RW, "RW"), (x86.PTE_US, "US"), (x86.PTE_A, "A"),
    (x86.PTE_D, "D"), (x86.PDE_PS, "PS"), (x86.PTE_G, "G"), (x86.PTE_NX, "XD"),
)  # fmt: skip
_ABSENT: Final = "an entry with P clear maps nothing: SDM Vol. 3A 4.7"
_RESERVED: Final = "reserved bits must be clear: SDM Vol. 3A 4.7"
_WRITE: Final = (
    "a write needs RW in each entry, a user's always, a kernel's if CR0.WP is set:"
    " SDM Vol. 3A 4.6.1"
)
_USER: Final = "an access by a user needs US in each entry: SDM Vol. 3A 4.6.1"
_FETCH: Final = "code may not be fetched if XD is set in any entry: SDM Vol. 3A 4.6.1"
_KEPT: Final = (
    "CR4.SMEP and CR4.SMAP keep the kernel from users' pages: SDM Vol. 3A 4.6.1"
)
_SEGMENT_VECTORS: Final = (x86.VEC_TS, x86.VEC_NP, x86.VEC_SS, x86.VEC_GP)


@dataclass(frozen=True, slots=True)
class Step:
    """A register or an entry that a walk meets.

    name: as "PDE 2"; at: its guest-physical or linear address, -1 of a register; value:
    32 or 64 bits; words: what it says; refused: it is what the fault comes from.
    """

    name: str
    at: int
    value: int
    words: str
    refused: bool = False

    def __str__(self) -> str:
        at = f" at {self.at:08x}" if self.at >= 0 else ""
        mark = "   <-- refused" if self.refused else ""
        return f"{self.name}{at}: {self.value:08x}  {self.words}{mark}"


@dataclass(frozen=True, slots=True)
class Walked:
    """One walk: what was asked for, the steps, the rule, and what would have to differ.

    rule and wanted are "" where the tables now allow it.
    """

    asked: str
    steps: tuple[Step, ...]
    rule: str
    wanted: str

    def __str__(self) -> str:
        lines = [f"{self.asked}:", *(f"  {step}" for step in self.steps)]
        if self.rule:
            lines += [f"  The rule: {self.rule}.", f"  It would need {self.wanted}."]
        else:
            lines.append("  The tables allow this now.")
        return "\n".join(lines)

    def svg(self) -> str:
        """Draw the steps from left to right; what refused is red."""
        width, height = 250, 96
        boxes = []
        for i, step in enumerate(self.steps):
            x = 10 + i * (width + 30)
            colour = "#d00" if step.refused else "#222"
            at = f"at {step.at:08x}" if step.at >= 0 else ""
            texts = (f"{step.name} {at}", f"{step.value:08x}", step.words)
            boxes.append(
                f'<rect x="{x}" y="10" width="{width}" height="{height - 26}" '
                f'fill="{"#fee" if step.refused else "#f5f5f5"}" stroke="{colour}"/>'
                + "".join(
                    f'<text x="{x + 8}" y="{30 + 18 * n}">{escape(text)}</text>'
                    for n, text in enumerate(texts)
                )
            )
            if i:
                boxes.append(f'<path d="M {x - 28} 45 H {x - 4}" stroke="#222"/>')
                boxes.append(f'<path d="M {x - 10} 41 L {x - 4} 45 L {x - 10} 49"/>')
        return svg(20 + len(self.steps) * (width + 30), height, boxes)

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(self.asked)}:</p>\n{self.svg()}"]
        if self.rule:
            told = f"The rule: {self.rule}. It would need {self.wanted}."
            parts.append(f"<p>{escape(told)}</p>\n")
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Why:
    """Why the last fault was raised, and what came of it: see `Machine.why_fault`.

    faults: what was raised, one after another, in words; walks: those that led to them.
    """

    faults: tuple[str, ...]
    walks: tuple[Walked, ...]

    @classmethod
    def of(cls, vmm: "Technique", report: Report) -> "Why":
        """Tell of the last fault that a guest has had."""
        events = vmm.history.events
        if not events:
            return cls((), ())
        event = events[-1]
        faults = report.chain or report.exceptions[-1:]
        walks = [_of_event(vmm, event)]
        for failure in event.failures:
            address = failure.address or 0
            walks.append(_walked(vmm, failure.vector, failure.error, address))
        # The second fault of a chain is often the first one again.
        found = tuple(dict.fromkeys(one for one in walks if one is not None))
        return cls(tuple(map(str, faults)), found)

    def __str__(self) -> str:
        if not (self.faults or self.walks):
            return "the guest has had no fault"
        if not self.faults:
            return "\n".join(map(str, self.walks))
        return "\n".join([" → ".join(self.faults), *map(str, self.walks)])

    def _repr_html_(self) -> str:
        if not (self.faults or self.walks):
            return "<p>the guest has had no fault</p>"
        walks = "".join(one._repr_html_() for one in self.walks)
        return f"<p>{escape(' → '.join(self.faults))}</p>\n{walks}"


def _of_event(vmm: "Technique", event: Event) -> Walked | None:
    if event.interrupt:
        return None
    return _walked(vmm, event.vector, event.error, event.address)


def _walked(
    vmm: "Technique", vector: int, error: int | None, address: int
) -> Walked | None:
    if vector == x86.VEC_PF:
        return page_walk(vmm, address, error or 0)
    if vector in _SEGMENT_VECTORS and error:
        return _selector_walk(vmm, error, vector)
    return None


def page_walk(vmm: "Technique", address: int, error: int) -> Walked:
    """Walk the guest's tables for an access; error: bits W, U and I of a #PF's."""
    vcpu = vmm.vcpu
    paging = format_of(vcpu.cr0, vcpu.cr4, vcpu.efer)
    access = (
        "a fetch" if error & x86.PF_I else "a write" if error & x86.PF_W else "a read"
    )
    whose = "a user" if error & x86.PF_U else "the kernel"
    asked = f"{access} of {address:08x} by {whose}, by {paging.name}"
    if paging.direct or not is_canonical(address):
        steps = (Step("CR0", -1, vcpu.cr0, "no paging" if paging.direct else "paging"),)
        return Walked(asked, steps, "", "")
    steps_, refusal = _steps(vmm, paging, address, error)
    if refusal is None:
        return Walked(asked, tuple(steps_), "", "")
    at, rule, wanted = refusal
    refused = steps_[at]
    steps_[at] = Step(refused.name, refused.at, refused.value, refused.words, True)
    place = f"the {refused.name} at {refused.at:08x}"
    if refused.at < 0:
        place = refused.name
    return Walked(asked, tuple(steps_), rule, f"{wanted} in {place}")


def _steps(
    vmm: "Technique", paging: Format, address: int, error: int
) -> tuple[list[Step], tuple[int, str, str] | None]:
    """Return the steps, and which refused, by which rule, and what it lacks."""
    vcpu = vmm.vcpu
    steps = [Step("CR3", -1, vcpu.cr3, f"tables at {vcpu.cr3 & paging.root:08x}")]
    entries: list[tuple[int, int]] = []  # with rights: the step and the entry
    for one in met(vmm, paging, address):
        entry = one.entry
        words = " ".join(name for bit, name in _BITS if entry & bit)
        name = f"{one.name} {one.number}"
        steps.append(Step(name, one.at, entry, words or "not present"))
        if not entry & x86.PTE_P:
            return steps, (len(steps) - 1, _ABSENT, "P (bit 0) set")
        if one.at < 0:
            continue  # a register, whose rights are others
        small = one.shift == x86.PAGE_SHIFT
        large = one.shift in paging.large_shifts and entry & x86.PDE_PS
        reserved = paging.reserved_page if small else paging.reserved
        reserved = paging.reserved_large if large else reserved
        if bad := entry & reserved:
            return steps, (len(steps) - 1, _RESERVED, f"bits {bad:x} clear")
        entries.append((len(steps) - 1, entry))
    return steps, _refusal(vmm, entries, error)


def _refusal(
    vmm: "Technique", entries: list[tuple[int, int]], error: int
) -> tuple[int, str, str] | None:
    """Return which entry refuses an access, by which rule, and what it lacks."""
    vcpu = vmm.vcpu
    user = error & x86.PF_U
    for step, entry in entries:
        if user and not entry & x86.PTE_US:
            return step, _USER, "US (bit 2) set"
    for step, entry in entries:
        may = entry & x86.PTE_RW or not (user or vcpu.cr0 & x86.CR0_WP)
        if error & x86.PF_W and not may:
            return step, _WRITE, "RW (bit 1) set"
        if error & x86.PF_I and entry & x86.PTE_NX:
            return step, _FETCH, "XD (bit 63) clear"
    kept = x86.CR4_SMEP if error & x86.PF_I else x86.CR4_SMAP
    users = all(entry & x86.PTE_US for _, entry in entries)
    if error & x86.PF_P and not user and users and vcpu.cr4 & kept:
        return entries[-1][0], _KEPT, "US (bit 2) clear"
    return None


def _selector_walk(vmm: "Technique", error: int, vector: int) -> Walked | None:
    """Tell of the descriptor or gate that an error code names."""
    vcpu, looker = vmm.vcpu, Looker(vmm)
    ia32e = looker.is_ia32e
    index = error & 0xFFF8
    if error & IDT:
        name, base, limit = "IDT", vcpu.idt_base, vcpu.idt_limit
        size = 16 if ia32e else 8
        offset, what = (error >> 3) * size, f"gate {hexadecimal(error >> 3)}"
        rule, section = "a vector needs a gate within the IDT's limit", "6.11 and 6.12"
    else:
        name = "LDT" if error & LDT else "GDT"
        table = (vcpu.ldtr.base, vcpu.ldtr.limit)
        base, limit = table if error & LDT else (vcpu.gdt_base, vcpu.gdt_limit)
        offset, size, what = index, 8, f"descriptor {hexadecimal(index)}"
        rule, section = "a selector needs a descriptor that fits its use", "5.2 to 5.8"
    steps = [Step(f"{name}R", -1, base, f"limit {hexadecimal(limit)}")]
    asked = f"{what} of the {name}"
    told = f"{rule}: SDM Vol. 3A {section}"
    if offset + size - 1 > limit:
        steps[0] = Step(f"{name}R", -1, base, f"limit {hexadecimal(limit)}", True)
        wanted = f"a limit of {hexadecimal(offset + size - 1)} at least in {name}R"
        return Walked(asked, tuple(steps), told, wanted)
    at = base + offset & looker.mask
    found = looker.descriptor(at)
    if found is None:
        return Walked(asked, (*steps, Step(what, at, 0, "not mapped", True)), told,
                      "a page there")  # fmt: skip
    value = found.low | found.high << 32
    words = f"{kind(found)}, DPL {found.dpl}" if value else "empty"
    if error & IDT and found.system not in GATES:
        words, value_wanted = "no gate", "a gate there"
    else:
        value_wanted = "another type or DPL" if value else "a descriptor there"
    absent = bool(value) and not found.present
    words += ", P clear" if absent else ""
    present = vector == x86.VEC_NP or absent
    wanted = "P (bit 47) set" if present and words != "no gate" else value_wanted
    return Walked(asked, (*steps, Step(what, at, value, words, True)), told, wanted)
