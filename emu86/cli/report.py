"""Tables for a person to read; imported when one is shown, for rich takes long."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from emu86 import Stats
    from emu86.rings.insn.record import Record
    from emu86.testing.classify import Class


def show_stats(stats: "Stats") -> None:
    """Print the statistics of a run on standard error."""
    terminal = Console(stderr=True, highlight=False, markup=False)
    terminal.print(exit_table(stats))
    for line in summary(stats):
        terminal.print(line, soft_wrap=True)


def exit_table(stats: "Stats") -> Table:
    """VM exits by reason, the dearest first."""
    table = Table(title="VM exits", title_justify="left")
    table.add_column("reason")
    for heading in ("count", "mean µs", "share of time"):
        table.add_column(heading, justify="right")
    wall = stats.wall_s * 1e9
    rows = sorted(stats.exits.items(), key=lambda row: row[1].ns, reverse=True)
    for reason, cost in rows:
        if cost.count:
            timed = cost.ns and wall
            mean = f"{cost.ns / cost.count / 1000:.2f}" if timed else "-"
            share = f"{cost.ns / wall:.1%}" if timed else "-"
            table.add_row(reason, f"{cost.count:,}", mean, share)
    table.add_section()
    count = sum(cost.count for cost in stats.exits.values())
    spent = sum(cost.ns for cost in stats.exits.values())
    table.add_row(
        "all",
        f"{count:,}",
        f"{spent / count / 1000:.2f}" if count else "-",
        f"{spent / wall:.1%}" if wall else "-",
    )
    return table


def summary(stats: "Stats") -> list[str]:
    """The rest, in sentences."""
    sites = ", ".join(
        f"{mnemonic} {count:,}"
        for mnemonic, count in sorted(stats.patched.items(), key=lambda row: -row[1])
    )
    fills, drops, resynced = map(stats.shadow.get, ("fills", "drops", "resynced"))
    shadow = f"{fills:,} filled, {drops:,} dropped, {resynced:,} resynchronised"
    kept = [
        f"{stats.blocks:,} blocks scanned; sites patched: {sites or 'none'}",
        f"shadow entries: {shadow}",
    ]
    return [
        *(kept if fills else ()),  # the bare machine has neither
        f"the guest itself ran {stats.guest_share or 0:.0%} of {stats.wall_s:.2f} s",
    ]


def show_records(records: "Iterable[Record]") -> None:
    """Print the exit table on standard output."""
    table = Table(title="The exit table", title_justify="left")
    for heading in ("instruction", "encoding", "kind", "reaches the VMM by", "SDM"):
        table.add_column(heading)
    for record in records:
        table.add_row(
            record.mnemonic, record.encoding, record.kind, record.traps, record.sdm
        )
    Console(highlight=False, markup=False).print(table)


def show_classes(classes: "Iterable[Class]", out: Console | None = None) -> None:
    """Show what `emu86.testing.classify` has observed."""
    out = out or Console()
    table = Table(
        title="System instructions, by what they do",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in CLASS_HEADINGS:
        table.add_column(
            heading, no_wrap=heading in _WHOLE, min_width=_AT_LEAST.get(heading)
        )
    notes = []
    for found in classes:
        table.add_row(*class_row(found), style="bold" if found.hole else None)
        notes += [f"{found.name}: {note}" for note in class_notes(found)]
    out.print(table)
    for note in notes:
        out.print(note, highlight=False, markup=False)


CLASS_HEADINGS: Final = (
    "name", "traps", "IOPL 3", "VM86", "class", "depends on", "changes",
    "wrong", "engine",
)  # fmt: skip
_WHOLE: Final = ("traps", "class", "engine")  # not cut into lines
_AT_LEAST: Final = {"name": 8, "depends on": 7}
_SIGN: Final = {"never": "-", "some": "s", "always": "y"}


def class_row(found: "Class") -> tuple[str, ...]:
    """Return the cells of one instruction, under CLASS_HEADINGS."""
    return (
        found.name,
        "".join(_SIGN[traps] for traps in found.traps),
        _SIGN[found.user_iopl3],
        " / ".join(found.vm86),
        "privileged" if found.privileged else "HOLE" if found.hole else "harmless",
        ", ".join(one if one in found.leaks else f"({one})" for one in found.behaviour),
        ", ".join(found.control),
        " ".join(technique for technique, line in found.wrong.items() if line),
        "y" if found.engine else "",
    )


def class_notes(found: "Class") -> list[str]:
    """Return what goes wrong under which technique, and what the engine has wrong."""
    lines = [f"{name}: {line}" for name, line in found.wrong.items() if line]
    return lines + [f"the engine: {line}" for line in found.engine]
