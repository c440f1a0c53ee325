"""Looking inside a machine: memory, registers, observers, statistics, repeatability."""

# ruff: noqa: E501 (lines of assembly)

import hashlib

import pytest

from emu86 import ConfigError, Machine, images
from support.assembler import assemble
from support.recorder import Recorder

# Paging: 0-4 MiB as it is, 400000h -> 200000h, 401000h -> 300000h, 402000h -> F0000000h.
PAGED = """
    org 0x100000
    bits 32
    mov esp, 0x90000
    mov edi, 0x81000
    mov eax, 3
    mov ecx, 1024
    .map: stosd
    add eax, 4096
    loop .map
    mov dword [0x80000], 0x81003
    mov dword [0x80004], 0x82003
    mov dword [0x82000], 0x200003
    mov dword [0x82004], 0x300003
    mov dword [0x82008], 0xF0000003
    mov eax, 0x80000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, 0x11111111
    mov ecx, 0x22222222
    mov edx, 0x33333333
    mov ebx, 0x44444444
    mov ebp, 0x55555555
    mov esi, 0x66666666
    mov edi, 0x77777777
    stc
    out 0xf4, al
    jmp $
"""
LOOP = """
    org 0x100000
    bits 32
    mov esp, 0x90000
    again:
    call work
    mov dx, 0x3F8
    out dx, al
    jmp again
    work:
    mov al, 'a'
    ret
"""


def paged():
    machine = Machine(memory=4 << 20, debug_exit=True)
    machine.load_flat(assemble(PAGED), 0x100000)
    stop = machine.run(timeout=20)
    assert (stop.reason, stop.code) == ("debug exit", 0x11)
    return machine


def test_registers():
    told = paged().registers
    wanted = {"eax": 0x11111111, "ecx": 0x22222222, "ebx": 0x44444444, "ebp": 0x55555555,
              "esi": 0x66666666, "edi": 0x77777777, "edx": 0x33333333, "esp": 0x90000,
              "cr3": 0x80000, "cr2": 0, "cr4": 0}  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted
    assert told["eflags"] & 0x701 == 1
    assert told["cr0"] >> 31 == 1
    assert told["cs"] & 3 == told["ss"] & 3 == 0, "the guest's ring, not the engine's"
    assert told["cs_base"] == 0
    assert 0x100000 < told["eip"] < 0x100200


def test_registers_can_be_written():
    machine = Machine(memory=2 << 20, debug_exit=True)
    code = (
        "bits 32\nout 0xf5, al\njmp short $\nnop\npushfd\npop ecx\nout 0xf4, al\njmp $"
    )
    machine.load_flat(assemble(code), 0x100000)
    machine.set_register("esp", 0x90000)
    machine.set_register("eip", 0x100005)
    machine.set_register("eax", 0x1_0000_0042)
    machine.set_register("eflags", 0x8D7)
    stop = machine.run(timeout=20)
    assert (stop.reason, stop.code) == ("debug exit", 0x42)
    assert machine.registers["ecx"] == 0x8D7
    for name in ("cr0", "cs", "rax", ""):
        with pytest.raises(KeyError):
            machine.set_register(name, 0)


def test_physical_memory():
    machine = paged()
    machine.write_physical(0x1FFFFE, b"1234")
    assert machine.read_physical(0x1FFFFE, 4) == b"1234"
    assert machine.read_physical((4 << 20) - 1, 3)[1:] == b"\xff\xff"
    assert machine.read_physical(0xF0000000, 4) == b"\xff" * 4
    assert machine.read_physical(0xA0000, 2) == b"\xff\xff"
    assert machine.read_physical(0x100000, 0) == b""
    for address, size in (((4 << 20) - 1, 2), (-1, 1), (1 << 32, 1)):
        with pytest.raises(ValueError, match="RAM"):
            machine.write_physical(address, b"x" * size)
    with pytest.raises(ValueError):
        machine.read_physical(-1, 1)


def test_virtual_memory():
    machine = paged()
    machine.write_virtual(0x400FFE, b"abcd")
    assert machine.read_physical(0x200FFE, 2) == b"ab"
    assert machine.read_physical(0x300000, 2) == b"cd"
    assert machine.read_virtual(0x400FFE, 4) == b"abcd"
    assert machine.read_virtual(0x401FFE, 4)[2:] == b"\xff\xff"
    assert machine.read_virtual(0x200FFE, 2) == b"ab"
    for address, size in ((0x403000, 1), (0x402FFF, 2), (0xFFFFFFFF, 1)):
        with pytest.raises(ValueError, match="mapped"):
            machine.read_virtual(address, size)
        with pytest.raises(ValueError, match="mapped|RAM"):
            machine.write_virtual(address, b"x" * size)


def test_looking_leaves_no_trace():
    """Accessed and dirty bits are the guest's: a debugger's reads set none."""
    machine = paged()
    before = machine.read_physical(0x80000, 0x3000)
    machine.read_virtual(0x401000, 4096)
    assert machine.registers == machine.registers
    assert machine.read_physical(0x80000, 0x3000) == before


@pytest.mark.parametrize("virtual", [False, True])
def test_code_that_has_run_can_be_written(virtual):
    machine = Machine(memory=2 << 20)
    machine.load_flat(assemble(LOOP), 0x100000)
    assert machine.run(b"aaa", timeout=20).reason == "until"
    at = 0x100000 + assemble(LOOP).index(b"\xb0a") + 1
    (machine.write_virtual if virtual else machine.write_physical)(at, b"b")
    shown = bytearray()
    machine.on_console(shown.extend)
    assert machine.run(b"bbb", timeout=20).reason == "until"
    assert len(shown) <= 5


def test_observers_and_statistics_agree():
    machine = Machine(memory=4 << 20, debug_exit=True)
    machine.load_flat(assemble(PAGED), 0x100000)
    watch, second = Recorder(), Recorder()
    machine.subscribe(watch)
    machine.subscribe(second)
    machine.run(timeout=20)
    assert vars(watch) == vars(second)
    assert watch.ports == [(0xF4, 1, 0x11, True)]
    counts = {}
    for reason, _cs, _eip in watch.exits:
        counts[reason] = counts.get(reason, 0) + 1
    stats = machine.stats
    assert counts == {name: stat.count for name, stat in stats.exits.items()}
    assert counts["MOV to CR"] == 2
    assert counts["MOV from CR"] == 1
    assert watch.events == []
    assert len(watch.fills) == counts["#PF fill"]
    assert stats.virtual_s == pytest.approx(machine.now / 1e9, abs=1e-9)
    plain = stats.to_dict()
    assert plain["exits"]["MOV to CR"]["count"] == 2
    assert set(plain) >= {
        "exits",
        "blocks",
        "patched",
        "shadow",
        "wall_s",
        "guest_share",
    }


def test_guest_share_is_told_if_measured():
    machine = Machine(memory=2 << 20, debug_exit=True)
    machine.load_flat(assemble(LOOP), 0x100000)
    machine.measure()
    machine.run(timeout=0.2)
    assert 0 <= machine.stats.guest_share <= 1
    assert machine.stats.exits["OUT"].ns > 0


def script():
    machine = Machine(memory=16 << 20)
    machine.load_kernel(images.path("teach"), append="script")
    shown = bytearray()
    machine.on_console(shown.extend)
    assert machine.run(timeout=60).reason == "poweroff"
    ram = hashlib.sha256(machine.read_physical(0, 16 << 20)).hexdigest()
    exits = {name: stat.count for name, stat in machine.stats.exits.items()}
    return machine.registers, ram, machine.now, bytes(shown), exits


def test_two_runs_are_the_same():
    assert script() == script()


def test_a_run_in_pieces_tells_the_guest_nothing():
    """Stopping at each line of the console changes no result, only where time is cut."""
    whole = script()
    machine = Machine(memory=16 << 20)
    machine.load_kernel(images.path("teach"), append="script")
    shown = bytearray()
    machine.on_console(shown.extend)
    while machine.run(b"\n", timeout=60).resumable:
        machine.registers  # noqa: B018 (looking changes nothing)
        machine.read_physical(0x100000, 16)
    assert bytes(shown) == whole[3]


def test_a_machine_without_a_guest_can_be_looked_at():
    machine = Machine(memory=1 << 20)
    assert machine.read_physical(0, 16) == bytes(16)
    assert machine.registers["cr0"] & 1 == 1
    assert machine.now == 0
    with pytest.raises(ConfigError):
        machine.run()
