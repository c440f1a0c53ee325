"""What docs/maintainers/hardware.md says of the engine, seen on the bare engine.

Each test is named in that page. Code runs in compatibility mode at CPL 1, with all of
64 KiB mapped, as under the VMM.
"""

import mmap

import pytest
from unicorn import UC_ARCH_X86, UC_HOOK_EDGE_GENERATED, UC_MODE_64, Uc

from emu86 import Machine
from emu86.cpu import offsets
from emu86.cpu.engine import Engine, abilities
from emu86.cpu.state import CR, ERROR_CODE, IS_INT, RIP
from emu86.mmu.vmm_memory import VmmMemory
from emu86.native import abi
from emu86.spec import x86
from support.assembler import assemble
from support.places import ROOT

PAGE = ROOT / "docs" / "maintainers" / "hardware.md"
CODE, DATA, STACK, TABLES, END = 0x1000, 0x3000, 0x7000, 0x8000, "out 11h, al\n"
FLAT = x86.DESC_P | x86.DESC_S | x86.DESC_A | x86.DESC_RW | x86.DESC_B
DPL1 = 1 << x86.DESC_DPL_SHIFT


class Bare:
    """An engine at CPL 1; OUT 11h ends a run, OUT 10h calls `on_mark`."""

    def __init__(self, code, *, cpl=1, end=True):
        self.memory = memoryview(mmap.mmap(-1, 0x10000))
        tables = self.memory.cast("Q")
        self.cpu = cpu = Engine()
        cpu.map(0, self.memory)
        rights = x86.PTE_P | x86.PTE_RW | x86.PTE_US
        for i in range(3):
            tables[(TABLES >> 3) + 512 * i] = TABLES + 0x1000 * (i + 1) | rights
        for i in range(16):
            tables[(TABLES + 0x3000 >> 3) + i] = i << 12 | rights
        cpu.set_control(x86.CR0_PG | x86.CR0_PE | x86.CR0_WP, TABLES, x86.CR4_PAE)
        # The selectors are a ring-0 kernel's, whatever the engine's CPL is.
        segment = FLAT | cpl << x86.DESC_DPL_SHIFT
        cpu.set_segment(x86.CS, 0x08, 0, x86.MASK32, segment | x86.DESC_CODE)
        for index in (x86.SS, x86.DS, x86.ES):
            cpu.set_segment(index, 0x10, 0, x86.MASK32, segment)
        cpu.sync_mode(cpl)
        cpu.set_flags(x86.IF)
        cpu.q[RIP], cpu.q[x86.ESP] = CODE, STACK
        self.events = []
        self.marks = []
        cpu.on_exception = self._exception
        cpu.on_invalid = self._invalid
        cpu.on_cpuid = cpu.stop
        cpu.on_in = lambda _port, _width: 0
        cpu.on_out = self._out
        binary = assemble(
            f"bits 32\norg {CODE:#x}\n{code}\n{END if end else ''}jmp $\n"
        )
        self.memory[CODE : CODE + len(binary)] = binary
        self.length = len(binary)

    def _exception(self, vector):
        self.events.append((vector, self.cpu.d[IS_INT]))
        self.cpu.stop()

    def _invalid(self):
        self.events.append("#UD")
        self.cpu.stop()

    def _out(self, port, _width, _value):
        if port == 0x10:
            self.marks.append(self.cpu.d[offsets.HFLAGS // 4] & offsets.HF_INHIBIT_IRQ)
        else:
            self.cpu.stop()

    def run(self):
        self.cpu.hook()
        self.cpu.run()
        return self

    def __getitem__(self, register):
        return self.cpu.q[register] & x86.MASK32


def test_internal_functions_are_exported_and_work():
    can = abilities()
    assert can.live
    assert can.stops
    assert can.flush_page
    assert can.drop_code


def test_selector_fields_are_not_the_cpl():
    bare = Bare("mov eax, cs\nmov ebx, ss\npush cs\npop ecx").run()
    assert (bare[x86.EAX], bare[x86.EBX], bare[x86.ECX]) == (0x08, 0x10, 0x08)
    assert bare.cpu.d[offsets.HFLAGS // 4] & offsets.HF_CPL == 1


def test_cli_traps_in_spite_of_the_selector():
    assert Bare("cli").run().events == [(x86.VEC_GP, 0)]


def test_patch_is_in_the_translation_only():
    code = """
        org 0x100000
        bits 32
        sgdt [0x2000]               ; sensitive: patched before it runs
    patched:
        mov eax, [0x100000]         ; its own bytes, read back while the patch is live
        mov [0x2010], eax
        dec byte [0x2020]
        jnz 0x100000                ; the second time through, the INT3 is translated
        cli
        hlt
    """
    binary = assemble(code)
    machine = Machine(memory=4 << 20)
    machine.load_flat(binary, 0x100000)
    machine.write_physical(0x2020, b"\x02")
    assert machine.run(timeout=120).reason == "halted"
    assert machine.stats.patched["SGDT"] == 1
    assert machine.stats.exits["SGDT"].count == 2
    assert machine.read_physical(0x2010, 4) == binary[:4]
    assert machine.read_physical(0x100000, len(binary)) == binary


def test_stop_in_the_block_hook_comes_before_the_block():
    bare = Bare("mov eax, 1\njmp next\nnext: mov eax, 2\njmp $", end=False)
    size = 10  # bytes of either block
    bare.cpu.control[abi.STOP_AT] = 2 * size
    bare.run()
    assert (bare[x86.EAX], bare[RIP]) == (1, CODE + size)
    assert bare.cpu.control[abi.NOW] == 2 * size
    bare.cpu.control[abi.STOP_AT] = 3 * size + 1
    bare.cpu.run()
    assert bare[x86.EAX] == 2
    assert bare.cpu.control[abi.NOW] == 3 * size + 5  # it counts again


def test_the_engine_ends_the_interrupt_shadow():
    bare = Bare("nop\nout 10h, al\njmp there\nthere: out 10h, al")
    bare.cpu.d[offsets.HFLAGS // 4] |= offsets.HF_INHIBIT_IRQ
    bare.run()
    assert bare.marks[-1] == 0


def test_a_trap_leaves_the_interrupt_shadow():
    bare = Bare("cli")
    bare.cpu.d[offsets.HFLAGS // 4] |= offsets.HF_INHIBIT_IRQ
    bare.run()
    assert bare.events == [(x86.VEC_GP, 0)]
    assert bare.cpu.d[offsets.HFLAGS // 4] & offsets.HF_INHIBIT_IRQ


def test_cs64_is_set_in_a_fresh_engine():
    assert Engine().d[offsets.HFLAGS // 4] & offsets.HF_CS64


@pytest.mark.parametrize(
    ("code", "event"),
    [("int 0xd", (13, 1)), ("mov cr0, eax", (13, 0)), ("int3", (3, 1))],
)
def test_software_interrupts_are_told_from_faults(code, event):
    assert Bare(code).run().events == [event]


def test_an_access_over_the_end_goes_on_above_4_gib():
    bare = Bare("mov ebx, 0xFFFFFFFE\nmov eax, [ebx]")
    tables = bare.memory.cast("Q")
    for table, index in (0x1000, 3), (0x2000, 511), (0x3000, 511):
        tables[TABLES + table + 8 * index >> 3] = tables[TABLES + table >> 3]
    bare.run()
    assert bare.events == [(x86.VEC_PF, 0)]
    assert bare.cpu.q[CR + 2] == 1 << 32


def test_a_conditional_jump_over_the_end_keeps_its_carry():
    bare = Bare("xor eax, eax\ndb 0x0F, 0x84\ndd -0x2000", end=False).run()
    assert bare.events == [(x86.VEC_PF, 0)]
    assert bare.cpu.q[RIP] > x86.MASK32


@pytest.mark.parametrize("code", ["rdpmc", "int1"])
def test_invalid_to_the_engine_alone(code):
    assert Bare(code).run().events == ["#UD"]


def test_lock_is_looked_at_after_the_privilege():
    assert Bare("lock cli").run().events == [(x86.VEC_GP, 0)]


def test_les_of_a_register_is_a_vex_prefix():
    bare = Bare("mov eax, 1\nmov ecx, 6\ndb 0xC4, 0xE2, 0x78, 0xF2, 0xC1").run()
    assert bare.events == []
    assert bare[x86.EAX] == 6  # ANDN EAX, EAX, ECX


@pytest.mark.parametrize("bit", range(32, 52))
def test_a_physical_address_has_40_bits(bit):
    bare = Bare(f"mov eax, [{DATA:#x}]")
    own = memoryview(mmap.mmap(-1, 0x1000)).cast("I")
    own[0] = 0x1234
    bare.cpu.map(1 << bit, own.cast("B"))
    rights = x86.PTE_P | x86.PTE_RW | x86.PTE_US
    bare.memory.cast("Q")[(TABLES + 0x3000 >> 3) + (DATA >> 12)] = 1 << bit | rights
    bare.run()
    if bit < 40:
        assert (bare[x86.EAX], bare.events) == (0x1234, [])
        return
    assert bare.events == [(x86.VEC_PF, 0)]
    assert bare.cpu.d[ERROR_CODE] == x86.PF_P | x86.PF_RSVD


def test_a_descriptor_table_at_an_address_of_57_bits():
    """By CR4 alone; with 48 bits the engine raises #GP."""
    table = DATA + 8 >> 3
    for la57, events in ((x86.CR4_LA57, []), (0, [(x86.VEC_GP, 0)])):
        bare = Bare("mov eax, 8\nmov es, eax")
        words = bare.memory.cast("Q")
        words[table] = 0x00CFB3000000FFFF  # data, flat, DPL 1, accessed
        rights = x86.PTE_P | x86.PTE_RW | x86.PTE_US
        root = TABLES + 0x4000
        for slot in (0, VmmMemory.PML5_SLOT):
            words[(root >> 3) + slot] = TABLES | rights
        cr0 = x86.CR0_PG | x86.CR0_PE | x86.CR0_WP
        bare.cpu.set_control(cr0, root if la57 else TABLES, x86.CR4_PAE | la57)
        bare.cpu.set_table(offsets.GDTR, VmmMemory.HIDDEN + DATA, 15)
        bare.run()
        assert bare.events == events


def test_the_memory_of_the_vmm_is_within_reach():
    end = VmmMemory.hpa(VmmMemory.PAGES)
    assert 1 << 39 <= VmmMemory.BASE < end <= 1 << 40


def test_no_block_is_told_before_one_has_ended():
    raw = Uc(UC_ARCH_X86, UC_MODE_64)
    raw.mem_map(0, 0x1000)
    raw.mem_write(0, b"\xeb\x00\xeb\x00\x90")
    told = []
    tell = lambda _uc, new, _old, _data: told.append(new.pc)  # noqa: E731
    raw.hook_add(UC_HOOK_EDGE_GENERATED, tell)
    raw.emu_start(0, 4)
    assert told == [2, 4]


def test_sse2_runs_whatever_cpuid_says():
    """With `trap`, which patches nothing; a Pentium III has no SSE2."""
    code = assemble(
        "org 0x100000\nbits 32\nmov eax, cr4\nor eax, 0x200\nmov cr4, eax\n"
        "paddq xmm0, xmm0\nmov eax, 5\ncli\nhlt"
    )
    machine = Machine(memory=4 << 20, cpu="pentium3", technique="trap")
    machine.load_flat(code, 0x100000)
    assert machine.run(timeout=120).reason == "halted"
    assert machine.registers["eax"] == 5
