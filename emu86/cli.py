"""The command line: `emu86 run` and its siblings.

What takes long to import (NumPy, LLVM, Unicorn) is imported by the command that needs
it, so that help and mistakes answer at once.
"""

import contextlib
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from emu86.console import Console, is_terminal, say
from emu86.errors import ConfigError

if TYPE_CHECKING:
    import emu86

_FAILED: Final = 1  # exit status: ours
_MISTAKE: Final = 2  # exit status: the user's
_NOT_SEEN: Final = 3  # exit status: --until without success, or out of time
_INTERRUPTED: Final = 130

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SMALLEST: Final = 1 << 20
_LARGEST: Final = 3 << 30
_PAGE: Final = 4096


class Memory(click.ParamType[int]):
    """A size of guest memory, in bytes: 128M, 1G, 64K multiples."""

    name = "size"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Return `value` in bytes, or tell what is wrong with it."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(
            r"([0-9]{1,12})([KMG]?)(?:i?B)?", str(value), re.IGNORECASE
        )
        if not match:
            self.fail(f"{value!r} is no size like 128M or 1G", param, ctx)
        size = int(match[1]) * _UNITS[match[2].upper()]
        if size % _PAGE:
            self.fail(f"{value} is not a multiple of the page size, 4096", param, ctx)
        if not _SMALLEST <= size <= _LARGEST:
            self.fail(f"{value} is not between 1M and 3G", param, ctx)
        return size


class Seconds(click.ParamType[float]):
    """A positive, finite number of seconds."""

    name = "seconds"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return `value` as a float, or tell what is wrong with it."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            self.fail(f"{value!r} is no positive number of seconds", param, ctx)
        return seconds


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


@commands.command()
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
    "--memory", type=Memory(), default="128M", show_default=True, help="Guest memory."
)
@click.option(
    "--cpu", metavar="MODEL", default="pentium3", show_default=True, help="CPU model."
)
@click.option(
    "--technique",
    type=click.Choice(["patch", "trap", "iopl", "bare"]),
    default="patch",
    show_default=True,
    help="How the guest is kept from noticing; bare: not at all, and slowly.",
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
def run(
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
    with _progress("starting") as progress:
        from emu86 import Machine, images  # noqa: PLC0415 - see above

        machine = Machine(
            memory=memory,
            cpu=cpu,
            technique=technique,
            debug_exit=debug_exit,
            realtime=interactive,
        )
        progress("loading " + ("the teaching kernel" if kernel is None else kernel))
        if kernel is None and append is None and not interactive:
            append = "script"
        if kernel is None:
            kernel = str(images.path("teach"))
        machine.load_kernel(kernel, append=append or "", initrd=initrd)
        progress("booting, nothing shown yet")

        if stats or stats_json:
            machine.measure()
        with Console(machine, lambda: machine.console_waiting) as console:

            def show(data: bytes) -> None:
                progress(None)
                console.show(data)

            machine.on_console(show)
            stop = machine.run(
                until=None if until is None else os.fsencode(until), timeout=timeout
            )
            progress(None)
        if console.error is not None:
            raise console.error
        if console.gone:
            ctx.exit(_status(stop, console, until))
        _tell(machine, stop, console, until)
        if stats:
            from emu86.report import show_stats  # noqa: PLC0415 - rich, see above

            show_stats(machine.stats)
        if stats_json:
            _write(stats_json, _as_json(machine, stop))
    ctx.exit(_status(stop, console, until))


@commands.command()
def exits() -> None:
    """Show the exit table: every instruction that the VMM handles."""
    from emu86.report import show_records  # noqa: PLC0415 - see above
    from emu86.rings.insn.table import RECORDS  # noqa: PLC0415

    show_records(RECORDS)


@commands.command()
@click.argument("code", metavar="HEX...", nargs=-1, required=True)
def explain(code: tuple[str, ...]) -> None:
    """Explain one instruction by its bytes, as in: emu86 explain 0f 22 d8.

    It is taken as 32-bit code.
    """
    text = "".join(code)
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise ConfigError(f"explain: {text!r} is not hexadecimal") from None
    from emu86.report import explain as describe  # noqa: PLC0415 - see above

    for line in describe(data):
        click.echo(line)


@commands.command()
@click.argument("names", metavar="[INSTRUCTION]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def classify(names: tuple[str, ...], as_json: bool) -> None:
    """Tell which system instructions are privileged, and which sensitive.

    By running them, on the bare machine and under every technique; takes a minute
    without names. INSTRUCTION: its name, or words of the names of several.
    """
    from emu86.testing import classify as classifier  # noqa: PLC0415 - see above

    chosen = _named("classify", names or classifier.NAMES, classifier.NAMES)
    with _progress("running them") as progress:
        found = []
        for name in chosen:
            progress(name)
            found.append(classifier.classify(name))
        progress(None)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    from emu86.report import show_classes  # noqa: PLC0415 - rich, see above

    show_classes(found)


@commands.command()
@click.argument("name", metavar="[INSTRUCTION]", required=False)
def lab(name: str | None) -> None:
    """Show what a sensitive instruction does to a small guest, step by step.

    On the bare machine, under `trap`, and under `patch`. Without a name: which labs
    there are. INSTRUCTION: its name, or words of the names of several.
    """
    from emu86.testing.lab import LABS, show  # noqa: PLC0415 - see above

    if name is None:
        width = max(map(len, LABS)) + 2
        for known, guest in LABS.items():
            click.echo(f"{known:{width}}{guest.question}")
        return
    for number, chosen in enumerate(_named("lab", (name,), tuple(LABS))):
        click.echo("\n" * min(number, 1), nl=False)
        for line in show(chosen):
            click.echo(line)


def _named(
    command: str, wanted: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the names that are wanted, or have the words that are, in any case.

    Raises ConfigError.
    """
    known = {name.lower().replace(",", ""): name for name in names}
    found: dict[str, None] = {}
    for one in wanted:
        words = one.lower().replace(",", "")
        having = [name for name in known if f" {words} " in f" {name} "]
        if not having:
            raise ConfigError(f"{command}: no {one!r} (there are {'; '.join(names)})")
        chosen = [words] if words in known else having
        found |= {known[name]: None for name in chosen}
    return tuple(found)


def _tell(
    machine: "emu86.Machine", stop: "emu86.Stop", console: Console, until: str | None
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


def _status(stop: "emu86.Stop", console: Console, until: str | None) -> int:
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
    result = {"stop": stop.reason, "code": stop.code, **machine.stats.to_dict()}
    return json.dumps(result, indent=2) + "\n"


@contextlib.contextmanager
def _progress(text: str) -> Iterator[Callable[[str | None], None]]:
    """Show what is waited for, on a terminal; yield what changes or (None) ends it."""
    if not is_terminal(2):
        yield lambda _text: None
        return
    from rich.console import Console as Terminal  # noqa: PLC0415 - see above
    from rich.progress import (  # noqa: PLC0415
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Terminal(stderr=True),
        transient=True,
        refresh_per_second=5,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(text)

        def change(text: str | None) -> None:
            if text is None:
                if bar.live.is_started:
                    bar.stop()
            else:
                bar.update(task, description=text)

        yield change


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
