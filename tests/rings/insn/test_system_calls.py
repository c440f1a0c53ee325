"""SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and CR8: SDM Vol. 2B, operation sections.

Most on a CPU that nothing runs; then on the engine, whose hooks they come by.
"""

import pytest

from emu86.cpu.models import MODELS
from emu86.cpu.state import ATTRIBUTES, BASE, LIMIT, RIP, SELECTOR
from emu86.rings.cpu import Mode
from emu86.rings.fault import GuestFault
from emu86.spec import x86
from support.flat import guest64
from support.plain_cpu import emulate, plain_cpu

AT = 0x1000
LSTAR, ESP0, EIP0 = 0xFFFFFFFF81000000, 0xFFFFC90000004000, 0xFFFFFFFF81000040
NOT_CANONICAL = (0x0000800000000000, 0xFFFF7FFFFFFFFFFF)
SYSCALL, SYSENTER, SWAPGS = "0f05", "0f34", "0f01f8"
SYSRETL, SYSRETQ, SYSEXITL, SYSEXITQ = "0f07", "480f07", "0f35", "480f35"
READ_CR8, WRITE_CR8 = "440f20c3", "440f22c3"  # EBX
# Hidden parts of CS and SS, by ring: accessed, flat; CS of 64 bits or of 32.
HIGH = x86.DESC_G | x86.DESC_P | x86.DESC_S | 0xF0000
CODE64, CODE32 = HIGH | x86.DESC_L | 0xB00, HIGH | x86.DESC_B | 0xB00
DATA = HIGH | x86.DESC_B | 0x300


def segments(cpu):
    """Selectors, bases, limits and attributes of CS and SS."""
    return [
        (
            cpu.d[SELECTOR[i]],
            cpu.q[BASE[i]],
            cpu.d[LIMIT[i]],
            cpu.d[ATTRIBUTES[i]] & x86.DESC_ATTRIBUTES,
        )
        for i in (x86.CS, x86.SS)
    ]


def loaded(cs, ss, code, ring):
    dpl = ring << 13
    attributes = code | dpl, DATA | dpl
    return [
        (selector, 0, x86.MASK32, value & x86.DESC_ATTRIBUTES)
        for selector, value in zip((cs, ss), attributes, strict=True)
    ]


def a_cpu(mode, ring=0, model="atom", **registers):
    """A CPU of a 64-bit model, in 64-bit, compatibility or protected mode."""
    cpu = plain_cpu(**registers)
    vcpu = cpu.vcpu
    vcpu.model = MODELS[model]
    vcpu.cr0 |= x86.CR0_PG
    vcpu.star, vcpu.lstar, vcpu.fmask = 0x0023001000000000, LSTAR, 0x257FD5
    vcpu.msr.update({0x174: 0x10, 0x175: ESP0, 0x176: EIP0})
    vcpu.efer = x86.EFER_SCE
    if mode is not Mode.PROTECTED:
        vcpu.efer |= x86.EFER_LME | x86.EFER_LMA
        cpu.state.ia32e = True
    code = CODE64 if mode is Mode.LONG else CODE32
    for index, high in ((x86.CS, code), (x86.SS, DATA)):
        attributes = high & x86.DESC_ATTRIBUTES | ring << 13
        cpu.state.set_segment(index, 8 | ring, 0, x86.MASK32, attributes)
    cpu.enter_ring()
    cpu.state.set_flags(x86.IF | x86.ZF | x86.DF)
    assert (cpu.mode, cpu.cpl) == (mode, ring)
    return cpu


def fault(cpu, code):
    """What an instruction raises; then nothing has changed."""
    before = cpu.state.registers(), cpu.vcpu.save()
    with pytest.raises(GuestFault) as raised:
        emulate(cpu, bytes.fromhex(code), AT)
    cpu.q[RIP] = 0
    assert (cpu.state.registers(), cpu.vcpu.save()) == before
    return raised.value.vector, raised.value.error


UD, GP = (x86.VEC_UD, None), (x86.VEC_GP, 0)


@pytest.mark.parametrize("ring", [0, 3])
def test_syscall(ring):
    cpu = a_cpu(Mode.LONG, ring)
    emulate(cpu, bytes.fromhex("48" + SYSCALL), AT)
    assert cpu.q[x86.ECX] == AT + 3  # a REX prefix does nothing
    assert cpu.q[x86.R11] == x86.IF | x86.ZF | x86.DF | x86.FLAGS_FIXED
    assert cpu.q[RIP] == LSTAR
    assert cpu.state.flags() == x86.FLAGS_FIXED
    assert segments(cpu) == loaded(0x10, 0x18, CODE64, 0)
    assert (cpu.mode, cpu.cpl) == (Mode.LONG, 0)


def test_syscall_clears_what_fmask_says_alone():
    cpu = a_cpu(Mode.LONG, 3)
    cpu.vcpu.fmask = x86.DF
    cpu.vcpu.star = 0x1300000000  # RPL 3 is not taken over to CS
    emulate(cpu, bytes.fromhex(SYSCALL), AT)
    assert cpu.state.flags() == x86.IF | x86.ZF | x86.FLAGS_FIXED
    assert [one[0] for one in segments(cpu)] == [0x10, 0x1B]


def test_where_there_is_no_syscall():
    """#UD in compatibility mode and without SCE; the privilege is looked at after."""
    for code in (SYSCALL, SYSRETL):
        for ring in (0, 3):
            assert fault(a_cpu(Mode.COMPATIBILITY, ring), code) == UD
            assert fault(a_cpu(Mode.PROTECTED, ring), code) == UD
    for code in (SYSCALL, SYSRETL, SYSRETQ):
        for ring in (0, 3):
            cpu = a_cpu(Mode.LONG, ring)
            cpu.vcpu.efer &= ~x86.EFER_SCE
            assert fault(cpu, code) == UD
    for code in (SYSRETL, SYSRETQ):
        assert fault(a_cpu(Mode.LONG, 3), code) == GP


@pytest.mark.parametrize("rip", [0, 0x7FFFFFFFFFFF, 0xFFFF800000000000])
def test_sysret(rip):
    """RF, VM and what is reserved stay clear: R11 AND 3C7FD7h, OR 2."""
    cpu = a_cpu(Mode.LONG, ecx=rip)
    cpu.q[x86.R11] = 0xFFFFFFFFFFFFFFFF & ~x86.IOPL
    emulate(cpu, bytes.fromhex(SYSRETQ), AT)
    assert cpu.q[RIP] == rip
    assert cpu.state.flags() == 0x3C7FD7 & ~x86.IOPL
    assert segments(cpu) == loaded(0x33, 0x2B, CODE64, 3)
    assert (cpu.mode, cpu.cpl) == (Mode.LONG, 3)


def test_sysret_to_compatibility_mode():
    cpu = a_cpu(Mode.LONG, ecx=0xFFFF7FFF80001234)
    cpu.q[x86.R11] = x86.IOPL
    emulate(cpu, bytes.fromhex(SYSRETL), AT)
    assert cpu.q[RIP] == 0x80001234
    assert cpu.iopl == 3
    assert segments(cpu) == loaded(0x23, 0x2B, CODE32, 3)
    assert (cpu.mode, cpu.cpl) == (Mode.COMPATIBILITY, 3)


def test_returns_to_what_is_not_canonical():
    """#GP(0) in ring 0, before anything is loaded."""
    for bad in NOT_CANONICAL:
        assert fault(a_cpu(Mode.LONG, ecx=bad), SYSRETQ) == GP
        assert fault(a_cpu(Mode.LONG, ecx=bad), SYSEXITQ) == GP
        assert fault(a_cpu(Mode.LONG, edx=bad), SYSEXITQ) == GP


@pytest.mark.parametrize("mode", [Mode.PROTECTED, Mode.COMPATIBILITY, Mode.LONG])
@pytest.mark.parametrize("ring", [0, 3])
def test_sysenter(mode, ring):
    cpu = a_cpu(mode, ring)
    emulate(cpu, bytes.fromhex(SYSENTER), AT)
    wide = mode is not Mode.PROTECTED
    mask = x86.MASK64 if wide else x86.MASK32
    assert cpu.q[RIP] == EIP0 & mask
    assert cpu.q[x86.ESP] == ESP0 & mask
    assert cpu.state.flags() == x86.ZF | x86.DF | x86.FLAGS_FIXED
    assert segments(cpu) == loaded(0x10, 0x18, CODE64 if wide else CODE32, 0)
    assert (cpu.mode, cpu.cpl) == (Mode.LONG if wide else Mode.PROTECTED, 0)


def test_sysexit():
    cpu = a_cpu(Mode.LONG, ecx=0xFFFF800000000000, edx=0x7FFFFFFFFFFF)
    emulate(cpu, bytes.fromhex(SYSEXITQ), AT)
    assert (cpu.q[x86.ESP], cpu.q[RIP]) == (0xFFFF800000000000, 0x7FFFFFFFFFFF)
    assert segments(cpu) == loaded(0x33, 0x3B, CODE64, 3)
    for mode in (Mode.LONG, Mode.COMPATIBILITY, Mode.PROTECTED):
        cpu = a_cpu(mode, ecx=0xFFFF800080000000, edx=0x900001234)
        emulate(cpu, bytes.fromhex(SYSEXITL), AT)
        assert (cpu.q[x86.ESP], cpu.q[RIP]) == (0x80000000, 0x00001234)
        assert segments(cpu) == loaded(0x23, 0x2B, CODE32, 3)
        assert cpu.cpl == 3
        assert cpu.state.flags() & x86.IF  # flags stay


def test_where_there_is_no_sysenter():
    """#GP(0) without a selector, #UD on a model without SEP."""
    for mode in (Mode.PROTECTED, Mode.COMPATIBILITY, Mode.LONG):
        for code in (SYSENTER, SYSEXITL):
            for ring in (0, 3):
                cpu = a_cpu(mode, ring)
                cpu.vcpu.msr[0x174] = 3
                assert fault(cpu, code) == GP
        assert fault(a_cpu(mode, 3), SYSEXITL) == GP
    for code in (SYSENTER, SYSEXITL):
        assert fault(a_cpu(Mode.PROTECTED, model="pentium4"), code) == UD


def test_swapgs():
    cpu = a_cpu(Mode.LONG)
    cpu.q[BASE[x86.GS]], cpu.vcpu.kernel_gs_base = 0x1234, 0xFFFF888012345678
    emulate(cpu, bytes.fromhex(SWAPGS), AT)
    assert cpu.q[BASE[x86.GS]] == 0xFFFF888012345678
    assert cpu.vcpu.kernel_gs_base == 0x1234
    assert cpu.q[RIP] == AT + 3
    assert fault(a_cpu(Mode.LONG, 3), SWAPGS) == GP
    for mode in (Mode.PROTECTED, Mode.COMPATIBILITY):
        for ring in (0, 3):
            assert fault(a_cpu(mode, ring), SWAPGS) == UD


def test_cr8():
    """Four bits; another is #GP(0)."""
    cpu = a_cpu(Mode.LONG, ebx=0xF)
    emulate(cpu, bytes.fromhex(WRITE_CR8), AT)
    cpu.q[x86.EBX] = 0
    emulate(cpu, bytes.fromhex(READ_CR8), AT)
    assert cpu.q[x86.EBX] == 0xF
    assert fault(a_cpu(Mode.LONG, ebx=0x10), WRITE_CR8) == GP
    assert fault(a_cpu(Mode.LONG, ebx=1 << 32), WRITE_CR8) == GP


def test_cr8_is_saved():
    cpu = a_cpu(Mode.LONG, ebx=9)
    emulate(cpu, bytes.fromhex(WRITE_CR8), AT)
    other = a_cpu(Mode.LONG)
    other.vcpu.restore(cpu.vcpu.save())
    assert other.vcpu.cr8 == 9


# -- on the engine -------------------------------------------------------------------


START = """
%macro wrmsr64 2
    mov ecx, %1
    mov rax, %2
    mov rdx, rax
    shr rdx, 32
    wrmsr
%endmacro
    mov rax, cr3            ; users may use the first 2 MiB
    or qword [rax], 4
    or qword [rax + 0x1000], 4
    or qword [rax + 0x2000], 4
    mov cr3, rax
    wrmsr64 0xC0000080, 0x101
    wrmsr64 0xC0000081, 0x0023001000000000
    wrmsr64 0xC0000082, kernel
    wrmsr64 0xC0000084, 0x300
    wrmsr64 0x174, 0x10
    wrmsr64 0x175, 0x140000
    wrmsr64 0x176, kernel
    wrmsr64 0xC0000101, 0x1111
    wrmsr64 0xC0000102, 0x2222
    mov ecx, user
    mov r11d, 0x202
    mov rsp, 0x130000
"""


END = "ud2\nkernel: swapgs\nmov esi, user\nmov edi, after\ncli\nhlt\n"
TO_32 = "sysret\nbits 32\nuser: sysenter\nbits 64\nafter:"


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl", "bare"])
@pytest.mark.parametrize(
    ("code", "rcx", "r11", "rsp"),
    [
        ("o64 sysret\nuser: stc\nsyscall\nafter:", x86.EDI, 0x203, 0x130000),
        ("o64 sysret\nuser: o64 syscall\nafter:", x86.EDI, 0x202, 0x130000),
        ("o64 sysret\nuser: sysenter\nafter:", x86.ESI, 0x202, 0x140000),
        (TO_32, x86.ESI, 0x202, 0x140000),
    ],
)
def test_there_and_back(code, rcx, r11, rsp, technique):
    machine = guest64(f"{START}{code}\n{END}", technique=technique)
    assert machine.run(timeout=60).reason == "halted"
    q, d = machine.vmm.q, machine.vmm.d
    assert (q[x86.ECX], q[x86.R11], q[x86.ESP]) == (q[rcx], r11, rsp)
    assert (d[SELECTOR[x86.CS]], d[SELECTOR[x86.SS]]) == (0x10, 0x18)
    assert (q[BASE[x86.GS]], machine.vcpu.kernel_gs_base) == (0x2222, 0x1111)
    assert machine.vmm.cpu.mode is Mode.LONG


@pytest.mark.parametrize("native", [True, False])
def test_compiled_code_does_them(native):
    code = "o64 sysret\nuser: syscall\nafter:"
    machine = guest64(f"{START}{code}\n{END}", native=native)
    assert machine.run(timeout=60).reason == "halted"
    for reason in ("SYSCALL", "SYSRET", "SWAPGS", "CLI"):
        assert machine.stats.exits[reason].count == 1
        assert reason not in machine.vmm.exits
    changes = [(one.how, one.eip, one.to_eip) for one in machine.report().changes]
    q = machine.vmm.q
    assert [one[0] for one in changes[-2:]] == ["SYSRET", "SYSCALL"]
    assert changes[-2][2] == changes[-1][1] == q[x86.ESI]


TABLES = """
    lgdt [gdtr]
    mov eax, 0x20
    ltr ax
    lidt [idtr]
    jmp go
align 8
gdt: dq 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x0000891600000067, 0
gdtr: dw 47
    dq gdt
idtr: dw 0xFFF
    dq 0x170000
%macro gate 2
    mov rax, %2
    mov [0x170000 + 16 * %1], ax
    mov dword [0x170002 + 16 * %1], 0x8E000010
%endmacro
go: mov dword [0x160004], 0x150000
    gate 1, db
    mov word [0x170016], 0x10
    gate 13, gp
    mov word [0x1700D6], 0x10
"""
# Of what is trapped: RSI has where, RDI in which CS; RBP the vector.
TRAPS = """
ud2
db: mov ebp, 1
pop rsi
pop rdi
cli
hlt
gp: add rsp, 8
mov ebp, 13
pop rsi
pop rdi
cli
hlt
kernel: mov ebp, 99
cli
hlt
"""
STEP = "user: push 0x302\npopf\nhere: {}\nud2"
WITH_TF = "o64 sysret\nuser: nop\nhere: ud2"


@pytest.mark.parametrize("technique", ["patch", "iopl", "bare"])
@pytest.mark.parametrize(
    ("code", "found"),
    [
        # FMASK clears TF: no trap.
        ("o64 sysret\n" + STEP.format("syscall"), (99, "", 0)),
        # The TF behind SYSCALL and SYSRET counts.
        ("FMASK\no64 sysret\n" + STEP.format("syscall"), (1, "kernel", 0x10)),
        ("mov r11d, 0x302\n" + WITH_TF, (1, "user", 0x33)),
        # SYSENTER keeps TF.
        ("o64 sysret\n" + STEP.format("sysenter"), (1, "kernel", 0x10)),
        # With its fault there is no trap.
        ("NOCS\no64 sysret\n" + STEP.format("sysenter"), (13, "here", 0x33)),
    ],
)
def test_single_steps(code, found, technique):
    code = code.replace(
        "FMASK", "mov ecx, 0xC0000084\nxor eax, eax\nxor edx, edx\nwrmsr"
    )
    code = code.replace("NOCS", "mov ecx, 0x174\nxor eax, eax\nxor edx, edx\nwrmsr")
    code = code.replace("\nwrmsr\n", "\nwrmsr\nmov ecx, user\n")
    where = "mov r8d, kernel\nmov r9d, user\nmov r10d, here\n"
    machine = guest64(f"{TABLES}{START}{where}{code}\n{TRAPS}", technique=technique)
    assert machine.run(timeout=60).reason == "halted"
    q = machine.vmm.q
    vector, label, cs = found
    assert q[x86.EBP] == vector
    if label:
        places = {"kernel": q[x86.R8], "user": q[x86.R9], "here": q[x86.R10]}
        assert (q[x86.ESI], q[x86.EDI]) == (places[label], cs)
