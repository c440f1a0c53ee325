"""`emu86 lab`: what a sensitive instruction does to a small guest."""

import click

from emu86.cli.arguments import matching


@click.command("lab")
@click.argument("name", metavar="[INSTRUCTION]", required=False)
def command(name: str | None) -> None:
    """Show what a sensitive instruction does to a small guest, step by step.

    On the bare machine, under `trap`, and under `patch`. Without a name: which labs
    there are. INSTRUCTION: its name, or words of the names of several.
    """
    from emu86.testing.lab import LABS, show  # noqa: PLC0415 - slow to import

    if name is None:
        width = max(map(len, LABS)) + 2
        for known, guest in LABS.items():
            click.echo(f"{known:{width}}{guest.question}")
        return
    for number, chosen in enumerate(matching("lab", (name,), tuple(LABS))):
        click.echo("\n" * min(number, 1), nl=False)
        for line in show(chosen):
            click.echo(line)
