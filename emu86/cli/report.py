"""Tables for a person to read."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from emu86.cli.terminal import is_unbounded, put, show

if TYPE_CHECKING:
    from emu86 import Stats
    from emu86.rings.insn.record import Record
    from emu86.testing.classify import Class


_NARROW: Final = 110  # columns that have no room for the SDM's titles
_LEAST: Final = 7  # columns that words are not squeezed below


def width() -> int | None:
    """Return the columns of standard output; None where a row is a line, for grep."""
    return None if is_unbounded(1) else shutil.get_terminal_size().columns


def table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    figures: bool = False,
    whole: Sequence[str] = (),
    columns: int | None = None,
) -> str:
    """Return a table as lines.

    figures: all columns but the first are numbers, to stand at the right. whole: the
    headings of columns that are not cut into lines. columns: what it has to fit into.
    """
    lines = [headings, *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    while columns and sum(widths) + 2 * len(widths) > columns:
        widest = max(
            range(len(widths)), key=lambda i: (headings[i] not in whole) * widths[i]
        )
        if headings[widest] in whole or widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
    text = [title]
    for cells in (headings, ["-" * width for width in widths], *rows):
        cut = [textwrap.wrap(cell, at) for cell, at in zip(cells, widths, strict=True)]
        for parts in zip_longest(*cut, fillvalue=""):
            padded = [
                part.rjust(at) if figures and i else part.ljust(at)
                for i, (part, at) in enumerate(zip(parts, widths, strict=True))
            ]
            text.append("  ".join(padded).rstrip())
    return "\n".join(text)


def show_stats(stats: "Stats") -> None:
    """Print the statistics of a run on standard error."""
    for line in (exit_table(stats), *summary(stats)):
        show(line)


def exit_table(stats: "Stats") -> str:
    """VM exits by reason, the dearest first."""
    wall = stats.wall_s * 1e9

    def row(reason: str, count: int, ns: float) -> tuple[str, str, str, str]:
        timed = count and ns and wall
        mean = f"{ns / count / 1000:.2f}" if timed else "-"
        return reason, f"{count:,}", mean, f"{ns / wall:.1%}" if timed else "-"

    dearest = sorted(stats.exits.items(), key=lambda one: one[1].ns, reverse=True)
    rows = [row(reason, one.count, one.ns) for reason, one in dearest if one.count]
    count = sum(one.count for one in stats.exits.values())
    spent = sum(one.ns for one in stats.exits.values())
    headings = ("reason", "count", "mean µs", "share of time")
    return table("VM exits", headings, [*rows, row("all", count, spent)], figures=True)


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


def show_records(records: "Iterable[Record]") -> None:
    """Print the exit table on standard output."""
    columns = width()
    wide = columns is None or columns >= _NARROW
    headings = ["instruction", "kind", "encoding", "reaches the VMM by", "SDM"]
    rows = [[r.mnemonic, r.kind, r.encoding, r.traps, r.sdm] for r in records]
    if not wide:
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    shown = table("The exit table", headings, rows, whole=("kind",), columns=columns)
    put(shown)
    if not wide:
        put("emu86 explain INSTRUCTION tells more, and where the SDM has it.")


def show_classes(classes: "Iterable[Class]") -> None:
    """Show what `emu86.testing.classify` has observed, and what the columns mean."""
    classes = list(classes)
    rows = [class_row(found) for found in classes]
    title = "System instructions, by what they do"
    cells = [list(row.values()) for row in rows]
    put(table(title, list(rows[0]), cells, whole=_WHOLE, columns=width()))
    for found in classes:
        for note in class_notes(found):
            put(f"{found.name}: {note}")
    put("")
    for line in _LEGEND.splitlines():
        if classes[0].bits == 32 or "VM86" not in line:
            put(line)


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


_WHOLE: Final = ("traps", "class", "engine")
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
