"""`emu86 run`: boot a guest with its serial line on this terminal."""

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from emu86 import config
from emu86.cli.arguments import Date, Keys, OneOf, Seconds, files
from emu86.cli.output import (
    Log,
    Printer,
    try_to_write,
    write,
    write_pages,
    write_screenshot,
)
from emu86.cli.progress import progress
from emu86.cli.terminal import OutputError, can_move, is_terminal, say, show

if TYPE_CHECKING:
    import emu86
    from emu86.cli.console import Console
    from emu86.machine.profile import Profile
    from emu86.observe.gdb import GdbServer

_NOT_SEEN: Final = 3  # exit status: --until without success
# Exit statuses of runs that ended for these reasons, --until or not.
_STATUSES: Final = {
    "timeout": _NOT_SEEN,
    "until": 0,
    "triple fault": 4,
    "panic": 4,
    "unsupported": 1,
}


@click.command("run", short_help="Boot a guest, its serial line on this terminal.")
@click.argument("image", metavar="[FILE]", required=False, shell_complete=files)
@click.option(
    "--kernel",
    metavar="FILE",
    shell_complete=files,
    help="FILE, which is a kernel.",
)
@click.option(
    "--initrd",
    metavar="FILE",
    shell_complete=files,
    help="Linux's initial RAM disk, or a Multiboot module.",
)
@click.option(
    "--disk",
    "disks",
    metavar="FILE",
    multiple=True,
    shell_complete=files,
    help="A raw image as an IDE disk, at most four. What the guest writes is in it.",
)
@click.option(
    "--cdrom",
    metavar="FILE",
    shell_complete=files,
    help="An image of a CD in an IDE drive; '' is a drive without one.",
)
@click.option(
    "--floppy",
    "floppies",
    metavar="FILE",
    multiple=True,
    shell_complete=files,
    help="An image of a floppy, of 160K to 2.88M; two make drives A: and B:; '' is a "
    "drive without one. What the guest writes is in it.",
)
@click.option(
    "--boot",
    metavar="LETTERS",
    default="",
    help="What the BIOS boots from, in this order: a, the floppy; c, the disk; d, the "
    "CD. [default: adc]",
)
@click.option(
    "--parallel",
    metavar="FILE",
    shell_complete=files,
    help="A parallel port with a printer, which appends what it gets to FILE; - is "
    "standard output.",
)
@click.option(
    "--serial",
    metavar="stdio|FILE|none",
    shell_complete=files,
    default="stdio",
    show_default=True,
    help="What the guest's serial line is connected to: this terminal, or FILE, which "
    "gets what the guest sends. none: there is no serial port.",
)
@click.option(
    "--debugcon",
    metavar="FILE",
    shell_complete=files,
    help="Write into FILE what the guest writes to port E9h or 402h, as SeaBIOS does "
    "with its log; - is this terminal.",
)
@click.option(
    "--discard-writes",
    is_flag=True,
    help="Throw away at the end what the guest has written to its media.",
)
@click.option("--read-only", is_flag=True, help="Let the guest write to no medium.")
@click.option("--append", metavar="TEXT", help="The kernel's command line.")
@click.option(
    "--bios",
    metavar="FILE",
    shell_complete=files,
    help="A ROM image that starts the PC in real mode, instead of a kernel. "
    "[default: with a disk, a CD or a floppy and no kernel, our own]",
)
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
    type=OneOf(config.CPUS),
    help=". ".join(f"{name}: {line}" for name, line in config.CPUS.items())
    + f". [default: what the kernel needs, from {config.CPU} on; with a BIOS "
    f"{config.CPU_OF_MEDIA}]",
)
@click.option(
    "--technique",
    type=OneOf(config.TECHNIQUES),
    default=config.TECHNIQUE,
    show_default=True,
    help=". ".join(f"{name}: {line}" for name, line in config.TECHNIQUES.items()) + ".",
)
@click.option(
    "--rtc",
    type=Date(),
    metavar="DATE",
    help="The date at the start: utc or localtime, the host's, or 2026-01-31T12:00. "
    "[default: utc with a terminal, else always the same]",
)
@click.option(
    "--display",
    type=OneOf(["terminal", "none"]),
    help="terminal: the guest's screen is on this terminal, whose keys go to the "
    "guest's keyboard. none: its serial line. Ctrl-A t changes. [default: on a "
    "terminal, terminal with a BIOS or where --serial is elsewhere; else none]",
)
@click.option(
    "--keys",
    type=Keys(),
    metavar="TEXT",
    multiple=True,
    help="Type TEXT on the guest's keyboard; WAIT=>TEXT: when console or screen have "
    r"shown WAIT. \n is Enter, \t, \b, \e and \\ are keys, and so is \<f1>, or "
    r"\<ctrl-alt-delete>.",
)
@click.option(
    "--until",
    metavar="TEXT",
    help="End with status 0 when console or screen have shown TEXT, with 3 if they "
    "never do.",
)
@click.option(
    "--timeout", type=Seconds(), help="End with status 3 after this time of the host."
)
@click.option(
    "--stats",
    is_flag=True,
    help="Print exits, their times and the patched sites at the end.",
)
@click.option(
    "--stats-json",
    metavar="FILE",
    shell_complete=files,
    help="Write the same as JSON into FILE; - is standard output.",
)
@click.option(
    "--screenshot",
    metavar="FILE",
    shell_complete=files,
    help="Write what the guest's screen shows into FILE, at the end and at Ctrl-A p: a "
    "picture if FILE ends in .png, else its text; - is standard output.",
)
@click.option(
    "--pages",
    metavar="FILE",
    shell_complete=files,
    help="Write the guest's page tables and the shadow's, side by side, and the "
    "descriptor tables into FILE, at the end and at Ctrl-A g: as text, as a page if "
    "FILE ends in .html, as a picture if it ends in .svg; - is standard output.",
)
@click.option(
    "--profile",
    metavar="FILE",
    shell_complete=files,
    help="Say at the end what the guest's time went into, and write its stacks into "
    "FILE, for flame-graph viewers; - is standard output.",
)
@click.option(
    "--trace",
    metavar="FILE",
    shell_complete=files,
    help="Record each exit in FILE, for emu86 trace; packed if its name ends in .gz.",
)
@click.option(
    "--trace-filter",
    metavar="TEXT",
    help="Record only these: 'ring=3 or reason=CR3'. Conditions have reason, ring, "
    "engine, ip, cr3, time or by.",
)
@click.option(
    "--trace-last",
    type=click.IntRange(1),
    metavar="N",
    help="Record only the last N exits.",
)
@click.option(
    "--symbols",
    metavar="FILE",
    multiple=True,
    shell_complete=files,
    help="Name functions by an ELF file, a System.map or a copy of /proc/kallsyms. "
    "[default: what the kernel's ELF file or a Linux's memory has]",
)
@click.option(
    "--gdb",
    metavar="ADDRESS",
    help="Wait for gdb at [HOST:]PORT, of this computer alone without a HOST, or at a "
    "Unix socket's path, and let it debug the guest; ADDRESS,nowait does not wait.",
)
@click.option(
    "--debug-exit",
    is_flag=True,
    help="A byte written to port F4h ends the run; the byte is the status.",
)
@click.option(
    "--debug-exit-qemu",
    is_flag=True,
    help="As --debug-exit, but the status is twice the byte plus 1, as in QEMU.",
)
@click.option(
    "--on-reset",
    type=OneOf(["exit", "reboot"]),
    help="What follows a reset or a triple fault: the end, or the same guest anew. "
    "[default: reboot with a BIOS, else exit]",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Run on when Linux panics. [default: with a terminal and without --until]",
)
@click.option(
    "--no-native",
    is_flag=True,
    help="Have CPython handle all exits, slowly, to compare with compiled code.",
)
@click.pass_context
def command(
    ctx: click.Context,
    *,
    image: str | None,
    kernel: str | None,
    initrd: str | None,
    disks: tuple[str, ...],
    cdrom: str | None,
    floppies: tuple[str, ...],
    boot: str,
    parallel: str | None,
    serial: str,
    debugcon: str | None,
    discard_writes: bool,
    read_only: bool,
    append: str | None,
    bios: str | None,
    memory: int,
    cpu: str | None,
    technique: str,
    rtc: float | None,
    display: str | None,
    keys: tuple[tuple[str, list[tuple[bool, str]]], ...],
    until: str | None,
    timeout: float | None,
    stats: bool,
    stats_json: str | None,
    screenshot: str | None,
    pages: str | None,
    profile: str | None,
    trace: str | None,
    trace_filter: str | None,
    trace_last: int | None,
    symbols: tuple[str, ...],
    gdb: str | None,
    debug_exit: bool,
    debug_exit_qemu: bool,
    on_reset: str | None,
    keep_going: bool,
    no_native: bool,
) -> None:
    """Boot a guest with its serial line on this terminal.

    FILE: a Linux bzImage or vmlinux, or a Multiboot kernel; an image of a disk, a CD or
    a floppy, which our BIOS boots from, as with --disk, --cdrom and --floppy; or a ROM,
    as with --bios. Without any of them our teaching kernel is booted.

    Ctrl-A x quits, Ctrl-A h helps. Without a terminal standard input is fed to the
    guest.

    The exit status is the first of these that holds:

    \b
    128+n  signal n came: 130 is Ctrl-C, 143 is kill
    3      the time of --timeout is over
    0      console or screen have shown the text of --until
    4      the guest died: a triple fault, or a panic of Linux
    1      the guest did what emu86 cannot do
    3      neither has shown the text of --until
    N      --debug-exit: the byte; --debug-exit-qemu: twice the byte plus 1
    0      the guest powered off, halted, or reset itself by a port; or Ctrl-A x

    A mistake on the command line is status 2.
    """  # noqa: D301 (click wants the character itself)
    if until == "":
        raise click.BadParameter("there is no text to wait for", param_hint="--until")
    if image is not None and kernel is not None:
        twice = f"{image!r} and --kernel {kernel!r}"
        raise click.UsageError(f"the kernel is given twice: {twice}")
    if image is not None:
        from emu86.machine.boot.kinds import option_of  # noqa: PLC0415 - slow to import

        option = option_of(image)
        if option == "--kernel":
            kernel = image
        elif option == "--disk":
            disks = (image, *disks)
        elif option == "--floppy":
            floppies = (image, *floppies)
        elif option == "--bios":
            bios = _only(option, image, bios)
        else:
            cdrom = _only(option, image, cdrom)
        if option != "--kernel":
            say(f"{image}: taken as by {option}")
    if bios is not None and (kernel, initrd, append) != (None, None, None):
        raise click.UsageError("--bios starts the PC, and takes no kernel")
    if display == "terminal" and not can_move(1):
        mistake = "standard output is no terminal that can show a screen"
        raise click.BadParameter(mistake, param_hint="--display")
    boots_media = (
        kernel is None
        and bios is None
        and (bool(disks or floppies) or cdrom is not None)
    )
    starts_bios = bios is not None or boots_media
    if boots_media and (initrd, append) != (None, None):
        raise click.UsageError("--initrd and --append are a kernel's: there is none")
    if boot and not starts_bios:
        mistake = "it is the BIOS's, which a kernel does not need"
        raise click.BadParameter(mistake, param_hint="--boot")
    interactive = is_terminal(0)
    if rtc is None:
        rtc = time.time() if interactive else config.RTC
    if symbols and profile is None and trace is None:
        mistake = "--symbols names what --profile or --trace tells of; give one, too"
        raise click.UsageError(mistake)
    if trace is None and (trace_filter, trace_last) != (None, None):
        raise click.UsageError("--trace-filter and --trace-last need --trace FILE")
    if trace == "":
        raise click.BadParameter("the name is empty", param_hint="--trace")
    if trace is not None and profile is not None:
        raise click.UsageError("--trace and --profile exclude each other")
    if discard_writes and read_only:
        raise click.UsageError("--discard-writes and --read-only exclude each other")
    writes = "discard" if discard_writes else "refuse" if read_only else config.WRITE
    if pages is not None and technique == "bare":
        raise click.UsageError("--pages: technique bare has no shadow tables")
    # Below this Unicorn, and what it is imported with, end the process by themselves.
    config.check_address_space(config.ram_end(memory) + config.MACHINE_SPACE)
    with progress("starting") as doing:
        from emu86 import Machine, images  # noqa: PLC0415 - slow to import
        from emu86.cli.console import Console  # noqa: PLC0415

        machine = Machine(
            memory=memory,
            cpu=cpu,
            technique=technique,
            debug_exit=debug_exit or debug_exit_qemu,
            realtime=interactive,
            native=not no_native,
            rtc=rtc,
            disks=disks,
            cdrom=cdrom,
            floppies=floppies,
            boot=boot,
            writes=writes,
            bios=images.bios() if boots_media else bios,
            parallel=parallel is not None,
            serial=serial != "none",
            debug_console=debugcon is not None,
        )
        if not starts_bios:
            doing("loading " + ("the teaching kernel" if kernel is None else kernel))
            if kernel is None and append is None and not interactive:
                append = "script"
            if kernel is None:
                kernel = str(images.path("teach"))
        end = None if timeout is None else time.monotonic() + timeout
        if kernel is not None:
            machine.load_kernel(kernel, append=append or "", initrd=initrd)
        doing("booting, nothing shown yet")
        for waits, parts in keys:
            _type(machine, waits, parts)

        if stats or stats_json is not None:
            machine.measure()
        profiled = None if profile is None else machine.profile(*symbols)
        for option, file in (
            ("--stats-json", stats_json),
            ("--profile", profile),
            ("--screenshot", screenshot),
            ("--pages", pages),
            ("--parallel", parallel),
        ):
            if file is not None:
                # A mistake shows before the run, and no other leaves an empty file.
                try_to_write(option, file)
        traced = None
        if trace is not None:
            traced = machine.trace(
                trace, *symbols, matching=trace_filter or "", last=trace_last or 0
            )
        shows_screen = display == "terminal"
        if display is None:
            wanted = starts_bios or serial != "stdio"
            shows_screen = wanted and interactive and can_move(1)
        server = None if gdb is None else _serve_gdb(machine, gdb)
        if shows_screen:
            doing(None)
        with (
            Console(
                machine, screenshot, pages, display=shows_screen, serial=serial
            ) as console,
            ExitStack() as opened,
        ):

            def see(data: bytes) -> None:
                doing(None)
                console.show(data)

            machine.on_media_error(console.tell)
            if serial == "stdio":
                machine.on_console(see, at_once=False)
            elif serial != "none":
                log = opened.enter_context(Log("--serial", serial, console.tell))
                machine.on_console(log.take, at_once=False)
            if debugcon == "-":
                line = b"\r\n" if interactive else b"\n"  # a raw terminal needs both
                machine.on_debug_console(lambda data: see(data.replace(b"\n", line)))
            elif debugcon is not None:
                log = opened.enter_context(Log("--debugcon", debugcon, console.tell))
                machine.on_debug_console(log.take)
            if parallel is not None:
                machine.on_print(Printer(parallel, machine, console.tell).take)
            ran = _run(
                machine,
                console,
                server,
                until=None if until is None else os.fsencode(until),
                end=end,
                panics=not keep_going and (until is not None or not interactive),
                reboots=starts_bios if on_reset is None else on_reset == "reboot",
            )
            doing(None)
        if server is not None:
            server.close()
        machine.close()
        if traced is not None:
            traced.close()
        stop = ran.stop
        if console.error is not None:
            raise OutputError(console.error.errno, console.error.strerror)
        status = _status(stop, console, until, qemu=debug_exit_qemu)
        if not console.gone:
            looked = screenshot is not None or shows_screen
            _tell(machine, ran, console, until, status, looked=looked)
            if machine.awaited:
                waits = machine.awaited.decode(errors="replace")
                say(
                    f"--keys: nothing has shown {waits!r}, so what follows is not typed"
                )
        if stats and not console.gone:
            from emu86.cli.report import show_stats  # noqa: PLC0415 - slow to import

            show_stats(machine.stats)
        if stats_json is not None and not (console.gone and stats_json == "-"):
            write("--stats-json", stats_json, _as_json(machine, stop, status))
        if pages is not None and not (console.gone and pages == "-"):
            write_pages(machine, pages)
        if screenshot is not None and not (console.gone and screenshot == "-"):
            problem = write_screenshot(machine, screenshot)
            if problem and not console.gone:
                say(problem)
        if profiled is not None and profile is not None:
            _show_profile(machine, profiled, console, profile)
    ctx.exit(status)


def _only(option: str, image: str, other: str | None) -> str:
    """Return what FILE is found to be for an option; a mistake if it has another."""
    if other is not None:
        raise click.UsageError(f"{option} is given twice: {image!r} and {other!r}")
    return image


def _type(machine: "emu86.Machine", waits: str, parts: list[tuple[bool, str]]) -> None:
    """Have the machine type what one --keys says."""
    after = os.fsencode(waits) or None
    for named, part in parts:
        if named:
            machine.press(part, after)
        else:
            machine.type(part, after)
        after = None


class _Ran(NamedTuple):
    """Why the guest's runs ended; how often it rebooted, and the seconds of that."""

    stop: "emu86.Stop"
    reboots: int
    rebooting: float


def _serve_gdb(machine: "emu86.Machine", address: str) -> "GdbServer":
    """Listen for gdb, and tell how it finds us."""
    from emu86.observe.gdb import GdbServer  # noqa: PLC0415 - seldom needed

    where = address.removesuffix(",nowait")
    server = GdbServer(machine, where, waits=where == address)
    at = where if "/" in where else f"{where.rpartition(':')[0]}:{server.link.port}"
    does = "waiting for gdb" if where == address else "gdb may come"
    say(f"{does}: target remote {at}")
    return server


def _run(
    machine: "emu86.Machine",
    console: "Console",
    server: "GdbServer | None",
    *,
    until: bytes | None,
    end: float | None,
    panics: bool,
    reboots: bool,
) -> _Ran:
    """Run the guest to its end or that of its time, through resets if it `reboots`.

    server: gdb's, which may stop it meanwhile.

    What is asked for by Ctrl-A is done in between, in the same time.
    """
    count, rebooting = 0, 0.0
    run = machine.run if server is None else server.run
    while True:
        timeout = None if end is None else max(end - time.monotonic(), 0)
        paused = 0 if server is None else server.paused
        stop = run(until, timeout, panics=panics)
        if end is not None and server is not None:
            end += server.paused - paused
        if stop.reason == "interrupted":
            if stop.detail or not console.serve(end):
                return _Ran(stop, count, rebooting)
        elif not reboots or stop.reason not in ("reset", "triple fault"):
            return _Ran(stop, count, rebooting)
        else:
            began = time.monotonic()
            machine.reset()
            count += 1
            rebooting += time.monotonic() - began


def _tell(
    machine: "emu86.Machine",
    ran: _Ran,
    console: "Console",
    until: str | None,
    status: int,
    *,
    looked: bool,
) -> None:
    """Say on standard error how the run ended; looked: at the guest's screen, too."""
    stop = ran.stop
    if stop.reason == "interrupted":
        how = "quit" if console.quit else "interrupted"
    else:
        where = "screen" if stop.detail else "console"
        how = {
            "until": f"the {where} has shown {until!r}",
            "panic": "the guest's kernel panicked",
            "poweroff": "the guest powered off",
            "halted": "the guest halted",
            "reset": "the guest reset the machine",
            "triple fault": "the guest reset the machine by a triple fault",
            "debug exit": f"the guest ended with code {stop.code}",
            "unsupported": "the guest did what emu86 cannot do",
            "timeout": "the time is over",
        }[stop.reason]
    if stop.detail and stop.reason != "until":
        how += f" ({stop.detail})"
    coded = stop.reason == "debug exit" and until is None and console.status is None
    if coded and status != stop.code:
        how += f", which is status {status}"
    if until is not None and status == _NOT_SEEN:
        how += f", and neither console nor screen has shown {until!r}"
    if not console.at_line_start and is_terminal(2):
        click.echo(err=True)
    _show_report(machine, stop)
    stats = machine.stats
    exits = sum(exit_.count for exit_ in stats.exits.values())
    times = "" if ran.reboots == 1 else "s"
    rebooted = f", {ran.reboots:,} reboot{times}" if ran.reboots else ""
    seconds = stats.wall_s + ran.rebooting
    say(f"{how}, after {seconds:.1f} s{rebooted} and {exits:,} exits")
    if not (console.has_shown or looked) and machine.screen.shows_anything:
        say(
            "the guest has shown something on its screen alone: --display terminal"
            " shows that, and --screenshot FILE keeps it"
        )


def _show_report(machine: "emu86.Machine", stop: "emu86.Stop") -> None:
    """Show on standard error what a guest died of, or that it runs where no code is."""
    died = stop.reason in ("triple fault", "panic", "unsupported")
    if died or stop.reason in ("timeout", "interrupted"):
        report = machine.report()
        if stop.reason == "triple fault":
            # Above the report, which is to stay on the screen.
            for walk in machine.why_fault().walks:
                show(str(walk))
        if died or report.nothing:
            show(str(report))


def _status(
    stop: "emu86.Stop", console: "Console", until: str | None, *, qemu: bool
) -> int:
    if console.status is not None:
        return console.status
    if stop.reason in _STATUSES:
        return _STATUSES[stop.reason]
    if until is not None:
        return _NOT_SEEN
    if stop.reason == "debug exit":
        return (stop.code << 1 | 1 if qemu else stop.code) & 0xFF
    return 0


def _show_profile(
    machine: "emu86.Machine", profile: "Profile", console: "Console", path: str
) -> None:
    """Show the tables of a profile on standard error, and write its stacks."""
    if not console.gone:
        from emu86.cli.profile import tables  # noqa: PLC0415 - seldom needed

        for line in tables(profile, machine.stats.wall_s):
            show(line)
    if not (console.gone and path == "-"):
        write("--profile", path, profile.folded())


def _as_json(machine: "emu86.Machine", stop: "emu86.Stop", status: int) -> str:
    import json  # noqa: PLC0415 - seldom needed

    result = {
        "status": status,
        "stop": stop.reason,
        "code": stop.code,
        "detail": stop.detail,
        **machine.stats.to_dict(),
    }
    return json.dumps(result, indent=2) + "\n"
