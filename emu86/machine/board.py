"""The board: which chips there are and what is wired to what, top to bottom."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from emu86 import config, images
from emu86.cpu.clock import Clock
from emu86.devices.ata import Drive
from emu86.devices.ata_disk import AtaDisk
from emu86.devices.atapi import CdRom
from emu86.devices.bus import Addressable, Bus, Stateful, Timed
from emu86.devices.dma import Dma, DmaLine, DmaMemory, DmaPages
from emu86.devices.fdc import Fdc
from emu86.devices.floppy_drive import FloppyDrive
from emu86.devices.fw_cfg import FwCfg
from emu86.devices.i8042 import I8042
from emu86.devices.ide import Channel
from emu86.devices.medium import Medium
from emu86.devices.parallel import Parallel
from emu86.devices.pic import PicPair
from emu86.devices.pit import Pit
from emu86.devices.ports import (
    Coprocessor,
    DebugConsole,
    DebugExit,
    PostCode,
    PowerControl,
    SystemControlA,
)
from emu86.devices.ps2_keyboard import Stroke
from emu86.devices.ps2_mouse import Motion
from emu86.devices.rtc import Rtc
from emu86.devices.speaker import Speaker
from emu86.devices.uart import Uart
from emu86.devices.vga import Vga
from emu86.machine import layout
from emu86.machine.chardev import CharDevice
from emu86.native import abi

_SLAVE: Final = abi.PORT_PIC | 2 << 3  # its registers follow the master's


class BoardState(NamedTuple):
    """The state of each chip that has one, by the name that it has on the board."""

    chips: dict[str, object]


class Board:
    """The parts list of the PC, and the VMM's way to it (`rings.protocols.IoBus`).

    clock: tells the chips the time and is told when the next of them is due; shared:
    where the chips keep what compiled code uses, too; window, show: see `Vga`; console:
    what COM1 is connected to; end: called with the reason when the guest switches
    itself off or resets; set_a20: told by the keyboard controller and by port 92h
    whether address line 20 is let through, and who was the last counts; rtc: see
    `Machine`; disks: what is in the ATA disks, two to a channel; cdrom: drive 0 of the
    second one; floppies: the floppy drives, two at most, whose controller has DMA by
    `dma_memory`, and with its DMA controllers is there if they are; boot: the order of
    kinds of drives in CMOS RAM, see `config.BOOT`; serial: whether there is COM1;
    printed: takes what a printer on LPT1 gets, None: there is no such port; said: takes
    what the guest writes to the debug console, None: there is none; firmware: the files
    of the fw_cfg device, None: there is none; debug_exit: whether port F4h ends the
    run.
    """

    def __init__(
        self,
        clock: Clock,
        shared: abi.Control,
        memory: int,
        window: memoryview,
        show: Callable[[range], None],
        console: CharDevice,
        end: Callable[[str, str], None],
        set_a20: Callable[[bool], None],
        *,
        rtc: float,
        disks: Sequence[Medium] = (),
        cdrom: CdRom | None = None,
        floppies: Sequence[FloppyDrive] = (),
        dma_memory: DmaMemory | None = None,
        boot: Sequence[int] = (),
        serial: bool = True,
        printed: Callable[[bytes], None] | None = None,
        said: Callable[[bytes], None] | None = None,
        firmware: Mapping[str, bytes] | None = None,
        debug_exit: bool = False,
    ) -> None:
        self._clock = clock
        self.pic = PicPair(shared.pics)
        line = self.pic.line
        self.pit = Pit(line(layout.IRQ_PIT), shared.pit)
        self.speaker = Speaker(self.pit, shared.speaker)
        kib = min(memory, config.LOW_MOST) >> 10
        self.rtc = Rtc(
            line(layout.IRQ_RTC),
            rtc,
            extended_memory=max(kib - 1024, 0),
            floppies=[drive.kind for drive in floppies],
            boot=boot,
        )
        irq = line(layout.IRQ_COM1)
        self.uart = Uart(irq, console.write, registers=shared.uart)
        console.connect(self.uart)
        self.i8042 = I8042(
            line(layout.IRQ_KEYBOARD),
            line(layout.IRQ_MOUSE),
            lambda: end("reset", "by the keyboard controller"),
            set_a20,
        )
        self.coprocessor = Coprocessor(line(layout.IRQ_FERR))

        self.vga = Vga(window, show, images.font())

        self.ports = Bus()
        self.memory = Bus()
        self._shared = shared
        ctypes.memset(shared.ports, abi.PORT_NOTHING, abi.PORTS)
        self.timed: tuple[Timed, ...] = ()
        self._timed_ports: set[int] = set()
        self._stateful: dict[str, Stateful] = {"8259A pair": self.pic}
        self._next: int | None = None
        attach = self._attach
        attach(layout.PIC_MASTER, self.pic.master, "8259A master", abi.PORT_PIC)
        attach(layout.PIC_SLAVE, self.pic.slave, "8259A slave", _SLAVE)
        attach(layout.ELCR, self.pic.elcr, "ELCR")
        attach(layout.PIT, self.pit, "8254", abi.PORT_PIT)
        attach(layout.SPEAKER, self.speaker, "port 61h", abi.PORT_SPEAKER)
        attach(layout.I8042, self.i8042, "8042")
        attach(layout.RTC, self.rtc, "MC146818")
        if serial:
            attach(layout.COM1, self.uart, "16550A", abi.PORT_UART)
        attach(layout.VGA, self.vga, "VGA")
        attach(layout.DISPI, self.vga.dispi, "DISPI")
        attach(layout.COPROCESSOR, self.coprocessor, "coprocessor error")
        post_code = PostCode(latch=shared.post_code)
        attach(layout.POST_CODE, post_code, "POST code", abi.PORT_POST_CODE)
        attach(
            layout.SYSTEM_CONTROL_A,
            SystemControlA(lambda: end("reset", "by port 92h"), set_a20),
            "port 92h",
        )
        attach(
            layout.POWER, PowerControl(lambda: end("poweroff", "by port 604h")), "power"
        )
        self._attach_drives(disks, cdrom)
        if floppies and dma_memory is not None:
            self._attach_floppies(floppies, dma_memory)
        self.parallel: Parallel | None = None
        if printed is not None:
            self.parallel = Parallel(line(layout.IRQ_LPT1), printed)
            attach(layout.LPT1, self.parallel, "parallel port")
        if said is not None:
            for ports in layout.DEBUG_CONSOLE:
                attach(ports, DebugConsole(said), f"debug console {ports[0]:X}h")
        if firmware is not None:
            attach(layout.FW_CFG, FwCfg(memory, firmware), "fw_cfg")
        if debug_exit:
            leave = DebugExit(lambda value: end("debug exit", str(value)))
            attach(layout.DEBUG_EXIT, leave, "debug exit")

    def _attach(
        self,
        ports: range,
        chip: Addressable,
        name: str,
        compiled: int = abi.PORT_PYTHON,
    ) -> None:
        """Put a chip on the bus; what else it is, it tells itself.

        compiled: what compiled code knows it as.
        """
        self.ports.attach(ports, chip, name)
        for port in (port for port in ports if port < abi.PORTS):
            self._shared.ports[port] = compiled + (port - ports[0] << 3)
        if isinstance(chip, Timed):
            self.timed += (chip,)
        if isinstance(getattr(chip, "drives", chip), Timed):
            self._timed_ports.update(ports)
        if isinstance(chip, Stateful):
            self._stateful[name] = chip

    def _attach_drives(self, disks: Sequence[Medium], cdrom: CdRom | None) -> None:
        """Put the drives on their channels; one without a drive is not there."""
        drives: list[Drive] = [AtaDisk(disk, i) for i, disk in enumerate(disks)]
        second = drives[2:] if cdrom is None else [cdrom, *drives[2:]]
        channels = drives[:2], second
        for number, (command, control, irq) in enumerate(layout.IDE):
            its = channels[number]
            if its:
                window = partial(self._shared.transfers.__setitem__, number)
                channel = Channel(self.pic.line(irq), its, window=window)
                name, data = f"IDE channel {number}", abi.PORT_DATA | number << 6
                self._attach(command, channel, name, data)
                status = abi.PORT_DATA | 7 << 3 | number << 6 | abi.ALTERNATE
                register = channel.control_register
                self._attach(control, register, f"{name} control", status)

    def _attach_floppies(
        self, floppies: Sequence[FloppyDrive], memory: DmaMemory
    ) -> None:
        """Put the floppy controller on the bus, and what it has DMA by."""
        dma, pages = Dma(), DmaPages()
        self._attach(layout.DMA_BYTES, dma, "8237A of bytes")
        self._attach(layout.DMA_WORDS, Dma(step=2), "8237A of words")
        self._attach(layout.DMA_PAGES, pages, "DMA pages")
        channel = DmaLine(dma, pages, memory, layout.DMA_FDC)
        fdc = Fdc(self.pic.line(layout.IRQ_FDC), channel, floppies)
        self._attach(layout.FDC, fdc, "82077AA")
        self._attach(layout.FDC_RATE, fdc.rate_register, "82077AA rate")

    # -- rings.protocols.IoBus --------------------------------------------------------

    def port_read(self, port: int, width: int) -> int:
        """Read a port."""
        value = self.ports.read(port, width, self._clock.now)
        if width > 1 or port in self._timed_ports:
            self.schedule()
        return value

    def port_write(self, port: int, width: int, value: int) -> None:
        """Write a port."""
        self.ports.write(port, width, value, self._clock.now)
        if width > 1 or port in self._timed_ports:
            self.schedule()

    def mmio_read(self, gpa: int, width: int) -> bytes:
        """Read device memory; accesses wider than 4 bytes are split."""
        if gpa in layout.VGA_MEMORY:
            first = gpa - layout.VGA_MEMORY[0]
            return bytes(self.vga.read_memory(first + i) for i in range(width))
        if gpa in layout.FRAME_BUFFER:
            first = gpa - layout.FRAME_BUFFER[0]
            return self.vga.dispi.read_memory(first, width)
        now = self._clock.now
        read = self.memory.read
        if width in (1, 2, 4):
            return read(gpa, width, now).to_bytes(width, "little")
        return bytes(read(gpa + i, 1, now) for i in range(width))

    def mmio_write(self, gpa: int, data: bytes) -> None:
        """Write device memory, or where there is neither a device nor RAM."""
        if gpa in layout.VGA_MEMORY:
            first = gpa - layout.VGA_MEMORY[0]
            for i, byte in enumerate(data):
                self.vga.write_memory(first + i, byte)
            return
        if gpa in layout.FRAME_BUFFER:
            self.vga.dispi.write_memory(gpa - layout.FRAME_BUFFER[0], data)
            return
        now = self._clock.now
        width = len(data)
        if width in (1, 2, 4):
            self.memory.write(gpa, width, int.from_bytes(data, "little"), now)
            return
        for i, byte in enumerate(data):
            self.memory.write(gpa + i, 1, byte, now)

    def type(self, strokes: Sequence[Stroke]) -> None:
        """Type keystrokes on the keyboard."""
        self.i8042.keyboard.type(strokes)
        self.schedule()

    def move(self, motion: Motion) -> None:
        """Move the mouse."""
        self.i8042.mouse.move(motion)
        self.schedule()

    def catch_up(self) -> None:
        """Hear of what compiled code has sent on COM1."""
        self.uart.flush()

    def timer_changed(self) -> None:
        """Hear that compiled code has delivered the timer's interrupt, or set it."""
        self.pit.changed()
        self.schedule()

    def coprocessor_error(self) -> None:
        """Assert FERR#, which port F0h clears."""
        self.coprocessor.fail()

    # -- time --------------------------------------------------------------------------

    def schedule(self) -> None:
        """Learn the next deadline, and have the engine stop for it."""
        deadlines = [
            due
            for device in self.timed
            if device is not self.pit and (due := device.deadline()) is not None
        ]
        self._shared.others = min(deadlines, default=abi.NEVER)
        due = self.pit.deadline()
        if due is not None:
            deadlines.append(due)
        self._next = min(deadlines, default=None)
        self.stop_in_time()

    def stop_in_time(self) -> None:
        """Have the engine stop for the next deadline."""
        if self._next is not None:
            self._clock.stop_by(self._next)

    def deadline(self) -> int | None:
        """Return the next deadline, absolute virtual ns, or None."""
        return self._next

    @property
    def wakes(self) -> bool:
        """Whether what is due can interrupt: not the timer alone, and that masked."""
        masked = self.pic.master.imr & 1 << layout.IRQ_PIT
        timed = (chip for chip in self.timed if not (masked and chip is self.pit))
        return any(chip.deadline() is not None for chip in timed)

    def advance(self) -> None:
        """Let every chip whose deadline has come do its work."""
        now = self._clock.now
        if self._next is not None and now >= self._next:
            for device in self.timed:
                due = device.deadline()
                if due is not None and now >= due:
                    device.advance(now)
            self.schedule()

    # -- state -------------------------------------------------------------------------

    def save(self) -> BoardState:
        """Return what every chip knows; what is due when follows from it."""
        chips = {name: chip.save() for name, chip in self._stateful.items()}
        return BoardState(chips)

    def restore(self, state: BoardState) -> None:
        """Become the board that was saved, of the same parts."""
        for name, chip in self._stateful.items():
            chip.restore(state.chips[name])
        self.schedule()
