"""What a guest is doing, or what it died of, on less than a screen."""

import textwrap
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Final

from emu86.machine.looking import Instruction, Looker
from emu86.machine.reasons import Reasons
from emu86.rings.history import Event, RingChange
from emu86.spec import x86
from emu86.spec.x86 import hexadecimal

if TYPE_CHECKING:
    from emu86.rings.technique.base import Technique

_WIDTH: Final = 80
_LINES: Final = 23
_INSTRUCTIONS: Final = 10
_CHANGES: Final = 2  # ring changes shown of those kept
_SLED: Final = 16  # bytes, all alike, that are no code
_NAMES: Final = ("eax", "ebx", "ecx", "edx"), ("esi", "edi", "ebp", "esp")
_NAMES64: Final = (
    ("rax", "rbx", "rcx"), ("rdx", "rsi", "rdi"), ("rbp", "rsp", "r8"),
    ("r9", "r10", "r11"), ("r12", "r13", "r14"), ("r15", "rip"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception, or the shutdown that ends a chain of them.

    name: "#GP" or "shutdown"; error: its error code, if it has one; where: CS:EIP, in
    the first of a chain alone; instruction: at CS:EIP then, "" if none is there;
    reason: why it was raised, "" where that cannot be told.
    """

    name: str
    error: int | None = None
    where: str = ""
    instruction: str = ""
    reason: str = ""

    def __str__(self) -> str:
        # #DF's error code is always 0.
        coded = self.error is not None and self.name != "#DF"
        text = f"{self.name}({hexadecimal(self.error or 0)})" if coded else self.name
        if self.where:
            text += f" at {self.where} {self.instruction}".rstrip()
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(frozen=True, slots=True)
class Report:
    """A guest at a moment.

    stop: why its run has ended, "" if it has not; chain: the last fault that could not
    be delivered and what came of it, if there is one; exceptions: the last that were,
    the latest last; nothing: how EIP is where there is no code, or ""; registers: as
    `Machine.registers`; ring: its CPL; gdtr, idtr: base and limit; tr, ldtr: selectors;
    changes: the last ring changes, the latest last; code: up to ten instructions around
    EIP, or around the CALL that led into nothing; pages: what the page tables say of
    EIP and, with paging, of CR2.
    """

    stop: str
    chain: tuple[Fault, ...]
    exceptions: tuple[Fault, ...]
    nothing: str
    registers: dict[str, int]
    ring: int
    gdtr: tuple[int, int]
    idtr: tuple[int, int]
    ldtr: int
    tr: int
    changes: tuple[RingChange, ...]
    code: tuple[Instruction, ...]
    pages: tuple[str, ...]

    @classmethod
    def of(cls, vmm: "Technique", registers: dict[str, int]) -> "Report":
        """Look at the guest of a VMM; nothing of it changes."""
        looker = Looker(vmm)
        reasons = Reasons(vmm, looker)
        eip = _ip(registers)
        linear = (eip + registers["cs_base"]) & looker.mask
        events = list(vmm.history.events)
        chain: tuple[Fault, ...] = ()
        if events and events[-1].failures:
            chain = _chain(events.pop(), looker, reasons, linear)
        call = _caller(looker, registers)
        nothing = _nothing(looker, linear)
        if nothing and call is not None:
            nothing += f"; called from {call.eip:08x}"
        at, around = eip, linear
        if nothing and call is not None:
            at = call.eip
            around = (at + registers["cs_base"]) & looker.mask
        vcpu = vmm.vcpu
        paging = vcpu.cr0 & x86.CR0_PG
        pages = [f"{'RIP' if 'rip' in registers else 'EIP'} {looker.pages(linear)}"]
        if paging:
            pages.append(f"CR2 {looker.pages(vcpu.cr2)}")
        return cls(
            stop=vmm.end[0] if vmm.end else "",
            chain=chain,
            exceptions=tuple(_exception(event, reasons) for event in events),
            nothing=nothing,
            registers=registers,
            ring=vmm.cpu.cpl,
            gdtr=(vcpu.gdt_base, vcpu.gdt_limit),
            idtr=(vcpu.idt_base, vcpu.idt_limit),
            ldtr=vcpu.ldtr.selector,
            tr=vcpu.tr.selector,
            changes=tuple(vmm.history.changes),
            code=tuple(looker.around(at, around, _INSTRUCTIONS)),
            pages=tuple(pages),
        )

    def __str__(self) -> str:
        """Return at most 23 lines of at most 80 columns."""
        lines = _wrapped(" → ".join(map(str, self.chain)), 3)
        if not self.chain:
            had = "; ".join(map(str, reversed(self.exceptions)))
            lines += _wrapped(f"the last exceptions: {had}" if had else "", 3)
        if self.nothing:
            lines += _wrapped(self.nothing, 1)
        lines += self._registers()
        lines += map(_change, self.changes[-_CHANGES:])
        if "rip" in self.registers:
            pages = [line for page in self.pages for line in _wrapped(page, 2)]
            room = max(_LINES - len(lines) - len(pages), 1)
        else:
            pages, room = [page[:_WIDTH] for page in self.pages], _INSTRUCTIONS
        return "\n".join([*lines, *map(self._instruction, self._code(room)), *pages])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def _code(self, count: int) -> tuple[Instruction, ...]:
        """Return `count` of the instructions, those around EIP."""
        ip = _ip(self.registers)
        before = sum(one.eip < ip for one in self.code)
        first = max(min(before - count // 2, len(self.code) - count), 0)
        return self.code[first : first + count]

    def _registers(self) -> list[str]:
        values = self.registers
        selectors = {name: values[name] for name in x86.SEGMENT_NAMES}
        selectors |= {"ldtr": self.ldtr, "tr": self.tr}
        (gdt, gdt_limit), (idt, idt_limit) = self.gdtr, self.idtr
        tables = f"GDT {gdt:08x} {hexadecimal(gdt_limit)}"
        tables += f"  IDT {idt:08x} {hexadecimal(idt_limit)}"
        if "rip" in values:
            return self._registers64(selectors, tables)
        where = "  ".join(_value(name, values[name]) for name in ("eip", "eflags"))
        return [
            *("  ".join(_value(name, values[name]) for name in row) for row in _NAMES),
            f"{where}  ring {self.ring}  {tables}",
            " ".join(f"{name.upper()} {one:04x}" for name, one in selectors.items()),
            "  ".join(
                _value(name, values[name]) for name in ("cr0", "cr2", "cr3", "cr4")
            ),
        ]

    def _registers64(self, selectors: dict[str, int], tables: str) -> list[str]:
        values = self.registers
        control = "  ".join(_value(name, values[name]) for name in ("cr0", "cr2"))
        tables_at = "  ".join(_value(name, values[name]) for name in ("cr3", "cr4"))
        flags = f"{values['rflags']:06x}"
        rows = [
            "  ".join(_value64(name, values[name]) for name in row) for row in _NAMES64
        ]
        rows[-1] += f"  RFL {flags}  ring {self.ring}"
        return [
            *rows,
            tables,
            " ".join(f"{name.upper()} {one:04x}" for name, one in selectors.items()),
            f"FS base {values['fs_base']:016x}  GS base {values['gs_base']:016x}",
            f"{control}  {tables_at}  EFER {values['efer']:x}",
        ]

    def _instruction(self, one: Instruction) -> str:
        mark = ">" if one.eip == _ip(self.registers) else " "
        code = one.code.hex()
        if len(code) > 20:
            code = code[:18] + ".."
        return f"{mark} {one.eip:08x}  {code:20}  {one}"[:_WIDTH]


def _ip(registers: dict[str, int]) -> int:
    return registers["rip" if "rip" in registers else "eip"]


def _value64(name: str, value: int) -> str:
    return f"{name.upper():3} {value:016x}"


def _value(name: str, value: int) -> str:
    return f"{name.upper()} {value:08x}"


def _wrapped(text: str, lines: int) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent="  ", max_lines=lines, placeholder=" ..."
    )


def _change(change: RingChange) -> str:
    return (
        f"ring {change.before} → {change.after}: {change.how} at "
        f"{change.cs:04x}:{change.eip:08x}, to {change.to_cs:04x}:{change.to_eip:08x}"
    )


def _name(event: Event) -> str:
    if event.interrupt:
        return f"interrupt {hexadecimal(event.vector)}"
    return x86.event_name(event.vector)


def _chain(
    event: Event, looker: Looker, reasons: Reasons, linear: int
) -> tuple[Fault, ...]:
    """Tell an event whose delivery failed; in a shutdown the guest is still there."""
    first = _exception(event, reasons)
    if event.failures[-1].instead is None and not event.interrupt:
        insn = looker.decode(event.eip, linear)
        reason = reasons.of_fault(event.vector, event.error, event.address, insn)
        first = replace(first, instruction=str(insn or ""), reason=reason)
    chain = [first]
    told = ""  # why the last of the chain could not be delivered
    for failure in event.failures:
        reason = reasons.of_delivery(failure)
        if failure.instead is None:
            name, error = "shutdown", None
        elif failure.instead == failure.vector:
            name, error = x86.event_name(failure.vector), failure.error
        else:
            name, error = "#DF", 0
        chain.append(Fault(name, error, reason="" if reason == told else reason))
        told = reason
    return tuple(chain)


def _exception(event: Event, reasons: Reasons) -> Fault:
    """Tell an event that the guest has had: only so much as is known still."""
    where = f"{event.cs:04x}:{event.eip:08x}"
    reason = ""
    if event.vector == x86.VEC_PF and not event.interrupt:
        reason = reasons.of_fault(event.vector, event.error, event.address, None)
        if event.eip == event.address and not (event.error or 0) & x86.PF_P:
            reason += ", a jump into nothing"
    return Fault(_name(event), event.error, where, "", reason)


def _nothing(looker: Looker, linear: int) -> str:
    """Say how there is no code at EIP, or ""."""
    data = looker.read(linear, _SLED)
    rip, rax = ("RIP", "rax") if looker.bits == 64 else ("EIP", "eax")
    if not data:
        text = f"{rip} is not mapped"
    elif not looker.has_ram(linear):
        text = f"no RAM at {rip}, which reads as FFh"
    elif data == bytes(_SLED):
        text = f"zeros at {rip}, which run as add [{rax}], al"
    elif data == b"\xff" * _SLED:
        text = f"bytes of FFh at {rip}"
    else:
        return ""
    if data.strip(b"\xff") == b"" and looker.read(linear - _SLED, _SLED) == bytes(
        _SLED
    ):
        text += ", behind zeros"
    return f"a jump into nothing: {text}"


def _caller(looker: Looker, registers: dict[str, int]) -> Instruction | None:
    """Return the CALL that the top of the stack would return to, if it does."""
    size = 8 if looker.bits == 64 else 4
    stack = registers["rsp" if "rsp" in registers else "esp"]
    data = looker.read((stack + registers["ss_base"]) & looker.mask, size)
    if len(data) < size:
        return None
    eip = int.from_bytes(data, "little")
    return looker.call_before(eip, (eip + registers["cs_base"]) & looker.mask)
