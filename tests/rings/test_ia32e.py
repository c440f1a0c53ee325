"""IA-32e mode on a CPU that nothing runs: gates, stacks, IRET, far transfers."""

import pytest

from emu86.cpu import offsets
from emu86.cpu.state import ATTRIBUTES, BASE, HFLAGS, RIP, SELECTOR
from emu86.rings.cpu import Mode
from emu86.rings.descriptor import Descriptor
from emu86.rings.events.inject import deliver, inject
from emu86.rings.fault import GuestFault, TripleFault
from emu86.rings.insn.tasks import load_tr
from emu86.rings.insn.transfer import far_call, far_jump, far_return, iret
from emu86.spec import x86
from support.plain_cpu import plain_cpu

GDT, LDT, IDT, TSS = 0x10000, 0x11000, 0x12000, 0x13000
CODE0, DATA0, CODE3, DATA3, COMPAT0, COMPAT3 = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x33
BOTH, CONFORM, TSS0, GATE0, LDT0, GATE32 = 0x38, 0x40, 0x50, 0x60, 0x70, 0x80
STACK0, STACK3, IST2, HANDLER = 0x20000, 0x30000, 0x28008, 0x41000
NOT_CANONICAL = 1 << 47


def word(base, limit, access, flags):
    """A descriptor of 8 bytes."""
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40
    return low | (limit >> 16) << 48 | flags << 52 | (base >> 24 & 0xFF) << 56


def gate(kind, offset, selector, dpl=0, ist=0):
    """A gate of 16 bytes, present."""
    high = offset & 0xFFFF0000 | 0x8000 | dpl << 13 | kind << 8 | ist
    low = (selector << 16 | offset & 0xFFFF) | high << 32
    return low, offset >> 32


def put(cpu, at, *words):
    """Write quadwords."""
    for i, value in enumerate(words):
        cpu.memory.write(at + 8 * i, value, 8)


def load(cpu, selector):
    """Load CS and SS as code at the selector's ring has them."""
    ring = selector & 3
    cpu.load_code(selector, cpu.descriptor(selector), ring)
    stack = DATA3 if ring else DATA0
    cpu.load_stack(stack, cpu.descriptor(stack))
    cpu.enter_ring()


@pytest.fixture
def cpu():
    """A CPU in 64-bit code at ring 0."""
    made = plain_cpu(esp=0x2FFF8)
    vcpu = made.vcpu
    vcpu.efer = x86.EFER_LME | x86.EFER_LMA
    made.state.ia32e = True
    vcpu.gdt_base, vcpu.gdt_limit = GDT, 0xFF
    vcpu.idt_base, vcpu.idt_limit = IDT, 0xFFF
    segments = {
        CODE0: (0x9B, 0xA), DATA0: (0x93, 0xC), CODE3: (0xFB, 0xA), DATA3: (0xF3, 0xC),
        COMPAT0: (0x9B, 0xC), COMPAT3: (0xFB, 0xC), BOTH: (0x9B, 0xE),
        CONFORM: (0x9F, 0xA),
    }  # fmt: skip
    for selector, (access, flags) in segments.items():
        put(made, GDT + (selector & ~7), word(0, 0xFFFFF, access, flags))
    put(made, GDT + TSS0, word(TSS, 0x67, 0x89, 0), 0)
    put(made, GDT + GATE0, *gate(x86.SYS_CALL64, HANDLER, CODE0, dpl=3))
    put(made, GDT + LDT0, word(LDT, 0x1F, 0x82, 0), 0xFFFF9000)
    put(made, TSS + 4, STACK0)
    put(made, TSS + 0x2C, IST2)
    load_tr(made, TSS0)
    load(made, CODE0)
    made.state.set_flags(0)
    made.q[RIP] = 0x40000
    return made


def frame(cpu, count):
    """The quadwords at the top of the stack."""
    return tuple(cpu.memory.read(cpu.q[x86.ESP] + 8 * i, 8) for i in range(count))


def test_the_mode_follows_cs(cpu):
    assert (cpu.mode, cpu.code_bits, cpu.stack_bits) == (Mode.LONG, 64, 64)
    assert cpu.d[HFLAGS] & offsets.HF_CS64
    load(cpu, COMPAT3)
    assert (cpu.mode, cpu.code_bits, cpu.cpl) == (Mode.COMPATIBILITY, 32, 3)
    assert not cpu.d[HFLAGS] & offsets.HF_CS64


def test_system_segments_have_16_bytes(cpu):
    cpu.load_ldt(LDT0)
    assert cpu.vcpu.ldtr.base == 0xFFFF9000 << 32 | LDT
    assert cpu.vcpu.tr.base == TSS
    assert cpu.descriptor(TSS0).system == x86.SYS_TSS64_BUSY


@pytest.mark.parametrize(
    ("upper", "selector"),
    [(0x8000, LDT0), (0x100 << 32, LDT0)],
    ids=["base not canonical", "a type in the upper half"],
)
def test_a_wrong_upper_half(cpu, upper, selector):
    put(cpu, GDT + selector + 8, upper)
    with pytest.raises(GuestFault) as raised:
        cpu.load_ldt(selector)
    assert (raised.value.vector, raised.value.error) == (x86.VEC_GP, selector)


def test_the_upper_half_lies_beyond_the_table(cpu):
    cpu.vcpu.gdt_limit = LDT0 + 7
    with pytest.raises(GuestFault):
        cpu.load_ldt(LDT0)


def test_tables_that_are_not_canonical(cpu):
    """They begin right below the hole, and go on in it."""
    cpu.vcpu.gdt_base = cpu.vcpu.idt_base = NOT_CANONICAL - 8
    cpu.vcpu.gdt_limit = 0xFF
    for act in (lambda: cpu.descriptor(DATA0), lambda: deliver(cpu, 13, 0)):
        with pytest.raises(GuestFault) as raised:
            act()
        assert (raised.value.vector, raised.value.error) == (x86.VEC_GP, 0)


def test_an_interrupt_in_ring_0_aligns_its_stack(cpu):
    put(cpu, IDT + 0x400, *gate(x86.SYS_INT64, HANDLER, CODE0))
    cpu.state.set_flags(x86.IF)
    deliver(cpu, 0x40, None)
    assert cpu.q[RIP] == HANDLER
    assert cpu.q[x86.ESP] == 0x2FFF0 - 40
    assert frame(cpu, 5) == (0x40000, CODE0, 0x202, 0x2FFF8, DATA0)
    assert cpu.d[SELECTOR[x86.SS]] == DATA0
    assert not cpu.state.flags() & x86.IF


def test_an_exception_of_a_user_gets_a_null_ss(cpu):
    put(cpu, IDT + 16 * 13, *gate(x86.SYS_TRAP64, HANDLER, CODE0))
    load(cpu, CODE3)
    cpu.q[x86.ESP] = STACK3
    inject(cpu, 13, 0x1234)
    assert cpu.q[x86.ESP] == STACK0 - 48
    assert frame(cpu, 6) == (0x1234, 0x40000, CODE3, 0x10002, STACK3, DATA3)
    assert (cpu.d[SELECTOR[x86.SS]], cpu.cpl) == (0, 0)
    assert cpu.d[ATTRIBUTES[x86.SS]] & x86.DESC_P


def test_a_user_of_compatibility_mode_is_interrupted(cpu):
    put(cpu, IDT + 0x400, *gate(x86.SYS_INT64, HANDLER, CODE0, dpl=3))
    load(cpu, COMPAT3)
    cpu.q[x86.ESP] = STACK3
    deliver(cpu, 0x40, None, software=True)
    assert frame(cpu, 5) == (0x40000, COMPAT3, 2, STACK3, DATA3)
    assert cpu.mode is Mode.LONG


def test_ist_gives_a_stack_of_its_own(cpu):
    put(cpu, IDT + 0x400, *gate(x86.SYS_INT64, HANDLER, CODE0, ist=2))
    deliver(cpu, 0x40, None)
    assert cpu.q[x86.ESP] == (IST2 & ~15) - 40


REFUSED = {
    "a gate of 32 bits in size": (gate(x86.SYS_INT16, HANDLER, CODE0), 13, 0x203),
    "not present": ((HANDLER | CODE0 << 16 | 0x0E00 << 32, 0), 11, 0x203),
    "a handler in compatibility mode": (
        gate(x86.SYS_INT64, HANDLER, COMPAT0), 13, COMPAT0 | 1
    ),
    "both L and D": (gate(x86.SYS_INT64, HANDLER, BOTH), 13, BOTH | 1),
    "a null CS": (gate(x86.SYS_INT64, HANDLER, 0), 13, 1),
    "an offset that is not canonical": (
        gate(x86.SYS_INT64, NOT_CANONICAL, CODE0), 13, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_gate_that_is_refused(cpu, name):
    words, vector, error = REFUSED[name]
    put(cpu, IDT + 0x400, *words)
    with pytest.raises(GuestFault) as raised:
        deliver(cpu, 0x40, None)
    assert (raised.value.vector, raised.value.error) == (vector, error)
    assert cpu.q[RIP] == 0x40000


def test_a_gate_beyond_the_idt(cpu):
    cpu.vcpu.idt_limit = 0x40E
    with pytest.raises(GuestFault) as raised:
        deliver(cpu, 0x40, None)
    assert raised.value.error == 0x203


def test_a_stack_that_is_not_canonical_is_a_double_fault(cpu):
    put(cpu, IDT + 16 * 13, *gate(x86.SYS_INT64, HANDLER, CODE0))
    put(cpu, IDT + 16 * 12, *gate(x86.SYS_INT64, HANDLER, CODE0))
    put(cpu, IDT + 16 * 8, *gate(x86.SYS_INT64, HANDLER + 1, CODE0, ist=2))
    cpu.q[x86.ESP] = NOT_CANONICAL + 0x100
    inject(cpu, 13, 0)
    assert cpu.q[RIP] == HANDLER + 1
    assert frame(cpu, 5)[:3] == (0, 0x40000, CODE0)


def test_no_idt_is_a_triple_fault(cpu):
    cpu.vcpu.idt_limit = 0
    with pytest.raises(TripleFault):
        inject(cpu, 13, 0)


def returns(cpu, *words):
    """IRETQ from a frame of these."""
    put(cpu, 0x2F000, *words)
    cpu.q[x86.ESP] = 0x2F000
    iret(cpu, 8, 0)


def test_iretq_to_itself_takes_a_null_ss(cpu):
    returns(cpu, 0x41000, CODE0, x86.IF, 0x2E000, 0)
    assert (cpu.q[RIP], cpu.q[x86.ESP], cpu.cpl) == (0x41000, 0x2E000, 0)
    assert (cpu.d[SELECTOR[x86.SS]], cpu.d[HFLAGS] & 3) == (0, 0)
    assert cpu.state.flags() & x86.IF


@pytest.mark.parametrize(("code", "bits"), [(CODE3, 64), (COMPAT3, 32)])
def test_iretq_to_a_user(cpu, code, bits):
    cpu.load_segment(x86.DS, DATA0)
    cpu.load_segment(x86.FS, 0)
    cpu.q[BASE[x86.FS]] = 0x7000_0000_0000
    returns(cpu, 0x41000, code, x86.IF, STACK3, DATA3)
    assert (cpu.code_bits, cpu.cpl, cpu.q[x86.ESP]) == (bits, 3, STACK3)
    assert cpu.d[SELECTOR[x86.DS]] == 0
    assert cpu.q[BASE[x86.FS]] == 0x7000_0000_0000


IRETQ_REFUSED = {
    "RIP not canonical": ((NOT_CANONICAL, CODE0, 2, 0, 0), 0),
    "EIP beyond the limit": ((1 << 32, COMPAT3, 2, 0, DATA3), 0),
    "a null SS for a user": ((0, CODE3, 2, 0, 0), 0),
    "a null SS for compatibility mode": ((0, COMPAT0, 2, 0, 0), 0),
    "a null SS with another RPL": ((0, CODE0, 2, 0, 1), 0),
    "a null CS": ((0, 0, 2, 0, DATA0), 0),
    "both L and D": ((0, BOTH, 2, 0, DATA0), BOTH),
    "SS of another ring": ((0, CODE0, 2, 0, DATA3), DATA3 & ~3),
}


@pytest.mark.parametrize("name", IRETQ_REFUSED)
def test_iretq_that_is_refused(cpu, name):
    words, error = IRETQ_REFUSED[name]
    with pytest.raises(GuestFault) as raised:
        returns(cpu, *words)
    assert (raised.value.vector, raised.value.error) == (x86.VEC_GP, error)
    assert cpu.q[x86.ESP] == 0x2F000


def test_iretq_with_nt(cpu):
    cpu.state.set_flags(x86.NT)
    with pytest.raises(GuestFault):
        returns(cpu, 0, CODE0, 2, 0, 0)


def test_a_frame_that_is_not_canonical_is_a_stack_fault(cpu):
    cpu.q[x86.ESP] = NOT_CANONICAL - 16
    with pytest.raises(GuestFault) as raised:
        iret(cpu, 8, 0)
    assert (raised.value.vector, raised.value.error) == (x86.VEC_SS, 0)


def test_iretd_in_compatibility_mode_stays_on_its_stack(cpu):
    load(cpu, COMPAT0)
    for i, value in enumerate((0x41000, CODE0, 2)):
        cpu.memory.write(0x2F000 + 4 * i, value, 4)
    cpu.q[x86.ESP] = 0x2F000
    iret(cpu, 4, 0)
    assert (cpu.code_bits, cpu.q[RIP], cpu.q[x86.ESP]) == (64, 0x41000, 0x2F00C)


def test_far_jumps_between_the_modes(cpu):
    far_jump(cpu, COMPAT0, 0x41000, 0)
    assert (cpu.mode, cpu.q[RIP]) == (Mode.COMPATIBILITY, 0x41000)
    far_jump(cpu, CODE0, 0x42000, 0)
    assert (cpu.mode, cpu.q[RIP]) == (Mode.LONG, 0x42000)


def test_far_call_and_return_of_64_bits(cpu):
    far_call(cpu, CODE0, 0x41000, 0x40002, 8)
    assert frame(cpu, 2) == (0x40002, CODE0)
    far_return(cpu, 8, 16)
    assert (cpu.q[RIP], cpu.q[x86.ESP]) == (0x40002, 0x2FFF8 + 16)


def test_a_call_gate_from_a_user(cpu):
    load(cpu, CODE3)
    cpu.q[x86.ESP] = STACK3
    far_call(cpu, GATE0, 0, 0x40002, 8)
    assert (cpu.q[RIP], cpu.cpl, cpu.q[x86.ESP]) == (HANDLER, 0, STACK0 - 32)
    assert frame(cpu, 4) == (0x40002, CODE3, STACK3, DATA3)
    assert cpu.d[SELECTOR[x86.SS]] == 0
    far_return(cpu, 8, 0)
    assert (cpu.q[RIP], cpu.cpl, cpu.q[x86.ESP]) == (0x40002, 3, STACK3)


@pytest.mark.parametrize(
    ("selector", "offset", "error"),
    [(CODE0, NOT_CANONICAL, 0), (BOTH, 0, BOTH), (TSS0, 0, TSS0), (LDT0, 0, LDT0)],
)
def test_a_far_jump_that_is_refused(cpu, selector, offset, error):
    with pytest.raises(GuestFault) as raised:
        far_jump(cpu, selector, offset, 0)
    assert (raised.value.vector, raised.value.error) == (x86.VEC_GP, error)


def test_ss_may_be_null_in_64_bit_code(cpu):
    cpu.load_segment(x86.SS, 0)
    assert cpu.d[SELECTOR[x86.SS]] == 0
    with pytest.raises(GuestFault):
        cpu.load_segment(x86.SS, 3)
    load(cpu, COMPAT0)
    with pytest.raises(GuestFault):
        cpu.load_segment(x86.SS, 0)


def test_a_base_of_64_bit_code_means_nothing(cpu):
    put(cpu, GDT + CODE0, word(0x1000, 0xFFFFF, 0x9B, 0xA))
    far_jump(cpu, CODE0, 0x41000, 0)
    assert cpu.linear_eip == 0x41000


def test_a_descriptor_keeps_l():
    assert Descriptor(0xFFFF, 0x00AF9B00).attributes & x86.DESC_L
