"""`emu86 run`: boot a guest with its serial line on this terminal."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from emu86 import config
from emu86.cli.arguments import Seconds
from emu86.cli.progress import progress
from emu86.cli.terminal import is_terminal, say
from emu86.errors import ConfigError

if TYPE_CHECKING:
    import emu86
    from emu86.cli.console import Console

_FAILED: Final = 1  # exit status: ours
_NOT_SEEN: Final = 3  # exit status: --until without success, or out of time


def _known_cpu(_ctx: click.Context, _param: click.Parameter, name: str) -> str:
    """Return the name of a CPU model, if it is one."""
    config.check_cpu(name)
    return name


@click.command("run")
@click.option(
    "--kernel",
    metavar="FILE",
    help="Linux bzImage or vmlinux, or Multiboot.  [default: our teaching kernel]",
)
@click.option(
    "--initrd",
    metavar="FILE",
    help="Linux's initial RAM disk, or a Multiboot module.",
)
@click.option("--append", metavar="TEXT", help="The kernel's command line.")
@click.option(
    "--memory",
    metavar="SIZE",
    callback=lambda _ctx, _param, text: config.memory(text),
    default=config.size(config.MEMORY),
    show_default=True,
    help="Guest memory: 64M, 1G.",
)
@click.option(
    "--cpu",
    metavar="MODEL",
    callback=_known_cpu,
    default=config.CPU,
    show_default=True,
    help=f"CPU model: {', '.join(config.CPUS)}.",
)
@click.option(
    "--technique",
    type=click.Choice(list(config.TECHNIQUES)),
    default=config.TECHNIQUE,
    show_default=True,
    help=". ".join(f"{name}: {line}" for name, line in config.TECHNIQUES.items()),
)
@click.option(
    "--until",
    metavar="TEXT",
    help="End with status 0 when the console has shown TEXT, 3 if it never does.",
)
@click.option("--timeout", type=Seconds(), help="End with status 3 after this time.")
@click.option("--stats", is_flag=True, help="Tell at the end what it cost.")
@click.option("--stats-json", metavar="FILE", help="The same into FILE, - for stdout.")
@click.option(
    "--debug-exit",
    is_flag=True,
    help="A byte to port F4h ends the run with it as status.",
)
@click.pass_context
def command(
    ctx: click.Context,
    *,
    kernel: str | None,
    initrd: str | None,
    append: str | None,
    memory: int,
    cpu: str,
    technique: str,
    until: str | None,
    timeout: float | None,
    stats: bool,
    stats_json: str | None,
    debug_exit: bool,
) -> None:
    """Boot a guest with its serial line on this terminal.

    Ctrl-A x quits, Ctrl-A h helps. Without a terminal standard input is fed to the
    guest. Status 0 when the guest powered off, halted or reset itself.
    """
    if until == "":
        raise click.BadParameter("there is no text to wait for", param_hint="--until")
    interactive = is_terminal(0)
    if stats_json:
        # A mistake shows before the run, not after it.
        _write(stats_json, "", "a")
    with progress("starting") as doing:
        from emu86 import Machine, images  # noqa: PLC0415 - slow to import
        from emu86.cli.console import Console  # noqa: PLC0415

        machine = Machine(
            memory=memory,
            cpu=cpu,
            technique=technique,
            debug_exit=debug_exit,
            realtime=interactive,
        )
        doing("loading " + ("the teaching kernel" if kernel is None else kernel))
        if kernel is None and append is None and not interactive:
            append = "script"
        if kernel is None:
            kernel = str(images.path("teach"))
        machine.load_kernel(kernel, append=append or "", initrd=initrd)
        doing("booting, nothing shown yet")

        if stats or stats_json:
            machine.measure()
        with Console(machine) as console:

            def show(data: bytes) -> None:
                doing(None)
                console.show(data)

            machine.on_console(show)
            stop = machine.run(
                until=None if until is None else os.fsencode(until), timeout=timeout
            )
            doing(None)
        if console.error is not None:
            raise console.error
        if console.gone:
            ctx.exit(_status(stop, console, until))
        _tell(machine, stop, console, until)
        if stats:
            from emu86.cli.report import show_stats  # noqa: PLC0415 - slow to import

            show_stats(machine.stats)
        if stats_json:
            _write(stats_json, _as_json(machine, stop))
    ctx.exit(_status(stop, console, until))


def _tell(
    machine: "emu86.Machine", stop: "emu86.Stop", console: "Console", until: str | None
) -> None:
    """Say on standard error how the run ended."""
    if stop.reason == "interrupted":
        how = "quit" if console.quit else "interrupted"
    else:
        how = {
            "until": f"the console has shown {until!r}",
            "poweroff": "the guest powered off",
            "halted": "the guest halted",
            "reset": "the guest reset the machine",
            "triple fault": "the guest reset the machine by a triple fault",
            "debug exit": f"the guest ended with code {stop.code}",
            "unsupported": "the guest did what emu86 cannot do",
            "timeout": "the time is over",
        }[stop.reason]
    if stop.detail:
        how += f" ({stop.detail})"
    if not console.at_line_start and is_terminal(2):
        click.echo(err=True)
    exits = sum(exit_.count for exit_ in machine.stats.exits.values())
    say(f"{how}, after {machine.stats.wall_s:.1f} s and {exits:,} exits")


def _status(stop: "emu86.Stop", console: "Console", until: str | None) -> int:
    if console.status is not None:
        return console.status
    if stop.reason == "timeout" or (until is not None and stop.reason != "until"):
        return _NOT_SEEN
    if stop.reason == "unsupported":
        return _FAILED
    return stop.code if stop.reason == "debug exit" else 0


def _write(path: str, text: str, mode: str = "w") -> None:
    """Write `text` to the file or, for -, to standard output."""
    try:
        if path == "-":
            click.echo(text, nl=False)
        else:
            with Path(path).open(mode) as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"--stats-json: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--stats-json: {path!r}: {error}") from None


def _as_json(machine: "emu86.Machine", stop: "emu86.Stop") -> str:
    import json  # noqa: PLC0415 - seldom needed

    result = {"stop": stop.reason, "code": stop.code, **machine.stats.to_dict()}
    return json.dumps(result, indent=2) + "\n"
