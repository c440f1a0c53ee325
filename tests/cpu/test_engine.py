"""The engine: what is found at start-up, stops, and flags in hooks."""

# ruff: noqa: E501 (lines of assembly)

import gc

import pytest
import unicorn
from unicorn import x86_const

from emu86 import Machine
from emu86.cpu.engine import Engine, abilities
from emu86.cpu.library import Abilities, EngineError
from emu86.cpu.maps import ranges
from emu86.cpu.probe import probe
from emu86.machine import loop
from emu86.native import abi
from support.assembler import assemble
from support.cases import Case, check


def test_every_ability_is_found_on_the_pinned_unicorn():
    found = abilities()
    assert found == Abilities(
        live=True,
        stops=True,
        flush_page=True,
        drop_code=True,
        inline=True,
        looks=True,
        native=True,
        tlb=True,
    )


def test_looking_for_abilities_leaves_no_memory_for_code():
    gc.collect()
    gc.disable()
    try:
        before = ranges("rwx")
        probe()
        assert ranges("rwx") == before
    finally:
        gc.enable()


def test_an_engine_without_callbacks_says_so():
    engine = Engine()
    with pytest.raises(EngineError):
        engine.on_exception(3)


COUNT = """
    org 0x100000
    bits 32
    mov esp, 0x90000
    mov ecx, 20000
    xor ebx, ebx
    .loop: inc dword [0x80000]
    add dword [0x80004], 3
    xchg ebx, [0x80008]
    inc ebx
    xchg ebx, [0x80008]
    push ecx
    pop edx
    add [0x8000C], edx
    loop .loop
    mov al, 0
    out 0xf4, al
    jmp $
"""


@pytest.mark.parametrize("budget", [100, 333, 4001])
@pytest.mark.parametrize("can", [None, Abilities.none()], ids=["live", "public"])
def test_stops_run_no_instruction_twice(budget, can, monkeypatch):
    """Stop hundreds of times in a loop of read-modify-writes."""
    monkeypatch.setattr(loop, "_SLICE", budget // abi.QUARTERS)
    machine = Machine(memory=2 << 20, debug_exit=True, abilities=can)
    machine.load_flat(assemble(COUNT), 0x100000)
    engine, runs = machine.vmm.engine, []
    run = engine.run
    engine.run = lambda: (runs.append(1), run())
    assert machine.run(timeout=300).reason == "debug exit"
    assert len(runs) > 20000 * 30 / budget / 2
    words = [
        int.from_bytes(machine.read_physical(0x80000 + 4 * i, 4), "little")
        for i in range(4)
    ]
    assert words == [20000, 60000, 20000, 20000 * 20001 // 2]


OPERATIONS = (
    "add eax, ebx", "sub eax, ebx", "adc eax, ebx", "sbb eax, ebx", "cmp eax, ebx",
    "and eax, ebx", "or eax, ebx", "xor eax, ebx", "test eax, ebx", "inc eax", "dec eax",
    "neg eax", "shl eax, 3", "shr eax, 1", "sar eax, 5", "rol eax, 1", "rcr eax, 1",
    "imul eax, ebx", "bt eax, 5", "bsf ecx, eax", "daa", "aas", "sahf", "std", "cmc",
    "add al, bl", "sub ax, bx", "shld eax, ebx, 4", "xadd eax, ebx", "cmpxchg ebx, ecx",
)  # fmt: skip
VALUES = ((0, 0), (0x7FFFFFFF, 1), (0x80000000, 0xFFFFFFFF), (0x12345678, 0x87654321))
FLAGS = tuple(
    Case(f"{op} {a:#x} {b:#x}", f"mov eax, {a}\nmov ebx, {b}\n{op}\n{middle}\npushfd\n"
         "pop esi\nrcl ebp, 1\ncld\nand esi, ~0x10")
    for op in OPERATIONS
    for a, b in VALUES
    for middle in ("lar edi, ecx", "verr bp", "str di", "mov edi, cr0")
)  # fmt: skip


@pytest.mark.not_quick
def test_flags_survive_hooks_that_read_and_write_them():
    """Arithmetic flags are lazy in the engine; ZF is written by LAR's and VERR's hooks."""
    check(FLAGS[::3], "patch", ignore=("eflags",))
    check(FLAGS[1::11], "public API only", ignore=("eflags",))


def test_a_callbacks_exception_comes_out_of_run():
    machine = Machine(memory=2 << 20)
    machine.load_flat(assemble("bits 32\nin al, 0x60\njmp $"), 0x100000)

    def broken(_port, _width):
        raise ZeroDivisionError

    machine.vmm.engine.on_in = broken
    with pytest.raises(ZeroDivisionError):
        machine.run(timeout=120)


def test_retired_code_is_the_clock():
    """A byte of code is a quarter of a nanosecond: block by block, exits apart."""
    machine = Machine(memory=2 << 20, debug_exit=True)
    code = assemble("bits 32\nmov ecx, 100000\n.a: nop\nloop .a\nout 0xf4, al\njmp $")
    machine.load_flat(code, 0x100000)
    machine.run(timeout=120)
    control = machine.vmm.engine.control
    spent = control[abi.NOW]
    exits = sum(stat.count for stat in machine.stats.exits.values())
    assert abs(spent - 300_000 - exits * abi.EXIT_TIME) < 100


def unicorn_at_ring_0(code):
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0, 0x10000)
    uc.mem_write(0x1000, assemble(f"bits 32\norg 0x1000\n{code}"))
    return uc


def test_a_step_that_writes_over_itself():
    """hardware.md: it is begun again for ever, but not if two are asked for."""
    uc = unicorn_at_ring_0("mov byte [0x1000], 0xc6\nhlt")
    for _ in range(5):
        uc.emu_start(0x1000, 0, count=1)
        assert uc.reg_read(x86_const.UC_X86_REG_EIP) == 0x1000
    uc.emu_start(0x1000, 0, count=2)
    assert uc.reg_read(x86_const.UC_X86_REG_EIP) == 0x1007


@pytest.mark.parametrize(("kind", "fires"), [(0, True), (0xD, False), (0xF, False)])
def test_a_breakpoint_on_data_never_fires(kind, fires):
    """hardware.md: of the engine's own only those on code do, and on ports."""
    where = ".here" if kind == 0 else "0x2000"
    uc = unicorn_at_ring_0(
        f"mov eax, {where}\nmov dr0, eax\nmov eax, {kind << 16 | 1}\nmov dr7, eax\n"
        "mov [0x2000], eax\nmov ebx, [0x2000]\n.here: nop\nnop\n.end:"
    )
    seen = []
    uc.hook_add(
        unicorn.UC_HOOK_INTR,
        lambda _uc, vector, _: (seen.append(vector), uc.emu_stop()),
    )
    end = 0x1000 + 5 + 3 + 5 + 3 + 5 + 6 + 2
    uc.emu_start(0x1000, end)
    assert seen == ([1] if fires else [])


def test_a_read_modify_write_over_its_block():
    """hardware.md: 1002h is added twice."""
    uc = unicorn_at_ring_0("nop\nnop\nnop\nadd [eax], edx\nadd [eax], eax")
    uc.reg_write(x86_const.UC_X86_REG_EAX, 0x1002)
    uc.reg_write(x86_const.UC_X86_REG_EDX, 0x1333)
    uc.emu_start(0x1000, 0x1007)
    found = int.from_bytes(uc.mem_read(0x1002, 4), "little")
    assert found != 0x01100190 + 0x1333 + 0x1002
    assert found == 0x01100190 + 0x1333 + 2 * 0x1002
