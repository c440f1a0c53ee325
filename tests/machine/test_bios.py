"""What a kernel finds that no BIOS has started: where each is documented, it says."""

import struct

import pytest

from emu86 import Machine
from emu86.machine import boot
from support.cases import Case, on_emu86, on_qemu
from support.flat import flat
from support.snippets import PIC

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine():
    return Machine(memory=100 * MIB)


def word(machine, address, size=2):
    return int.from_bytes(machine.read_physical(address, size), "little")


def port(machine, number, value=None):
    if value is not None:
        machine.board.port_write(number, 1, value)
        return 0
    return machine.board.port_read(number, 1)


def cmos(machine, index):
    port(machine, 0x70, index)
    return port(machine, 0x71)


def test_serial_and_parallel_ports_are_those_that_exist(machine):
    """MEMORY.LST 0040h:0000h and 0008h: base addresses, 0 for none."""
    bases = struct.unpack("<7H", machine.read_physical(0x400, 14))
    assert bases == (0x3F8, 0, 0, 0, 0, 0, 0)
    for base in (base for base in bases if base):
        assert machine.board.ports.name(base) == "16550A"


def test_the_equipment_word_agrees(machine):
    """MEMORY.LST 0040h:0010h: a coprocessor, 80x25 in colour, one serial port."""
    equipment = word(machine, 0x410)
    assert equipment == 1 << 1 | 2 << 4 | 1 << 9
    # CMOS.LST 14h; bits 5 and 4 are 0 for a display with a BIOS of its own.
    assert cmos(machine, 0x14) == equipment & 0xCF


def test_low_memory_and_the_extended_data_area_agree(machine):
    """MEMORY.LST 0040h:000Eh and 0013h; its own first byte is its size in KiB."""
    area = word(machine, 0x40E) << 4
    assert area == 0x9FC00
    assert word(machine, 0x413) << 10 == area
    kib = word(machine, area, 1)
    assert area + (kib << 10) == 640 << 10
    base, size, kind = boot.memory_map(100 * MIB)[0]
    assert (base, size, kind) == (0, area, 1)
    assert boot.memory_map(100 * MIB)[1] == (area, MIB - area, 2)


def test_memory_sizes_of_the_cmos_ram_agree(machine):
    """CMOS.LST 15h to 18h, 30h, 31h (KiB); 34h, 35h: 64 KiB above 16 MiB."""
    assert cmos(machine, 0x15) | cmos(machine, 0x16) << 8 == 640
    assert cmos(machine, 0x17) | cmos(machine, 0x18) << 8 == 65535
    assert cmos(machine, 0x30) | cmos(machine, 0x31) << 8 == 65535
    assert cmos(machine, 0x34) | cmos(machine, 0x35) << 8 == (100 - 16) * 16
    checksum = sum(cmos(machine, index) for index in range(0x10, 0x2E))
    assert cmos(machine, 0x2E) << 8 | cmos(machine, 0x2F) == checksum


def test_ticks_agree_with_the_time_of_day(machine):
    """MEMORY.LST 0040h:006Ch: interrupts of 18.2 Hz since midnight."""
    bcd = [cmos(machine, index) for index in (4, 2, 0)]
    hours, minutes, seconds = ((value >> 4) * 10 + (value & 15) for value in bcd)
    day = hours * 3600 + minutes * 60 + seconds
    assert word(machine, 0x46C, 4) == day * 1193182 // 65536
    assert word(machine, 0x470, 1) == 0  # midnight has not passed


def test_interrupt_controllers_are_at_their_vectors_and_masks():
    """PC/AT Technical Reference, TEST1: vectors 08h and 70h; timer etc. are open."""
    built = Machine(memory=MIB)
    assert (port(built, 0x21), port(built, 0xA1)) == (0xF8, 0xDE)
    pic = built.board.pic
    pic.line(1)(True)
    assert pic.intr
    assert pic.acknowledge() == 0x09
    port(built, 0x20, 0x20)
    pic.line(13)(True)
    assert pic.acknowledge() == 0x75


def test_the_timer_runs_at_18_2_hz():
    """PC/AT Technical Reference: 36h to port 43h, a count of 0; 8254 data sheet."""
    built = Machine(memory=MIB)
    port(built, 0x43, 0xE2)  # read back the status of channel 0
    assert port(built, 0x40) & 0x3F == 0x36
    edges = []
    for _ in range(4):
        built._engine.clock.advance_to(built.board.deadline())
        built.board.advance()
        edges.append(built.now)
    assert edges[2] - edges[0] == pytest.approx(65536e9 / 1193182, abs=1)


def test_a_kernel_that_programs_the_8259a_alone_gets_its_interrupts():
    """Row 37 of the faults that were found in use."""
    body = """
    gate 0x20, t
    """
    body += PIC.format(base=0x20, mask="0xFE")
    body += """
    sti
    hlt
t:  mov eax, 1
    jmp fin
    """
    assert flat(body).run(timeout=120).code == 1


def test_a_kernel_that_programs_nothing_gets_the_timer_at_vector_8():
    """As on any PC, where it is taken for a double fault."""
    assert (
        flat("gate 8, t\nsti\nhlt\nt: mov eax, 2\njmp fin").run(timeout=120).code == 2
    )


def test_a_guest_that_is_loaded_there_has_its_own_bytes():
    built = Machine(memory=MIB)
    built.load_flat(b"\xf4" * 0x600, 0)
    assert built.read_physical(0, 0x600) == b"\xf4" * 0x600


def test_a_reset_leaves_it_again():
    """And the ticks go on with the date."""
    built = Machine(memory=MIB)
    wait = b"\xfb\xf4\xfa\xf4"  # sti; hlt; cli; hlt
    built.load_flat(wait, 0x1000)
    built.write_physical(0x400, bytes(256))
    for number, value in ((0x21, 0xFF), (0xA1, 0xFF), (0x43, 0x30), (0x40, 1)):
        port(built, number, value)
    built._engine.clock.advance_to(10 * 10**9)
    built.reset()
    assert (port(built, 0x21), port(built, 0xA1)) == (0xF8, 0xDE)
    assert (word(built, 0x400), word(built, 0x413)) == (0x3F8, 639)
    assert word(built, 0x46C, 4) == 10 * 1193182 // 65536
    assert built.board.deadline() - built.now == pytest.approx(
        32768e9 / 1193182, abs=900
    )


# Values that do not depend on which devices there are; QEMU's BIOS is SeaBIOS.
SAME = (
    (0x400, "w"), (0x40E, "w"), (0x413, "w"), (0x41A, "w"), (0x41C, "w"), (0x449, "b"),
    (0x44A, "w"), (0x44C, "w"), (0x460, "w"), (0x463, "w"), (0x480, "w"), (0x482, "w"),
    (0x484, "b"), (0x485, "w"), (0x496, "b"), (0x9FC00, "b"), (0x000, "d"),
    (0xFFF53, "b"), (0xFFFFE, "b"),
)  # fmt: skip
READ = {"b": "movzx eax, byte", "w": "movzx eax, word", "d": "mov eax,"}


@pytest.mark.not_quick
def test_it_is_what_seabios_leaves():
    cases = tuple(Case(f"{at:X}h", f"{READ[width]} [{at:#x}]") for at, width in SAME)
    ours, theirs = on_emu86(cases), on_qemu(cases)
    for case, our, their in zip(cases, ours, theirs, strict=True):
        assert our["eax"] == their["eax"], case.name


def test_a_printer_is_in_the_data_area():
    with_printer = Machine(memory=MIB, parallel=True)
    assert word(with_printer, 0x408) == 0x378
    assert word(with_printer, 0x410) >> 14 == 1
    without = Machine(memory=MIB)
    assert word(without, 0x408) == word(without, 0x410) >> 14 == 0
    assert without.board.ports.name(0x378) is None


def test_a_guest_prints():
    """MOV DX, 378h; OUT; INC DX twice; strobe; HLT."""
    machine = Machine(memory=MIB, parallel=True)
    paper = bytearray()
    machine.on_print(paper.extend)
    code = "66ba7803 b041 ee 4242 b00d ee b00c ee fa f4"
    machine.load_flat(bytes.fromhex(code), 0x10000)
    assert machine.run().reason == "halted"
    assert paper == b"A"
    other = Machine.restore(machine.save())
    assert other.board.parallel.data == 0x41
    machine.stop_printer()
    assert port(machine, 0x379) == 0x57
