"""GDT, LDT, IDT and TSS of a guest, beside what the VMM has made of them.

Source: SDM Vol. 3A sections 3.4.5 (descriptors), 6.11 (gates) and 7.2 (the TSS);
`rings.technique.shadow_segments` for the shadow's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Final

from emu86.machine.looking import Looker
from emu86.machine.reasons import GATES, kind
from emu86.notebook import table
from emu86.rings.descriptor import Descriptor
from emu86.spec import x86
from emu86.spec.x86 import hexadecimal

if TYPE_CHECKING:
    from emu86.rings.technique.deprivileged import Deprivileged

_GATES: Final = (*GATES, x86.SYS_CALL16, x86.SYS_CALL32)
_IDT: Final = "the engine has none, the VMM reads the guest's gate at each event"
_UNREAD: Final = "left out: the table is read when it is needed"
_NATIVE: Final = x86.DESC_P | x86.DESC_S | x86.DESC_A


@dataclass(frozen=True, slots=True)
class Entry:
    """A descriptor or gate, or several alike.

    table: its name; index, last: selectors or vectors, of the first and the last one;
    guest: what it is to the guest; shadow: what the engine finds instead, "" for a
    gate.
    """

    table: str
    index: int
    guest: str
    shadow: str
    last: int

    @property
    def name(self) -> str:
        """The table and the selectors or vectors."""
        to = f"-{hexadecimal(self.last)}" if self.last != self.index else ""
        return f"{self.table} {hexadecimal(self.index)}{to}"


@dataclass(frozen=True, slots=True)
class Tables:
    """The descriptor tables of a guest: see `Machine.tables`.

    places: where each is, in words; entries: those that are not empty.
    """

    places: tuple[str, ...]
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, vmm: "Deprivileged") -> "Tables":
        """Look at the tables of a guest as they are now."""
        vmm.catch_up()
        looker, vcpu = Looker(vmm), vmm.vcpu
        tr, ldtr = vcpu.tr, vcpu.ldtr
        places = [
            f"GDT {vcpu.gdt_base:08x}, limit {hexadecimal(vcpu.gdt_limit)}",
            f"IDT {vcpu.idt_base:08x}, limit {hexadecimal(vcpu.idt_limit)}: {_IDT}",
            f"LDT {ldtr.base:08x}, limit {hexadecimal(ldtr.limit)}"
            if ldtr.selector & 0xFFFC
            else "no LDT",
        ]
        stack = _ring0_stack(looker, tr.base, tr.kind)
        tss = f"TSS {tr.base:08x}, limit {hexadecimal(tr.limit)}{stack}"
        places.append(tss if tr.selector & 0xFFFC else "no TSS")
        if not vcpu.cr0 & x86.CR0_PE:
            return cls(("real mode: there are no descriptors", places[1]), ())
        entries = [
            *_descriptors(vmm, looker, "GDT", vcpu.gdt_base, vcpu.gdt_limit),
            *(
                _descriptors(vmm, looker, "LDT", ldtr.base, ldtr.limit)
                if ldtr.selector & 0xFFFC
                else ()
            ),
            *_gates(vmm, looker),
        ]
        return cls(tuple(places), tuple(_folded(entries)))

    def __str__(self) -> str:
        lines = [*self.places, ""]
        width = max((len(one.guest) for one in self.entries), default=0)
        lines += (
            f"{one.name:11}  {one.guest:{width}}  {one.shadow}".rstrip()
            for one in self.entries
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [("", "guest", "shadow")]
        rows += ((one.name, one.guest, one.shadow) for one in self.entries)
        places = "".join(f"<li>{escape(place)}</li>" for place in self.places)
        return f"<ul>{places}</ul>{table('Descriptor tables', rows)}"


def _folded(entries: list[Entry]) -> Iterator[Entry]:
    for (name, guest, shadow), group in groupby(
        entries, key=lambda one: (one.table, one.guest, one.shadow)
    ):
        alike = list(group)
        yield Entry(name, alike[0].index, guest, shadow, alike[-1].last)


def _descriptors(
    vmm: "Deprivileged", looker: Looker, name: str, base: int, limit: int
) -> Iterator[Entry]:
    made = vmm.cpu.gdt if name == "GDT" else vmm.cpu.ldt
    ia32e = bool(vmm.vcpu.efer & x86.EFER_LMA)
    index = 8 if name == "GDT" else 0
    while index + 7 <= limit:
        found = looker.descriptor(base + index, 8)
        if found is None:
            yield Entry(name, index, "not mapped", "left out", index)
            return
        wide = ia32e and found.system > 0
        if wide:
            found = looker.descriptor(base + index, 16) or found
        if found.low | found.high:
            shadow = _UNREAD
            if not made.stale and index >> 3 < made.filled:
                shadow = _shadow(found, made.entries[index >> 3])
            yield Entry(name, index, _told(found), shadow, index)
        index += 16 if wide else 8


def _told(found: Descriptor) -> str:
    text = f"{kind(found)}, DPL {found.dpl}"
    if found.system in _GATES:
        text += f", to {found.low >> 16:04x}:{found.offset:08x}"
    elif found.code64:
        text += ", 64-bit"
    else:
        text += f", base {found.base:08x}, limit {hexadecimal(found.limit)}"
    return text if found.present else f"{text}, not present"


def _shadow(found: Descriptor, word: int) -> str:
    """Say what the engine finds in the shadow, and why it is not the guest's."""
    if word:
        entry = Descriptor(word & x86.MASK32, word >> 32)
        if entry.dpl != found.dpl:
            return f"DPL {entry.dpl}: the guest's kernel runs in the engine's ring 1"
        return "the same"
    if found.system >= 0:
        return "left out: the VMM loads it, and takes its gates"
    if not found.present:
        return "left out: a load is the guest's fault"
    if found.high & _NATIVE != _NATIVE:
        return "left out: the first load sets its accessed bit"
    if found.code and not found.dpl:
        return "left out: a load would leave the engine's RPL 1 in CS"
    if found.dpl in (1, 2):
        return "left out: the engine's ring 1 has the guest's kernel"
    return "left out: the engine enforces no limit, the VMM does"


def _gates(vmm: "Deprivileged", looker: Looker) -> Iterator[Entry]:
    vcpu = vmm.vcpu
    size = 16 if vcpu.efer & x86.EFER_LMA else 8
    for vector in range(min((vcpu.idt_limit + 1) // size, 256)):
        found = looker.descriptor(vcpu.idt_base + size * vector, size)
        if found is None:
            yield Entry("IDT", vector, "not mapped", "", vector)
            return
        if found.low | found.high:
            told = _told(found) if found.system in _GATES else "no gate"
            yield Entry("IDT", vector, told, "", vector)


def _ring0_stack(looker: Looker, base: int, type_: int) -> str:
    """Say where ring 0's stack is, by a TSS."""
    if looker.is_ia32e:
        data = looker.read(base + 4 & looker.mask, 8)
        stack = int.from_bytes(data, "little")
        return f", RSP0 {stack:016x}" if len(data) == 8 else ""
    if type_ not in (x86.SYS_TSS32, x86.SYS_TSS32_BUSY):
        return ""
    data = looker.read(base + 4 & looker.mask, 6)
    if len(data) < 6:
        return ""
    esp, ss = (int.from_bytes(part, "little") for part in (data[:4], data[4:]))
    return f", SS0:ESP0 {ss:04x}:{esp:08x}"
