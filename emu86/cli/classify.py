"""`emu86 classify`: which system instructions are privileged, and which sensitive."""

import click

from emu86.cli.arguments import completion, matching
from emu86.cli.progress import progress


def _names() -> tuple[str, ...]:
    from emu86.testing.forms import NAMES  # noqa: PLC0415 - slow to import
    from emu86.testing.forms64 import NAMES64  # noqa: PLC0415

    return tuple(dict.fromkeys(NAMES + NAMES64))


@click.command("classify", short_help="Find the holes of x86, by running instructions.")
@click.argument(
    "names", metavar="[INSTRUCTION]...", nargs=-1, shell_complete=completion(_names)
)
@click.option(
    "--bits", type=click.Choice(["32", "64"]), default="32", help="Of the code."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(names: tuple[str, ...], bits: str, as_json: bool) -> None:
    """Tell which system instructions are privileged, and which sensitive.

    The command runs them, on the bare machine and under every technique. INSTRUCTION
    is a name (popf, mov-to-ss) or a word of several names (far). Without INSTRUCTION
    all are run, which takes two minutes.
    """
    from emu86.testing import classify as classifier  # noqa: PLC0415 - slow to import

    known = {"32": classifier.NAMES, "64": classifier.NAMES64}
    chosen = matching("classify", names or known[bits], known, bits)
    with progress("running them") as doing:
        found = []
        for number, name in enumerate(chosen, 1):
            doing(f"running {name} ({number} of {len(chosen)})")
            found.append(classifier.classify(name, int(bits)))
        doing(None)
    if as_json:
        import json  # noqa: PLC0415 - seldom needed

        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    from emu86.cli.report import show_classes  # noqa: PLC0415 - seldom needed

    show_classes(found)
