"""Every instruction of the exit table at every ring, as QEMU runs it."""

import pytest

from emu86.rings.insn.table import RECORDS
from support.cases import TECHNIQUES, Case, check, on_emu86

# Mnemonic of the record -> ways to use it. Each leaves in EAX and SCRATCH what it gave.
CODE = {
    "RDTSCP": ["rdtscp"],
    "CLAC": ["db 0x0f, 1, 0xca"],
    "STAC": ["db 0x0f, 1, 0xcb"],
    "CLI": ["sti\ncli\npushfd\npop eax"],
    "STI": ["sti\npushfd\npop eax"],
    "MOV from CR": [
        "mov eax, cr0", "mov edi, cr2", "mov esi, cr3", "mov ebx, cr4",
        "db 0x0F, 0x20, 0x00",  # mod 0 counts as 3
        "db 0x0F, 0x20, 0xC8",  # CR1: #UD
        "db 0x0F, 0x20, 0xE8",
    ],
    "MOV to CR": [
        "mov eax, 0x12345678\nmov cr2, eax\nmov ecx, cr2",
        "mov eax, cr0\nor eax, 0x0001000A\nmov cr0, eax",
        "mov eax, cr0\nand eax, ~0x10\nmov cr0, eax\nmov eax, cr0",
        "mov eax, cr0\nor eax, 0x60000000\nmov cr0, eax\nmov eax, cr0",
        "mov eax, 0x214\nmov cr4, eax\nmov eax, cr4",
        "db 0x0F, 0x22, 0xC8",
    ],
    "MOV from DR": ["mov eax, dr0", "mov eax, dr6", "mov eax, dr7", "mov eax, dr4"],
    "MOV to DR": [
        "mov eax, 0x1234\nmov dr3, eax\nmov ecx, dr3",
        "mov eax, 0x3333\nmov dr2, eax\nmov ecx, dr2\nmov ebx, dr0",
    ],
    "LGDT": [
        "lgdt [gdtr]\nmov eax, DATA0\nmov fs, eax",
    ],
    "LIDT": [
        ("mov dword [SCRATCH], 0x021F\nmov dword [SCRATCH + 2], IDT\nlidt [SCRATCH]\n"
        "sidt [SCRATCH + 16]\nint 0x44"),
    ],
    "LLDT": [
        "xor eax, eax\nlldt ax\nsldt ecx",
        "mov eax, LDT0\nlldt ax\nmov eax, LDATA3\nmov fs, eax\nmov ecx, [fs:0]",
        "mov eax, DATA0\nlldt ax",
        "mov eax, LDATA3\nlldt ax",
        "mov eax, 0xFFF8\nlldt ax",
        "and byte [GDT + LDT0 + 5], 0x7F\nmov eax, LDT0\nlldt ax",
        "mov dword [SCRATCH], LDT0\nlldt [SCRATCH]",
        "xor eax, eax\nlldt ax\nmov ecx, LDATA3\nmov fs, ecx",
    ],
    "LTR": [
        "mov eax, TSS1\nltr ax\nstr ecx\nmov edx, [GDT + TSS1 + 4]",
        "mov eax, TSS0\nltr ax",  # busy already
        "mov eax, TSS16\nltr ax\nmov edx, [GDT + TSS16 + 4]",
        "mov eax, TSS1 + 4\nltr ax",
        "mov eax, DATA0\nltr ax",
        "and byte [GDT + TSS1 + 5], 0x7F\nmov eax, TSS1\nltr ax",
        "mov dword [SCRATCH], TSS1\nltr [SCRATCH]",
    ],
    "LMSW": [
        "mov eax, 0xE\nlmsw ax\nmov eax, cr0",
        "mov eax, 0\nlmsw ax\nmov eax, cr0",
        "mov dword [SCRATCH], 0xA\nlmsw [SCRATCH]\nsmsw ecx",
    ],
    "CLTS": ["mov eax, cr0\nor eax, 8\nmov cr0, eax\nclts\nmov eax, cr0", "clts"],
    "INVLPG": ["invlpg [SCRATCH]", "invlpg [ebx + ecx * 4 + 0x1234]"],
    "INVD": ["invd"],
    "WBINVD": ["wbinvd"],
    "HLT": [],
    "RDMSR": [], "WRMSR": [],
    "RDTSC": ["rdtsc\nxor eax, eax\nxor edx, edx"],
    "RDPMC": [],
    "POPF": [
        "push dword 0xCD7\npopfd\npushfd\npop eax\npush 2\npopfd",
        "push dword 0x203\npopfd\npushfd\npop eax\npush 2\npopfd",
        "push dword 0x3002\npopfd\npushfd\npop eax\npush 2\npopfd",
        "push dword 0x247002\npopfd\npushfd\npop eax\npush 2\npopfd",
        "push dword 0x1A0002\npopfd\npushfd\npop eax\npush 2\npopfd",
        "push word 0x4A97\npopf\npushfd\npop eax\npush 2\npopfd",
        "push dword 0x10002\npopfd\npushfd\npop eax",
    ],
    "PUSHF": ["pushfd\npop eax", "cmp eax, 0\nstd\npushf\npop ax\ncld"],
    "SGDT": [
        "sgdt [SCRATCH]",
        "mov ebx, SCRATCH\nmov ecx, 4\nsgdt [ebx + ecx * 2 + 5]",
        "mov ebp, SCRATCH\nsgdt [ebp + 1]",
        "mov ebx, SCRATCH\nsgdt [ds:bx]",
        "db 0x0F, 0x01, 0xC5",
    ],
    "SIDT": ["sidt [SCRATCH]", "mov edi, SCRATCH + 0x80\nsidt [edi - 0x7E]"],
    "SLDT": ["sldt eax", "sldt cx", "sldt [SCRATCH]", "o32 sldt [SCRATCH + 3]"],
    "STR": ["str eax", "str cx", "str [SCRATCH]"],
    "SMSW": ["smsw eax", "smsw cx", "smsw [SCRATCH]"],
    "LAR": [
        "mov ecx, DATA0\nlar eax, ecx", "mov ecx, CODE3\nlar ax, cx",
        "mov ecx, TSS0\nlar eax, cx", "mov ecx, 0\nlar eax, cx",
        "mov dword [SCRATCH], GATE32\nlar edi, [SCRATCH]",
        "mov ecx, LDATA3\nlar eax, cx", "mov ecx, 0xFFF0\nlar eax, ecx",
    ],
    "LSL": [
        "mov ecx, DATA3\nlsl eax, ecx", "mov ecx, TSS0\nlsl eax, cx",
        "mov ecx, LDT0\nlsl ax, cx", "mov ecx, GATE32\nlsl eax, ecx",
        "mov ecx, CODE16\nlsl eax, ecx",
    ],
    "VERR": [
        "mov ecx, DATA3\nverr cx", "mov ecx, EXECONLY\nverr cx", "mov ecx, 0\nverr cx",
        "mov dword [SCRATCH], CONFORM\nverr [SCRATCH]", "mov ecx, TSS0\nverr cx",
    ],
    "VERW": [
        "mov ecx, DATA3\nverw cx", "mov ecx, READONLY\nverw cx",
        "mov ecx, CODE0\nverw cx", "mov ecx, ABSENT\nverw cx",
    ],
    "SYSENTER": [], "SYSEXIT": [], "SYSCALL": [], "SYSRET": [], "SWAPGS": [],
    "INT1": [],
    "LOOPE/LOOPNE": [
        f"mov ecx, {count}\ncmp ecx, {other}\n{loop} .there\ninc edx\n.there:"
        for loop in ("loope", "loopne", "a16 loope", "a16 loopne")
        for count, other in (
            (1, 1), (1, 2), (2, 2), (2, 3), (0, 0), (0, 1), (0x10000, 1),
            (0x50001, 0x50001), (0x50002, 0x50002),
        )
    ] + ["mov ecx, 5\n.again: cmp ecx, 9\nloopne .again"],
    # More of these in test_lazy_flags.py.
    "RCL": ["stc\nrcl dword [SCRATCH], 1", "mov cl, 3\nstc\nrcl byte [SCRATCH], cl"],
    "RCR": ["stc\nrcr dword [SCRATCH], 1", "stc\nrcr word [SCRATCH], 5"],
    "SETcc": ["stc\nsetc [SCRATCH]\nseta [SCRATCH + 1]"],
    "CMPXCHG8B": ["cmpxchg8b [SCRATCH]", "lock cmpxchg8b [SCRATCH + 1]"],
    "MOV to Sreg": [
        "mov ecx, DATA3\nmov fs, ecx", "mov ecx, DATA0\nmov gs, cx",
        "mov dword [SCRATCH], BASED\nmov es, [SCRATCH]\nmov eax, [es:0]",
        "mov ecx, 3\nmov ds, cx", "mov ecx, ABSENT\nmov fs, ecx",
        "mov ecx, EXECONLY\nmov fs, ecx", "mov ecx, READONLY + 3\nmov fs, ecx",
        "mov ecx, TSS0\nmov fs, ecx", "mov ecx, 0xFFFC\nmov gs, ecx",
        "mov ecx, FRESH + 3\nmov es, ecx\nmov eax, [cs:GDT + FRESH + 4]",
        "db 0x8E, 0xC8", "db 0x8E, 0xF0", "db 0x8E, 0xF8",
        "mov ecx, LDATA3\nmov gs, ecx\nmov dword [gs:4], 77",
        "mov ecx, LDATA0\nmov gs, ecx",
    ],
    "MOV to SS": [
        "mov eax, ss\nmov ss, eax", "xor eax, eax\nmov ss, eax",
        "mov eax, DATA1\nmov ss, eax", "mov eax, DATA3\nmov ss, eax",
        "mov eax, DATA0\nmov ss, eax", "mov eax, CODE3\nmov ss, eax",
        "mov eax, READONLY\nmov ss, eax", "mov eax, ABSENT + 3\nmov ss, eax",
        "mov eax, 0xFFF8\nmov ss, eax", "mov eax, BASED + 1\nmov ss, eax",
    ],
    "POP Sreg": [
        "push dword BASED + 3\npop ds\nmov eax, [cs:SCRATCH]",
        "push word BASED + 3\npop word es", "push dword DATA0\npop fs",
        "push dword 0\npop gs", "push dword EXECONLY\npop fs",
        "push dword -8\npop gs",
    ],
    "POP SS": ["push ss\npop ss", "push dword DATA1\npop ss", "push dword 0\npop ss"],
    "LDS, LES, LFS, LGS": [
        "mov dword [SCRATCH], 0x12345678\nmov dword [SCRATCH + 4], DATA3\n"
        f"{name} eax, [SCRATCH]"
        for name in ("lds", "les", "lfs", "lgs")
    ] + [
        ("mov dword [SCRATCH], 0x12345678\nmov dword [SCRATCH + 4], ABSENT + 3\n"
        "les eax, [SCRATCH]"),
        "mov dword [SCRATCH], BASED << 16 | 0x1234\nlfs ax, [SCRATCH]",
        "db 0x0F, 0xB4, 0xC0",
    ],
    "LSS": [
        "mov [SCRATCH], esp\nmov [SCRATCH + 4], ss\nlss esp, [SCRATCH]",
        ("mov dword [SCRATCH], 0x12345678\nmov dword [SCRATCH + 4], DATA1\n"
        "lss eax, [SCRATCH]"),
    ],
    "JMP far": [
        "jmp CODE0:.there\n.there:", "jmp CODE3:.there\n.there:",
        "jmp CONFORM:.there\n.there:", "jmp CONFORM + 3:.there\n.there:",
        "jmp DATA0:.there\n.there:", "jmp 0:.there\n.there:", "jmp ABSENT:0",
        "jmp EXECONLY + 3:.there\n.there:", "jmp GATE32:0", "jmp GATECONF:0",
        "jmp GATESAME:0", "jmp LCODE3:.there\n.there:", "jmp LDT0:0",
        "jmp TSS0:0", "jmp 0xFFF8:0",
    ],
    "JMP far, indirect": [
        ("mov dword [SCRATCH], .there\nmov dword [SCRATCH + 4], CODE0\n"
        "jmp far [SCRATCH]\n.there:"),
        ("mov dword [SCRATCH], .there\nmov dword [SCRATCH + 4], CODE3\n"
        "jmp far [SCRATCH]\n.there:"),
        "db 0xFF, 0xE8",
    ],
    "CALL far": [
        "call CODE0:.there\n.there:\npop eax\npop ecx",
        "call CODE3:.there\n.there:\npop eax\npop ecx",
        "call CONFORM:.there\n.there:\npop eax\npop ecx",
        "call GATE16:0", "call GATE2:0", "call GATESAME:0",
        "push dword 0x11\npush dword 0x22\ncall GATE32:0",
        "call DATA0:0", "call ABSENT:0", "call IDT:0",
    ],
    "CALL far, indirect": [
        ("mov dword [SCRATCH], .there\nmov dword [SCRATCH + 4], CODE3\n"
        "call far [SCRATCH]\n.there:\npop eax\npop ecx"),
        "mov dword [SCRATCH + 4], GATE32\ncall far [SCRATCH]",
        "db 0xFF, 0xD8",
    ],
    "RET far": [
        "push cs\npush .there\nretf\n.there:",
        "push 1\npush 2\npush cs\npush .there\nretf 8\n.there:",
        ("push dword STACK3\npush dword STACK3\npush dword CODE3\npush .there\n"
        "retf\n.there:"),
        ("push dword DATA3\npush dword STACK3\npush dword CODE3\npush .there\n"
        "retf\n.there:"),
        ("push dword DATA3\npush dword STACK3\npush dword CODE3\npush .there\n"
        "retf 4\n.there:"),
        ("push dword DATA1\npush dword STACK1\npush dword CODE1\npush .there\n"
        "retf\n.there:"),
        ("push dword DATA2\npush dword STACK2\npush dword CODE2\npush .there\n"
        "retf\n.there:"),
        "push dword CODE0\npush .there\nretf\n.there:",
        "push dword 0\npush .there\nretf\n.there:",
        "push dword DATA3\npush .there\nretf\n.there:",
        "push dword CONFORM + 3\npush .there\nretf\n.there:",
    ],
    "IRET": [
        "pushfd\npush cs\npush .there\niretd\n.there:",
        "push dword 0x247AD7\npush cs\npush .there\niretd\n.there:\npushfd\npop eax",
        "push dword 0x3202\npush cs\npush .there\niretd\n.there:\npushfd\npop eax",
        ("push dword DATA3\npush dword STACK3\npush dword 0x3202\npush dword CODE3\n"
        "push .there\niretd\n.there:\npushfd\npop eax"),
        ("push dword DATA1\npush dword STACK1\npush dword 0x202\npush dword CODE1\n"
        "push .there\niretd\n.there:\npushfd\npop eax"),
        ("push dword DATA2\npush dword STACK2\npush dword 0x2\npush dword CODE2\n"
        "push .there\niretd\n.there:\npushfd\npop eax"),
        ("push dword DATA0\npush dword STACK3\npush dword 0x3202\npush dword CODE3\n"
        "push .there\niretd\n.there:"),
        ("push dword 0\npush dword STACK3\npush dword 0x3202\npush dword CODE3\n"
        "push .there\niretd\n.there:"),
        "push dword 2\npush dword 0\npush .there\niretd\n.there:",
        "push dword 2\npush dword DATA0\npush .there\niretd\n.there:",
    ],
    "IN": ["in al, 0x21", "mov dx, 0x21\nin al, dx", "in eax, 0xE0", "in ax, 0xE0"],
    "OUT": ["out 0x80, al", "mov dx, 0x80\nout dx, al", "out 0x80, eax"],
    "INS": [
        "mov edi, SCRATCH\nmov dx, 0x21\ninsb",
        "mov edi, SCRATCH\nmov dx, 0x21\nmov ecx, 5\nrep insb",
        "mov edi, SCRATCH + 20\nmov dx, 0xE0\nmov ecx, 3\nstd\nrep insd\ncld",
        "mov edi, SCRATCH\nmov dx, 0x21\nxor ecx, ecx\nrep insb",
    ],
    "OUTS": [
        "mov esi, SCRATCH\nmov dx, 0x80\noutsb",
        "mov esi, SCRATCH\nmov dx, 0x80\nmov ecx, 5\nrep outsb",
        "mov esi, SCRATCH\nmov dx, 0x80\nmov cx, 300\nmovzx ecx, cx\nrep outsb",
    ],
}  # fmt: skip
CASES = tuple(
    Case(f"{name}/{i} at ring {ring}, IOPL {iopl}", code, ring, 0x2 | iopl << 12)
    for name, codes in CODE.items()
    for i, code in enumerate(codes)
    for ring in range(4)
    for iopl in (0, 3)
)


def test_every_record_is_here():
    assert set(CODE) == {record.mnemonic for record in RECORDS if 32 in record.modes}


@pytest.mark.parametrize(
    "paging",
    [False, pytest.param(True, marks=pytest.mark.not_quick)],
    ids=["flat", "paged"],
)
def test_instructions(paging):
    check(CASES if paging else CASES[::3], "patch", paging=paging)


@pytest.mark.parametrize("technique", ["iopl", "public API only"])
def test_instructions_by_other_means(technique):
    cases = tuple(
        case for case in CASES if case.ring in (0, 3) and case.name.endswith("IOPL 0")
    )
    check(cases, technique, paging=True)


# What the SDM says and QEMU does not do, or what our CPU models lack and QEMU's has.
BY_THE_MANUAL = {
    "PG without PE": ("mov eax, 0x80000030\nmov cr0, eax", 13, 0),
    "NW without CD": ("mov eax, cr0\nor eax, 0x20000000\nmov cr0, eax", 13, 0),
    "CR4 bit 31": ("mov eax, 0x80000000\nmov cr4, eax", 13, 0),
    "CR4.PAE": ("mov eax, 0x20\nmov cr4, eax", 13, 0),
    "LTR of null": ("xor eax, eax\nltr ax", 13, 0),
    "RDMSR": ("mov ecx, 0x12345\nrdmsr", 13, 0),
    "WRMSR": ("mov ecx, 0x12345\nwrmsr", 13, 0),
    "RDPMC": ("mov ecx, 2\nrdpmc", 13, 0),
    "SYSENTER": ("sysenter", 6, None),
    "SYSEXIT": ("sysexit", 6, None),
    "SYSCALL": ("syscall", 6, None),
    "SYSRET": ("sysret", 6, None),
    "LOCK LGDT": ("db 0xF0\nlgdt [gdtr]", 6, None),
    "LOCK SGDT": ("db 0xF0\nsgdt [SCRATCH]", 6, None),
    "MONITOR": ("db 0x0F, 0x01, 0xC8", 6, None),
    "SWAPGS": ("db 0x0F, 0x01, 0xF8", 6, None),
    "RDTSCP": ("db 0x0F, 0x01, 0xF9", 6, None),
    "VMRUN": ("db 0x0F, 0x01, 0xD8", 6, None),
    "VMMCALL": ("db 0x0F, 0x01, 0xD9", 6, None),
    "STGI": ("db 0x0F, 0x01, 0xDC", 6, None),
    "XGETBV": ("db 0x0F, 0x01, 0xD0", 6, None),
    "LGDT of a register": ("db 0x0F, 0x01, 0xD7", 6, None),
    "LDS of a register, a VEX prefix": ("db 0xC5, 0xF8, 0x28, 0xC0", 6, None),
    "LES of a register, a VEX prefix": ("db 0xC4, 0xE2, 0x78, 0xF2, 0xC0", 6, None),
    "SGDT after a VEX prefix": ("db 0xC5, 0xF8, 0x01, 0x05\ndd SCRATCH", 6, None),
    "SLDT after a VEX prefix": ("db 0xC4, 0xE1, 0x78, 0x00, 0xC0", 6, None),
    "RSM": ("rsm", 6, None),
    "UD2": ("ud2", 6, None),
}


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_by_the_manual(technique):
    cases = tuple(
        Case(f"{name} at ring {ring}", code, ring)
        for name, (code, _, _) in BY_THE_MANUAL.items()
        for ring in range(4)
    )
    wrong = []
    for case, record in zip(
        cases, on_emu86(cases, options=TECHNIQUES[technique]), strict=True
    ):
        _, vector, error = BY_THE_MANUAL[case.name.partition(" at ring")[0]]
        got = record["vector"], record["error"]
        wanted = vector, 0xDEADBEEF if error is None else error
        if got != wanted or not record["eflags"] & 0x10000:
            wrong.append((case.name, got, f"{record['eflags']:x}"))
    assert not wrong


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_faults_save_rf(technique):
    """SDM Vol. 3B 17.3.1.1: the image of a fault has RF set, that of a trap has not."""
    codes = {
        "cli": 1,
        "ud2": 1,
        "xor ecx, ecx\ndiv ecx": 1,
        "int 0x30": 1,
        "int 0x41": 0,
    }
    cases = tuple(Case(code, code, 3) for code in codes)
    records = on_emu86(cases, options=TECHNIQUES[technique])
    assert [r["eflags"] >> 16 & 1 for r in records] == list(codes.values())


def test_debug_registers_have_fixed_bits():
    """SDM Vol. 3B figure 17-1, without the bits of later CPUs."""
    code = "mov eax, {}\nmov dr{}, eax\nmov ecx, dr{}\nmov edx, dr{}"
    cases = (
        Case("DR6, ones", code.format("-1", 6, 6, 4)),
        Case("DR6, zeros", code.format("0", 6, 6, 4)),
        Case("DR7, ones", code.format("~0x2000", 7, 7, 5)),
        Case("DR7, zeros", code.format("0", 7, 7, 5)),
    )
    got = [(r["vector"], r["ecx"], r["edx"]) for r in on_emu86(cases)]
    values = (0xFFFFEFFF, 0xFFFF0FF0, 0xFFFF07FF, 0x400)
    assert got == [(0x40, value, value) for value in values]


def test_general_detect():
    """DR7.GD: the next access to a debug register is #DB with DR6.BD."""
    code = "mov eax, 0x2400\nmov dr7, eax\nmov ecx, dr0\nmov ecx, dr6\nmov edx, dr7"
    (record,) = on_emu86((Case("GD", code),))
    assert record.trace == (0x20000008,)


@pytest.mark.parametrize("ring", [0, 1, 2, 3])
def test_call_gate_to_conforming_code_stays_at_its_ring(ring):
    """SDM Vol. 2A CALL, call gate to the same privilege: CS(RPL) := CPL."""
    code = """
        mov word [GDT + GATECONF], .there - $$
        mov word [GDT + GATECONF + 6], 0x10
        call GATECONF:0
        .there: mov eax, cs
        pop ecx
        pop edx
    """
    (record,) = on_emu86((Case("gate", code, ring),))
    assert record["eax"] == 0x90 | ring
    assert record["edx"] == (8, 0x19, 0x2A, 0x3B)[ring]
