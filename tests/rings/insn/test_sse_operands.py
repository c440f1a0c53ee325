"""Operands of SSE that are refused; beside the host's CPU, which says which."""

import pytest

from emu86.rings.decode import decode
from emu86.rings.insn.sse_operands import is_looked_at
from emu86.testing import run, stage
from emu86.testing.ring3 import User, run_on_host
from emu86.testing.semantics import compare_with_host
from emu86.testing.stage import State
from support.assembler import assemble
from support.flat import flat

PREFIXES = (b"", b"\x66", b"\xf2", b"\xf3")
DATA = stage.DATA
# MASKMOVQ is of registers; SSE4a and later are in no CPU model.
OPCODES = [*range(0x10, 0x18), *range(0x28, 0x30), *range(0x50, 0x71),
           *range(0x74, 0x77), 0x7C, 0x7D, 0x7E, 0x7F, 0xC2, 0xC4, 0xC6,
           *range(0xD0, 0xF7), *range(0xF8, 0xFF)]  # fmt: skip


@pytest.mark.emu86_host
def test_which_operands_must_be_aligned():
    wrong, found = [], 0
    for prefix in PREFIXES:
        for opcode in OPCODES:
            code = prefix + bytes([0x0F, opcode, 0x03])  # [ebx]
            code += b"\0" * (opcode in {0x70, 0xC2, 0xC4, 0xC6})
            ends = [
                run_on_host(code, User(32, {"ebx": DATA + 16 + by})).end
                for by in (0, 4)
            ]
            if ends[0] == "done":
                refused = ends[1] == "#GP"
                found += refused
                if is_looked_at(decode(code, 32)) != refused:
                    wrong.append((code.hex(), ends))
    assert wrong == []
    assert found > 100


# The engine leaves the last opcode (FOP) out; CPUs have other masks of MXCSR.
FXSAVE = """fxsave [ebx + 0x100]
    mov word [ebx + 0x106], 0
    mov dword [ebx + 0x11c], 0"""


def on_host(code, **registers):
    user = User(32, registers or {"ebx": DATA}, 0x8D5, data=bytes(4096))
    return compare_with_host(assemble(f"bits 32\n{code}"), user)


@pytest.mark.emu86_host
@pytest.mark.parametrize(
    "code",
    [
        "movaps xmm0, [ebx + 4]",
        "movaps [ebx + 0x20], xmm0\nmovaps [ebx + 0x24], xmm0",
        "mov ecx, 2\nmulps xmm0, [ebx + ecx * 8]\nmulps xmm0, [ebx + ecx * 4]",
        "mov ecx, 1\nmovntps [ebx + ecx * 2 + 0x80], xmm1",
        "push eax\nmovaps xmm1, [esp]",
        "mov esi, 0x30\nmovaps xmm0, [ebx + esi]\na16 movaps xmm0, [si + 8]",
        f"movaps xmm0, [{DATA + 16}]\nmovaps xmm0, [{DATA + 8}]",
        f"{FXSAVE}\nfxrstor [ebx + 0x100]\nfxsave [ebx + 8]",
        f"{FXSAVE}\nmov dword [ebx + 0x118], 0x10000\nfxrstor [ebx + 0x100]",
        f"{FXSAVE}\nfxrstor [ebx + 0x108]",
        "mov dword [ebx + 1], 0x1fc0\nldmxcsr [ebx + 1]\nstmxcsr [ebx]",
        "mov dword [ebx + 1], 0x80001f80\nldmxcsr [ebx + 1]",
        # What is not there is a page fault, and a rewritten flag is not lost.
        "stc\nmovaps xmm0, [ebx + 0x1000]",
        "stc\nmovaps xmm0, [ebx + 0x1008]",
        "stc\nfxsave [ebx + 0xf00]",
        "stc\nldmxcsr [ebx + 0xffe]",
        f"stc\nmovaps [{stage.CODE + 0x800}], xmm0",  # not writable
    ],
)
def test_an_operand(code):
    assert on_host(code) == []


@pytest.mark.emu86_host
def test_flags_are_those_of_the_program():
    # Each page is filled at its first use, which must not cost a flag; and the engine
    # brings its flags to EFLAGS form before it looks.
    code = """
        mov ecx, 3
    .again:
        add al, al
        movaps xmm0, [ebx]
        pushfd
        pop edx
        mov [ebx + ecx * 4 + 0x20], edx
        cmp eax, ecx
        movaps [ebx + 0x10], xmm0
        setg [ebx + ecx]
        clc
        movaps xmm1, [ebx]
        pushfd
        pop edx
        std
        movaps xmm1, [ebx]
        cld
        movaps xmm1, [ebx]
        pushfd
        pop esi
        sub eax, 0x7fffffff
        addps xmm1, [esp - 0x1000 + 0xff0]
        loop .again
    """
    assert on_host(code, ebx=DATA, eax=0x8001C0) == []


VECTORS = """
    gate 6, .6
    gate 7, .7
    gate 13, .13
    mov ebx, 0x170008
    mov dword [ebx], -1
    mov eax, {cr0}
    mov cr0, eax
    mov eax, {cr4}
    mov cr4, eax
    {code}
    mov eax, 0
    jmp fin
.6: mov eax, 6
    jmp fin
.7: mov eax, 7
    jmp fin
.13: mov eax, 13
    jmp fin
"""


@pytest.mark.parametrize("technique", ["patch", "iopl", "bare"])
@pytest.mark.parametrize(
    ("code", "cr0", "cr4", "vector"),
    [
        ("movaps xmm0, [ebx]", 0x31, 0x200, 13),
        ("movaps xmm0, [ebx]", 0x39, 0x200, 7),  # TS
        ("movaps xmm0, [ebx]", 0x35, 0x200, 6),  # EM
        ("movaps xmm0, [ebx]", 0x31, 0, 6),
        ("ldmxcsr [ebx]", 0x31, 0x200, 13),
        ("ldmxcsr [ebx]", 0x39, 0x200, 7),
        ("ldmxcsr [ebx]", 0x31, 0, 6),
        ("fxsave [ebx]", 0x31, 0, 13),
        ("fxsave [ebx]", 0x39, 0, 7),
        ("fxsave [ebx + 8]\nmov [ebx + 32], ebx\nfxrstor [ebx + 8]", 0x31, 0x200, 13),
        ("fxsave [ebx + 8]\nmov [ebx + 32], ebx\nfxrstor [ebx + 8]", 0x31, 0, 0),
        # The segment's base counts, too.
        ("movaps xmm0, [ss:ebx - 8]", 0x31, 0x200, 0),
    ],
)  # fmt: skip
def test_what_comes_first(technique, code, cr0, cr4, vector):
    body = VECTORS.format(code=code, cr0=cr0, cr4=cr4)
    assert flat(body, technique=technique).run(timeout=60).code == vector


@pytest.mark.parametrize("trace", [None, []])
def test_the_bare_machine_and_a_stepped_one(trace):
    code = assemble(f"bits 32\nmov ebx, {DATA}\nmovaps [ebx], xmm0\naddps xmm0, [ebx]\n"
                    "fxsave [ebx + 8]\nhlt")  # fmt: skip
    state = State(cr4=0x200)
    ends = [run(code, state, technique, trace) for technique in ("bare", "patch")]
    first = [[(e.what, e.value, e.registers) for e in one.events] for one in ends]
    assert first[0] == first[1]
    assert first[0][0][:2] == ("#GP", 0)


def test_code_that_is_rewritten_is_looked_at_anew():
    body = """
        gate 13, .13
        mov eax, 0x200
        mov cr4, eax
        mov ebx, 0x170000
        mov ecx, 200
        xor edi, edi
    .again:
        mov byte [.code + 3], 0       ; movaps xmm0, [ebx + 0]
        call .code
        mov byte [.code + 3], 8
        call .code
        loop .again
        mov eax, edi
        jmp fin
    align 4096
    .code:
        db 0x0f, 0x28, 0x43, 0
        ret
    .13:
        inc edi
        add esp, 4
        add dword [esp], 4
        iretd
    align 4096
    """
    assert flat(body).run(timeout=120).code == 200


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_sse2(technique):
    body = VECTORS.format(code="movdqa xmm0, [ebx]", cr0=0x31, cr4=0x200)
    machine = flat(body, technique=technique, cpu="pentium4")
    assert machine.run(timeout=60).code == 13


def test_a_block_that_begins_where_no_ram_is():
    """FFh, which is no RAM, and 0 from RAM are INC dword [EAX]; MOVAPS follows."""
    body = """
        mov eax, 0x200
        mov cr4, eax
        mov dword [PT + 4 * 0x14f], 0xff000067
        mov eax, cr3
        mov cr3, eax
        mov dword [0x150000], 0x03280f00
        mov byte [0x150004], 0xe9
        mov dword [0x150005], .end - 0x150009
        mov eax, 0x170000
        mov ebx, eax
        mov ecx, 0x14ffff
        jmp ecx
    .end:
        mov eax, [eax]
        jmp fin
    """
    assert flat(body, "local").run(timeout=60).code == 1
