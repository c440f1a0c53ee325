"""What a run cost, and what the VMM handles, for a person to read."""

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from emu86.errors import ConfigError

if TYPE_CHECKING:
    from emu86 import Stats
    from emu86.rings.record import Record


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
    return [
        f"{stats.blocks:,} blocks scanned; sites patched: {sites or 'none'}",
        f"shadow entries: {shadow}",
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


def explain(code: bytes) -> Iterator[str]:
    """Tell, line by line, what becomes of the first instruction in `code`.

    Raises ConfigError when there is none.
    """
    import capstone  # noqa: PLC0415 - these take long to import

    from emu86.rings.decode import decode  # noqa: PLC0415
    from emu86.rings.table import find  # noqa: PLC0415

    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    found = next(disassembler.disasm_lite(code, 0, 1), None)
    insn = decode(code, wide=True)
    if found is None or insn is None:
        raise ConfigError(f"explain: {code.hex(' ') or 'nothing'} is no instruction")
    _, length, mnemonic, operands = found
    yield f"{code[:length].hex(' ')}  {mnemonic} {operands}".rstrip()
    if len(code) > length:
        yield f"(then {code[length:].hex(' ')}, not looked at)"
    record = find(insn)
    if record is None:
        yield "Runs natively: neither privileged nor sensitive, the VMM never sees it."
        return
    yield f"{record.mnemonic} ({record.encoding}): {record.kind}"
    yield f"Reaches the VMM by: {record.traps}"
    if record.patched:
        whose = {1: "the guest's kernel", 3: "its users"}
        where = " and ".join(whose[ring] for ring in record.patched)
        yield f"Patched before it first runs, in {where}"
    yield f"See: SDM {record.sdm}"
    yield from textwrap.wrap(record.doc, 79)
