"""The library's main class: build a machine, load a guest, run it, look inside."""

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Final, NoReturn

from emu86 import config
from emu86.cpu.engine import abilities as probed
from emu86.cpu.library import Abilities
from emu86.cpu.models import MODELS
from emu86.cpu.state import BASE, RIP, SELECTOR
from emu86.devices.ps2_keyboard import LIGHTS
from emu86.errors import ConfigError, as_bytes, as_int, expect, unknown
from emu86.machine import bios as bios_data
from emu86.machine import boot as boot_files
from emu86.machine import keys, layout, mouse, snapshot
from emu86.machine import rom as rom_files
from emu86.machine.board import Board
from emu86.machine.boot import Entry, video
from emu86.machine.chardev import EVERY, CharDevice
from emu86.machine.debugger import Debugger
from emu86.machine.drives import Drives
from emu86.machine.loop import RunLoop, Stop
from emu86.machine.physical_memory import PhysicalMemory
from emu86.machine.screen import Screen
from emu86.machine.stats import Stats
from emu86.mmu.ram import VIDEO
from emu86.notebook import table
from emu86.rings.observers import Observer
from emu86.rings.technique.registry import build
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.machine.pages import Pages
    from emu86.machine.profile import Profile
    from emu86.machine.report import Report
    from emu86.machine.symbols import Names
    from emu86.machine.tables import Tables
    from emu86.machine.trace import Trace
    from emu86.machine.why import Why
    from emu86.rings.technique.deprivileged import Deprivileged

# Virtual ns of one RDTSC: what its exit would take. Delay loops end sooner for it.
_RDTSC_NS: Final = 500
_MIB: Final = 1 << 20
_LONGEST: Final = 1_000_000  # seconds that a key can be held
_SPACE: Final = 1 << 32  # bytes that an address can name
_PHYSICAL: Final = 1 << x86.MAXPHYADDR  # and one in a page table of PAE paging


class Machine:
    """A PC with one 32-bit CPU, its guest deprivileged (or, to compare, not).

    memory: bytes of RAM, a multiple of 4 KiB from 1 MiB to 63 GiB, or text like "64M";
    what is beyond 3 GiB is from 4 GiB on;
    cpu and technique: names in `emu86.config`, where each has its line; without a cpu
    it is the smallest that the kernel needs, from pentium3 on, and with a BIOS atom;
    debug_exit: a write to port F4h ends the run; realtime: the guest's clock keeps to
    the host's, where else idle time is skipped; hypervisor: tell the guest of a
    hypervisor in CPUID; rtc: the date at the start, in seconds since 1970, as
    `time.time()` gives the host's; disks: files with raw images for IDE disks, at most
    four; cdrom: a file with the image of a CD, or "" for a drive without one; floppies:
    files with images of floppies, at most two, or "" for a drive without one; writes: a
    name in `config.WRITES`, what becomes of writes to these; bios: a ROM image (a path,
    or its bytes) that starts the machine, at F000:FFF0 in real mode, instead of a
    kernel; boot: what the BIOS boots from, in order, "a" floppies, "c" disks, "d" the
    CD, "" as the BIOS likes; vga_bios: the ROM of a display, which the BIOS finds by
    QEMU's fw_cfg device (None: one beside the file of `bios`, if there is one); serial:
    there is a serial port, COM1; parallel: there is a parallel port with a printer, see
    `on_print`; debug_console: ports E9h and 402h take text, see `on_debug_console`;
    native: have compiled code handle the most common exits, where it fits this host;
    else CPython does, to the same end, slowly; abilities: for tests, what of Unicorn's
    private state to use. Raises ConfigError and, as all methods do, TypeError for a
    value of another type.
    """

    def __init__(
        self,
        memory: int | str = config.MEMORY,
        cpu: str | None = None,
        technique: str = config.TECHNIQUE,
        *,
        debug_exit: bool = False,
        realtime: bool = False,
        hypervisor: bool = False,
        rtc: float = config.RTC,
        disks: Sequence[str | PathLike[str]] = (),
        cdrom: str | PathLike[str] | None = None,
        floppies: Sequence[str | PathLike[str]] = (),
        writes: str = config.WRITE,
        bios: bytes | bytearray | str | PathLike[str] | None = None,
        boot: str = "",
        vga_bios: bytes | bytearray | str | PathLike[str] | None = None,
        serial: bool = True,
        parallel: bool = False,
        debug_console: bool = False,
        native: bool = True,
        abilities: Abilities | None = None,
    ) -> None:
        memory = config.memory(memory)
        self._chooses = cpu is None  # the CPU model, by the kernel
        if cpu is None:
            cpu = config.CPU if bios is None else config.CPU_OF_MEDIA
        config.check_cpu(cpu)
        config.check_technique(technique)
        rom, vga_rom = rom_files.read(bios, vga_bios)
        switches = {
            "debug_exit": debug_exit, "realtime": realtime, "hypervisor": hypervisor,
            "native": native, "serial": serial, "parallel": parallel,
            "debug_console": debug_console,
        }  # fmt: skip
        config.check_rtc(rtc)
        for name, value in switches.items():
            expect(name, value, bool)
        config.check_writes(writes)
        cd = config.cdrom(cdrom)
        paths, floppy_paths = config.disks(disks, beside=cd), config.floppies(floppies)
        there = {"a": floppy_paths, "c": paths, "d": cd is not None}
        order = config.boot(boot, [letter for letter, any_ in there.items() if any_])
        self._configuration = snapshot.Configuration(
            memory, cpu, technique, debug_exit, realtime, hypervisor, rtc,
            paths, cd, floppy_paths, writes, rom, boot, vga_rom, serial, parallel,
            debug_console,
        )  # fmt: skip
        self._media_watchers: list[Callable[[str], None]] = []
        self._closed = False
        self._printers: list[Callable[[bytes], None]] = []
        self._debug_consoles: list[Callable[[bytes], None]] = []
        self._drives = Drives(paths, cd, floppy_paths, writes, self._media_failed)
        if not native:
            abilities = (abilities or probed()).reference()
        self.vmm = build(
            technique,
            memory,
            MODELS[cpu],
            hypervisor="emu86 VMM" if hypervisor else "",
            abilities=abilities,
            rom=len(rom or b""),
        )
        self._engine = self.vmm.engine
        self._ram = self.vmm.ram
        self._physical = PhysicalMemory(self.vmm, self._ram)
        self._engine.clock.set_costs(rdtsc=_RDTSC_NS)
        self.vcpu = self.vmm.vcpu
        self.console = CharDevice()
        self.board = Board(
            self._engine.clock,
            self._engine.shared,
            memory,
            self._ram.bytes[layout.VGA_MEMORY.start : layout.VGA_MEMORY.stop],
            self._show,
            self.console,
            self._end,
            lambda level: self.vmm.set_a20(is_open=level),
            rtc=rtc,
            disks=self._drives.disks,
            cdrom=self._drives.cdrom,
            floppies=self._drives.floppies,
            dma_memory=self._physical,
            boot=order,
            serial=serial,
            printed=self._printed if parallel else None,
            said=self._debugged if debug_console else None,
            firmware=None if rom is None else rom_files.files(vga_rom),
            debug_exit=debug_exit,
        )
        frames = layout.FRAME_BUFFER
        self.vmm.trap_mmio(
            range(frames.start >> x86.PAGE_SHIFT, frames.stop >> x86.PAGE_SHIFT)
        )
        self.vmm.connect(self.board, self.board.pic)
        self._loop = RunLoop(self.vmm, self.board, self.console, realtime=realtime)
        self._loaded = bool(rom)
        if rom:
            self._place_rom()
            self.vmm.reset_cpu()
            self.vmm.start()
        else:
            bios_data.leave(self._ram.bytes, self.board, self.now)
        self._lock = threading.Lock()  # held while it runs
        self._runner = 0  # the thread that runs it
        self._kernel: Callable[[], bytes] = bytes  # what reads its file again
        self._watched_by = ""  # "profile" or "trace"
        self._debugger: Debugger | None = None
        # What reads the guest's files again and returns what loads them; and what CPU
        # and chips are at a reset.
        self._reload: Callable[[], Callable[[], Entry]] | None = None
        self._at_reset = self.vmm.save(), self.board.save()

    def __repr__(self) -> str:
        """Say what it is and where its guest is."""
        asked, at = self._configuration, self.registers
        ip = at["rip" if "rip" in at else "eip"]
        where = f"at {at['cs']:04X}:{ip:08X}" if self._loaded else "no guest"
        return (
            f"<Machine: {config.size(asked.memory)} of memory, {asked.cpu}, "
            f"{asked.technique}; {where}, {self.now / 1e9:.6f} s of virtual time>"
        )

    def _repr_html_(self) -> str:
        """Show it and its registers in a notebook."""
        rows = ((name, f"{value:08X}") for name, value in self.registers.items())
        return table(repr(self).strip("<>"), rows)

    @property
    def realtime(self) -> bool:
        """Whether a halted guest takes real time; it may be set between two runs."""
        return self._loop.realtime

    @realtime.setter
    def realtime(self, value: bool) -> None:
        expect("realtime", value, bool)
        self._loop.realtime = value

    # -- loading -----------------------------------------------------------------------

    def load_kernel(
        self,
        kernel: bytes | bytearray | str | PathLike[str],
        *,
        append: str = "",
        initrd: bytes | bytearray | str | PathLike[str] | None = None,
        bits: int = 64,
    ) -> None:
        """Load a bzImage, an ELF, PVH or Multiboot kernel (a path, or its bytes).

        append: its command line; initrd: Linux's initial file system or a module; bits:
        32 to enter a 64-bit bzImage in 32-bit mode, where it has an entry, too. Raises
        ConfigError, one clear line, for anything that cannot be started.
        """
        self._must_be_new()
        expect("append", append, str)
        if as_int("bits", bits) not in (32, 64):
            message = f"bits: {bits} is neither 32 nor 64"
            raise ConfigError(message)
        image = boot_files.read("kernel", kernel)
        if self._chooses:
            self._choose_cpu(boot_files.features_of(image))
        initrds = () if initrd is None else (boot_files.read("initrd", initrd),)

        def load(image: bytes, initrds: Sequence[bytes]) -> Entry:
            # With a serial line alone Linux would look for what no one moves.
            self.board.i8042.has_mouse = video.is_told(append)
            return boot_files.load(
                self._ram.bytes,
                image,
                cmdline=append,
                initrds=initrds,
                features=~self.vcpu.model.lacks,
                bits=bits,
            )

        try:
            self._enter(load(image, initrds))
        except ConfigError as error:
            raise boot_files.name(error, kernel=kernel, initrd=initrd) from None
        self._kernel = boot_files.reader("kernel", kernel, image)
        files = [boot_files.reader("initrd", initrd, one) for one in initrds]
        self._reload = lambda: partial(load, self._kernel(), [one() for one in files])

    def _choose_cpu(self, features: int) -> None:
        """Take the first CPU model that has these, if there is one."""
        for name in config.CHOSEN:
            if not features & MODELS[name].lacks:
                self.vmm.set_model(MODELS[name])
                self._configuration = replace(self._configuration, cpu=name)
                return

    def load_flat(self, data: bytes, address: int, entry: int | None = None) -> None:
        """Place raw bytes at `address` and start at `entry` (default: there)."""
        self._must_be_new()
        image = as_bytes("data", data)
        address = as_int("address", address)
        entry = None if entry is None else as_int("entry", entry)
        if self._chooses:
            self._choose_cpu(0)
        load = partial(
            boot_files.flat.load, self._ram.bytes, image, address=address, entry=entry
        )
        self._enter(load())
        self._reload = lambda: load

    def reset(self) -> None:
        """Load the same guest into a machine as new, after a run or instead of one.

        Virtual time and statistics go on, and so does the date; what was typed and has
        not arrived stays, as do observers and consoles. The guest's files are read
        again. Raises ConfigError, and changes nothing, if they have changed; while the
        machine runs; and where it is not known what was loaded: `restore` does not.
        With a BIOS the RAM stays as it is, as in a PC, but for the BIOS itself.
        """
        if self._lock.locked():
            message = "reset: a machine that runs cannot be reset; stop it first"
            raise ConfigError(message)
        rom = self._configuration.bios
        if self._reload is None and not rom:
            message = "reset: no kernel was loaded into this machine"
            raise ConfigError(message)
        load, now = self._reload and self._reload(), self.now
        vmm, (technique, chips) = self.vmm, self._at_reset
        engine = replace(technique.engine, clock=self._engine.clock.save())
        exits, counts = vmm.all_exits(), vmm.counts()
        if not rom:
            self._ram.restore(())
        vmm.restore(replace(technique, engine=engine, exits=exits, counts=counts))
        self._engine.clock.set_tsc(0)
        waiting = self.board.i8042.keyboard.strokes
        self.board.restore(chips)
        self.board.type(waiting)
        self._loop.forget()
        if load is None:
            self._place_rom()
            return
        bios_data.leave(self._ram.bytes, self.board, now)
        self._enter(load())

    def _place_rom(self) -> None:
        """Put the BIOS below 1 MiB, as a PC's reset has it there."""
        rom = self._configuration.bios or b""
        self._ram.bytes[_MIB - len(rom) : _MIB] = rom

    def _must_be_new(self) -> None:
        self._must_be_ours("kernel")
        if self._configuration.bios:
            message = "kernel: this machine starts its BIOS; a kernel needs another one"
            raise ConfigError(message)
        if self.now:
            message = "kernel: this machine has run; load the guest into a new one"
            raise ConfigError(message)

    def _enter(self, entry: Entry) -> None:
        """Set the CPU up as the boot protocol has it."""
        vmm, q = self.vmm, self.vmm.q
        for i, name in enumerate(x86.GPR_NAMES):
            q[i] = entry.registers.get(name, 0)
        q[RIP] = entry.eip
        cpu = vmm.cpu
        cpu.load_gdt(entry.gdt_base, entry.gdt_limit)
        if entry.cr3:
            vmm.enter_ia32e(entry.cr3)
        # The CPU starts at CPL 0, which CS's null selector already says.
        cpu.load_code(entry.cs, cpu.descriptor(entry.cs), 0)
        cpu.enter_ring()
        for index in (x86.SS, x86.DS, x86.ES, x86.FS, x86.GS):
            cpu.load_segment(index, entry.ds)
        vmm.set_guest_flags(0)
        vmm.start()
        self._loaded = True

    # -- running -----------------------------------------------------------------------

    def run(
        self,
        until: bytes | None = None,
        timeout: float | None = None,
        *,
        panics: bool = False,
    ) -> Stop:
        """Run until the console shows `until`, `timeout` wall seconds or the end.

        panics: a panic of Linux, which its console tells of, is an end, too; then a
        reset that follows is told as the panic.
        """
        text = b"" if until is None else as_bytes("until", until)
        expect("panics", panics, bool)
        if timeout is not None:
            expect("timeout", timeout, Real)
            if not timeout >= 0:
                message = f"timeout: {timeout} is no number of seconds"
                raise ValueError(message)
        return self._run(text, timeout, panics=panics)

    def _run(
        self, text: bytes, timeout: float | None, *, panics: bool, steps: bool = False
    ) -> Stop:
        """Run as `run`; steps: one instruction."""
        if not self._loaded:
            message = "kernel: none was loaded"
            raise ConfigError(message)
        if self._closed:
            message = "run: this machine is closed"
            raise ConfigError(message)
        if not self._lock.acquire(blocking=False):
            message = "run: this machine is running already"
            raise ConfigError(message)
        try:
            self._runner = threading.get_ident()
            debugger = self._debugger
            if debugger is not None and (steps or debugger.must_step()):
                stop = self._loop.step(text, timeout, panics=panics)
                if steps or stop.reason != "step":
                    return stop
            return self._loop.run(text, timeout, panics=panics)
        finally:
            self._lock.release()

    @property
    def debugger(self) -> Debugger:
        """Breakpoints and steps. Raises ConfigError with technique "bare"."""
        if self._debugger is None:
            self._debugger = Debugger(self.vmm)
        return self._debugger

    def step(self, count: int = 1, timeout: float | None = None) -> Stop:
        """Run `count` instructions; the Stop is a "step", or why it ended before.

        What is delivered instead, an exception or the interrupt that ends HLT, counts
        as one, too; other interrupts wait. Breakpoints do not matter. timeout: wall
        seconds, as of `run`. Raises what `debugger` and `run` do.
        """
        count = as_int("count", count, 1)
        stop = Stop("step")
        _ = self.debugger
        while count and stop.reason == "step":
            stop = self._run(b"", timeout, panics=False, steps=True)
            count -= 1
        return stop

    def wait(self, ready: Callable[[], bool]) -> bool:
        """Wait, not running, until `ready()`, of which `wake` tells from any thread.

        Returns False if `stop` is asked for instead.
        """
        return self._loop.wait(ready)

    def wake(self) -> None:
        """Have `wait` look again."""
        self._loop.kick()

    def on_print(self, callback: Callable[[bytes], None]) -> None:
        """Call `callback` with each byte that the guest sends to its printer."""
        expect("callback", callback, Callable)
        self._printers.append(self._loop.guard(callback))

    def stop_printer(self) -> None:
        """Have the printer report a fault, and take nothing any more."""
        if self.board.parallel is not None:
            self.board.parallel.fault = True

    def _printed(self, data: bytes) -> None:
        for callback in self._printers:
            callback(data)

    def on_debug_console(self, callback: Callable[[bytes], None]) -> None:
        """Call `callback` with each byte that the guest writes to port E9h or 402h."""
        expect("callback", callback, Callable)
        self._debug_consoles.append(self._loop.guard(callback))

    def _debugged(self, data: bytes) -> None:
        for callback in self._debug_consoles:
            callback(data)

    def close(self) -> None:
        """Give the images of disks back, with their locks; the host has it all.

        It cannot run any more then. Raises ConfigError while it runs.
        """
        if self._lock.locked():
            message = "close: a machine that runs cannot be closed; stop it first"
            raise ConfigError(message)
        self._closed = True
        self._drives.close()

    @property
    def drives(self) -> dict[str, str]:
        """The drives whose media can be changed, by name: their files, "" for none."""
        return self._drives.changeable

    def insert(self, drive: str, file: str | PathLike[str] | None) -> None:
        """Put another medium into a drive, while it runs or not; None: take it out.

        drive: "cdrom", "floppy0" or "floppy1". Raises ConfigError, and leaves the drive
        as it is, if there is no such drive, the guest holds it locked, or the file is
        no such medium; and if this machine is closed.
        """
        self._must_be_ours(drive)
        self._drives.insert(drive, file)

    def on_media_error(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with a line about each error of the host with an image.

        Of those alike that is the first. Without a callback the logger `emu86` tells.
        """
        expect("callback", callback, Callable)
        self._media_watchers.append(self._loop.guard(callback))

    def _media_failed(self, line: str) -> None:
        for callback in self._media_watchers:
            callback(line)
        if not self._media_watchers:
            logging.getLogger("emu86").warning("emu86: %s", line)

    def stop(self) -> None:
        """End the run soon, from any thread; before a run, that run at its start."""
        self._loop.stop()

    def _must_be_ours(self, what: str) -> None:
        """Refuse what no other thread may do while this machine runs in one."""
        if self._lock.locked() and self._runner != threading.get_ident():
            message = f"{what}: this machine is running in another thread"
            raise ConfigError(message)

    def _end(self, reason: str, detail: str) -> None:
        self.vmm.finish(reason, detail)

    def _show(self, plain: range) -> None:
        """Have plain memory at these offsets of the display's, and at no others."""
        first = VIDEO.start
        pages = range(
            first + (plain.start >> x86.PAGE_SHIFT),
            first + (plain.stop >> x86.PAGE_SHIFT),
        )
        self.vmm.back(VIDEO, pages)

    # -- its state ---------------------------------------------------------------------

    def save(self) -> snapshot.MachineState:
        """Return the state of the machine, for `restore`.

        An instruction that is under way is finished first. What the VMM can make again,
        such as shadow tables, is dropped, also in this machine, so that this machine
        and the restored one go on alike, to the bit. To make it again costs virtual
        time later. Raises ConfigError while the machine runs.
        """
        if self._lock.locked():
            message = "state: a running machine cannot be saved; stop it"
            raise ConfigError(message)
        self._loop.typist.work(self.now)
        self.vmm.finish_instruction()
        self.vmm.drop_derived()
        self.board.schedule()
        return snapshot.MachineState(
            snapshot.VERSION,
            replace(
                self._configuration,
                realtime=self.realtime,
                cdrom=self._drives.cd_file,
                floppies=self._drives.floppy_files,
            ),
            self._loaded,
            self._ram.save(),
            self.vmm.save(),
            self.board.save(),
            self._drives.save(),
            self.console.save(),
        )

    @classmethod
    def restore(
        cls,
        state: snapshot.MachineState,
        *,
        native: bool = True,
        abilities: Abilities | None = None,
    ) -> "Machine":
        """Build a machine in the state that another one was saved in.

        It has no observers and no console callbacks yet. native, abilities: as of
        `Machine`. Raises ConfigError for a value that is no state, or a state of
        another version.
        """
        state = snapshot.check(state)
        machine = cls(**asdict(state.configuration), native=native, abilities=abilities)
        machine._ram.restore(state.ram)
        machine.vmm.restore(state.technique)
        machine.board.restore(state.board)
        machine._drives.restore(state.media)
        machine.console.restore(state.console)
        machine._loaded = state.loaded
        return machine

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        message = (
            "a Machine cannot be pickled or copied; "
            "Machine.restore(machine.save()) makes another one alike"
        )
        raise TypeError(message)

    # -- console -----------------------------------------------------------------------

    def on_console(
        self, callback: Callable[[bytes], None], *, at_once: bool = True
    ) -> None:
        """Call `callback` with the bytes that the guest sends on COM1.

        at_once: with each as it comes; else soon, with several, which costs less.
        """
        expect("callback", callback, Callable)
        expect("at_once", at_once, bool)
        self.console.subscribe(callback, EVERY if at_once else b"")

    def console_input(self, data: bytes) -> None:
        """Type `data` on COM1, from any thread."""
        self.console.send(as_bytes("data", data))

    @property
    def console_waiting(self) -> int:
        """How many bytes typed on COM1 the guest has not taken yet."""
        return self.console.waiting

    # -- screen and keyboard -----------------------------------------------------------

    @property
    def screen(self) -> Screen:
        """What the screen shows now; it may be looked at from any thread."""
        return Screen(self.board.vga)

    def type(self, text: str, after: bytes | None = None) -> None:
        """Type `text` on the guest's US keyboard, from any thread, 50 keys a second.

        A new line is Enter; tabulator, backspace and escape are keys; other control
        characters are Ctrl and a letter. after: wait until console or screen show this.
        What is typed first goes first. Raises ValueError for what is on no key.
        """
        expect("text", text, str)
        strokes = tuple(keys.typed(text))
        self._do(partial(self.board.type, strokes), after)

    def press(self, names: str, after: bytes | None = None, *, hold: float = 0) -> None:
        """Press keys together, and let them go: "f1", "ctrl-alt-delete"; as `type`.

        hold: seconds of virtual time until they are let go. The last of them repeats
        meanwhile, as the guest has set the keyboard: 500 ms later, 10.9 times a second.
        """
        expect("names", names, str)
        expect("hold", hold, Real)
        if not 0 <= hold < _LONGEST:
            message = f"hold: {hold} is no number of seconds below {_LONGEST:,}"
            raise ValueError(message)
        strokes = keys.held(names, int(hold * 1e9))
        self._do(partial(self.board.type, strokes), after)

    def move(
        self,
        dx: int = 0,
        dy: int = 0,
        *,
        wheel: int = 0,
        buttons: Collection[str] = (),
        after: bytes | None = None,
    ) -> None:
        """Move the guest's PS/2 mouse, then have these buttons down and no others.

        dx, dy: counts to the right and downwards; wheel: notches, away from the user
        are more than 0; buttons: of "left", "right", "middle", "side" and "extra";
        after, and in which order: as `type`. A guest that has not enabled the mouse
        does not hear of it. A click is `move(buttons=["left"])` and `move()`. Raises
        ConfigError if the kernel's command line names serial consoles alone: then there
        is neither screen nor mouse.
        """
        if not self.board.i8042.has_mouse:
            message = "move: there is no mouse where all consoles are serial lines"
            raise ConfigError(message)
        motion = mouse.motion(dx, dy, wheel, buttons)
        self._do(partial(self.board.move, motion), after)

    @property
    def awaited(self) -> bytes:
        """What `type`, `press` and `move` wait for by their `after`; empty: nothing."""
        return self._loop.typist.awaited

    @property
    def leds(self) -> frozenset[str]:
        """The keyboard's lights that are on: "scroll_lock", "num_lock", "caps_lock"."""
        lights = self.board.i8042.keyboard.lights
        return frozenset(name for name, bit in LIGHTS.items() if lights & bit)

    def _do(self, act: Callable[[], None], after: bytes | None) -> None:
        text = b"" if after is None else as_bytes("after", after)
        self._loop.typist.do(act, text)

    # -- looking inside ----------------------------------------------------------------

    @property
    def now(self) -> int:
        """Virtual time in nanoseconds since the machine was built."""
        return self._engine.clock.now

    @property
    def registers(self) -> dict[str, int]:
        """The registers as the guest sees them: general, EIP, EFLAGS, segments, CR.

        In IA-32e mode the general ones are RAX to R15, beside RIP and RFLAGS, and CR8
        and EFER are there, too.
        """
        q, d, vcpu = self.vmm.q, self.vmm.d, self.vcpu
        ia32e = vcpu.efer & x86.EFER_LMA
        if ia32e:
            values = {name: q[i] for i, name in enumerate(x86.GPR64_NAMES)}
            values |= {"rip": q[RIP], "rflags": self.vmm.guest_flags()}
        else:
            values = {name: q[i] & x86.MASK32 for i, name in enumerate(x86.GPR_NAMES)}
            values |= {"eip": q[RIP] & x86.MASK32, "eflags": self.vmm.guest_flags()}
        for i, name in enumerate(x86.SEGMENT_NAMES):
            values[name] = d[SELECTOR[i]] & 0xFFFF
            values[f"{name}_base"] = q[BASE[i]]
        values |= {"cr0": vcpu.cr0, "cr2": vcpu.cr2, "cr3": vcpu.cr3, "cr4": vcpu.cr4}
        if ia32e:
            values |= {"cr8": vcpu.cr8, "efer": vcpu.efer}
        return values

    def report(self) -> "Report":
        """Look at the guest, at any time; the text of a `Report` is for people.

        Raises ConfigError while there is no guest, or it runs in another thread.
        """
        from emu86.machine.report import Report  # noqa: PLC0415 (capstone takes long)

        self._must_be_ours("report")
        if not self._loaded:
            message = "report: no guest was loaded"
            raise ConfigError(message)
        return Report.of(self.vmm, self.registers)

    def why_fault(self, address: int | None = None, error: int = 0) -> "Why":
        """Tell why the last fault was raised: the walk, the rule, what it would need.

        address: tell that of an access there instead; error: of which kind, by bits 1
        (a write), 2 (a user's) and 4 (a fetch), as #PF's error code has them. Raises
        what `report` does, and ValueError for an address beyond the guest's.
        """
        from emu86.machine.why import Why, page_walk  # noqa: PLC0415 (capstone)

        report = self.report()
        if address is None:
            return Why.of(self.vmm, report)
        address = as_int("address", address, 0, self._mask + 1)
        error = as_int("error", error, 0, 32)
        return Why((), (page_walk(self.vmm, address, error),))

    def pages(self) -> "Pages":
        """Return the guest's page tables and the shadow's, side by side.

        Nothing is changed by that. Raises ConfigError with technique "bare", which has
        no shadow, and as `report` does.
        """
        from emu86.machine.pages import Pages  # noqa: PLC0415 (capstone takes long)

        return Pages.of(self._deprivileged("pages"))

    def tables(self) -> "Tables":
        """Return GDT, LDT, IDT and TSS of the guest, and what is made of them.

        Nothing is changed by that; it raises what `pages` does.
        """
        from emu86.machine.tables import Tables  # noqa: PLC0415 (capstone takes long)

        return Tables.of(self._deprivileged("tables"))

    def _deprivileged(self, what: str) -> "Deprivileged":
        """Return the VMM of a guest that has shadow tables, for who looks at them."""
        from emu86.rings.technique.deprivileged import (  # noqa: PLC0415
            Deprivileged,
        )

        self._must_be_ours(what)
        if not self._loaded:
            message = f"{what}: no guest was loaded"
            raise ConfigError(message)
        if not isinstance(self.vmm, Deprivileged):
            message = f"{what}: technique {self.vmm.name} has no shadow tables"
            raise ConfigError(message)
        return self.vmm

    def set_register(self, name: str, value: int) -> None:
        """Write a general register, EIP or EFLAGS; ValueError for another.

        They are those that `registers` has now. value: its low 32 bits count, or 64.
        """
        value = as_int("value", value)
        self._must_be_ours("registers")
        names: tuple[str, ...] = x86.GPR_NAMES
        prefix, mask = "e", x86.MASK32
        if self.vcpu.efer & x86.EFER_LMA:
            names, prefix, mask = x86.GPR64_NAMES, "r", x86.MASK64
        if name == f"{prefix}ip":
            self.vmm.q[RIP] = value & mask
        elif name == f"{prefix}flags":
            self.vmm.set_guest_flags(value & x86.MASK32)
        else:
            if name not in names:
                known = (*names, f"{prefix}ip", f"{prefix}flags")
                message = f"register: {unknown(name, known)}"
                raise ValueError(message)
            self.vmm.q[names.index(name)] = value & mask

    def read_physical(self, gpa: int, size: int) -> bytes:
        """Read guest RAM; FFh where there is none. ValueError beyond 64 GiB."""
        gpa = as_int("gpa", gpa, 0, _PHYSICAL)
        size = as_int("size", size, 0, _SPACE + 1)
        return self._ram.read(gpa, size)

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Write guest RAM, translated code included; ValueError outside of it."""
        gpa = as_int("gpa", gpa, 0, _PHYSICAL)
        data = as_bytes("data", data)
        self._must_be_ours("memory")
        pages = range(gpa >> 12, (gpa + max(len(data), 1) - 1 >> 12) + 1)
        if not all(map(self._ram.backed, pages)):
            message = f"{len(data)} bytes at {gpa:#x} are not all in RAM"
            raise ValueError(message)
        self._physical.write(gpa, data)

    def read_virtual(self, gva: int, size: int) -> bytes:
        """Read by the guest's page tables; ValueError where nothing is mapped."""
        gva = as_int("gva", gva, 0, self._mask + 1)
        size = as_int("size", size, 0, _SPACE + 1)
        out = bytearray()
        while size:
            part = min(size, x86.PAGE_SIZE - (gva & 0xFFF))
            out += self.read_physical(self._gpa(gva), part)
            gva = (gva + part) & self._mask
            size -= part
        return bytes(out)

    def write_virtual(self, gva: int, data: bytes) -> None:
        """Write by the guest's page tables; ValueError where nothing is mapped."""
        gva = as_int("gva", gva, 0, self._mask + 1)
        data = as_bytes("data", data)
        while data:
            part = min(len(data), x86.PAGE_SIZE - (gva & 0xFFF))
            self.write_physical(self._gpa(gva), data[:part])
            gva, data = (gva + part) & self._mask, data[part:]

    @property
    def _mask(self) -> int:
        """What linear addresses wrap at."""
        return x86.MASK64 if self.vcpu.efer & x86.EFER_LMA else x86.MASK32

    def _gpa(self, gva: int) -> int:
        gpa = self.vmm.memory.lookup(gva)
        if gpa is None:
            message = f"nothing is mapped at {gva:#010x}"
            raise ValueError(message)
        return gpa

    def subscribe(self, observer: Observer) -> None:
        """Tell `observer` of what it has methods for; TypeError if it has none.

        The methods are `vm_exit`, `inject`, `shadow_fill`, `pio` and `shutdown`.
        """
        self.vmm.subscribe(observer)

    def measure(self) -> None:
        """Time every exit from now on. Only RDTSC then stays in compiled code."""
        self.vmm.measure()

    def profile(self, *files: bytes | bytearray | str | PathLike[str]) -> "Profile":
        """Account for the guest's time from now on: the `Profile` can be asked for it.

        files: paths of ELF files, System.map or what /proc/kallsyms says, or their
        bytes, to name functions by. The kernel's own file and a Linux's memory are
        looked at, too. Raises ConfigError for a file that is none of these, with
        technique "bare", while the machine runs, and if it has a profile already.
        """
        from emu86.machine.profile import Profile  # noqa: PLC0415 (seldom needed)

        names = self._names("profile", files)
        made = Profile(self.vmm, names)
        self._watched_by = "profile"
        return made

    def trace(
        self,
        path: str | PathLike[str] | None = None,
        *symbols: bytes | bytearray | str | PathLike[str],
        matching: str = "",
        last: int = 0,
    ) -> "Trace":
        """Record each exit from now on, in a file or, without a path, in memory.

        symbols: as the files of `profile`; matching: a filter, see `machine.filters`;
        last: keep only so many, the last ones, 0: all. The file is complete once
        `Trace.close` was called. The guest runs as without a trace, and has the same
        exits. Raises ConfigError for a filter or a file that is none, with technique
        "bare", while the machine runs, and if it has a trace or a profile already.
        """
        from importlib.metadata import version  # noqa: PLC0415 (seldom needed)

        from emu86.machine.trace import Trace  # noqa: PLC0415 (seldom needed)

        expect("matching", matching, str)
        last = as_int("last", last, 0)
        names = self._names("trace", symbols)
        asked = self._configuration
        header: dict[str, object] = {
            "version": version("emu86"), "technique": asked.technique,
            "cpu": asked.cpu, "memory": asked.memory, "last": last,
        }  # fmt: skip
        made = Trace(
            self.vmm, path, matching=matching, last=last, names=names, header=header
        )
        self._watched_by = "trace"
        return made

    def _names(
        self, what: str, files: Sequence[bytes | bytearray | str | PathLike[str]]
    ) -> "Names":
        """Return what names functions, for who is to watch all exits from now on."""
        from emu86.machine import symbols  # noqa: PLC0415 (seldom needed)

        if self._lock.locked():
            message = f"{what}: the machine runs; stop it first"
            raise ConfigError(message)
        if self._watched_by:
            message = f"{what}: this machine has a {self._watched_by} already"
            raise ConfigError(message)
        known = [symbols.read(file) for file in files]
        own = symbols.ours(self._kernel())
        return symbols.Names(self._ram.bytes, [*known, *([own] if own else [])])

    @property
    def stats(self) -> Stats:
        """Counts and times since the start."""
        wall, slept = self._loop.wall, self._loop.slept
        return Stats.of(self.vmm, wall, slept)
