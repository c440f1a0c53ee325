"""Any access, of any width and value, in any order, to any chip, at any time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu86.devices import vga_picture as picture
from emu86.devices.ata_disk import AtaDisk
from emu86.devices.atapi import CdRom
from emu86.devices.bus import Bus, Timed
from emu86.devices.dma import Dma, DmaLine, DmaPages
from emu86.devices.fdc import Fdc
from emu86.devices.floppy_drive import DRIVE_360K, FloppyDrive
from emu86.devices.fw_cfg import FwCfg
from emu86.devices.i8042 import I8042
from emu86.devices.ide import Channel
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
from emu86.devices.ps2_mouse import Motion
from emu86.devices.rtc import Rtc
from emu86.devices.speaker import Speaker
from emu86.devices.uart import Uart
from emu86.devices.vga import Vga
from emu86.devices.vga_memory import WINDOW
from support.medium import Medium

pytestmark = pytest.mark.not_quick


class Port:
    """One port of a chip that has many, in which others are of little interest."""

    def __init__(self, chip, offset):
        self.chip, self.offset = chip, offset

    def read(self, _offset, width, now):
        return self.chip.read(self.offset, width, now)

    def write(self, _offset, width, value, now):
        self.chip.write(self.offset, width, value, now)


class Board:
    """One kind of chip on a bus, and everything that it tells the world."""

    def __init__(self, kind):
        self.log = []
        self.bus = Bus()
        self.chips = getattr(self, kind)()

    def tell(self, what):
        return lambda *args: self.log.append((what, *args))

    def put(self, chip, ports, first=0):
        self.bus.attach(range(first, first + ports), chip, type(chip).__name__)
        return chip

    def pic(self):
        pair = PicPair()
        for n, part in enumerate((pair.master, pair.slave, pair.elcr)):
            self.put(part, 2, 2 * n)
        self.act = lambda n, _: (
            pair.set_line(n & 15 if n & 15 != 2 else 3, bool(n & 16)),
            self.log.append((pair.intr, pair.acknowledge() if n & 32 else None)),
        )
        return [pair]

    def pit(self):
        pit = self.put(Pit(self.tell("irq0")), 4)
        return [pit, self.put(Speaker(pit), 1, 4)]

    def uart(self):
        uart = self.put(Uart(self.tell("irq4"), self.tell("sent")), 8)
        self.act = lambda n, _: uart.receive(bytes([n] * (n >> 3)))
        return [uart]

    def rtc(self):
        return [self.put(Rtc(self.tell("irq8"), 1_700_000_000, 640, 65_536), 2)]

    def i8042(self):
        tell = self.tell
        kbc = I8042(tell("irq1"), tell("irq12"), tell("reset"), tell("a20"))
        self.bus.attach(range(0, 5, 4), kbc, "i8042")

        def act(n, now):
            kbc.keyboard.key(bytes([n, 0xF0, n]) if n & 1 else bytes([n]), now)
            kbc.mouse.move(Motion(n - 100, 3 * n, n & 3, n & 31))

        self.act = act
        return [kbc]

    def vga(self):
        window = memoryview(bytearray(WINDOW))
        plain = [range(0)]
        vga = Vga(window, plain.append, bytes(range(256)) * 16)
        for n, port in enumerate(
            (0x14, 0x15, 0x1E, 0x1F, 0x10, 0x24, 0x25, 0x12, 0x19)
        ):
            self.bus.attach(range(n, n + 1), Port(vga, port), f"port {port}")

        def act(n, now):
            at = n * 0x2B5 % WINDOW
            if at in plain[-1]:
                window[at] = n
            else:
                vga.write_memory(at, n)
                self.log.append((now, vga.read_memory(at)))
            if not n % 8:
                self.log.append(picture.text(vga.frame()))
            if not n % 64:
                self.log.append(picture.pixels(vga.frame()))

        self.act = act
        return [vga]

    def ports(self):
        latch = self.put(Coprocessor(self.tell("irq13")), 1, 8)
        self.act = lambda *_: latch.fail()
        return [
            latch,
            self.put(PostCode(), 1),
            self.put(SystemControlA(self.tell("reset"), self.tell("a20")), 1, 1),
            self.put(DebugExit(self.tell("exit")), 4, 2),
            self.put(PowerControl(self.tell("off")), 2, 6),
        ]

    def firmware(self):
        files = {"a": bytes(range(9)), "b": b""}
        return [
            self.put(FwCfg(1 << 20, files), 2),
            self.put(DebugConsole(self.tell("said")), 1, 2),
        ]

    def ide(self):
        media = [Medium(bytes(200 * 512)) for _ in range(2)]
        drives = [AtaDisk(media[0], 0), CdRom(media[1], 1)]
        channel = self.put(Channel(self.tell("irq14"), drives), 8)
        self.put(channel.control_register, 1, 8)
        self.act = lambda n, _: setattr(media[n & 1], "fails", n & 2)
        return [channel]

    def fdc(self):
        media = [Medium(bytes(160 << 10)) for _ in range(2)]
        drives = [FloppyDrive(DRIVE_360K, medium) for medium in media]
        dma = Dma()
        line = DmaLine(dma, DmaPages(), Medium(bytes(1 << 16)), 2)
        fdc = self.put(Fdc(self.tell("irq6"), line, drives), 6)
        self.put(fdc.rate_register, 1, 6)

        def act(n, now):
            media[n & 1].fails = n & 2
            if n & 4:
                drives[n & 1].insert(media[n & 1] if n & 8 else None)
            dma.write(n >> 4, 1, n, now)
            # Rubbish alone is seldom a command.
            head = [(n & 0xC0) | n % 0x17, n & 5, n >> 5, n & 1, n % 9, 2, 8, 0, 0]
            for byte in head:
                fdc.write(5, 1, byte, now)

        self.act = act
        return [fdc, dma]

    def parallel(self):
        port = self.put(Parallel(self.tell("irq7"), self.tell("printed")), 3)
        self.act = lambda n, _: setattr(port, "fault", n > 200)
        return [port]

    def act(self, n, now):
        """Do nothing: this chip has no other side."""

    def step(self, step):
        """Run a step; returns what a guest sees, or the deadlines."""
        kind, address, width, value, now = step
        if kind == "read":
            got = self.bus.read(address, width, now)
            assert 0 <= got < 1 << 8 * width
            return got
        if kind == "write":
            self.bus.write(address, width, value, now)
        elif kind == "act":
            self.act(value & 0xFF, now)
        else:
            for chip in self.chips:
                if isinstance(chip, Timed):
                    due = chip.deadline()
                    chip.advance(now)
                    assert due is None or due > now or chip.deadline() != due
        return [chip.deadline() for chip in self.chips if isinstance(chip, Timed)]

    def save(self):
        return [chip.save() for chip in self.chips]

    def restore(self, states):
        for chip, state in zip(self.chips, states, strict=True):
            chip.restore(state)


@st.composite
def steps(draw):
    now, made = draw(st.integers(0, 10**12)), []
    for _ in range(draw(st.integers(0, 60))):
        now += draw(
            st.one_of(
                st.integers(0, 3000), st.integers(0, 10**7), st.integers(0, 10**11)
            )
        )
        made.append(
            (
                draw(st.sampled_from(["read", "write", "write", "act", "advance"])),
                draw(st.integers(0, 8)),
                draw(st.sampled_from([1, 1, 1, 2, 4])),
                draw(st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFFF_FFFF))),
                now,
            )
        )
    return made


KINDS = [
    "pic", "pit", "uart", "rtc", "i8042", "vga", "ports", "firmware", "ide", "fdc",
    "parallel",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(before=steps(), after=steps())
def test_nothing_raises_and_a_restored_chip_goes_on_as_the_saved_one(
    kind, before, after
):
    board, twin = Board(kind), Board(kind)
    for step in before:
        board.step(step)
    saved = board.save()
    assert all(isinstance(state, tuple) for state in saved)
    twin.restore(saved)
    assert twin.save() == saved
    board.log.clear()
    late = before[-1][4] if before else 0
    for kind_, address, width, value, now in after:
        step = (kind_, address, width, value, late + now)
        assert board.step(step) == twin.step(step)
    assert board.log == twin.log
    assert board.save() == twin.save()


@pytest.mark.parametrize("kind", ["pit", "rtc", "i8042"])
@settings(deadline=None)
@given(before=steps())
def test_deadlines_lead_forward(kind, before):
    """Running from deadline to deadline, time moves and the chip stays quiet."""
    board = Board(kind)
    for step in before:
        board.step(step)
    now = before[-1][4] if before else 0
    for chip in (chip for chip in board.chips if isinstance(chip, Timed)):
        chip.advance(now)
        for _ in range(20):
            due = chip.deadline()
            if due is None:
                break
            assert due > now
            now = due
            chip.advance(now)
