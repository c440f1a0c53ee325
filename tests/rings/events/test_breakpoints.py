"""Breakpoints of the debug registers, beside QEMU's: SDM Vol. 3B chapter 17."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from support.cases import Case, check, image, machine, on_emu86
from support.flat import guest64

# R/W and LEN of DR7.
EXECUTED, WRITTEN, PORT, TOUCHED = 0, 1, 2, 3
BYTES = {1: 0, 2: 1, 4: 3}


def armed(number, where, kind, size=1, *, also=""):
    """Assembly that sets breakpoint `number`; EAX is lost."""
    control = 1 << 2 * number | (kind | BYTES[size] << 2) << 16 + 4 * number
    return (
        f"mov eax, {where}\nmov dr{number}, eax\n"
        f"mov eax, {control | 0x300:#x}\nmov dr7, eax\n{also}\n"
    )


AT = armed(0, ".here", EXECUTED)
TO_USER = "push dword DATA3\npush dword STACK3\npush dword {flags:#x}\npush dword CODE3\npush .there\niretd\n.there:\npush dword DATA3\npop ds\n"

DATA = {
    "a write": (WRITTEN, 4, "mov dword [SCRATCH + 8], 5\nnop\ninc dword [SCRATCH + 8]\nnop"),
    "a read of what stops writes": (WRITTEN, 4, "mov eax, [SCRATCH + 8]\nnop"),
    "a read": (TOUCHED, 4, "mov eax, [SCRATCH + 8]\ntest [SCRATCH + 9], al\nnop"),
    "beside": (TOUCHED, 4, "mov [SCRATCH + 4], eax\nmov [SCRATCH + 12], eax\nmov ax, [SCRATCH + 6]"),
    "a part": (TOUCHED, 4, "mov [SCRATCH + 5], eax\nnop\nmov [SCRATCH + 11], ax\nnop\nmov al, [SCRATCH + 11]"),
    "one byte": (WRITTEN, 1, "mov byte [SCRATCH + 8], 1\nmov byte [SCRATCH + 9], 1\nmov [SCRATCH + 6], eax"),
    "a word": (WRITTEN, 2, "mov byte [SCRATCH + 9], 1\nmov byte [SCRATCH + 10], 1\nnop"),
    "arithmetic": (WRITTEN, 4, "add [SCRATCH + 8], eax\nsub eax, [SCRATCH + 8]\nnot byte [SCRATCH + 8]\nsete [SCRATCH + 8]\nxchg eax, [SCRATCH + 8]"),
    "not read": (TOUCHED, 4, "lea eax, [SCRATCH + 8]\nnop dword [SCRATCH + 8]"),
    "the stack": (TOUCHED, 4, TO_USER.format(flags=2) + "mov esp, SCRATCH + 12\npush eax\npop ecx\ncall .a\n.a: pop eax\nnop"),
    "strings": (WRITTEN, 4, "mov edi, SCRATCH\nmov ecx, 5\nrep stosd\nmov esi, SCRATCH + 8\nmov edi, SCRATCH + 32\nmovsd\nnop"),
    "strings that read": (TOUCHED, 4, "mov esi, SCRATCH\nmov edi, SCRATCH + 32\nmov ecx, 5\nrep movsd\nxor ecx, ecx\nmov esi, SCRATCH + 8\nrep lodsd\nnop"),
    "XLAT": (TOUCHED, 1, "mov ebx, SCRATCH\nmov al, 8\nxlatb\nnop"),
    "the FPU": (WRITTEN, 4, "fldz\nfst dword [SCRATCH + 8]\nfld dword [SCRATCH + 8]\nfnsave [SCRATCH]\nnop"),
    "a selector": (TOUCHED, 2, "mov [SCRATCH + 8], ds\nmov es, [SCRATCH + 8]\nnop"),
    "tables": (WRITTEN, 2, "sgdt [SCRATCH + 6]\nsidt [SCRATCH + 8]\nstr [SCRATCH + 8]\nnop"),
    "CMPXCHG8B": (WRITTEN, 4, "cmpxchg8b [SCRATCH + 4]\nnop"),
    "bits": (TOUCHED, 4, "mov ecx, 70\nbt [SCRATCH], ecx\nmov ecx, -30\nbts [SCRATCH + 12], ecx\nbt dword [SCRATCH], 70\nnop"),
    "a user's": (WRITTEN, 4, TO_USER.format(flags=2) + "mov [SCRATCH + 8], eax\nnop\npushfd\npopfd\nmov [SCRATCH + 8], eax\nnop"),
}  # fmt: skip

CASES = (
    *(
        Case(name, armed(1, "SCRATCH + 8", kind, size) + code)
        for name, (kind, size, code) in DATA.items()
    ),
    *(
        Case(f"before {name}", AT + f"{code}\nnop")
        for name, code in {
            "an instruction": ".here: inc ebx",
            "a loop": "mov ecx, 3\n.here: loop .here",
            "a sensitive one": ".here: sgdt [SCRATCH]",
            "a privileged one": ".here: mov ebx, cr0",
            "CLI": "cli\n.here: cli",
            "PUSHF": ".here: pushfd\npop ebx",
            "POPF": "push dword 0x202\n.here: popfd\ncli",
            "INT": "nop\n.here: int 0x41",
            "a fault": "xor ecx, ecx\n.here: div ecx",
            "what is undefined": ".here: ud2",
            "a patched one twice": "mov ecx, 2\n.a: nop\n.here: smsw ebx\nloop .a",
            "a user's": TO_USER.format(flags=2) + ".here: inc ebx\nnop\npushfd\npop edx",
            "the middle of one": "jmp .a\n.a: db 0xb8\n.here: nop\nnop\nnop\nnop",
        }.items()
    ),
    Case("RF from the stack", AT + "push dword 0x10002\npush cs\npush .here\niretd\n.here: inc ebx\nnop"),
    Case("RF for one only", AT + "push dword 0x10002\npush cs\npush .a\niretd\n.a: inc ebx\n.here: nop"),
    Case("POPF takes no RF", AT + "push dword 0x10002\npopfd\n.here: nop"),
    Case("not enabled", "mov eax, .here\nmov dr0, eax\nxor eax, eax\nmov dr7, eax\n.here: nop\nnop"),
    Case("disarmed", AT + "mov eax, 0x300\nmov dr7, eax\n.here: nop\nnop\npushfd\npop eax"),
    Case("globally", "mov eax, .here\nmov dr0, eax\nmov eax, 2\nmov dr7, eax\nnop\n.here: nop"),
    Case("a port", "mov eax, 8\nmov cr4, eax\n" + armed(1, "0x80", PORT) + "out 0x80, al\nin al, 0x21\nnop\nin al, 0x80\nnop\nmov edx, 0x7F\nin ax, dx\nxor eax, eax"),
    Case("MOV from DR", armed(0, "SCRATCH", WRITTEN, 4) + "mov ebx, dr7\nmov ecx, dr0\nmov edx, dr6"),
    *(
        Case(f"a user's {name}", AT.replace("0x301", "0x302") + TO_USER.format(flags=flags) + code)
        for name, flags, code in (
            ("PUSHF", 0x202, "pushfd\npop ebx\n.here: nop"),
            ("POPF", 0x2, "push dword 0x246\npopfd\npushfd\npop ebx\n.here: nop\nnop"),
            ("IRET", 0x2, "push dword 0x10047\npush cs\npush .here\niretd\n.here: nop\nnop"),
            ("INT", 0x2, "nop\n.here: int 0x41"),
        )
    ),
)  # fmt: skip


@pytest.mark.not_quick
@pytest.mark.parametrize("paging", [False, True], ids=["flat", "paged"])
@pytest.mark.parametrize("technique", ["patch", "iopl", "public API only"])
def test_as_on_qemu(technique, paging):
    check(CASES, technique, paging=paging)


# What QEMU 7.2 has otherwise than the SDM: a string breaks at every round, a hit is told
# late if the instruction faults or is stepped, only one of two hits is told, a port
# breaks without CR4.DE, and a string of ports does not go on.
BY_THE_BOOK = {
    Case("before a string", AT + "mov ecx, 3\nmov edi, SCRATCH\n.here: rep stosd"): (0x1001A,),
    Case("a fault", armed(1, "SCRATCH", TOUCHED, 4) + "nop\ndiv dword [SCRATCH]"): (),
    Case("with TF", armed(1, "SCRATCH", WRITTEN, 4) + "push dword 0x102\npopfd\nmov [SCRATCH], eax\nnop"): (
        0x4002001B, 0x4000001C,
    ),
    Case("two at once", armed(1, "SCRATCH + 4", WRITTEN, 4) + armed(2, "SCRATCH", WRITTEN, 4)
         + "mov eax, 0xdd00314\nmov dr7, eax\nmov [SCRATCH + 2], eax\nnop"): (0x6002D,),
    Case("a port without DE", armed(1, "0x80", PORT) + "out 0x80, al\nnop"): (),
    Case("a string of a port", "mov eax, 8\nmov cr4, eax\n" + armed(1, "0x80", PORT)
         + "mov ecx, 3\nmov edx, 0x80\nmov esi, SCRATCH\nrep outsb\nnop"): (0x20027, 0x20027, 0x20029),
    # The single step comes first: SDM Vol. 3A table 6-2.
    Case("a step to one", AT + "push dword 0x102\npopfd\n.here: nop\nnop"): (
        0x10016, 0x40000017, 0x40000018,
    ),
}  # fmt: skip


@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_by_the_book(technique):
    ends = on_emu86(tuple(BY_THE_BOOK), options={"technique": technique})
    found = {case.name: end.trace for case, end in zip(BY_THE_BOOK, ends, strict=True)}
    assert found == {case.name: trace for case, trace in BY_THE_BOOK.items()}


def test_a_task_switch_clears_the_local_ones():
    """Vol. 3B section 17.2.4."""
    code = armed(1, "SCRATCH", WRITTEN, 4) + (
        "mov eax, 0x3ff\nmov dr7, eax\nmov dword [TSSB + 0x20], .there\n"
        "jmp TSS1:0\n.there: mov ecx, dr7"
    )
    (record,) = on_emu86((Case("switch", code),))
    assert record["tr"] == 0x50
    assert record["ecx"] == 0x7AA


def test_they_are_left_when_they_are_off():
    """Hundreds of exits more while one is on; afterwards none."""
    loop = "mov ecx, 300\n.a{0}: loop .a{0}\n"
    counts = []
    for code in (
        loop.format(0),
        armed(0, "SCRATCH", WRITTEN) + loop.format(0),
        armed(0, "SCRATCH", WRITTEN) + "xor eax, eax\nmov dr7, eax\n" + loop.format(0),
    ):
        built = machine(image((Case("loop", code),)))
        assert built.run(timeout=300).reason == "debug exit"
        counts.append(sum(one.count for one in built.stats.exits.values()))
    bare, on, off = counts
    assert on > bare + 300 > off


def faults(code, technique="patch"):
    """How many bytes of this 64-bit code run, and what fault ends it; its machine."""
    ran = guest64(code, technique=technique)
    assert ran.run(timeout=20).reason == "triple fault"
    event = ran.vmm.history.events[0]
    return event.eip - 0x100000, event.vector, event.error, ran


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_debug_registers_of_64_bits(technique):
    """DR0 to DR3 hold addresses; DR6 and DR7 have 32 bits; REX.R names none."""
    keep = "mov rax, 0xffffffff81000000\nmov dr3, rax\nmov rbx, dr3\nud2"
    length, vector, _error, ran = faults(keep, technique)
    assert (length, vector) == (16, 6)
    assert ran.registers["rbx"] == 0xFFFFFFFF81000000
    for name in ("dr6", "dr7"):
        code = f"mov rax, 0x100000400\nmov {name}, rax"
        assert faults(code, technique)[:3] == (10, 13, 0)
    for code in ("db 0x44, 0x0f, 0x23, 0xc0", "db 0x44, 0x0f, 0x21, 0xf8"):
        assert faults(code, technique)[:3] == (0, 6, None)


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_a_breakpoint_above_4_gib(technique):
    """The PML4's last entry maps the first 512 GiB once more."""
    code = (
        "mov rax, cr3\nmov rbx, [rax]\nmov [rax + 8 * 511], rbx\nmov cr3, rax\n"
        "mov rax, 0xffffff8000108000\nmov dr0, rax\nmov ecx, 0xd0002\nmov dr7, rcx\n"
        "mov [0x108000], ecx\nmov esi, 1\nmov [rax], ecx\nmov esi, 2"
    )
    _length, vector, _error, ran = faults(code, technique)
    assert (vector, ran.registers["rsi"]) == (1, 1)
    assert ran.vcpu.dr[6] & 1


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_breakpoints_and_a_jump_to_what_is_not_canonical(technique):
    """Nothing can be looked at there; the fetch is #GP(0)."""
    code = "mov eax, 2\nmov dr7, rax\nmov rax, 0x800000000000\njmp rax"
    assert faults(code, technique)[1:3] == (13, 0)
