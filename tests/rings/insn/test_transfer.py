"""Far transfers, gates and task switches, beside QEMU."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from support.cases import Case, check, on_emu86
from support.snippets import TO_RING

# At ring 0 first: point a gate at .inner, then go to ring {ring} and use it.
SETUP = (
    """
    mov eax, .inner
    mov [GDT + {gate}], ax
    shr eax, 16
    mov [GDT + {gate} + 6], ax
"""
    + TO_RING
)
SAVE_STACK = """
    mov esi, esp
    mov edi, SCRATCH
    mov ecx, 8
    mov eax, DATA0
    mov es, eax
    mov ds, eax
    ss rep movsd
"""


def gated(name, gate, body, ring=3):
    return Case(
        f"{name} from ring {ring}",
        SETUP.format(gate=gate, ring=ring, flags=0x202) + body,
    )


GATES = tuple(
    gated(name, gate, body, ring)
    for ring in (1, 2, 3)
    for name, gate, body in (
        (
            "call gate with parameters",
            "GATE32",
            f"push dword 0x77\npush dword 0x88\ncall GATE32:0\n.inner: {SAVE_STACK}",
        ),
        (
            "call gate and back",
            "GATE32",
            (
                "push dword 0x77\npush dword 0x88\ncall GATE32:0\nmov eax, esp\nint 0x40\n"
                ".inner: mov ebx, esp\nmov edx, ss\nretf 8"
            ),
        ),
        (
            "call gate and back, with data segments of ring 0",
            "GATE32",
            (
                "push dword 0x77\npush dword 0x88\ncall GATE32:0\nmov eax, esp\nint 0x40\n"
                ".inner: mov eax, DATA0\nmov ds, eax\nmov fs, eax\nmov eax, DATA1\n"
                "mov gs, eax\nmov eax, CONFORM\nmov es, eax\nretf 8"
            ),
        ),
        (
            "call gate to ring 2",
            "GATE2",
            "push dword 0x99\ncall GATE2:0\nint 0x40\n.inner: mov ebx, [esp + 8]\nretf 4",
        ),
        (
            "call gate, 16-bit operand",
            "GATE32",
            "push dword 1\npush dword 2\no16 call GATE32:0\n.inner: " + SAVE_STACK,
        ),
        (
            "call gate, not present",
            "GATE32",
            "mov byte [GDT + GATE32 + 5], 0x6C\ncall GATE32:0\n.inner:",
        ),
        (
            "call gate, too low a DPL",
            "GATE32",
            "mov byte [GDT + GATE32 + 5], 0x8C\ncall GATE32:0\n.inner:",
        ),
        (
            "call gate to nothing",
            "GATE32",
            "mov word [GDT + GATE32 + 2], 0\ncall GATE32:0\n.inner:",
        ),
        (
            "call gate to data",
            "GATE32",
            "mov word [GDT + GATE32 + 2], DATA0\ncall GATE32:0\n.inner:",
        ),
        (
            "call gate beyond the table",
            "GATE32",
            "mov word [GDT + GATE32 + 2], 0xFFF8\ncall GATE32:0\n.inner:",
        ),
        (
            "call gate, null SS in the TSS",
            "GATE2",
            "mov dword [TSS + 24], 0\ncall GATE2:0\n.inner:",
        ),
        (
            "call gate, SS of the wrong ring in the TSS",
            "GATE2",
            "mov dword [TSS + 24], DATA1\ncall GATE2:0\n.inner:",
        ),
        (
            "call gate, SS not present in the TSS",
            "GATE2",
            (
                "mov dword [TSS + 24], FRESH\nmov dword [GDT + FRESH + 4], 0x00CF5300\n"
                "call GATE2:0\n.inner:"
            ),
        ),
        (
            "call gate, SS beyond the table in the TSS",
            "GATE2",
            "mov dword [TSS + 24], 0xFFF8\ncall GATE2:0\n.inner:",
        ),
        (
            "jump through a call gate to an inner ring",
            "GATE32",
            "jmp GATE32:0\n.inner:",
        ),
        (
            "call through a 32-bit gate, indirect",
            "GATE32",
            (
                "push dword 5\npush dword 6\nmov dword [SCRATCH + 0x60], 0xFFFFFFFF\n"
                "mov dword [SCRATCH + 0x64], GATE32 + 3\ncall far [SCRATCH + 0x60]\n"
                f".inner: {SAVE_STACK}"
            ),
        ),
        (
            "RPL above the gate's DPL",
            "GATE32",
            (
                "mov byte [GDT + GATE32 + 5], 0xCC\nmov dword [SCRATCH + 4], GATE32 + 3\n"
                "call far [SCRATCH]\n.inner:"
            ),
        ),
    )
)
GATE16 = tuple(
    Case(
        f"16-bit gate from ring {ring}",
        f"""
        mov eax, .inner - mb
        mov [GDT + GATE16], ax
        {TO_RING.format(ring=ring, flags=0x202)}
        push word 0x1111
        push word 0x2222
        call GATE16:0
        .inner: {SAVE_STACK}""",
    )
    for ring in (1, 2, 3)
)
RETURNS = tuple(
    Case(f"{name} from ring {ring}", code, ring)
    for ring in range(4)
    for name, code in {
        "retf, 16 bits": "push word cs\npush word .there - mb\nmov eax, HIGH0\n"
        "mov [esp + 2], ax\no16 retf\n.there:",
        "retf to DPL above RPL": "push dword CODE3 & ~3\npush .there\nretf\n.there:",
        "retf to an inner ring": "push dword CODE0\npush .there\nretf\n.there:",
        "retf to conforming": f"push dword CONFORM + {ring}\npush .there\nretf\n.there:",
        "retf to absent code": "mov byte [GDT + EXECONLY + 5], 0x79\n"
        "push dword DATA3\npush dword STACK3\npush dword EXECONLY + 3\npush .there\n"
        "retf\n.there:",
        "retf to a gate": "push dword GATE32\npush .there\nretf\n.there:",
        "retf to data": "push dword DATA3\npush .there\nretf\n.there:",
        "retf beyond the table": "push dword 0xFFFB\npush .there\nretf\n.there:",
        "retf to ring 3 nulls segments": "mov eax, DATA3\nmov ds, eax\n"
        "mov eax, LDATA3\nmov gs, eax\nmov eax, CONFORM\nmov fs, eax\n"
        "push dword DATA3\npush dword STACK3\npush dword CODE3\npush .there\n"
        "retf\n.there: mov eax, 5",
        "iret, 16 bits": "pushf\npush word HIGH0\npush word .there - mb\no16 iret\n.there:",
        "iret with TF": "push dword 0x102\npush cs\npush .there\niretd\n"
        ".there: nop\nnop\npush dword 2\npopfd\nnop",
        "iret to conforming": f"push dword 2\npush dword CONFORM + {ring}\n"
        "push .there\niretd\n.there:",
        "iret to absent code": "mov byte [GDT + EXECONLY + 5], 0x79\n"
        "push dword DATA3\npush dword STACK3\npush dword 2\n"
        "push dword EXECONLY + 3\npush .there\niretd\n.there:",
        "iret with NT and no task": "push dword 0x4002\npopfd\niretd",
        "iret sets every flag": "push dword 0x254FD7\npush cs\npush .there\niretd\n"
        ".there: pushfd\npop eax\npush dword 2\npopfd",
    }.items()
)
TASKS = tuple(
    Case(f"{name} from ring {ring}", code, ring)
    for ring in (0, 3)
    for name, code in {
        "call a task gate": "call TASK1:0",
        "jump to a task gate": "jmp TASK1:0",
        "call a TSS": "call TSS1:0",
        "jump to a TSS": "jmp TSS1:0",
        "call a 16-bit task gate": "call TASK16:0",
        "call a 16-bit TSS": "call TSS16:0",
        "jump to a 16-bit TSS": "jmp TSS16:0",
        "call a busy TSS": "call TSS0:0",
        "an absent TSS": "mov byte [GDT + TSS1 + 5], 9\ncall TASK1:0",
        "an absent task gate": "mov byte [GDT + TASK1 + 5], 0x65\ncall TASK1:0",
        "a short TSS": "mov word [GDT + TSS1], 0x66\ncall TASK1:0",
        "a task gate to data": "mov word [GDT + TASK1 + 2], DATA0\ncall TASK1:0",
        "call and return": "mov dword [TSSB + 0x20], task_return\ncall TASK1:0\n"
        "pushfd\npop eax",
        "call, return and call again": "mov dword [TSSB + 0x20], task_return\n"
        "call TASK1:0\nmov ebx, [TSSB + 0x24]\ncall TASK1:0",
        "an interrupt's task gate": "mov dword [IDT + 0x45 * 8], TSS1 << 16\n"
        "mov dword [IDT + 0x45 * 8 + 4], 0xE500\nint 0x45",
        "an exception's task gate": "mov dword [IDT + 13 * 8], TSS1 << 16\n"
        "mov dword [IDT + 13 * 8 + 4], 0xE500\nmov dword [TSSB + 0x20], .task\n"
        "mov eax, 0xFFF8\nmov fs, eax\n.task: pop eax\nmov ebx, [TSS + 0x24]",
        "a task with bad CS": "mov dword [TSSB + 0x4C], DATA0\ncall TASK1:0",
        "a task with null CS": "mov dword [TSSB + 0x4C], 0\ncall TASK1:0",
        "a task with CS of another ring": "mov dword [TSSB + 0x4C], CODE3 & ~3\n"
        "call TASK1:0",
        "a task with bad SS": "mov dword [TSSB + 0x50], READONLY\ncall TASK1:0",
        "a task without LDT": "mov dword [TSSB + 0x60], 0\nmov dword [TSSB + 0x48], 0\n"
        "call TASK1:0",
        "a task at ring 3": "mov dword [TSSB + 0x4C], CODE3\n"
        "mov dword [TSSB + 0x50], DATA3\nmov dword [TSSB + 0x38], STACK3\n"
        "mov dword [TSSB + 0x54], DATA3\nmov dword [TSSB + 0x24], 0x202\ncall TASK1:0",
        "NT and a busy back link": "mov word [TSS], TSS1\n"
        "mov byte [GDT + TSS1 + 5], 0x8B\npush dword 0x4002\npopfd\niretd",
        "NT and an idle back link": "mov word [TSS], TSS1\npush dword 0x4002\npopfd\n"
        "iretd",
    }.items()
)
# The state saved in the old TSS, and the busy bits, seen from the new task.
SAVED = tuple(
    Case(
        f"{how}: what is saved",
        f"""
        mov dword [TSSB + 0x20], .task
        mov eax, 0x1111
        std
        push dword 0x4A93
        popfd
        {how} TSS1:0
        .next: int 0x41
        .task: pushfd
        cld
        mov esi, TSS + 0x20
        mov edi, SCRATCH
        mov ecx, 12
        mov eax, DATA0
        mov ds, eax
        mov es, eax
        rep movsd
        pop eax
        and dword [SCRATCH], 0xFF
        mov ebx, [GDT + TSS0 + 4]
        mov ecx, [GDT + TSS1 + 4]
        mov edx, [TSSB]""",
    )
    for how in ("call", "jmp")
)


@pytest.mark.parametrize("paging", [False, True], ids=["flat", "paged"])
@pytest.mark.parametrize(
    "cases",
    [GATES, GATE16, RETURNS, TASKS, SAVED],
    ids=["gates", "16-bit gates", "returns", "tasks", "saved"],
)
def test_transfers(cases, paging):
    check(cases, "patch", paging=paging)


# What the SDM says and QEMU 7.2 does otherwise: code, ring, vector, error code.
BY_THE_MANUAL = (
    *(
        (f"{how} to an absent SS", code, ring, 12, 0x98)
        for ring in range(3)
        for how, code in (
            ("retf", "push dword ABSENT + 3\npush 0\npush dword CODE3\npush 0\nretf"),
            (
                "iret",
                ("push dword ABSENT + 3\npush 0\npush 2\npush dword CODE3\npush 0\n"
                "iretd"),
            ),
        )
    ),
    *(
        (
            "IRET ignores VM outside of ring 0",
            "push dword 0x20002\npush cs\npush .there\niretd\n.there:\nint 0x42",
            ring,
            0x42,
            0xDEADBEEF,
        )
        for ring in (1, 2, 3)
    ),
    ("a task gate to the LDT", "mov word [GDT + TASK1 + 2], LDATA3\ncall TASK1:0", 0,
     13, 0x0C),
    ("a task with a bad DS", "mov dword [TSSB + 0x54], EXECONLY\ncall TASK1:0", 0,
     10, 0xA0),
    ("a task with an absent DS", "mov dword [TSSB + 0x54], ABSENT\ncall TASK1:0", 0,
     11, 0x98),
)  # fmt: skip


def test_by_the_manual():
    cases = tuple(Case(name, code, ring) for name, code, ring, _, _ in BY_THE_MANUAL)
    for (name, _, ring, *wanted), record in zip(
        BY_THE_MANUAL, on_emu86(cases), strict=True
    ):
        assert [record["vector"], record["error"]] == wanted, (name, ring)
