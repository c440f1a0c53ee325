"""`emu86 exits`: the exit table."""

import click


@click.command("exits", short_help="List what the VMM handles: the exit table.")
def command() -> None:
    """Show the exit table: every instruction that the VMM handles."""
    from emu86.cli.report import show_records  # noqa: PLC0415 - slow to import
    from emu86.rings.insn.table import RECORDS  # noqa: PLC0415

    show_records(RECORDS)
