"""Events, returns and far transfers of IA-32e mode, beside QEMU."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from emu86 import Machine
from support.cases import MEMORY, TECHNIQUES
from support.cases64 import Case, differences, image, on_emu86, on_qemu

_PAGE = 0xE00000  # of the guest's `PAGE`

# QEMU makes SS null when an IST changes the stack within a ring. SDM Vol. 2A INT n,
# intra-privilege-level interrupts, leaves it.
_IST = ("ss after",)
_TARGET = "int 0x40\n.t: mov eax, ss\nint 0x40"


def frame(cs, ss, *, rip=".t", flags="2", rsp="STACK3 - 8"):
    """What IRETQ takes."""
    words = (ss, rsp, flags, cs, rip)
    return "".join(f"mov rax, {word}\npush rax\n" for word in words)


def far(operation, selector, offset=".t", size=8):
    """A far JMP or CALL by memory."""
    word, prefix = {8: ("rax", "o64 "), 4: ("eax", "")}[size]
    return (
        f"mov rax, {offset}\nmov [SCRATCH], {word}\n"
        f"mov word [SCRATCH + {size}], {selector}\n{prefix}{operation} far [SCRATCH]\n"
    )


def gate(number, **fields):
    """Change a gate: access, selector, upper."""
    places = {"access": ("byte", 5), "selector": ("word", 2), "upper": ("dword", 8)}
    return "".join(
        f"mov {places[name][0]} [IDT + {number} * 16 + {places[name][1]}], {value}\n"
        for name, value in fields.items()
    )


EVENTS = (
    Case("INT", "int 0x40"),
    Case("INT on a stack that is not aligned", "sub rsp, 8\nint 0x40"),
    Case("INT of ring 1", "int 0x40", ring=1),
    Case("INT of ring 3", "push rax\nint 0x40", ring=3),
    Case("INT of compatibility mode", "push eax\nint 0x40", bits=32),
    Case("INT of a user's compatibility mode", "push eax\nint 0x40", 3, 32),
    Case("INT3", "int3", 3),
    Case("INTO of compatibility mode", "into", 3, 32, 0x802),
    Case("INTO", "db 0xce", 3),
    Case("a trap gate", "int 0x44", flags=0x202),
    Case("an interrupt gate", "int 0x40", flags=0x202),
    Case("IF at ring 3", "int 0x40", 3, flags=0x202),
    Case("a gate of ring 0", "int 0x80", 3),
    Case("#GP of a user", "hlt", 3),
    Case("#GP of a user's compatibility mode", "hlt", 3, 32),
    Case("#DE", "xor ecx, ecx\ndiv ecx", 3),
    Case("#UD", "ud2", 3),
    Case("#PF", "mov rax, 0x40000000000\nmov rax, [rax]", 3),
    Case("#PF of a high address", "mov rax, -0x40000000\nmov [rax], al"),
    Case(
        "#PF of a page taken away",
        "mov qword [PT], 0\ninvlpg [PAGE]\nmov [PAGE + 5], al",
    ),
    Case("#PF of a user's compatibility mode", "mov [0x20000000], al", 3, 32),
    Case("a page and its neighbour", "mov rax, PAGE + 0xffc\nmov [rax], rsp"),
    Case("code in the upper half", "mov rax, HIGH + .t\njmp rax\n" + _TARGET, 3),
    Case(
        "data in the upper half",
        "mov rax, HIGH + SCRATCH\nmov [rax], rsp\nmov rbx, [SCRATCH]",
    ),
    Case("a stack in the upper half", "mov rsp, HIGH + STACK1\npush rax\nint 0x40"),
    Case("data not canonical", "mov rax, 1 << 47\nmov [rax], al", 3),
    Case("code not canonical", "mov rax, 1 << 47\njmp rax", 3),
    Case("a short IDT", "mov word [idtr], 0x3ff\nlidt [idtr]\nmov word [idtr], 0xfff\nint 0x40"),
    Case("TF", "pushfq\nor qword [rsp], 0x100\npopfq\nnop"),
    Case("NT is cleared", "int 0x40", flags=0x4002),
    Case("a handler in the upper half", gate(0x45, upper=-1) + "int 0x45"),
    *(
        Case(f"access {access:#x} of a gate", gate(0x45, access=access) + "int 0x45")
        for access in (0xE5, 0xE6, 0xEC, 0x6E, 0xE2)
    ),
    *(
        Case(f"{name} in a gate at ring {ring}", gate(0x45, selector=name) + "int 0x45", ring)
        for ring in (0, 3)
        for name in (
            "0", "COMPAT0", "BOTH", "ABSENT", "CONFORM", "CODE3", "DATA0", "TSS0",
            "0xfff8", "LCODE3", "CODE1",
        )
    ),
    Case("an offset not canonical", gate(0x45, upper=0x8000) + "int 0x45"),
    Case(
        "RSP0 not canonical",
        "mov byte [IDT + 8 * 16 + 4], 1\nmov dword [TSS + 8], 0x8000\nint 0x40", 3,
    ),
    Case("RSP0 in the upper half", "mov rax, HIGH + STACK1\nmov [TSS + 4], rax\nint 0x40", 3),
    Case(
        "a double fault",
        "mov byte [IDT + 8 * 16 + 4], 1\nmov byte [IDT + 13 * 16 + 5], 0\nhlt", 3,
    ),
)  # fmt: skip
STACKS = (
    Case("IST", "int 0x42"),
    Case("IST of a user", "int 0x42", 3),
    Case("an IST that is not aligned", "int 0x43"),
    Case(
        "an IST not canonical",
        "mov byte [IDT + 8 * 16 + 4], 2\nmov dword [TSS + 40], 0x8000\nint 0x42",
    ),
)
PAIRS = (
    ("CODE0", "DATA0"), ("CODE0", "0"), ("CODE0", "1"), ("CODE0", "3"),
    ("CODE0", "DATA3"), ("CODE3", "DATA3"), ("CODE3", "0"), ("CODE3", "3"),
    ("CODE3", "DATA0"), ("COMPAT0", "DATA0"), ("COMPAT0", "0"), ("COMPAT3", "DATA3"),
    ("COMPAT3", "3"), ("CODE1", "DATA1"), ("CODE1", "1"), ("CODE1", "0"),
    ("CODE2", "2"), ("CODE2", "DATA2"), ("CODE2 - 1", "DATA2"), ("BOTH", "DATA0"),
    ("ABSENT", "DATA0"), ("0", "DATA0"), ("3", "DATA3"), ("DATA0", "DATA0"),
    ("TSS0", "DATA0"), ("CONFORM", "DATA0"), ("CONFORM + 3", "DATA3"),
    ("CODE0", "CODE0"), ("CODE0", "0xfff8"), ("0xfff8", "DATA0"), ("LCODE3", "LDATA3"),
    ("CODE0", "ABSENT"), ("CODE16", "DATA0"),
)  # fmt: skip
RETURNS = (
    *(
        Case(f"IRETQ to {cs} with {ss} from ring {ring}", frame(cs, ss) + "iretq\n" + _TARGET, ring)
        for ring in (0, 1, 3)
        for cs, ss in PAIRS
    ),
    *(
        Case(f"flags {flags:#x} from ring {ring} to {cs}", frame(cs, ss, flags=flags) + "iretq\n" + _TARGET, ring)
        for ring in (0, 3)
        for flags in (0x202, 0x3002, 0x4002, 0x20002, 0x40ED7, 0x200002)
        for cs, ss in ((("CODE0", "0"), ("CODE3", "DATA3"))[bool(ring):])
    ),
    *(
        Case(f"IRETQ with {name}", frame(cs, ss, **words) + "iretq\n" + _TARGET)
        for name, cs, ss, words in (
            ("RIP not canonical", "CODE3", "DATA3", {"rip": "1 << 47"}),
            ("RIP beyond 4 GiB", "COMPAT3", "DATA3", {"rip": "1 << 32"}),
            ("RIP in the upper half", "CODE3", "DATA3", {"rip": "HIGH + .t"}),
            ("a wide RSP", "COMPAT3", "DATA3", {"rsp": "0x1200230000"}),
            ("RSP not canonical", "CODE3", "DATA3", {"rsp": "1 << 47"}),
        )
    ),
    Case("IRETQ with NT", frame("CODE0", "0") + "iretq\n" + _TARGET, flags=0x4002),
    Case("IRETQ to itself", "mov rcx, rsp\n" + frame("CODE0", "0", rsp="rcx") + "iretq\n.t: nop"),
    Case(
        "IRETD in 64-bit code",
        "sub rsp, 20\nmov dword [rsp], .t\nmov dword [rsp + 4], CODE3\n"
        "mov dword [rsp + 8], 2\nmov dword [rsp + 12], STACK3\n"
        "mov dword [rsp + 16], DATA3\niretd\n" + _TARGET,
    ),
    *(
        Case(f"IRETD of compatibility mode to {cs}", f"push dword 0x3002\npush dword {cs}\npush dword .t\niretd\n{_TARGET}", bits=32)
        for cs in ("COMPAT0", "CODE0", "CODE16", "BOTH")
    ),
    *(
        Case(
            f"IRETD of compatibility mode to {cs} with {ss}",
            f"push dword {ss}\npush dword STACK3\npush dword 2\npush dword {cs}\n"
            f"push dword .t\niretd\n{_TARGET}", bits=32,
        )
        for cs, ss in (("COMPAT3", "DATA3"), ("CODE3", "DATA3"), ("CODE3", "3"), ("CODE1", "1"))
    ),
    *(
        Case(f"RETFQ to {cs} with {ss} from ring {ring}", f"push {ss}\nmov rax, STACK3\npush rax\npush {cs}\npush .t\nretfq\n{_TARGET}", ring)
        for ring in (0, 3)
        for cs, ss in PAIRS
    ),
    Case("RETF of 4 bytes", "sub rsp, 8\nmov dword [rsp], .t\nmov dword [rsp + 4], COMPAT0\nretf\n" + _TARGET),
    Case("RETFQ that releases", "push CODE0\npush .t\no64 retf 16\n" + _TARGET),
    Case("RETFQ to a user that releases", "push 1\npush DATA3\npush STACK3\npush CODE3\npush .t\no64 retf 8\n" + _TARGET),
    Case("RETFQ to what is not canonical", "push CODE0\nmov rax, 1 << 47\npush rax\nretfq"),
)  # fmt: skip
SELECTORS = (
    "CODE0", "COMPAT0", "CODE3", "COMPAT3", "BOTH", "ABSENT", "0", "DATA0", "TSS0",
    "LDT0", "GATE0", "GATEBAD", "CONFORM", "0xfff8", "GATE0 + 3", "CODE16",
    "LCODE3",
)  # fmt: skip
TRANSFERS = (
    *(
        Case(f"{operation} of {size} bytes to {selector} from ring {ring}", far(operation, selector, size=size) + _TARGET, ring)
        for ring in (0, 3)
        for operation in ("jmp", "call")
        for size in (8, 4)
        for selector in SELECTORS
    ),
    *(
        Case(f"{operation} to {selector} of compatibility mode at ring {ring}", f"{operation} {selector}:.t\n{_TARGET}", ring, 32)
        for ring in (0, 3)
        for operation in ("jmp", "call")
        for selector in SELECTORS
    ),
    Case("a call to what is not canonical", far("call", "CODE0", "1 << 47")),
    Case("a jump to the upper half", far("jmp", "CODE0", "HIGH + .t") + _TARGET),
    *(
        Case(f"a gate to {name} from ring {ring}", code + far("call", "GATE0", "0"), ring)
        for ring in (0, 3)
        for name, code in (
            ("the upper half", "mov dword [GDT + GATE0 + 8], -1\n"),
            ("what is not canonical", "mov dword [GDT + GATE0 + 8], 0x8000\n"),
            ("a user's code", "mov word [GDT + GATE0 + 2], CODE3\n"),
            ("both L and D", "mov word [GDT + GATE0 + 2], BOTH\n"),
            ("null", "mov word [GDT + GATE0 + 2], 0\n"),
            ("what is absent", "mov byte [GDT + GATE0 + 5], 0x6c\n"),
        )
    ),
)  # fmt: skip
CONFORMING = tuple(
    Case(
        f"{operation} by GATECONF from ring {ring}",
        far(operation, "GATECONF", "0"),
        ring,
    )
    for ring in (0, 3)
    for operation in ("jmp", "call")
)
LOADS = (
    *(
        Case(f"{operation} {selector} at ring {ring}", f"mov eax, {selector}\n{operation} ax", ring)
        for ring in (0, 3)
        for operation in ("lldt", "ltr")
        for selector in ("LDT0", "TSS0", "TSS1", "BADBASE", "0", "GATE0", "CODE0", "LDATA3", "0xf8")
    ),
    *(
        Case(f"mov {register}, {selector} at ring {ring}", f"mov eax, {selector}\nmov {register}, eax\npush rax", ring, bits)
        for ring, bits in ((0, 64), (1, 64), (3, 64))
        for register in ("ss", "ds", "fs")
        for selector in ("0", "1", "2", "3", "DATA0", "DATA3", "CODE3", "BASED + 3", "ABSENT", "LDATA3", "TSS0")
        if (register, ring, selector) != ("ss", 1, "1")  # at CPL 0 QEMU is then
    ),
    *(
        Case(f"mov ss, {selector} of compatibility mode at ring {ring}", f"mov eax, {selector}\nmov ss, eax\npush eax", ring, 32)
        for ring in (0, 3)
        for selector in ("0", "3", "DATA0", "DATA3")
    ),
    Case("DS with a base", "mov eax, BASED + 3\nmov ds, eax\nmov [SCRATCH + 8], rsp", 3),
    Case("FS with a base", "mov eax, BASED + 3\nmov fs, eax\nmov [fs:8], rsp", 3),
    Case("DS with a base, in compatibility mode", "mov eax, BASED + 3\nmov ds, eax\nmov [8], esp", 3, 32),
    Case("DS null", "xor eax, eax\nmov ds, eax\nmov es, eax\nmov [SCRATCH], rsp", 3),
    Case("GS keeps its base", "mov [gs:8], rsp", 3),
    Case("LGDT and LIDT", "sgdt [SCRATCH]\nsidt [SCRATCH + 16]"),
    Case("SLDT and STR", "sldt [SCRATCH]\nstr [SCRATCH + 8]\nsldt rax\nstr rbx"),
)  # fmt: skip
EFER = "mov ecx, 0xC0000080\nrdmsr\n"
SWITCHES = (
    Case("LME cleared while there is paging", EFER + "btr eax, 8\nwrmsr"),
    Case("EFER written as it is", EFER + "wrmsr"),
    Case("CR0 beyond 32 bits", "mov rax, cr0\nbts rax, 32\nmov cr0, rax"),
    Case("CR2 of 64 bits", "mov rax, -5\nmov cr2, rax\nmov rbx, cr2"),
    Case(
        "out of IA-32e mode and back",
        "push COMPAT0\npush .c\nretfq\nbits 32\n.c: mov eax, cr0\nbtr eax, 31\n"
        f"mov cr0, eax\n{EFER}mov [SCRATCH], eax\nmov eax, cr0\nbts eax, 31\n"
        f"mov cr0, eax\n{EFER}mov [SCRATCH + 8], eax\njmp CODE0:.d\nbits 64\n.d:",
    ),
    Case(
        "out to 32-bit paging and back",
        "push COMPAT0\npush .c\nretfq\nbits 32\n.c: mov eax, cr0\nbtr eax, 31\n"
        f"mov cr0, eax\n{EFER}btr eax, 8\nwrmsr\nmov [SCRATCH], esp\n{EFER}"
        "bts eax, 8\nwrmsr\nmov eax, cr0\nbts eax, 31\nmov cr0, eax\n"
        "jmp CODE0:.d\nbits 64\n.d:",
    ),
)
_AT = "mov rax, 1 << 47\n"
# Where an address must be canonical (Vol. 1 3.3.7.1), and where it need not.
ADDRESSES = (
    Case("INVLPG, where it does nothing", _AT + "invlpg [rax]"),
    Case("DR0, which takes any", _AT + "mov dr0, rax\nmov rbx, dr0\nmov dr0, rcx"),
    Case("DR7 beyond 32 bits", _AT + "mov dr7, rax"),
    Case("over the end of the lower half", "mov rax, (1 << 47) - 2\nmov [rax], eax", 3),
    Case("into the upper half", "mov rax, -(1 << 47) - 2\nmov eax, [rax]", 3),
    Case("a base and an offset", "mov rax, (1 << 47) - 8\nmov rbx, [rax + rax]", 3),
    Case("GS", "mov rax, (1 << 47) - 8\nmov rbx, [gs:rax]", 3),
    *(
        Case(name, f"mov rsp, 1 << 47\nmov rbp, rsp\n{code}", 3)
        for name, code in (
            ("PUSH", "push rax"), ("POP", "pop rax"), ("CALL", "call .t\n.t:"),
            ("RET", "ret"), ("LEAVE", "leave"), ("ENTER", "enter 8, 0"),
            ("PUSHFQ", "pushfq"), ("POPFQ", "popfq"), ("a read by RBP", "mov rax, [rbp]"),
            ("IRETQ", "iretq"), ("RETFQ", "retfq"), ("PUSH of 2 bytes", "push ax"),
        )
    ),
    *(
        Case(name, f"{_AT}mov rdi, rax\nmov rsi, rax\nmov rbx, rax\n{code}", 3)
        for name, code in (
            ("STOSB", "stosb"), ("LODSQ", "lodsq"), ("REP MOVSB", "rep movsb"),
            ("XLAT", "xlatb"), ("CMPXCHG16B", "cmpxchg16b [rsi]"), ("SETC", "setc [rsi]"),
            ("RCL", "rcl byte [rsi], 1"), ("SGDT", "sgdt [rsi]"), ("STR", "str [rsi]"),
            ("LAR", "lar eax, [rsi]"), ("MOV DS", "mov ds, [rsi]"),
            ("a far CALL", "call far [rsi]"), ("CMPXCHG8B", "cmpxchg8b [rsi]"),
        )
    ),
    Case("LGDT from there", _AT + "lgdt [rax]"),
)  # fmt: skip
# What no QEMU can run beside us: #GP(0) by SDM Vol. 2A LGDT and Vol. 2B MOV to CR.
ALONE = (
    Case("PG cleared in 64-bit code", "mov rax, cr0\nbtr eax, 31\nmov cr0, rax"),
    Case("PAE cleared", "mov rax, cr4\nbtr eax, 5\nmov cr4, rax"),
    Case("CR4 beyond 32 bits", "mov rax, cr4\nbts rax, 33\nmov cr4, rax"),
    Case(
        "LGDT of what is not canonical",
        "mov word [SCRATCH], 0xff\nmov rax, 1 << 47\nmov [SCRATCH + 2], rax\n"
        "lgdt [SCRATCH]",
    ),
    Case(
        "LIDT of what is not canonical",
        "mov word [SCRATCH], 0xff\nmov rax, 1 << 47\nmov [SCRATCH + 2], rax\n"
        "lidt [SCRATCH]",
    ),
    *(
        Case(f"WRMSR of {number:#x}", f"mov ecx, {number:#x}\nmov edx, 0x8000\nwrmsr")
        for number in (
            0x175, 0x176, 0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102,
        )
    ),
    Case("SYSRET", "mov rcx, 1 << 47\no64 sysret"),
    Case("SYSEXIT", "mov ecx, 0x174\nmov eax, 8\nxor edx, edx\nwrmsr\n"
         "mov rdx, 1 << 47\nmov rcx, STACK3\no64 sysexit"),
    Case("SYSEXIT with RCX", "mov rcx, 1 << 47\nmov rdx, .t\no64 sysexit\n.t: nop"),
)  # fmt: skip
# REX.R names registers that there are not: #UD at any CPL (Vol. 2B MOV).
UNDEFINED = tuple(
    Case(f"{name} at ring {ring}", code, ring)
    for ring in (0, 3)
    for name, code in (
        ("MOV from CR9", "db 0x44, 0x0f, 0x20, 0xc8"),
        ("MOV to CR9", "db 0x44, 0x0f, 0x22, 0xc8"),
        ("MOV from DR8", "db 0x44, 0x0f, 0x21, 0xc0"),
        ("MOV to DR8", "db 0x44, 0x0f, 0x23, 0xc0"),
    )
)
_NULL_SS = "CODE0 with 3", "CODE0 with 1", "CODE1 with 0", "COMPAT0 with 0"
_FAR = ("jmp", "call")
# Where QEMU has #GP(0) for a stack that it reads, and a CPU #SS(0): Vol. 1 3.3.7.1.
OF_THE_STACK = (
    "POP", "RET", "LEAVE", "POPFQ", "a read by RBP", "IRETQ", "RETFQ",
)  # fmt: skip
# What QEMU takes, and a CPU refuses with #GP and this error code: code that is both of
# 64 and of 32 bits; a null SS with another RPL or for compatibility mode; RIP that is
# not canonical or beyond the limit; LME changed while there is paging; CR0 beyond 32
# bits. (SDM Vol. 2A IRET, CALL, JMP; Vol. 2B MOV to CR; Vol. 3A 9.8.5.)
REFUSED = {
    "over the end of the lower half": 0,
    **dict.fromkeys(OF_THE_STACK, 0),
    "an offset not canonical": 0,
    "lldt BADBASE at ring 0": 0xD0,
    "ltr 0 at ring 0": 0,
    **{f"mov ss, {null} at ring 0": 0 for null in (1, 2, 3)},
    **{f"mov ss, {null} at ring 1": 0 for null in (0, 2, 3)},
    "LME cleared while there is paging": 0,
    "CR0 beyond 32 bits": 0,
    "a call to what is not canonical": 0,
    **{f"a gate to what is not canonical from ring {ring}": 0 for ring in (0, 3)},
    **{f"IRETQ to {pair} from ring 0": 0 for pair in _NULL_SS},
    "IRETQ to CODE1 with 0 from ring 1": 0,
    "IRETQ to CODE16 with DATA0 from ring 0": 0,
    "IRETQ to BOTH with DATA0 from ring 0": 0x98,
    "IRETQ with RIP not canonical": 0,
    "IRETQ with RIP beyond 4 GiB": 0,
    "IRETD of compatibility mode to BOTH": 0x98,
    "IRETD of compatibility mode to CODE16": 0,
    "RETFQ to BOTH with DATA0 from ring 0": 0x98,
    "RETFQ to CODE1 with 0 from ring 0": 0,
    "RETFQ to CODE16 with DATA0 from ring 0": 0,
    "RETFQ to what is not canonical": 0,
    "call of 8 bytes to CODE16 from ring 0": 0,
    "call to CODE16 of compatibility mode at ring 0": 0,
    **{f"{operation} of 8 bytes to BOTH from ring 0": 0x98 for operation in _FAR},
    **{
        f"{operation} to BOTH of compatibility mode at ring 0": 0x98
        for operation in _FAR
    },
}
# QEMU tells 16 bytes a gate in error codes (SDM Vol. 3A 6.13: 8), and takes the RPL of
# conforming code behind a call gate from its DPL (Vol. 2A CALL: the CPL).
_IGNORED = {
    "EVENTS": ("error",), "STACKS": ("ss after",), "CONFORMING": ("cs",),
}  # fmt: skip


@pytest.mark.parametrize("technique", ["patch", "iopl"])
@pytest.mark.parametrize(
    "name",
    [
        "EVENTS",
        "STACKS",
        "RETURNS",
        "TRANSFERS",
        "CONFORMING",
        "LOADS",
        "SWITCHES",
        "ADDRESSES",
    ],
)
def test_ia32e(name, technique):
    cases = globals()[name]
    theirs = on_qemu(cases)
    ours = on_emu86(cases, options=TECHNIQUES[technique])
    lines = []
    for case, our, their in zip(cases, ours, theirs, strict=True):
        if case.name not in REFUSED:
            hidden = 0x3000 if technique == "iopl" else 0
            ignore = _IGNORED.get(name, ())
            lines += differences((case,), (our,), (their,), ignore, hidden=hidden)
        elif (our["vector"], our["error"]) != (
            12 if case.name in OF_THE_STACK else 13,
            REFUSED[case.name],
        ):
            lines.append(f"{case.name}: {our['vector']}, {our['error']:#x}")
    assert not lines, "\n".join(lines[:40])


def test_what_is_refused_alone():
    for case, record in zip(ALONE, on_emu86(ALONE), strict=True):
        assert (record["vector"], record["error"]) == (13, 0), case.name


def test_a_tss_whose_base_is_not_canonical():
    case = Case("", "mov dword [GDT + TSS1 + 8], 0x8000\nmov eax, TSS1\nltr ax")
    (record,) = on_emu86((case,))
    assert (record["vector"], record["error"]) == (13, 0xB0)


@pytest.mark.parametrize("technique", ["patch", "trap", "bare"])
def test_registers_that_there_are_not(technique):
    found = on_emu86(UNDEFINED, options={"technique": technique})
    assert [record["vector"] for record in found] == [6] * len(UNDEFINED)


def test_a_store_of_gdtr_that_faults_has_stored_nothing():
    case = Case(
        "", "mov dword [PT + 8], 0\ninvlpg [PAGE + 0x1000]\nsgdt [PAGE + 0xffc]"
    )
    machine = Machine(memory=MEMORY, debug_exit=True, cpu="atom")
    machine.load_kernel(image((case,)))
    assert machine.run(timeout=60).reason == "debug exit"
    assert machine.read_physical(_PAGE + 0xFFC, 4) == bytes(4)
