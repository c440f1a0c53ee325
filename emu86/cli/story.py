"""What a trace tells, in words: each exit, and the sums of all."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from typing import Any, Final

from emu86.machine.tracefile import Exit, Page, Port
from emu86.mmu.paging import rights_text
from emu86.rings.insn.table import RECORDS
from emu86.spec import x86
from emu86.spec.x86 import hexadecimal

_FLAGS: Final = (
    (x86.TF, "TF"), (x86.IF, "IF"), (x86.NT, "NT"), (x86.VM, "VM"), (x86.AC, "AC"),
    (x86.VIF, "VIF"), (x86.VIP, "VIP"), (x86.ID, "ID"),
)  # fmt: skip
# Exits that are no instruction of the exit table: how they come, and what is done.
_OTHERS: Final = {
    "#PF fill": (
        "#PF in the shadow tables alone",
        "The guest allows it, and never hears of it. The shadow gets what it lacked.",
    ),
    "#PF guest": (
        "#PF in the guest's own tables",
        "They forbid the access, so the fault goes to the guest's handler.",
    ),
    "#PF I/O": (
        "#PF where no RAM is",
        "The VMM does the access at the device, or at nothing.",
    ),
    "#PF ahead": (
        "#PF at code that does not run at once",
        "The engine reads a block ahead. It is given one instruction at a time.",
    ),
    "interrupt": (
        "a device's line",
        "The VMM delivers it through the guest's interrupt table.",
    ),
    "segment access": (
        "a patch: the engine enforces no limits",
        "The VMM looks at the segment's limit and rights; then the instruction runs.",
    ),
}


def _by_name() -> dict[str, Any]:
    return {record.mnemonic: record for record in RECORDS}


@cache
def explained(reason: str) -> tuple[str, str]:
    """Return how exits for a reason reach the VMM, and what it does."""
    record = _by_name().get(reason)
    if record is not None:
        return record.traps, record.doc
    if reason in _OTHERS:
        return _OTHERS[reason]
    if reason.startswith("INT "):
        return (
            "the engine delivers no event",
            "The VMM delivers it through the guest's interrupt table.",
        )
    return (
        f"{reason} of the guest's own",
        "It goes to the guest's handler, through the guest's interrupt table.",
    )


def _change(name: str, old: int, new: int) -> str:
    if name.endswith("flags"):
        return ", ".join(
            f"{flag} {int(bool(old & bit))} → {int(bool(new & bit))}"
            for bit, flag in _FLAGS
            if (old ^ new) & bit
        )
    return f"{name.upper()} {hexadecimal(old)} → {hexadecimal(new)}"


def _port(one: Port) -> str:
    sign = "←" if one.write else "→"
    return f"port {hexadecimal(one.port)} {sign} {hexadecimal(one.value)}"


def _entry(entry: int) -> str:
    """Write a page-table entry: its page, and u, r, w, x for what is allowed."""
    if not entry & x86.PTE_P:
        return "none"
    return f"{entry & x86.LONG_FRAME:08x} {rights_text(entry)}"


def _page(one: Page) -> str:
    kind = "code" if one.error & x86.PF_I else "data"
    access = "write" if one.error & x86.PF_W else "fetch" if kind == "code" else "read"
    text = f"{access} of {one.address:08x}"
    if one.before != one.after:
        text += f": shadow {_entry(one.before)} → {_entry(one.after)}"
        text += f", the guest's is {_entry(one.gpte)}" if one.gpte else ""
    return text


def event_name(vector: int, error: int | None) -> str:
    """Name an event that the guest was given."""
    name = x86.event_name(vector)
    return name if error is None else f"{name}({hexadecimal(error)})"


def done(one: Exit) -> list[str]:
    """Return what an exit has done and what the guest saw of it, in short pieces."""
    parts = [_port(port) for port in one.ports]
    if one.page is not None:
        parts.append(_page(one.page))
    parts += [_change(name, *values) for name, values in one.changes.items()]
    if one.to is not None:
        ring, cs, ip = one.to
        there = f"{cs:04x}:{ip:08x}" + (f" in ring {ring}" if ring != one.ring else "")
        names = " and ".join(event_name(*event) for event in one.events)
        if one.reason == "interrupt":
            names = f"vector {hexadecimal(one.events[0][0])}"
        parts.append(f"{names or 'on'} to {there}")
    return parts


def place(one: Exit) -> str:
    """Say where an exit was."""
    return f"{one.code.where} {one.code.name}".rstrip()


def story(exits: Iterable[Exit]) -> Iterator[str]:
    """Tell the exits one after another; those alike that follow each other are one."""
    world: tuple[int, int, int] | None = None
    for _, group in groupby(exits, key=_kind):
        alike = list(group)
        first, last, count = alike[0], alike[-1], len(alike)
        now = first.ring, first.engine, first.cr3
        if now != world:
            ring, engine, cr3 = world = now
            process = f", CR3 {cr3:08x}" if cr3 else ""
            yield ""
            yield f"Ring {ring} runs, in the engine's ring {engine}{process}:"
        yield from _told(first)
        if count > 1:
            yield f"{'':14}... {count - 1:,} more of this, to {last.time / 1e9:.9f} s"


def _kind(one: Exit) -> tuple[object, ...]:
    vectors = tuple(vector for vector, _ in one.events)
    return one.code, one.reason, one.ring, one.engine, one.cr3, one.to, vectors


def _told(one: Exit) -> Iterator[str]:
    how, _ = explained(one.reason)
    who = "compiled code" if one.native else "Python"
    insn = one.code.text or "no instruction"
    yield f"{one.time / 1e9:13.9f} {place(one)}  {insn}"
    if one.reason == "interrupt":
        yield f"{'':14}interrupt: {'; '.join(done(one))}"
        return
    yield f"{'':14}{one.reason}: {how}; {who}, {one.cost:,} ns"
    if parts := done(one):
        yield f"{'':14}{'; '.join(parts)}"


def summary(exits: Iterable[Exit]) -> Iterator[str]:
    """Return the sums: by reason, by ring, by process, and where most were."""
    reasons: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    rings: Counter[int] = Counter()
    processes: Counter[int] = Counter()
    places: Counter[str] = Counter()
    events: Counter[str] = Counter()
    first = last = None
    changes = 0
    for one in exits:
        first = one if first is None else first
        last = one
        total = reasons[one.reason]
        total[0] += 1
        total[1] += one.native
        total[2] += one.cost
        rings[one.ring] += 1
        processes[one.cr3] += 1
        places[one.code.function or one.code.where] += 1
        changes += one.to is not None and one.to[0] != one.ring
        if one.reason != "interrupt":
            events.update(event_name(vector, None) for vector, _ in one.events)
    if first is None or last is None:
        yield "no exits"
        return
    count = sum(rings.values())
    yield (
        f"{count:,} exits from {first.time / 1e9:.9f} s to {last.time / 1e9:.9f} s, "
        f"{changes:,} changes of ring"
    )
    yield ""
    yield f"{'exits':>11} {'compiled':>11} {'virtual ms':>11}  by reason"
    for reason, (exits_, native, cost) in sorted(
        reasons.items(), key=lambda row: (-row[1][0], row[0])
    ):
        yield f"{exits_:11,} {native:11,} {cost / 1e6:11,.3f}  {reason}"
    for title, rows in (
        ("by ring", {f"ring {ring}": n for ring, n in rings.items()}),
        ("by process", {f"CR3 {cr3:08x}": n for cr3, n in processes.items()}),
        ("events that the guest was given", dict(events)),
        ("by function", dict(places)),
    ):
        if rows:
            ordered = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
            yield ""
            more = f", {_MOST} of {len(rows):,}" if len(rows) > _MOST else ""
            yield f"{'exits':>11}  {title}{more}"
            yield from (f"{n:11,}  {name}" for name, n in ordered[:_MOST])


_MOST: Final = 15  # rows of a table
