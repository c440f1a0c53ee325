"""Blocks that count themselves do all that blocks with a hook do."""

import ctypes
import struct
from dataclasses import replace

import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs

from emu86 import Machine, config, images
from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.cpu.prologue import Prologues
from emu86.native import abi

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


def test_no_ability_no_change():
    assert not Abilities.none().inline


def test_another_engines_buffer_that_is_gone(monkeypatch):
    """It was freed between the look at the process's maps and the search in it."""
    gone = 0x10000  # nothing is ever mapped there
    monkeypatch.setattr(
        "emu86.cpu.prologue.ranges", lambda _rights: [(gone, gone + (1 << 20))]
    )
    Prologues(abi.Control(), 3).shorten(0x1000, 5)
