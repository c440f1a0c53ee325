"""The tables of `emu86 run --profile FILE`."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from emu86.machine.profile import Profile, Spent

_FUNCTIONS: Final = 20  # that are shown
_HEAD: Final = f"{'virtual ms':>12} {'share':>7} {'exits':>11} {'host ms':>10}  "


def tables(profile: Profile, wall: float) -> Iterator[str]:
    """Return the lines of the tables of a run that took `wall` seconds."""
    spent = profile.spent()
    total = sum(row.virtual_ns for row in spent)
    host = sum(row.host_ns for row in spent) / 1e9
    yield f"The guest ran {total / 1e9:.3f} s of virtual time. Halted time is left out."
    yield f"Python took {host:.2f} s of the host's {wall:.2f} s for exits."
    yield ""
    yield _HEAD + "by exit reason"
    reasons: defaultdict[str, list[Spent]] = defaultdict(list)
    functions: defaultdict[str, list[Spent]] = defaultdict(list)
    for row in spent:
        how = "compiled" if row.native else "Python"
        reason = f"{row.reason}, {how}" if row.reason else "the guest's own code"
        reasons[reason].append(row)
        functions[f"ring {row.ring}  {row.place}"].append(row)
    for label, rows in _dearest(reasons):
        yield _line(label, rows, total)
    yield ""
    shown = min(_FUNCTIONS, len(functions))
    yield f"{_HEAD}by function, {shown} of {len(functions):,}"
    for label, rows in _dearest(functions)[:_FUNCTIONS]:
        yield _line(label, rows, total)
    if not profile.known:
        yield ""
        yield "Nothing names the guest's functions: --symbols takes a file that does."


def _dearest(groups: dict[str, list[Spent]]) -> list[tuple[str, list[Spent]]]:
    return sorted(
        groups.items(), key=lambda group: -sum(row.virtual_ns for row in group[1])
    )


def _line(label: str, rows: Iterable[Spent], total: int) -> str:
    rows = list(rows)
    virtual = sum(row.virtual_ns for row in rows)
    exits = sum(row.count for row in rows if row.reason)
    host = sum(row.host_ns for row in rows)
    share = f"{virtual / total:.1%}" if total else "-"
    return (
        f"{virtual / 1e6:12,.3f} {share:>7} {f'{exits:,}' if exits else '-':>11} "
        f"{f'{host / 1e6:,.1f}' if host else '-':>10}  {label}"
    )
