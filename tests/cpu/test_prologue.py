"""Blocks that count themselves do all that blocks with a hook do."""

import ctypes
import struct
from dataclasses import replace

import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs

from emu86 import Machine, config, images
from emu86.cpu import offsets
from emu86.cpu.engine import Engine, abilities
from emu86.cpu.library import Abilities
from emu86.cpu.prologue import Prologues
from emu86.cpu.state import HFLAGS, RIP
from emu86.native import abi
from emu86.spec import x86

pytestmark = pytest.mark.skipif(
    not abilities().inline, reason="this build of Unicorn begins its blocks otherwise"
)


def boot(image, append, *, inline, technique="patch", input_=b""):
    can = replace(abilities(), inline=inline)
    machine = Machine(memory=16 << 20, technique=technique, abilities=can)
    machine.load_kernel(images.path(image), append=append)
    shown = bytearray()
    machine.on_console(shown.extend)
    machine.console_input(input_)
    stop = machine.run(timeout=300)
    counts = {reason: stat.count for reason, stat in machine.stats.exits.items()}
    return machine, (stop, machine.now, counts, machine.stats.shadow, bytes(shown))


@pytest.mark.parametrize("technique", ["patch", "iopl"])
@pytest.mark.parametrize(
    ("image", "append"), [("teach", "script"), ("exits", "200"), ("spin", "2")]
)
@pytest.mark.not_quick
def test_the_same_run_to_the_nanosecond(image, append, technique, monkeypatch):
    shorten = Prologues.shorten
    guarded = []

    def watched(self, pc, size, guard=0):
        done = shorten(self, pc, size, guard)
        if guard:
            guarded.append(done)
        return done

    monkeypatch.setattr(Prologues, "shorten", watched)
    hooked, expected = boot(image, append, inline=False, technique=technique)
    inline, found = boot(image, append, inline=True, technique=technique)
    assert found == expected
    assert hooked._engine.shortened == 0
    assert inline._engine.shortened >= inline.stats.blocks * 0.9
    assert all(guarded)
    assert image != "teach" or guarded


@pytest.mark.parametrize("inline", [False, True])
def test_the_same_run_where_translated_code_has_little_room(inline, monkeypatch):
    """So little that the engine drops all of its code, again and again."""
    can = replace(abilities(), inline=inline)
    jumps = b"\xeb\x00" * 6000  # jmp +0: a block each
    # mov ecx, 3; again: jumps; dec ecx; jnz again; cli; hlt
    back = struct.pack("<i", -len(jumps) - 7)
    code = b"\xb9\x03\0\0\0" + jumps + b"\x49\x0f\x85" + back + b"\xfa\xf4"

    def run():
        machine = Machine(memory=1 << 20, abilities=can)
        machine.load_flat(code, 0x8000)
        return machine.run(), machine.now, machine.registers, machine.stats.blocks

    *expected, blocks = run()
    monkeypatch.setattr(config, "CODE_SPACE", 1 << 20)
    *found, more = run()
    assert found == expected
    assert 6000 < blocks < 7000
    assert more > 2 * blocks


def test_a_stop_asked_for_in_a_port_access_is_before_the_next_block():
    machine = Machine(memory=1 << 20)
    # again: out 60h, al; inc dword [9000h]; jmp again
    machine.load_flat(bytes.fromhex("e660ff0500900000ebf6"), 0x8000)
    machine.board.port_write = lambda *_: machine._engine.stop()
    machine.vmm.bus = machine.board
    due = machine._engine.control[abi.STOP_AT]  # the firmware's timer
    for done in range(1, 4):
        machine._engine.run()
        count = int.from_bytes(machine.read_physical(0x9000, 4), "little")
        assert count <= done
        assert machine._engine.control[abi.STOP_AT] == due > 0


def test_unknown_code_is_left_alone():
    buffer = ctypes.create_string_buffer(b"\x90" * 256, 256)
    shared = abi.Control(uc=0x1234)
    prologues = Prologues(shared, 0x9ABC)
    prologues._begin = shared.code_next = ctypes.addressof(buffer)
    key = prologues._uc + b"\xbe\x00\x10\x00\x00\xba\x05\x00\x00\x00"
    key += prologues._control
    buffer[8 : 8 + len(key)] = key
    before = buffer.raw
    assert not prologues.shorten(0x1000, 5)
    assert buffer.raw == before
    assert shared.count_shortened == 0


@pytest.mark.parametrize("guard", [0, 0x123])
@pytest.mark.parametrize("second", [b"\xff\x15", b"\xe8"])
@pytest.mark.parametrize("first", [b"\xff\x15", b"\xe8"])
def test_calls_of_what_is_near_and_far(first, second, guard):
    """Which of them Unicorn makes depends on where the host has room for its code."""
    buffer = ctypes.create_string_buffer(b"\x90" * 256, 256)
    shared = abi.Control(uc=0x1234)
    prologues = Prologues(shared, 0x9ABC)
    prologues._begin = shared.code_next = ctypes.addressof(buffer)
    prologues._end = shared.code_end = prologues._begin + 256
    calls = [call + b"\x11" * 4 for call in (first, second)]
    code = prologues._uc + b"\xbe\x00\x10\x00\x00\xba\x05\x00\x00\x00"
    code += prologues._control + calls[0] + prologues._uc + b"\x33\xf6" + calls[1]
    buffer[8 : 8 + len(code)] = code
    assert prologues.shorten(0x1000, 5, guard)
    found = list(Cs(CS_ARCH_X86, CS_MODE_64).disasm(buffer.raw[8:], 8))
    place = 8 + len(code)  # where the block goes on
    assert place in [insn.address for insn in found]
    assert {insn.mnemonic for insn in found if insn.address >= place} == {"nop"}
    jumps = {i.mnemonic: int(i.op_str, 16) for i in found if i.mnemonic in ("je", "jl")}
    done = jumps["jl"]
    late = next(i.address for i in found if i.mnemonic == "mov" and "esi" in i.op_str)
    assert buffer.raw[late : late + 5] == b"\xbe\x00\x10\x00\x00"  # mov esi, pc
    assert jumps == ({"je": late, "jl": done} if guard else {"jl": done})
    assert not buffer.raw[done:place].strip(b"\x66\x90")


FAR = {
    "signed": 0xFFFFFFFF_81001234, "whole": 0x00007F12_3456789A, "near": None,
}  # fmt: skip


@pytest.mark.parametrize("second", [b"\xff\x15", b"\xe8"])
@pytest.mark.parametrize("form", FAR)
def test_addresses_from_4_gib_on(form, second):
    """The engine loads one in one of three forms; all are rewritten alike."""
    buffer = ctypes.create_string_buffer(b"\x90" * 256, 256)
    shared = abi.Control(uc=0x1234)
    prologues = Prologues(shared, 0x9ABC)
    start = prologues._begin = shared.code_next = ctypes.addressof(buffer)
    prologues._end = shared.code_end = start + 256
    pc = FAR[form] or start + 8 + 10 + 7 + 0x12345
    load = {
        "signed": b"\x48\xc7\xc6" + struct.pack("<I", pc & 0xFFFFFFFF),
        "whole": b"\x48\xbe" + struct.pack("<Q", pc),
        "near": b"\x48\x8d\x35" + struct.pack("<I", 0x12345),
    }[form]
    code = prologues._uc + load + b"\xba\x05\0\0\0" + prologues._control
    code += b"\xff\x15" + b"\x11" * 4 + prologues._uc + b"\x33\xf6"
    code += second + b"\x11" * 4
    buffer[8 : 8 + len(code)] = code
    assert not prologues.shorten(pc, 5, 0x123), "such blocks have no guard"
    assert not prologues.shorten(pc ^ 1 << 40, 5)
    assert not prologues.shorten(pc ^ 1, 5)
    shared.code_next = start
    assert prologues.shorten(pc, 5)
    found = list(Cs(CS_ARCH_X86, CS_MODE_64).disasm(buffer.raw[8:], 8))
    place = 8 + len(code)  # where the block goes on
    (jump,) = (int(i.op_str, 16) for i in found if i.mnemonic == "jl")
    assert jump == place
    late = {i.op_str: i.address for i in found if i.mnemonic == "movabs"}
    assert f"rsi, {pc:#x}" in late
    assert "rax, 0x9abc" in late
    assert [i.mnemonic for i in found if i.address < place].count("call") == 1
    assert place in [i.address for i in found]


def test_no_ability_no_change():
    assert not Abilities.none().inline


def test_another_engines_buffer_that_is_gone(monkeypatch):
    """It was freed between the look at the process's maps and the search in it."""
    gone = 0x10000  # nothing is ever mapped there
    monkeypatch.setattr(
        "emu86.cpu.prologue.ranges", lambda _rights: [(gone, gone + (1 << 20))]
    )
    Prologues(abi.Control(), 3).shorten(0x1000, 5)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    "at", [0x1000, 0x7FFF_1234_5000, 0xFFFF_8000_0000_1000, 0xFFFF_FFFF_8100_0000]
)
def test_blocks_of_64_bit_code(at, inline):
    """Wherever they stand they count the same, and stop at the same block."""
    engine = Engine(replace(abilities(), inline=inline))
    ram = memoryview(bytearray(0x10000))
    words = ram.cast("Q")
    for level in range(4):  # tables at 1000h to 4000h, the code at 5000h
        index = at >> 39 - 9 * level & 511
        words[(level + 1) * 512 + index] = (level + 2) << 12 | 0x27
    ram[0x5000:0x5004] = b"\xff\xc0\xeb\xfc"  # again: inc eax; jmp again
    engine.map(0, ram)
    engine.on_block = lambda _linear, _size: 0
    engine.hook()
    engine.set_control(0x80000033, 0x1000, 0x20)
    engine.d[HFLAGS] |= offsets.HF_CS64
    engine.q[RIP] = at
    engine.clock.run_for(1000)  # nanoseconds, of four bytes each
    engine.run()
    assert engine.q[x86.EAX] == 999
    assert engine.q[RIP] == at
    assert engine.control[abi.LATE_AT] & x86.MASK64 == at
    assert engine.shortened == inline
