"""Single steps, breakpoints, and the interrupt shadow."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from support.cases import Case, check, on_emu86
from support.snippets import IRQ4

STEPS = tuple(
    Case(f"{name} at ring {ring}", code, ring, 0x102)
    for ring in (0, 3)
    for name, code in {
        "native": "nop\nmov eax, 1\nadd eax, 2\ncld",
        "string": "mov edi, SCRATCH\nmov ecx, 4\nrep stosb\nnop",
        "string, none": "xor ecx, ecx\nmov edi, SCRATCH\nrep stosb\nnop",
        "branches": "jmp .a\nnop\n.a: call .b\nnop\njmp .c\n.b: ret\n.c: loop .c",
        "POPF keeps TF": "push dword 0x102\npopfd\nnop\nnop",
        "POPF clears TF": "push dword 2\npopfd\nnop\nnop",
        "PUSHF": "pushfd\npop eax\nnop",
        "sensitive": "sgdt [SCRATCH]\nstr eax\nsmsw ebx\nlar ecx, edx\nnop",
        "segments": "mov eax, DATA3\nmov fs, eax\npush fs\npop gs\nles eax, [SCRATCH]",
        "far": "jmp CONFORM:.a\n.a: nop\ncall CONFORM:.b\n.b: nop\n",
        "INT": "nop\nint 0x41",
        "INT3": "nop\nint3",
        "faults": "nop\nmov eax, ABSENT\nmov fs, eax",
        "#UD": "nop\nud2",
        "INTO not taken": "xor eax, eax\ninto\nnop",
        "BOUND": "mov dword [SCRATCH + 4], 9\nxor eax, eax\nbound eax, [SCRATCH]\nnop",
        "IRET": "push dword 0x102\npush cs\npush .a\niretd\n.a: nop\nnop",
        "IRET clears TF": "push dword 2\npush cs\npush .a\niretd\n.a: nop\nnop",
        "RETF": "push cs\npush .a\nretf\n.a: nop\nnop",
        "PUSH and POP": "push eax\npop ebx\npushad\npopad\nenter 8, 0\nleave",
    }.items()
) + tuple(
    Case(f"{name} at ring 0", code, 0, 0x102)
    for name, code in {
        "CLI": "cli\nnop\ncli\nnop",
        "control registers": "mov eax, cr0\nmov cr0, eax\nclts\nmov eax, cr3\nnop",
        "I/O": "in al, 0x21\nout 0x80, al\nmov esi, SCRATCH\nmov edx, 0x80\noutsb\nnop",
        "I/O strings": "mov edx, 0x21\nmov edi, SCRATCH\nmov ecx, 3\nrep insb\nnop",
        "tables": "sgdt [SCRATCH]\nlgdt [SCRATCH]\nsidt [SCRATCH]\nlidt [SCRATCH]\nnop",
        "to ring 3": "push dword DATA3\npush dword STACK3\npush dword 0x102\n"
        "push dword CODE3\npush .a\niretd\n.a: nop\nnop\n",
        "TF set by IRET": "push dword 2\npopfd\npush dword 0x102\npush cs\npush .a\n"
        "iretd\n.a: nop\nmov eax, cr0\nnop",
        "TF set by POPF": "push dword 2\npopfd\npush dword 0x102\npopfd\ncli\nnop\ncli",
        "debug registers": "mov eax, dr6\nnop\nmov ebx, dr6",
        "CPUID and RDTSC": "xor eax, eax\ncpuid\nxor eax, eax\nxor ebx, ebx\n"
        "xor ecx, ecx\nxor edx, edx\nrdtsc\nxor eax, eax\nxor edx, edx\nnop",
    }.items()
)


def offsets(record):
    """Where the #DBs came, which are single steps all."""
    assert all(one >> 16 == 0x4000 for one in record.trace)
    return [one & 0xFFFF for one in record.trace]


@pytest.mark.parametrize("technique", ["patch", "iopl", "public API only"])
@pytest.mark.parametrize("paging", [False, True], ids=["flat", "paged"])
def test_single_steps(technique, paging):
    check(STEPS, technique, ignore=("edx", "eax") if paging else (), paging=paging)


def test_ss_holds_the_step_off():
    """Vol. 3A section 6.8.3: no single-step trap between MOV SS and what follows."""
    cases = (
        Case("MOV SS", "mov eax, ss\nmov ss, eax\nnop\nnop", 0, 0x102),
        Case("POP SS", "push ss\npop ss\nnop\nnop", 0, 0x102),
    )
    assert [offsets(one) for one in on_emu86(cases)] == [[2, 5, 6], [1, 3, 4]]


def test_sti_does_not_hold_the_step_off():
    """Vol. 2B STI: it delays maskable interrupts, and nothing else."""
    (record,) = on_emu86((Case("STI", "cli\nnop\nsti\nnop\ncli\nnop", 0, 0x102),))
    assert offsets(record) == [1, 2, 3, 4, 5, 6]


def test_int1_is_a_trap():
    cases = tuple(
        Case(f"INT1 at ring {ring}", "nop\nint1\nmov eax, 1\nint1\nmov ebx, 2", ring)
        for ring in range(4)
    )
    for record in on_emu86(cases):
        assert record.trace == (2, 8)  # DR6 tells nothing of it
        assert (record["vector"], record["eax"], record["ebx"]) == (0x40, 1, 2)


UART = IRQ4.format(base=0x48)
DONE = """
    mov dx, 0x3F9
    xor eax, eax
    out dx, al
    mov al, 0xFF
    out 0x21, al
"""
SHADOW = tuple(
    Case(name, f"{UART}\n.start: {code}\n{DONE}\nint 0x41")
    for name, code in {
        "STI": "sti\nnop\nnop\nnop",
        "STI and CLI": "sti\ncli\nnop\nnop",
        "STI twice": "sti\nsti\nnop\nnop",
        "STI and an emulated instruction": "sti\nmov eax, cr0\nnop\nnop",
        "STI and a patched instruction": "sti\nstr eax\nnop\nnop",
        "STI and I/O": "sti\nin al, 0x80\nnop\nnop",
        "STI and a jump": "sti\njmp .a\n.a: nop\nnop",
        "STI and a string": "mov edi, SCRATCH\nmov ecx, 3\nsti\nrep stosb\nnop",
        "POPF": "push dword 0x202\npopfd\nnop\nnop",
        "POPF and CLI": "push dword 0x202\npopfd\ncli\nnop",
        "IRET": "push dword 0x202\npush cs\npush .a\niretd\n.a: nop\nnop",
        "IRET and CLI": "push dword 0x202\npush cs\npush .a\niretd\n.a: cli\nnop",
        "STI and HLT": "sti\nhlt\nnop",
        "STI, RET": "call .f\nnop\nnop\njmp .end\n.f: sti\nret\n.end:",
        "to ring 3": "push dword DATA3\npush dword STACK3\npush dword 0x3202\n"
        "push dword CODE3\npush .a\niretd\n.a: nop\nnop\n",
        "STI at ring 3 with IOPL 3": "push dword DATA3\npush dword STACK3\n"
        "push dword 0x3002\npush dword CODE3\npush .a\niretd\n.a: sti\nnop\nnop",
    }.items()
)


def test_the_interrupt_shadow():
    """Where an interrupt that waits is taken: after the instruction that follows STI."""
    check(SHADOW, "patch", ignore=("eflags", "eax"))
    check(SHADOW, "public API only", ignore=("eflags", "eax"))


def test_mov_ss_after_sti():
    """Vol. 2B STI: of two in a row, the first holds off, the second may or may not."""
    code = f"{UART}\nmov ebx, ss\nsti\nmov ss, ebx\n.a: nop\n.b: nop\nnop\nint 0x41"
    (record,) = on_emu86((Case("SS", f"{code}"),))
    assert record["vector"] == 0x4C
    assert record["eip"] in {0x2A, 0x2B}


def test_an_interrupt_comes_at_once_with_iopl_raised():
    """STI does not trap then, so the engine itself must look for what waits."""
    code = f"{UART}\nsti\nxor ecx, ecx\n.a: inc ecx\njmp .a"
    (record,) = on_emu86((Case("STI", code),), options={"technique": "iopl"})
    assert record["vector"] == 0x4C
    assert record["ecx"] <= 1


def test_hlt_under_tf_is_left_by_the_trap():
    """Vol. 2A HLT: a debug exception resumes execution; the trap is after HLT."""
    (record,) = on_emu86((Case("HLT", "nop\nhlt\nnop\nnop", 0, 0x102),))
    assert record["vector"] == 0x40
    assert offsets(record) == [1, 2, 3, 4]
