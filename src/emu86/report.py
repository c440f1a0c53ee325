"""What a run cost, as tables for a person."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from emu86 import Stats


def show_stats(stats: "Stats") -> None:
    """Print the statistics of a run on standard error."""
    terminal = Console(stderr=True, highlight=False)
    terminal.print(exit_table(stats))
    for line in summary(stats):
        terminal.print(line, markup=False, soft_wrap=True)


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
            mean = f"{cost.ns / cost.count / 1000:.2f}"
            share = f"{cost.ns / wall:.1%}" if wall else "-"
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
    return [
        f"{stats.blocks:,} blocks scanned; sites patched: {sites or 'none'}",
        f"shadow entries: {shadow}",
        f"the guest itself ran {stats.guest_share or 0:.0%} of {stats.wall_s:.2f} s",
    ]
