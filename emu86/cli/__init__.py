"""The command line: `emu86 run` and its siblings, a file each.

What takes long to import (NumPy, LLVM, Unicorn, rich) is imported by the command that
needs it, so that help and mistakes answer at once.
"""

import os
import signal
import sys
from typing import Final

import click

from emu86.cli import classify, exits, explain, lab, run
from emu86.cli.terminal import say
from emu86.errors import ConfigError

_MISTAKE: Final = 2  # exit status: the user's
_INTERRUPTED: Final = 130


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="emu86", message="emu86 %(version)s")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Run unmodified x86 guests in ring 1, as before there was VT-x."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _module in (run, exits, explain, classify, lab):
    commands.add_command(_module.command)


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(_main())


def _main() -> int:
    try:
        status = commands.main(prog_name="emu86", standalone_mode=False)
    except ConfigError as error:
        say(_one_line(str(error)))
        return _MISTAKE
    except click.ClickException as error:
        say(_one_line(error.format_message()))
        return _MISTAKE
    except OSError as error:
        # Of standard output: who opens a file tells of it. Python would complain once
        # more of what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        say(f"standard output: {error.strerror}")
        return _MISTAKE
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    return status if isinstance(status, int) else 0


def _one_line(text: str) -> str:
    return " ".join(text.split())
