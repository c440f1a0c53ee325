"""Interrupts and exceptions through the guest's IDT, beside QEMU."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from support.assembler import assemble
from support.cases import MEMORY, Case, check, image, machine, on_emu86
from support.snippets import TO_RING

# A handler of the case's own for vector 45h, which shows the frame it finds.
SHOW = """
    mov esi, esp
    mov eax, DATA0
    mov es, eax
    mov ds, eax
    mov edi, SCRATCH
    mov ecx, 6
    ss rep movsd
    and dword [SCRATCH + 8], ~0x10000  ; RF: see test_faults_save_rf
    and dword [SCRATCH + 12], ~0x10000
    pushfd
    pop ebx
    int 0x40
"""
OWN = """
    mov eax, .handler
    mov [IDT + {vector} * 8], ax
    shr eax, 16
    mov [IDT + {vector} * 8 + 6], ax
    mov word [IDT + {vector} * 8 + 2], {selector}
    mov byte [IDT + {vector} * 8 + 5], {access}
"""


def own(name, access, body, *, vector=0x45, selector="CODE0", ring=0, flags=0x202):
    code = OWN.format(vector=vector, selector=selector, access=access)
    code += TO_RING.format(ring=ring, flags=flags) if ring else ""
    return Case(
        f"{name} from ring {ring}", f"{code}\n{body}\n.handler: {SHOW}", 0, flags
    )


GATES = tuple(
    case
    for ring in (0, 1, 3)
    for case in (
        own("interrupt gate", 0xEE, "int 0x45", ring=ring),
        own("trap gate", 0xEF, "int 0x45", ring=ring),
        own("trap gate, 16-bit target too high", 0xE7, "nop", ring=ring),
        own("absent gate", 0x6E, "int 0x45", ring=ring),
        own("gate with DPL 0", 0x8E, "int 0x45", ring=ring),
        own("gate with DPL 1", 0xAE, "int 0x45", ring=ring),
        own("call gate", 0xEC, "int 0x45", ring=ring),
        own("type 0", 0xE0, "int 0x45", ring=ring),
        own("no system type", 0xFE, "int 0x45", ring=ring),
        own("null selector", 0xEE, "int 0x45", selector=0, ring=ring),
        own("data selector", 0xEE, "int 0x45", selector="DATA0", ring=ring),
        own("absent selector", 0xEE, "int 0x45", selector="ABSENT", ring=ring),
        own("selector beyond", 0xEE, "int 0x45", selector=0xFFF8, ring=ring),
        own("code of ring 3", 0xEE, "int 0x45", selector="CODE3", ring=ring),
        own("handler of ring 1", 0xEE, "int 0x45", selector="CODE1", ring=ring),
        own("handler of ring 2", 0xEF, "int 0x45", selector="CODE2", ring=ring),
        own("with TF and NT", 0xEF, "push dword 0x4302\npopfd\nint 0x45", ring=ring),
        own("#UD", 0x8E, "ud2", vector=6, ring=ring),
        own("#DE", 0x8F, "xor ecx, ecx\ndiv ecx", vector=0, ring=ring),
        own("#GP with code", 0x8E, "mov eax, 0xFFF8\nmov fs, eax", vector=13, ring=ring),
        own("#NP", 0x8E, "mov eax, ABSENT\nmov fs, eax", vector=11, ring=ring),
        own("breakpoint", 0xEE, "int3", vector=3, ring=ring),
        own("breakpoint by two bytes", 0xEE, "db 0xCD, 3", vector=3, ring=ring),
        own("breakpoint, DPL 0", 0x8E, "int3", vector=3, ring=ring),
        own("breakpoint by two bytes, DPL 0", 0x8E, "db 0xCD, 3", vector=3, ring=ring),
        own("INTO", 0xEE, "mov eax, 0x7FFFFFFF\ninc eax\ninto", vector=4, ring=ring),
        own("INTO, DPL 0", 0x8E, "mov al, 127\ninc al\ninto", vector=4, ring=ring),
        own("INTO without OF", 0xEE, "xor eax, eax\ninto\nint 0x41", vector=4, ring=ring),
        own("INT 4", 0xEE, "int 4", vector=4, ring=ring),
        own("INT 8", 0xEE, "int 8", vector=8, ring=ring),
        own("INT 13", 0xEE, "int 13", vector=13, ring=ring),
        own("INT 14", 0xEE, "int 14", vector=14, ring=ring),
        own("BOUND, below", 0x8E, "mov eax, -1\nmov dword [SCRATCH + 0x60], 0\n"
            "mov dword [SCRATCH + 0x64], 9\nbound eax, [SCRATCH + 0x60]", vector=5,
            ring=ring),
        own("BOUND, inside", 0x8E, "mov eax, 9\nmov dword [SCRATCH + 0x60], 0\n"
            "mov dword [SCRATCH + 0x64], 9\nbound eax, [SCRATCH + 0x60]\nint 0x42",
            vector=5, ring=ring),
        own("#NM", 0x8E, "fninit", vector=7, ring=ring),
        own("gate of vector FFh", 0xEE, "int 0xFF", vector=255, ring=ring),
        own("stack in ring 0 is absent", 0xEE, "int 0x45", selector="CODE1",
            ring=3 if ring else 0),
    )
)  # fmt: skip
IDT_LIMITS = tuple(
    Case(
        f"IDT limit {limit:#x}, vector {vector:#x}, ring {ring}",
        f"mov dword [SCRATCH], {limit}\nmov dword [SCRATCH + 2], IDT\nlidt [SCRATCH]\n"
        + (TO_RING.format(ring=ring, flags=2) if ring else "")
        + f"int {vector}",
    )
    for ring in (0, 3)
    for limit, vector in ((0x22F, 0x45), (0x227, 0x45), (0x22E, 0x45), (0x7FF, 0x45))
)
# The stack that the TSS gives for ring 1, where the handler is to run.
STACKS = tuple(
    own(name, 0xEE, f"{change}\nint 0x45", selector="CODE1", ring=3)
    for name, change in {
        "a good stack": "",
        "null SS": "mov dword [TSS + 16], 0",
        "null SS with RPL": "mov dword [TSS + 16], 1",
        "SS with RPL 0": "mov dword [TSS + 16], DATA1 & ~3",
        "SS of ring 0": "mov dword [TSS + 16], DATA0 + 1",
        "SS is code": "mov dword [TSS + 16], CODE1",
        "SS is read-only": "mov byte [GDT + (DATA1 & ~3) + 5], 0xB1",
        "SS beyond the table": "mov dword [TSS + 16], 0xFFF9",
        "SS in the LDT, wrong DPL": "mov dword [TSS + 16], LDATA3 - 2",
        "another ESP": "mov dword [TSS + 12], STACK1 - 0x124",
    }.items()
)
# #GP, #NP and #PF on the way to a handler: Vol. 3A table 6-5.
DOUBLE = tuple(
    Case(name, code, 0)
    for name, code in {
        "#NP in #GP": "mov byte [IDT + 13 * 8 + 5], 0x0E\nmov eax, 0xFFF8\nmov fs, eax",
        "#GP in #UD": "mov word [IDT + 6 * 8 + 2], 0xFFF8\nud2",
        "#NP in #UD": "mov byte [IDT + 6 * 8 + 5], 0x0E\nud2",
        "#NP in #DE": "mov byte [IDT + 5], 0x0E\nxor ecx, ecx\ndiv ecx",
        "#GP in #NP": "mov word [IDT + 11 * 8 + 2], 0\nmov eax, ABSENT\nmov fs, eax",
        "#GP in INT": "mov word [IDT + 0x45 * 8 + 2], 0\nint 0x45",
        "#NP in #GP in INT": "mov byte [IDT + 13 * 8 + 5], 0x0E\n"
        "mov word [IDT + 0x45 * 8 + 2], 0\nint 0x45",
        "#DF by a task gate": "mov dword [IDT + 8 * 8], TSS1 << 16\n"
        "mov dword [IDT + 8 * 8 + 4], 0x8500\nmov byte [IDT + 13 * 8 + 5], 0x0E\n"
        "mov dword [TSSB + 0x20], .task\nmov eax, 0xFFF8\nmov fs, eax\n"
        ".task: pop eax\nint 0x41",
        "#BP absent": "mov byte [IDT + 3 * 8 + 5], 0x6E\nint3",
        "#DB absent": "mov byte [IDT + 8 + 5], 0x0E\npush dword 0x102\npopfd\nnop\nnop",
    }.items()
)
PAGED = (
    Case("#PF, no page", "mov eax, [0xC0000000]"),
    Case("#PF, write", "mov [0xC0000004], eax"),
    Case("#PF, read-only is writable without WP",
         "and byte [PT + 4 * 0x700], ~2\ninvlpg [0x700000]\nmov [0x700000], eax"),
    Case("#PF, WP", "and byte [PT + 4 * 0x700], ~2\ninvlpg [0x700000]\nmov eax, cr0\n"
         "or eax, 0x10000\nmov cr0, eax\nmov ecx, [0x700000]\nmov [0x700000], eax"),
    Case("#PF, user write", "and byte [PT + 4 * 0x700], ~2\nmov [0x700123], eax", 3),
    Case("#PF, user read", "and byte [PT + 4 * 0x700], ~4\nmov eax, [0x700456]", 3),
    Case("#PF, user fetch", "and byte [PT + 4 * 0x700], ~4\nmov eax, 0x700456\njmp eax",
         3),
    Case("#PF, fetch", "mov eax, 0xD0001000\njmp eax"),
    Case("#PF in a string", "mov edi, 0x7FFFF8\nmov ecx, 8\nmov eax, 5\nrep stosd"),
    Case("#PF in a string, across tables", "mov esi, 0x7FFFF9\nmov edi, SCRATCH\n"
         "mov ecx, 8\nrep movsd"),
    Case("#PF, across pages", "mov eax, [0x7FFFFE]"),
    Case("#PF, write across pages", "mov [0x7FFFFD], eax"),
    Case("#PF in SGDT", "sgdt [0xC0000000]"),
    Case("#PF in SIDT, across pages", "sidt [0x7FFFFC]"),
    Case("#PF in LGDT", "lgdt [0xC0000000]"),
    *(
        Case(f"#PF in {name}", "mov dword [IDT + 14 * 8], TSS1 << 16\n"
             f"mov dword [IDT + 14 * 8 + 4], 0x8500\nmov esp, 0x7FFFFF\n{name}")
        for name in ("popfd", "retf", "iretd", "pop fs", "pop ss", "popf", "o16 retf")
    ),
    Case("#PF in a user's SGDT", "and byte [PT + 4 * 0x700], ~2\nsgdt [0x700010]", 3),
    Case("#PF in a user's STR", "and byte [PT + 4 * 0x700], ~4\nstr [0x700010]", 3),
    Case("#PF in LAR", "lar eax, [0xC0000000]"),
    Case("#PF in LES", "les eax, [0x7FFFFE]"),
    Case("#PF in a far jump", "jmp far [0xC0000000]"),
    Case("#PF in a far call", "call far [0x7FFFFC]"),
    Case("#PF for the stack becomes #DF by a task", "mov dword [IDT + 8 * 8], TSS1 << 16"
         "\nmov dword [IDT + 8 * 8 + 4], 0x8500\nmov esp, 0xC0000000\npush eax"),
    Case("#PF for the stack of INT", "mov dword [IDT + 14 * 8], TSS1 << 16"
         "\nmov dword [IDT + 14 * 8 + 4], 0x8500\nmov esp, 0xC0000000\nint 0x45"),
    Case("#PF for the ring 0 stack", "mov dword [IDT + 14 * 8], TSS1 << 16"
         "\nmov dword [IDT + 14 * 8 + 4], 0x8500\nmov dword [TSS + 4], 0xC0000000\n"
         "int 0x40", 3),
    Case("#PF for the GDT", "mov dword [SCRATCH], 0xFF\nmov dword [SCRATCH + 2], "
         "0x7FFFA0\nmov esi, GDT\nmov edi, 0x7FFFA0\nmov ecx, 0x60\nrep movsb\n"
         "mov dword [IDT + 14 * 8], TSS1 << 16\nmov dword [IDT + 14 * 8 + 4], 0x8500\n"
         "lgdt [SCRATCH]\nmov eax, DATA3\nmov fs, eax\nmov eax, BASED\nmov gs, eax"),
    Case("CR2 of an emulated write", "sidt [0xC0001234]"),
    Case("present again", "mov eax, [0xC0000000]"),
    Case("A and D bits", "mov eax, [0x701000]\nmov [0x702000], eax\n"
         "mov eax, [PT + 4 * 0x701]\nmov ebx, [PT + 4 * 0x702]\n"
         "mov ecx, [PT + 4 * 0x703]\nmov edx, [PD + 4]\nsidt [0x704000]\n"
         "mov esi, [PT + 4 * 0x704]"),
)  # fmt: skip


@pytest.mark.parametrize("paging", [False, True], ids=["flat", "paged"])
@pytest.mark.parametrize(
    "cases", [GATES, IDT_LIMITS, STACKS], ids=["gates", "limits", "stacks"]
)
def test_delivery(cases, paging):
    check(cases, "patch", paging=paging)


def test_faults_on_the_way_to_a_handler():
    """QEMU leaves EXT clear after a fault, where Vol. 3A section 6.13 sets it."""
    check(DOUBLE, "patch", ignore=("error",))
    errors = {
        case.name: r["error"] for case, r in zip(DOUBLE, on_emu86(DOUBLE), strict=True)
    }
    assert errors == {
        "#NP in #GP": 0, "#GP in #UD": 0xFFF9, "#NP in #UD": 0x33, "#NP in #DE": 0,
        "#GP in #NP": 0, "#GP in INT": 0, "#NP in #GP in INT": 0,
        "#DF by a task gate": 0xDEADBEEF, "#BP absent": 0x1A, "#DB absent": 0x0B,
    }  # fmt: skip


def test_a_stack_or_task_that_is_not_there():
    """EXT again: the TSS has no stack, a task gate names no TSS."""
    small = """
    mov word [GDT + TSS0], 3
    mov byte [GDT + TSS0 + 5], 0x89
    mov eax, TSS0
    ltr ax
    mov dword [IDT + 10 * 8], TSS1 << 16
    mov dword [IDT + 10 * 8 + 4], 0x8500
    mov dword [TSSB + 0x20], .task
    """
    small += TO_RING.format(ring=3, flags=2) + "{}\n.task: pop eax\nint 0x41"
    gate = "mov dword [IDT + {0} * 8], DATA0 << 16\nmov dword [IDT + {0} * 8 + 4], 0xE500\n"
    cases = (
        Case("#TS in #UD", small.format("ud2")),
        Case("#GP in #UD", gate.format(6) + "ud2"),
        Case("#GP in INT", gate.format(0x45) + "int 0x45"),
    )
    first, *others = on_emu86(cases)
    assert (first["vector"], first["eax"]) == (0x41, 0x49)
    assert [(r["vector"], r["error"]) for r in others] == [(13, 0x11), (13, 0x10)]


def test_an_absent_stack_segment_in_the_tss():
    """#SS, not #TS: SDM Vol. 2A INT n."""
    change = "mov byte [GDT + (DATA1 & ~3) + 5], 0x33\nint 0x45"
    (record,) = on_emu86((own("SS", 0xEE, change, selector="CODE1", ring=3),))
    assert (record["vector"], record["error"]) == (12, 0x20)


@pytest.mark.parametrize("technique", ["patch", "iopl", "public API only"])
def test_page_faults(technique):
    check(PAGED, technique, paging=True)


def test_page_faults_by_the_manual():
    """QEMU reads IRET's and RETF's frames as the kernel, and its CPU has PSE-36."""
    cases = (
        Case("IRET", "mov dword [0x7FFFFC], 5\nmov esp, 0x7FFFFC\niretd", 3),
        Case("RETF", "mov dword [0x7FFFFC], 5\nmov esp, 0x7FFFFC\nretf", 3),
        Case(
            "reserved bit",
            "mov eax, 0x10\nmov cr4, eax\nmov dword [PD + 0x400], 0x00003087\n"
            "mov eax, [0x40000123]",
        ),
    )
    got = [(r["vector"], r["error"], r["cr2"]) for r in on_emu86(cases, paging=True)]
    assert got == [(14, 4, 0x800000), (14, 4, 0x800000), (14, 9, 0x40000123)]


def test_sixteen_bit_gates():
    """Frames of words: SDM Vol. 2A INT n, 16-bit gate."""
    cases = tuple(
        Case(
            f"from ring {ring}",
            f"""
            mov dword [IDT + 0x45 * 8], HIGH0 << 16
            mov eax, .handler - mb
            mov [IDT + 0x45 * 8], ax
            mov dword [IDT + 0x45 * 8 + 4], 0x{access:x}00
            {TO_RING.format(ring=ring, flags=0x202) if ring else ""}
            int 0x45
            .handler: {SHOW}""",
        )
        for ring in (0, 1, 3)
        for access in (0xE6, 0xE7)
    )
    check(cases, "patch")


def test_a_conforming_handler_runs_at_the_ring_of_the_interrupted():
    """SDM Vol. 2A INT n: a conforming handler does not change the CPL."""
    body = OWN.format(vector=0x45, selector="CONFORM", access=0xEE)
    body += TO_RING.format(ring=3, flags=0x202) + "int 0x45\n.handler: mov eax, cs"
    (record,) = on_emu86((Case("conforming", body),))
    assert (record["eax"], record["cs"], record["ss"]) == (0x93, 0x93, 0x43)


TRIPLE = """
    org 0x100000
    bits 32
    lidt [none]
    {}
    jmp $
    none: dw 0
    dd 0
"""


@pytest.mark.parametrize("technique", ["trap", "patch", "iopl"])
@pytest.mark.parametrize("code", ["ud2", "int 3", "int 0x80", "xor ecx, ecx\ndiv ecx"])
def test_triple_fault(technique, code):
    from emu86 import Machine

    built = Machine(memory=MEMORY, technique=technique)
    built.load_flat(assemble(TRIPLE.format(code)), 0x100000)
    assert built.run(timeout=120).reason == "triple fault"


def test_observers_are_told_of_every_event():
    told = []

    class Watch:
        def inject(self, vector, error):
            told.append((vector, error))

    built = machine(
        image((Case("#NP", "mov eax, ABSENT\nmov fs, eax"), Case("#UD", "ud2")))
    )
    built.subscribe(Watch())
    assert built.run(timeout=120).reason == "debug exit"
    assert told == [(11, 0x98), (6, None)]
