"""The command line: `emu86 run` and its siblings, a file each.

A command is imported when it is asked for, and what takes long to import (Unicorn,
Capstone) where it is needed, so that help and mistakes answer at once.
"""

import gc
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

import click
from click.shell_completion import shell_complete

from emu86.cli.terminal import OutputError, mark_output, say, speak_plainly
from emu86.errors import ConfigError, unknown

_MISTAKE: Final = 2  # exit status: the user's
_INTERRUPTED: Final = 130
_READER_GONE: Final = 141  # as of SIGPIPE
_PROGRAM: Final = "emu86"
_COMPLETE: Final = "_EMU86_COMPLETE"  # set by the shells' completion: click's name
_COMPLETION: Final = """\
To complete names with the TAB key, add a line to your shell's start-up file.

\b
bash (.bashrc):      eval "$(_EMU86_COMPLETE=bash_source emu86)"
zsh (.zshrc):        eval "$(_EMU86_COMPLETE=zsh_source emu86)"
fish (config.fish):  _EMU86_COMPLETE=fish_source emu86 | source
"""


_COMMANDS: Final = ("run", "trace", "exits", "explain", "classify", "lab")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's)
        """Give the names; each is that of a module."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command; None if there is none of that name."""
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"emu86.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; tell of one that there is not what may have been meant."""
        name = args[0]
        known = self.get_command(ctx, name) is not None
        if not (known or ctx.resilient_parsing or name.startswith("-")):
            hint = f" (to boot it: emu86 run {name})" if Path(name).is_file() else ""
            raise click.UsageError(f"{unknown(name, _COMMANDS)}{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_COMPLETION,
)
@click.version_option(package_name="emu86", message="emu86 %(version)s")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Run unmodified x86 guests in ring 1, as before there was VT-x."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line and exit with its status."""
    mark_output()
    speak_plainly()
    status = _main()
    # As it ends, the interpreter looks for cycles in all that there is: a sixth of a
    # short run's time, to free what ends with the process.
    gc.freeze()
    sys.exit(status)


def _main() -> int:
    try:
        if instruction := os.environ.get(_COMPLETE):
            return shell_complete(commands, {}, _PROGRAM, _COMPLETE, instruction)
        # Not `commands.main`: a reader that has gone away is status 1 to it.
        with commands.make_context(_PROGRAM, sys.argv[1:]) as ctx:
            commands.invoke(ctx)
        if sys.stdout is not None:  # closed by who started us
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except ConfigError as error:
        say(_one_line(str(error)))
        return _MISTAKE
    except click.ClickException as error:
        say(_one_line(error.format_message()))
        return _MISTAKE
    except BrokenPipeError:
        _discard_output()
        return _READER_GONE
    except (OutputError, BlockingIOError) as error:
        _discard_output()
        say(f"standard output: {error.strerror}")
        return _MISTAKE
    except OSError as error:
        say(_one_line(str(error)))
        return _MISTAKE
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    return 0


def _discard_output() -> None:
    """Let go of what is still buffered, of which Python would complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _one_line(text: str) -> str:
    return " ".join(text.split())
