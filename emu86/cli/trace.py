"""`emu86 trace`: what is in the file of `emu86 run --trace FILE`."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from emu86.cli.arguments import files
from emu86.cli.output import write

if TYPE_CHECKING:
    from emu86.machine.symbols import Names
    from emu86.machine.tracefile import Code, Exit, TraceFile

_DRAWN: Final = 100_000  # exits of a picture at most
_TEMPLATE: Final = Path(__file__).parent / "timeline.html"
_VMM: Final = 99  # the track of the VMM in Chrome's format: rings have theirs


@click.command("trace", short_help="Tell what is in a trace of a run.")
@click.argument("file", metavar="FILE", shell_complete=files)
@click.option(
    "--filter",
    "matching",
    metavar="TEXT",
    default="",
    help="Only these exits, such as 'ring=3 or reason=CR3'.",
)
@click.option(
    "--last", type=click.IntRange(1), metavar="N", help="Only the last N of them."
)
@click.option(
    "--symbols",
    metavar="FILE",
    multiple=True,
    shell_complete=files,
    help="Name functions anew, by an ELF file, a System.map or a copy of "
    "/proc/kallsyms.",
)
@click.option("--summary", is_flag=True, help="Sums, instead of each exit.")
@click.option(
    "--json",
    "chrome",
    metavar="FILE",
    shell_complete=files,
    help="Write it as Chrome's trace format, for Perfetto and speedscope; - is "
    "standard output.",
)
@click.option(
    "--html",
    metavar="FILE",
    shell_complete=files,
    help="Draw it: one page, for any browser, which needs nothing else; - is standard "
    "output.",
)
def command(
    *,
    file: str,
    matching: str,
    last: int | None,
    symbols: tuple[str, ...],
    summary: bool,
    chrome: str | None,
    html: str | None,
) -> None:
    """Tell what is in FILE, which emu86 run --trace FILE has written.

    Each exit: when, in which ring and where it was, why, what the VMM did, and what the
    guest saw of that.
    """
    from emu86.cli import story  # noqa: PLC0415 - slow to import
    from emu86.machine.tracefile import TraceFile  # noqa: PLC0415

    if sum((summary, chrome is not None, html is not None)) > 1:
        raise click.UsageError("--summary, --json and --html exclude each other")
    trace = TraceFile(file)
    exits = _chosen(trace, matching, symbols)
    if last is not None:
        exits = deque(exits, last)
    if chrome is not None:
        write("--json", chrome, json.dumps(_chrome(exits)) + "\n")
    elif html is not None:
        write("--html", html, _html(trace.header, exits))
    else:
        for line in story.summary(exits) if summary else _story(trace.header, exits):
            click.echo(line)


def _chosen(
    trace: "TraceFile", matching: str, symbols: tuple[str, ...]
) -> "Iterable[Exit]":
    """Return the exits that a filter lets through, with the names of files."""
    from emu86.machine.filters import Filter  # noqa: PLC0415 - slow to import

    wanted = Filter(matching) if matching else None
    exits: Iterable[Exit] = iter(trace)
    if symbols:
        from emu86.machine.symbols import Names, read  # noqa: PLC0415 - slow to import

        exits = _renamed(exits, Names(memoryview(b""), [read(one) for one in symbols]))
    return exits if wanted is None else filter(wanted.matches, exits)


def _renamed(exits: "Iterable[Exit]", names: "Names") -> "Iterator[Exit]":
    from dataclasses import replace  # noqa: PLC0415 - seldom needed

    known: dict[Code, Code] = {}
    for one in exits:
        code = known.get(one.code)
        if code is None:
            name = names.place(one.code.linear, kernel=False) or one.code.name
            code = known[one.code] = replace(one.code, name=name)
        one.code = code
        yield one


def _story(header: dict[str, Any], exits: "Iterable[Exit]") -> Iterator[str]:
    from emu86.cli.story import story  # noqa: PLC0415 - slow to import

    yield _title(header)
    yield from story(exits)


def _title(header: dict[str, Any]) -> str:
    from emu86.config import size  # noqa: PLC0415

    limits = [f"filter {header['filter']!r}"] if header["filter"] else []
    limits += [f"the last {header['last']:,}"] if header["last"] else []
    text = f"{header['technique']}, {header['cpu']}, {size(header['memory'])}"
    return "; ".join([f"A trace of emu86 {header['version']}: {text}", *limits])


def _chrome(exits: "Iterable[Exit]") -> dict[str, Any]:
    """Return the exits in Chrome's trace format: a process has a track for each ring.

    The time between two exits is that of the ring that ran, and an exit is the VMM's.
    """
    from emu86.cli.story import done, explained, place  # noqa: PLC0415 - slow to import

    events: list[dict[str, Any]] = []
    tracks: set[tuple[int, int]] = set()
    before = None

    def track(process: int, thread: int) -> dict[str, int]:
        tracks.add((process, thread))
        return {"pid": process, "tid": thread}

    for one in exits:
        if before is not None:
            # After it the guest ran where it went to, up to this exit.
            start = before.time + before.cost
            if one.time > start:
                events.append({
                    "ph": "X", "name": f"ring {one.ring}", "cat": "guest",
                    "ts": start / 1000, "dur": (one.time - start) / 1000,
                    **track(one.cr3, one.ring),
                })  # fmt: skip
        how, _ = explained(one.reason)
        events.append({
            "ph": "X", "name": one.reason, "cat": "exit", "ts": one.time / 1000,
            "dur": one.cost / 1000, **track(one.cr3, _VMM),
            "args": {
                "n": one.number, "ring": one.ring, "engine": one.engine,
                "at": place(one), "instruction": one.code.text, "how": how,
                "by": "compiled" if one.native else "Python",
                "done": "; ".join(done(one)),
            },
        })  # fmt: skip
        before = one
    names = [
        {
            "ph": "M", "name": "process_name", "pid": cr3, "tid": 0,
            "args": {"name": f"CR3 {cr3:08x}"},
        }
        for cr3 in sorted({cr3 for cr3, _ in tracks})
    ] + [
        {
            "ph": "M", "name": "thread_name", "pid": cr3, "tid": ring,
            "args": {"name": "the VMM" if ring == _VMM else f"ring {ring}"},
        }
        for cr3, ring in sorted(tracks)
    ]  # fmt: skip
    return {"traceEvents": names + events, "displayTimeUnit": "ns"}


def _html(header: dict[str, Any], exits: "Iterable[Exit]") -> str:
    """Return a page that draws the exits."""
    from html import escape  # noqa: PLC0415

    from emu86.cli.story import done, explained  # noqa: PLC0415 - slow to import

    reasons: dict[str, int] = {}
    codes: dict[Code, int] = {}
    rows: list[list[Any]] = []
    left = 0
    for one in exits:
        if len(rows) == _DRAWN:
            left += 1
            continue
        reason = reasons.setdefault(one.reason, len(reasons))
        code = codes.setdefault(one.code, len(codes))
        to = one.ring if one.to is None else one.to[0]
        rows.append([
            one.number, one.time, one.cost, one.ring, one.engine, f"{one.cr3:x}", code,
            reason, int(one.native), to, "; ".join(done(one)),
        ])  # fmt: skip
    title = _title(header)
    if left:
        title += f"; the first {_DRAWN:,} exits, {left:,} are left out: see --filter"
    data = {
        "rows": rows,
        "reasons": [[reason, *explained(reason)] for reason in reasons],
        "codes": [
            [f"{code.where} {code.name}".rstrip(), code.text, code.data.hex(" ")]
            for code in codes
        ],
    }
    # `</script>` in a name must not end the script.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = _TEMPLATE.read_text(encoding="utf-8")
    return page.replace("TITLE", escape(title)).replace("DATA", text)
