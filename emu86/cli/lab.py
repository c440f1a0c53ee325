"""`emu86 lab`: what a sensitive instruction does to a small guest."""

import re
import shutil
import textwrap
from typing import Any, Final

import click

from emu86.cli.arguments import completion, matching
from emu86.cli.terminal import is_coloured, is_unbounded

_NARROWEST: Final = 40  # columns that a list is fit to


def _names() -> tuple[str, ...]:
    from emu86.testing.lab import LABS, LABS64  # noqa: PLC0415 - slow to import

    return tuple(LABS | LABS64)


@click.command("lab", short_help="Watch one instruction lead a guest astray.")
@click.argument(
    "names", metavar="[INSTRUCTION]...", nargs=-1, shell_complete=completion(_names)
)
@click.option(
    "--bits", type=click.Choice(["32", "64"]), default="32", help="Of the code."
)
def command(names: tuple[str, ...], bits: str) -> None:
    """Show what a sensitive instruction does to a small guest, step by step.

    The guest runs on the bare machine, under `trap` and under `patch`. INSTRUCTION is
    a name (popf, mov-to-ss) or a word of several names (far). Without INSTRUCTION the
    labs are listed.
    """
    from emu86.testing.lab import LABS, LABS64, show  # noqa: PLC0415 - slow to import

    labs = LABS64 if bits == "64" else LABS
    colour = is_coloured(1)
    if not names:
        columns = 1 << 16 if is_unbounded(1) else shutil.get_terminal_size().columns
        width = max(columns - 1, _NARROWEST)
        indent = " " * (max(map(len, labs)) + 2)
        for known, guest in labs.items():
            shown = textwrap.wrap(
                guest.question, width, initial_indent=indent, subsequent_indent=indent
            )
            click.echo(known + "\n".join(shown)[len(known) :])
        return
    by_width = {"32": tuple(LABS), "64": tuple(LABS64)}
    for number, chosen in enumerate(matching("lab", names, by_width, bits)):
        click.echo("\n" * min(number, 1), nl=False)
        for line in show(chosen, int(bits)):
            click.echo(_coloured(line) if colour else line, color=colour)


_BOLD: Final = {"bold": True}
_COLOURS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (r"^== .*: WRONG$", {"fg": "red"} | _BOLD),
    (r"^== .*: right$", {"fg": "green"} | _BOLD),
    (r"^== bare$", _BOLD),
    (r"\[exit: .*\]$", {"fg": "cyan"}),
    (r"^   bare .*", {"fg": "red"}),  # where a technique parts from it
)


def _coloured(line: str) -> str:
    for pattern, style in _COLOURS:
        if found := re.search(pattern, line):
            line = line.replace(found[0], click.style(found[0], **style))
    return line
