"""Registers, memory, observers, statistics: what the Machine shows, and changes."""

import hashlib
import json

import pytest

from emu86 import Machine, Stop, images
from support.flat import MEMORY, flat, guest, send
from support.recorder import Recorder


def test_registers():
    built = guest(
        "mov eax, 1\nmov ecx, 2\nmov edx, 3\nmov ebx, 4\nmov esp, 5\nmov ebp, 6\n"
        "mov esi, 7\nmov edi, -8\nstc\nend: cli\nhlt\n"
    )
    assert built.run(timeout=20).reason == "halted"
    registers = built.registers
    names = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
    assert [registers[n] for n in names] == [1, 2, 3, 4, 5, 6, 7, 0xFFFFFFF8]
    assert registers["eflags"] == 3
    assert registers["eip"] == 0x100000 + 8 * 5 + 3
    assert registers["cs"] & 3 == 0, "ring 0, as the guest sees it"
    assert registers["cr0"] & 0x80000001 == 1
    assert registers["cr3"] == registers["cr4"] == 0
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        assert registers[f"{name}_base"] == 0


def test_set_register():
    built = guest("inc eax\ncli\nhlt\nother: add eax, ecx\njc $\ncli\nhlt\n")
    built.set_register("eax", 1 << 40 | 0xFFFFFFF0)
    built.set_register("ecx", 5)
    built.set_register("eip", 0x100003)
    built.set_register("eflags", 0x803)
    assert built.registers["eax"] == 0xFFFFFFF0
    assert built.registers["eflags"] == 0x803
    assert built.run(timeout=20).reason == "halted"
    assert built.registers["eax"] == 0xFFFFFFF5
    for name in ("cs", "cr0", "rax", ""):
        with pytest.raises(KeyError):
            built.set_register(name, 0)


def test_physical_memory():
    built = Machine(memory=MEMORY)
    built.write_physical(0x1FFE, b"abcd")
    assert built.read_physical(0x1FFD, 6) == b"\0abcd\0"
    built.write_physical(MEMORY - 2, b"yz")
    assert built.read_physical(MEMORY - 2, 4) == b"yz\xff\xff"
    assert built.read_physical(MEMORY + 10, 2) == b"\xff\xff"
    assert built.read_physical(0, 0) == b""
    built.write_physical(0x9FFFE, b"ab")
    built.write_physical(0x5000, b"")


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0xA0000, 2),
        (0x9FFFF, 2),
        (0xBFFFF, 1),
        (0x9F000, 0x22000),
        (MEMORY - 1, 2),
        (MEMORY, 1),
        (-1, 1),
        (-4, 8),
    ],
)
def test_writes_outside_of_ram(address, size):
    """ValueError, and not a byte is written."""
    built = Machine(memory=MEMORY)
    before = built.read_physical(0, MEMORY)
    with pytest.raises(ValueError, match="not all in RAM"):
        built.write_physical(address, b"z" * size)
    assert built.read_physical(0, MEMORY) == before


@pytest.mark.parametrize("address", [-1, -4, -MEMORY])
def test_reads_below_0(address):
    with pytest.raises(ValueError, match="is no address"):
        Machine(memory=MEMORY).read_physical(address, 8)


def test_written_code_is_run():
    built = guest("l: mov eax, 1\n" + send(b"A") + "jmp l\n")
    assert built.run(until=b"AA", timeout=20).reason == "until"
    built.write_physical(0x100001, b"\x02")
    assert built.run(until=b"AA", timeout=20).reason == "until"
    built.write_physical(0x100000, b"\xfa\xf4")
    assert built.run(timeout=20).reason == "halted"


def test_virtual_memory():
    built = flat(
        """
        mov dword [PT + 0x300 * 4], 0x301000 + 0x67
        mov dword [PT + 0x301 * 4], 0x300000 + 0x67
        mov dword [PT + 0x302 * 4], 0
        mov eax, cr3
        mov cr3, eax
        mov eax, [0x300000]
        jmp fin
        """,
        "local",
    )
    built.write_physical(0x300000, b"low".ljust(4096, b"-"))
    built.write_physical(0x301000, b"high".ljust(4096, b"+"))
    assert built.run(timeout=20) == Stop(
        "debug exit", int.from_bytes(b"high", "little")
    )
    assert built.read_virtual(0x300FFE, 5) == b"++low"
    built.write_virtual(0x300FFF, b"12")
    assert built.read_physical(0x301FFF, 1) + built.read_physical(0x300000, 1) == b"12"
    for touch in (built.read_virtual, lambda at, _: built.write_virtual(at, b"ab")):
        for address in (0x301FFF, 0x302000, 0x80000000):
            with pytest.raises(ValueError, match="nothing is mapped"):
                touch(address, 2)


# -- watching --------------------------------------------------------------------------


def test_observers():
    built = flat(
        """
        gate 3, taken
        gate 14, taken2
        mov eax, [0x345678]
        cli
        int3
    taken:
        mov al, 0x55
        out 0x80, al
        in al, 0x80
        mov eax, [0x400000]
    taken2:
        mov ebx, 0x300000
        invlpg [ebx]
        mov eax, 9
        jmp fin
        """,
        "local",
    )
    seen = Recorder()
    built.subscribe(seen)
    assert built.run(timeout=20).code == 9
    assert seen.events == [(3, None), (14, 0)]
    assert seen.ports == [
        (0x80, 1, 0x55, True),
        (0x80, 1, 0x55, False),
        (0xF4, 4, 9, True),
    ]
    assert 0x345 in [gva >> 12 for gva in seen.fills]
    reasons = [reason for reason, _, _ in seen.exits]
    assert {"CLI", "INVLPG", "OUT", "IN"} <= set(reasons)
    counted = {name: stat.count for name, stat in built.stats.exits.items()}
    assert counted == {reason: reasons.count(reason) for reason in set(reasons)}


def test_stats():
    built = guest("mov ecx, 1000\nl: cli\nsti\nloop l\nmov eax, cr0\ncli\nhlt\n")
    built.measure()
    built.run(timeout=20)
    stats = built.stats
    assert stats.exits["CLI"].count == 1001
    assert stats.exits["STI"].count == 1000
    assert stats.exits["CLI"].ns > 0
    assert stats.blocks > 0
    assert stats.wall_s > 0
    assert stats.virtual_s == pytest.approx(built.now / 1e9)
    assert 0 <= stats.guest_share <= 1
    plain = json.loads(json.dumps(stats.to_dict()))
    assert plain["exits"]["CLI"]["count"] == 1001


def test_stats_count_what_is_not_measured():
    built = guest("mov ecx, 1000\nl: cli\nsti\nloop l\nmov eax, cr0\ncli\nhlt\n")
    built.run(timeout=20)
    assert built.stats.exits["CLI"].count == 1001
    assert built.stats.exits["STI"].count == 1000
    assert built.stats.guest_share is None


# -- determinism -----------------------------------------------------------------------


def teach(*, watched=False):
    """All that a run of the teaching kernel leaves behind."""
    built = Machine(memory=MEMORY)
    shown = bytearray()
    built.on_console(shown.extend)
    if watched:
        built.subscribe(Recorder())
    built.load_kernel(images.path("teach"), append="script")
    stop = built.run(until=b"checks passed", timeout=60)
    assert stop.reason == "until", (stop, bytes(shown[-300:]))
    stop = built.run(timeout=60)
    assert stop.reason == "poweroff"
    memory = hashlib.sha256(built.read_physical(0, MEMORY)).hexdigest()
    return built.registers, memory, bytes(shown), built.now


@pytest.mark.parametrize("watched", [False, True])
def test_two_runs_are_the_same(watched):
    """Registers, RAM, console and time, whether or not someone watches."""
    assert teach() == teach(watched=watched)
