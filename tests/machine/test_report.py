"""`Machine.report`: what a guest died of, to the letter; SDM Vol. 3A 6.13 and 6.15."""

import hashlib
import random

import pytest

from emu86.machine.report import Fault
from emu86.spec import x86
from support.flat import flat, guest
from support.recorder import Recorder

_NO_IDT = "mov esp, 0x90000\nlidt [0x180000]\n"  # where all is 0
_EXECUTE_ONLY = "mov byte [0x1015], 0x99\njmp 0x10:next\nnext: "
_FLOATS = "no RAM at EIP, which reads as FFh"
_LINES, _WIDTH = 24, 80

# -- whole reports ---------------------------------------------------------------------

_LIMIT = f"""
    {_NO_IDT}
    mov eax, 0x100
    mov ds, eax
    jmp $
"""
_LIMITS = """\
#GP(100h) at 0010:00100011 mov ds, ax: beyond the GDT's limit 1Fh → #DF: IDT
  limit 0 → shutdown
EAX 00000100  EBX 00000000  ECX 00000000  EDX 00000000
ESI 00000000  EDI 00000000  EBP 00000000  ESP 00090000
EIP 00100011  EFLAGS 00000002  ring 0  GDT 00001000 1Fh  IDT 00000000 0
ES 0018 CS 0010 SS 0018 DS 0018 FS 0018 GS 0018 LDTR 0000 TR 0000
CR0 00000011  CR2 00000000  CR3 00000000  CR4 00000000
  00100000  bc00000900            mov esp, 0x90000
  00100005  0f011d00001800        lidt [0x180000]
  0010000c  b800010000            mov eax, 0x100
> 00100011  8ed8                  mov ds, ax
  00100013  e9fbffffff            jmp 0x100013
  00100018  0000                  add byte [eax], al
  0010001a  0000                  add byte [eax], al
  0010001c  0000                  add byte [eax], al
  0010001e  0000                  add byte [eax], al
  00100020  0000                  add byte [eax], al
EIP 00100011: no paging"""

# It faults in ring 3, and its TSS has no stack for ring 0. The kernel is at 100000h.
_USER = """
    lgdt [gdtr]
    mov eax, tss
    mov [gdt + 0x2a], ax
    shr eax, 16
    mov [gdt + 0x2c], al
    mov eax, 0x28
    ltr ax
    push 0x23
    push 0x90000
    push 2
    push 0x1b
    push user
    iretd
user:
    push eax
    pop eax
    int 3
gdtr: dw 0x2f
    dd gdt
gdt: dq 0, 0, 0x00cf9b000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff
    dq 0x0000890000000067
tss: times 26 dd 0
"""
_USERS = """\
#GP(1Ah) at 001b:001000bf int 3: gate 3 has DPL 0, in ring 3 → #DF: the TSS's
  SS0 is null → shutdown
EAX 00000028  EBX 00000000  ECX 00000000  EDX 00000000
ESI 00202000  EDI 00204000  EBP 00000000  ESP 00090000
EIP 001000bf  EFLAGS 00000002  ring 3  GDT 001000c7 2Fh  IDT 00210000 7FFh
ES 0000 CS 001b SS 0023 DS 0000 FS 0000 GS 0000 LDTR 0000 TR 0028
CR0 80010011  CR2 00000000  CR3 00200000  CR4 00000090
ring 0 → 3: IRET at 0010:001000bc, to 001b:001000bd
  001000b7  68bd001000            push 0x1000bd
  001000bc  cf                    iretd
  001000bd  50                    push eax
  001000be  58                    pop eax
> 001000bf  cd03                  int 3
  001000c1  2f                    das
  001000c2  00c7                  add bh, al
  001000c4  0010                  add byte [eax], dl
  001000c6  0000                  add byte [eax], al
  001000c8  0000                  add byte [eax], al
EIP 001000bf is at 001000bf: PDE 00201027, PTE 00100067: user, writable
CR2 00000000 is at 00000000: PDE 00201027, PTE 00000067: user, writable"""

_NO_RAM = f"""
    {_NO_IDT}
    mov eax, 0xf0000000
    call eax
"""
_NO_RAMS = """\
#UD at 0010:f0000000: no instruction → #GP(33h): IDT limit 0 → #DF → shutdown
a jump into nothing: no RAM at EIP, which reads as FFh; called from 00100011
EAX f0000000  EBX 00000000  ECX 00000000  EDX 00000000
ESI 00000000  EDI 00000000  EBP 00000000  ESP 0008fffc
EIP f0000000  EFLAGS 00000002  ring 0  GDT 00001000 1Fh  IDT 00000000 0
ES 0018 CS 0010 SS 0018 DS 0018 FS 0018 GS 0018 LDTR 0000 TR 0000
CR0 00000011  CR2 00000000  CR3 00000000  CR4 00000000
  00100000  bc00000900            mov esp, 0x90000
  00100005  0f011d00001800        lidt [0x180000]
  0010000c  b8000000f0            mov eax, 0xf0000000
  00100011  ffd0                  call eax
  00100013  0000                  add byte [eax], al
  00100015  0000                  add byte [eax], al
  00100017  0000                  add byte [eax], al
  00100019  0000                  add byte [eax], al
  0010001b  0000                  add byte [eax], al
  0010001d  0000                  add byte [eax], al
EIP f0000000: no paging, no RAM"""


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl", "bare"])
@pytest.mark.parametrize(
    ("code", "paging", "told"),
    [(_LIMIT, None, _LIMITS), (_USER, "local", _USERS), (_NO_RAM, None, _NO_RAMS)],
)
def test_the_whole_of_it(code, paging, told, technique):
    make = guest if paging is None else lambda *a, **o: flat(*a, paging, **o)
    machine = make(code, technique=technique)
    assert machine.run(timeout=60).reason == "triple fault"
    report = machine.report()
    assert str(report) == told
    assert report.stop == "triple fault"
    lines = told.splitlines()
    assert len(lines) < _LINES
    assert max(map(len, lines)) <= _WIDTH


def test_its_parts():
    machine = guest(_LIMIT)
    machine.run(timeout=60)
    report = machine.report()
    why = "beyond the GDT's limit 1Fh"
    assert report.chain == (
        Fault("#GP", 0x100, "0010:00100011", "mov ds, ax", why),
        Fault("#DF", 0, reason="IDT limit 0"),
        Fault("shutdown"),
    )
    assert report.registers == machine.registers
    assert report.code[3].eip == report.registers["eip"]


def test_the_longest_is_less_than_a_screen():
    """No stack, no IDT, a ring change twice, and all instructions long."""
    machine = flat(
        _USER.replace("int 3", "mov dword [fs:eax + 0x12345678], 0x12345678\n" * 12),
        "local",
    )
    machine.run(timeout=60)
    lines = str(machine.report()).splitlines()
    assert len(lines) < _LINES
    assert max(map(len, lines)) <= _WIDTH


def test_looking_changes_nothing():
    machine = guest("l: inc eax\njmp l")
    machine.run(timeout=0.01)

    def whole():
        ram = hashlib.sha256(machine.read_physical(0, 16 << 20)).digest()
        return ram, machine.now, machine.registers, machine.stats.exits

    before = whole()
    report = machine.report()
    assert whole() == before
    assert (report.stop, report.chain, report.exceptions) == ("", (), ())


def test_code_of_16_bits():
    machine = guest(
        _NO_IDT
        + """
        lgdt [gdtr]
        jmp 0x20:small - 0x100000
    bits 16
    small:
        mov ax, 0x1234
        ud2
    gdtr: dw 0x27
        dd gdt
    gdt: dq 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x000f9b100000ffff
        """
    )
    assert machine.run(timeout=60).reason == "triple fault"
    report = machine.report()
    eip = machine.registers["eip"]
    assert eip < 0x100
    assert str(report.chain[0]) == f"#UD at 0020:{eip:08x} ud2: made to fault"
    assert [str(one) for one in report.code if one.eip == eip - 3] == ["mov ax, 0x1234"]


@pytest.mark.parametrize("paging", [None, "local"])
def test_whatever_the_guest_is_in_there_is_a_report(paging):
    """Any code, registers and fault; nothing is raised, and it fits on a screen."""
    rng = random.Random(13)
    machine = flat("lidt [0x180000]\nhlt", paging)
    machine.run(timeout=60)
    vmm = machine.vmm
    for _ in range(150):
        machine.write_physical(0x100000, rng.randbytes(64))
        for name in x86.GPR_NAMES:
            machine.set_register(name, rng.choice((0, 0x90000, rng.getrandbits(32))))
        eip = rng.choice((0x100000, 0x100020, 0, 0xFFFFFFFE, rng.getrandbits(32)))
        machine.set_register("eip", eip)
        vmm.vcpu.cr2 = rng.choice((eip, rng.getrandbits(32)))
        error = rng.choice((0, 1, 7, 0xB, 0x10, 0x6A, 0x1FF, rng.getrandbits(16)))
        vector = rng.choice((*x86.FAULTS, 1, 3, 4))
        vmm.end = None
        vmm._inject(vector, error if vector in x86.PUSHES_ERROR else None)
        report = machine.report()
        lines = str(report).splitlines()
        assert len(lines) < _LINES
        assert max(map(len, lines)) <= _WIDTH
        assert report.chain[0].name == x86.VECTOR_NAMES[vector]
        assert report.chain[-1].name == "shutdown"


# -- why -------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", ["patch", "bare"])
@pytest.mark.parametrize(
    ("code", "fault", "why"),
    [
        ("mov eax, 0x100\nmov ds, eax", "#GP(100h)", "beyond the GDT's limit 1Fh"),
        ("jmp 0x20:0", "#GP(20h)", "beyond the GDT's limit 1Fh"),
        ("mov eax, 4\nmov ds, eax", "#GP(4)", "there is no LDT"),
        ("mov eax, 8\nmov ds, eax", "#GP(8)", "the GDT's descriptor 8 is empty"),
        ("mov eax, 0x10\nmov ss, eax", "#GP(10h)", "code of DPL 0, in ring 0"),
        ("xor eax, eax\nmov ss, eax", "#GP(0)", "a null selector"),
        (
            "mov byte [0x101d], 0x12\nmov eax, 0x18\nmov es, eax",
            "#NP(18h)",
            "data that is not present",
        ),
        ("int 0x80", "#GP(402h)", "IDT limit 0"),
        (_EXECUTE_ONLY + "mov eax, [cs:next]", "#GP(0)", "CS is execute-only code"),
        (_EXECUTE_ONLY + "mov [cs:next], eax", "#GP(0)", "CS is execute-only code"),
        ("ud2", "#UD", "made to fault"),
        ("db 0xff, 0xff", "#UD", "no instruction"),
        ("addps xmm0, xmm1", "#UD", "CR4.OSFXSR is 0"),
        ("xor ecx, ecx\ndiv ecx", "#DE", "by 0"),
        ("xor cl, cl\ndiv cl", "#DE", "by 0"),
        ("push 0\nmov eax, esp\ndiv dword [eax]", "#DE", "by 0"),
        ("mov edx, 5\nmov cx, 2\ndiv cx", "#DE", "the quotient does not fit"),
        ("mov ecx, 0x12345\nrdmsr", "#GP(0)", "MSR 12345h is not there, or not so"),
        ("mov eax, 1 << 31\nmov cr0, eax", "#GP(0)", "CR0 cannot be 80000000h"),
        ("mov eax, 1 << 31\nmov cr4, eax", "#GP(0)", "CR4 cannot be 80000000h"),
        ("mov eax, cr0\nor al, 8\nmov cr0, eax\nfninit", "#NM", "CR0.TS is 1"),
        ("mov eax, cr0\nor al, 4\nmov cr0, eax\nfninit", "#NM", "CR0.EM is 1"),
    ],
)
def test_reasons(code, fault, why, technique):
    """Without an IDT: the fault, why, and what comes of it."""
    machine = guest(_NO_IDT + code, technique=technique)
    assert machine.run(timeout=60).reason == "triple fault"
    first, *_, last = machine.report().chain
    code, _, rest = str(first).partition(" at 0010:")
    assert code == fault
    assert first.reason == why
    assert rest.endswith(f": {why}")
    assert last == Fault("shutdown")


@pytest.mark.parametrize(
    ("code", "fault", "why"),
    [
        ("mov eax, [0x90001]", x86.VEC_AC, "00090001 is not a multiple of its 4 bytes"),
        ("mov [cs:0x90000], eax", x86.VEC_GP, "CS is code, which is not written"),
        ("movaps xmm0, [cs:0x90004]", x86.VEC_GP, "00090004 is not a multiple of 16"),
        ("ldmxcsr [cs:0x90000]", x86.VEC_GP, "MXCSR cannot be FFFF0000h"),
        ("mov [gs:0x90000], eax", x86.VEC_GP, "GS is null"),
        ("mov [fs:0x90000], eax", x86.VEC_GP, "90000h is beyond FS's limit FFFh"),
        ("mov [es:0x900], eax", x86.VEC_GP, "ES is read-only"),
        ("mov [ds:0x1000], eax", x86.VEC_GP, ""),
        ("mov eax, [ds:0xfff]", x86.VEC_GP, "FFFh is not beyond DS's limit FFFh"),
        ("mov [esp + ecx], eax", x86.VEC_SS, ""),
    ],
)
def test_reasons_of_memory_operands(code, fault, why):
    """As if the fault were raised there, whatever the engine checks of these."""
    machine = guest(
        f"""
        {_NO_IDT}
        lgdt [gdtr]
        mov eax, 8
        mov fs, eax
        mov eax, 0x20
        mov es, eax
        xor eax, eax
        mov gs, eax
        mov dword [0x90000], 0xffff0000
        mov eax, 0x28
        mov ds, eax
        mov al, 1
        out 0xf4, al
        jmp $
        times 0x100 - ($ - $$) nop
        {code}
    gdtr: dw 0x2f
        dd gdt
    gdt: dq 0, 0x00c0930000000000, 0x00cf9b000000ffff, 0x00cf93000000ffff
        dq 0x00cf91000000ffff, 0x0040970000000fff
        """,
        debug_exit=True,
    )
    assert machine.run(timeout=60).reason == "debug exit"
    vmm = machine.vmm
    vmm.end = None
    machine.set_register("eip", 0x100100)
    vmm._inject(fault, 0)
    assert machine.report().chain[0].reason == why


@pytest.mark.parametrize("technique", ["patch", "bare"])
@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (
            "mov eax, [0x800000]",
            "#PF(0) at {} mov eax, dword [0x800000]: 00800000 is not mapped",
        ),
        (
            "mov esp, 0x700000\npush eax",
            "#PF(2) at {} push eax: 006ffffc is not mapped",
        ),
    ],
)
def test_an_idt_that_is_not_mapped(code, fault, technique):
    away = "mov dword [PT + 4 * 0x210], 0\nmov eax, cr3\nmov cr3, eax\n"
    machine = flat(away + code, "local", technique=technique)
    assert machine.run(timeout=60).reason == "triple fault"
    at = f"0010:{machine.registers['eip']:08x}"
    assert list(map(str, machine.report().chain)) == [
        fault.format(at),
        "#DF: gate 14 at 00210070 is not mapped",
        "shutdown: gate 8 at 00210040 is not mapped",
    ]


@pytest.mark.parametrize("technique", ["patch", "bare"])
@pytest.mark.parametrize(
    ("gate", "why"),
    [
        (
            "dword [IDT + 8 * 14], 0\nmov dword [IDT + 8 * 14 + 4], 0",
            "IDT entry 14 is empty",
        ),
        ("byte [IDT + 8 * 14 + 5], 0x0e", "gate 14 is not present"),
        ("byte [IDT + 8 * 14 + 5], 0x8c", "IDT entry 14 is no gate"),
        ("word [IDT + 8 * 14 + 2], 0", "gate 14 has a null selector"),
        (
            "word [IDT + 8 * 14 + 2], 0x18",
            "gate 14 has selector 18h, data of DPL 0, in ring 0",
        ),
        (
            "word [IDT + 8 * 14 + 2], 0x80",
            "gate 14 has selector 80h, beyond the GDT's limit 1Fh",
        ),
    ],
)
def test_a_double_fault_that_is_delivered(gate, why, technique):
    code = f"gate 8, fin\nmov {gate}\nmov eax, [0x800000]"
    machine = flat(code, "local", technique=technique)
    assert machine.run(timeout=60).reason == "debug exit"
    first, *others = machine.report().chain
    assert (first.name, first.reason) == ("#PF", "00800000 is not mapped")
    assert first.instruction == "", "the guest is at another one now"
    assert others == [Fault("#DF", 0, reason=why)]


@pytest.mark.parametrize("technique", ["patch", "bare"])
@pytest.mark.parametrize(
    ("code", "told"),
    [
        # The timer, at the vector where a BIOS leaves it, and no IDT.
        (
            f"{_NO_IDT}sti\njmp $",
            ["interrupt 8", "#GP(43h): IDT limit 0", "#DF", "shutdown"],
        ),
        # What is benign makes no #DF.
        (
            "gate 13, fin\nmov byte [IDT + 8 * 6 + 5], 0x0e\nud2",
            ["#UD", "#NP(33h): gate 6 is not present"],
        ),
    ],
)
def test_events_that_make_no_double_fault(code, told, technique):
    machine = flat("gate 11, fin\n" + code, technique=technique)
    machine.run(timeout=60)
    first, *others = map(str, machine.report().chain)
    assert [first.partition(" at ")[0], *others] == told


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_a_stack_that_is_not_mapped(technique):
    machine = flat("mov esp, 0x700000\npush eax", "local", technique=technique)
    assert machine.run(timeout=60).reason == "triple fault"
    _, *others = map(str, machine.report().chain)
    assert others == ["#DF: the stack at 006ffffc is not mapped", "shutdown"]


@pytest.mark.parametrize(
    ("error", "entry", "code", "why"),
    [
        (3, "0x300065", "mov [0x300000], eax", "is read-only"),
        (0, "0", "mov eax, [0x300000]", "is not mapped"),
        (0, "0", "jmp 0x300000", "is not mapped, a jump into nothing"),
    ],
)
def test_exceptions_that_were_delivered(error, entry, code, why):
    machine = flat(
        f"mov dword [PT + 4 * 0x300], {entry}\nmov eax, cr3\nmov cr3, eax\n{code}",
        "local",
    )
    machine.run(timeout=60)
    report = machine.report()
    assert report.chain == ()
    (fault,) = report.exceptions
    assert (fault.name, fault.error) == ("#PF", error)
    assert fault.reason == f"00300000 {why}"
    assert str(report).startswith(f"the last exceptions: #PF({error}) at 0010:")


# -- a jump into nothing ---------------------------------------------------------------


@pytest.mark.parametrize("technique", ["patch", "bare"])
@pytest.mark.parametrize(
    ("code", "nothing"),
    [
        ("mov eax, 0xf0000000\ncall eax", f"{_FLOATS}; called from 00100011"),
        ("jmp 0xd0000", _FLOATS),
        (
            "mov edi, 0x300000\nmov ecx, 64\nmov al, 0xff\nrep stosb\njmp 0x300000",
            "bytes of FFh at EIP, behind zeros",
        ),
    ],
)
def test_a_jump_into_nothing(code, nothing, technique):
    machine = guest(_NO_IDT + code, technique=technique)
    assert machine.run(timeout=60).reason == "triple fault"
    assert machine.report().nothing == f"a jump into nothing: {nothing}"


def test_a_way_through_zeros_to_the_end_of_ram():
    machine = guest(_NO_IDT + "jmp 0xfffff0")
    assert machine.run(timeout=60).reason == "triple fault"
    found = machine.report().nothing
    assert found == f"a jump into nothing: {_FLOATS}, behind zeros"


def test_zeros():
    machine = guest("mov esp, 0x90000\nout 0x80, al\ncall 0x300000")

    class Stopper:
        def pio(self, *_):
            machine.stop()

    machine.subscribe(Stopper())
    assert machine.run(timeout=60).reason == "interrupted"
    assert machine.registers["eip"] >= 0x300000
    found = machine.report().nothing
    assert found == (
        "a jump into nothing: zeros at EIP, which run as add [eax], al; "
        "called from 00100007"
    )


def test_code_is_not_nothing():
    machine = guest("jmp $")
    machine.run(timeout=0.01)
    assert machine.report().nothing == ""


def test_a_jump_to_where_nothing_is_mapped():
    machine = flat("lidt [0x180000]\nmov eax, 0x800000\ncall eax", "local")
    machine.run(timeout=60)
    report = machine.report()
    assert report.nothing.startswith("a jump into nothing: EIP is not mapped; called")
    assert str(report.chain[0]).endswith("0010:00800000: 00800000 is not mapped")
    assert report.pages[0] == "EIP 00800000: PDE 00000000: not mapped"


# -- rings -----------------------------------------------------------------------------

_BACK = """
    gate 0x30, back
    mov byte [IDT + 8 * 0x30 + 5], 0xee
    lgdt [gdtr]
    mov dword [tss + 4], 0x80000
    mov dword [tss + 8], 8
    mov eax, tss
    mov [gdt + 0x2a], ax
    shr eax, 16
    mov [gdt + 0x2c], al
    mov eax, 0x28
    ltr ax
    push 0x23
    push 0x90000
    push 2
    push 0x1b
    push user
    iretd
user:
    int 0x30
    int 0x31
back:
    iretd
gdtr: dw 0x2f
    dd gdt
gdt: dq 0, 0x00cf93000000ffff, 0x00cf9b000000ffff
    dq 0x00cffb000000ffff, 0x00cff3000000ffff, 0x0000890000000067
tss: times 26 dd 0
"""


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_ring_changes(technique):
    code = _BACK
    machine = flat(code, "local", technique=technique)
    machine.run(timeout=60)
    changes = machine.report().changes
    told = [(one.how, one.before, one.after, one.cs, one.to_cs) for one in changes]
    assert told == [
        ("INT 30h", 3, 0, 0x1B, 0x10),
        ("IRET", 0, 3, 0x10, 0x1B),
        ("#GP", 3, 0, 0x1B, 0x10),
    ]
    assert changes[1].to_eip == changes[0].eip + 2
    assert changes[2].eip == changes[1].to_eip


@pytest.mark.parametrize("options", [{}, {"native": False}, {"technique": "bare"}])
def test_ring_changes_by_interrupts(options):
    """The timer at about 1 kHz; the third tick ends the run."""
    ticks = "\n".join(
        f"mov al, {value}\nout {port}, al"
        for port, value in (
            (0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xFE),
            (0x43, 0x34), (0x40, 0xA9), (0x40, 4),
        )
    )  # fmt: skip
    handler = """
    back:
        inc ebp
        cmp ebp, 3
        je fin
        mov al, 0x20
        out 0x20, al
        iretd
    """
    body = _BACK.replace("user:\n", "user:\njmp user\n")
    body = body.replace("push 2\n", f"{ticks}\nxor ebp, ebp\npush 0x202\n")
    body = body.replace("back:\n    iretd\n", handler)
    machine = flat(body, "local", **options)
    machine.run(timeout=60)
    changes = machine.report().changes
    told = [(one.how, one.before, one.after, one.cs, one.to_cs) for one in changes]
    assert told[-3:] == [
        ("interrupt 30h", 3, 0, 0x1B, 0x10),
        ("IRET", 0, 3, 0x10, 0x1B),
        ("interrupt 30h", 3, 0, 0x1B, 0x10),
    ]
    assert changes[-1].eip == changes[-2].to_eip == changes[-3].eip


# -- observers -------------------------------------------------------------------------


class _Witness(Recorder):
    def __init__(self, machine):
        super().__init__()
        self.machine, self.seen = machine, []

    def shutdown(self, cs, eip):
        self.seen.append((cs, eip, str(self.machine.report().chain[-1])))


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_observers_are_told_of_each_event_and_of_the_shutdown(technique):
    machine = guest(_LIMIT, technique=technique)
    witness = _Witness(machine)
    machine.subscribe(witness)
    machine.run(timeout=60)
    assert witness.events == [(13, 0x100), (8, 0)]
    assert witness.seen == [(0x10, 0x100011, "shutdown")]


def test_a_new_start_knows_nothing_of_the_last():
    machine = guest(_LIMIT)
    machine.run(timeout=60)
    machine.reset()
    report = machine.report()
    assert (report.stop, report.chain, report.changes) == ("", (), ())
