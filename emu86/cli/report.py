"""Tables for a person to read; imported when one is shown, for rich takes long."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table

from emu86.cli.terminal import is_unbounded

if TYPE_CHECKING:
    from emu86 import Stats
    from emu86.rings.insn.record import Record
    from emu86.testing.classify import Class


_WIDE: Final = 1000  # columns where no terminal has fewer: a row is a line, for grep
_ASCII_HEAD: Final = Box(str(SIMPLE_HEAD).replace("─", "-"), ascii=True)
_NARROW: Final = 110  # columns that have no room for the SDM's titles


class _Terminal(Console):
    """Standard output or error; a reader that has gone away is an error like others."""

    def __init__(self, *, stderr: bool = False) -> None:
        width = _WIDE if is_unbounded(2 if stderr else 1) else None
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show_stats(stats: "Stats") -> None:
    """Print the statistics of a run on standard error."""
    terminal = _Terminal(stderr=True)
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
    share = f"{stats.guest_share or 0:.0%} of {stats.wall_s:.2f} s"
    return [
        *(kept if fills else ()),  # the bare machine has neither
        f"the guest itself ran {share}, on the CPU model {stats.cpu}",
    ]


def _style(out: Console, title: str) -> dict[str, Any]:
    """Return how a table looks that is to be narrow."""
    box = _ASCII_HEAD if out.options.ascii_only else SIMPLE_HEAD
    return {
        "title": title, "title_justify": "left", "box": box, "pad_edge": False,
        "collapse_padding": True,
    }  # fmt: skip


def show_records(records: "Iterable[Record]") -> None:
    """Print the exit table on standard output."""
    out = _Terminal()
    wide = out.width >= _NARROW
    table = Table(**_style(out, "The exit table"))
    headings = ("instruction", "kind", "encoding", "reaches the VMM by", "SDM")
    for heading in headings[: None if wide else -1]:
        table.add_column(heading, no_wrap=heading == "kind")
    for record in records:
        cells = record.mnemonic, record.kind, record.encoding, record.traps, record.sdm
        table.add_row(*cells[: len(table.columns)])
    out.print(table)
    if not wide:
        out.print("emu86 explain INSTRUCTION tells more, and where the SDM has it.")


def show_classes(classes: "Iterable[Class]", out: Console | None = None) -> None:
    """Show what `emu86.testing.classify` has observed, and what the columns mean."""
    out = out or _Terminal()
    table = Table(**_style(out, "System instructions, by what they do"))
    classes = list(classes)
    bits = classes[0].bits
    for heading in class_row(classes[0]):
        table.add_column(
            heading, no_wrap=heading in _WHOLE, min_width=_AT_LEAST.get(heading)
        )
    notes = []
    for found in classes:
        cells = class_row(found).values()
        table.add_row(*cells, style="bold" if found.hole else None)
        notes += [f"{found.name}: {note}" for note in class_notes(found)]
    out.print(table)
    legend = [line for line in _LEGEND.splitlines() if bits == 32 or "VM86" not in line]
    for line in (*notes, *([""] if notes else []), *legend):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


_LEGEND: Final = """\
traps       at CPL 0, 1, 2 and 3, with IOPL 0: y always, s some forms, - never
IOPL 3      the same, at CPL 3 with IOPL 3
VM86        in virtual-8086 mode with IOPL 0 / with IOPL 3: it runs, or raises this
class       privileged: it traps at CPL 3 and not at CPL 0
            HOLE: it does not, and tells or changes what a user must not know
depends on  what its result depends on (in brackets: a change of that makes it trap)
changes     what it changes at CPL 0
wrong       the techniques under which a guest can tell that it is not on its own
engine      y: the engine has it wrong, and emu86 puts it right"""


_WHOLE: Final = ("traps", "class", "engine")  # not cut into lines
_AT_LEAST: Final = {"name": 8, "depends on": 7}
_SIGN: Final = {"never": "-", "some": "s", "always": "y"}


def class_row(found: "Class") -> dict[str, str]:
    """Return the cells of one instruction, by heading; 64-bit code has no VM86."""
    leaks = (one if one in found.leaks else f"({one})" for one in found.behaviour)
    return {
        "name": found.name,
        "traps": "".join(_SIGN[traps] for traps in found.traps),
        "IOPL 3": _SIGN[found.user_iopl3],
        **({"VM86": " / ".join(found.vm86)} if found.bits == 32 else {}),
        "class": (
            "privileged" if found.privileged else "HOLE" if found.hole else "harmless"
        ),
        "depends on": ", ".join(leaks),
        "changes": ", ".join(found.control),
        "wrong": " ".join(name for name, line in found.wrong.items() if line),
        "engine": "y" if found.engine else "",
    }


def class_notes(found: "Class") -> list[str]:
    """Return what goes wrong under which technique, and what the engine has wrong."""
    lines = [f"{name}: {line}" for name, line in found.wrong.items() if line]
    return lines + [f"the engine: {line}" for line in found.engine]
