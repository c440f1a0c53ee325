"""What memory an instruction touches, beside what the engine tells of it."""

# ruff: noqa: E501 (lines of assembly)

import pytest
import unicorn
from hypothesis import HealthCheck, given, settings
from unicorn import x86_const

from emu86.rings.decode import decode
from emu86.rings.events.accesses import accesses
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing import strategies as guests
from emu86.testing.computations import computations, computing_states
from support.assembler import assemble
from support.plain_cpu import plain_cpu

pytestmark = pytest.mark.not_quick

MASKMOVQ = 0x0FF7
REGISTERS = tuple(
    getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in x86.GPR_NAMES
)


def touched(uc, at):
    """Run an instruction; return all bytes it touches, those it writes; None: a fault."""
    read, written = set(), set()

    def hook(_uc, kind, address, size, _value, _data):
        place = written if kind == unicorn.UC_MEM_WRITE else read
        place.update(range(address, address + size))

    kinds = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
    handle = uc.hook_add(kinds, hook)
    try:
        uc.emu_start(at, 0, count=1)
    except unicorn.UcError:
        return None
    finally:
        uc.hook_del(handle)
    return read | written, written


def told(values, insn):
    """The same, by `accesses`."""
    cpu = plain_cpu(**dict(zip(x86.GPR_NAMES, values, strict=True)))
    found = [*accesses(cpu, insn)]
    every, written = set(), set()
    for linear, size, write, *_ in found:
        every.update(range(linear, linear + size))
        if write:
            written.update(range(linear, linear + size))
    return every, written


def compare(code, values):
    """Assert that each instruction of `code` touches what is told; count the bytes."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0, stage.MEMORY)
    uc.mem_write(stage.CODE, code)
    for register, value in zip(REGISTERS, values, strict=True):
        uc.reg_write(register, value)
    count = 0
    at = stage.CODE
    for _ in range(60):
        part = code[at - stage.CODE :]
        if not part:
            break
        insn = decode(part.ljust(15, b"\x90"), 32)
        if insn is None or insn.opcode == MASKMOVQ:
            break
        now = [uc.reg_read(register) for register in REGISTERS]
        ours, seen = told(now, insn), touched(uc, at)
        if seen is None:
            break
        assert [sorted(one) for one in ours] == [sorted(one) for one in seen], (
            part.hex()
        )
        count += len(seen[0])
        at = uc.reg_read(x86_const.UC_X86_REG_EIP)
        if not stage.CODE <= at < stage.CODE + len(code):
            break
    return count


@settings(
    max_examples=1500, derandomize=True, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(computations(engine=True), computing_states())
def test_computations(code, user):
    compare(code, user.values()[:8])


@settings(
    max_examples=400, derandomize=True, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    guests.programs("moves", "arithmetic", "strings", "jumps", "accesses", "repeated",
                    "conditionals", "long"),
    guests.states(rings=(0,)),
)  # fmt: skip
def test_programs(program, state):
    values = [state.registers.get(name, stage.STACK0) for name in x86.GPR_NAMES]
    compare(program, values)


AT = stage.DATA
KINDS = {
    "pushes": "push eax\npush word 5\npush dword 5\npush byte 5\npush ds\npushfd\npushfw\n"
    "push dword [{at}]\npush word [{at}]\npushad\npushaw\npush fs",
    "pops": "pop eax\npop cx\npop dword [{at}]\npop dword [esp]\npop dword [esp + 8]\npopad\npopaw\n"
    "popfd\npopfw",
    "calls": "call .a\n.a: mov ebx, .b\ncall ebx\n.b: mov dword [{at}], .c\ncall [{at}]\n"
    ".c: push dword .d\nret\n.d: push dword .e\nret 8\n.e: nop",
    "frames": "enter 8, 0\nleave\nenter 8, 1\nleave\nmov ebp, esp\nenter 8, 4\nleave",
    "offsets": "mov eax, [{at}]\nmov [{at}], ax\nmov al, [{at}]\nmov [{at}], al",
    "XLAT": "mov ebx, {at}\nmov eax, 0x70\nxlatb\na16 xlatb",
    "bits": "mov ecx, 100\nbt [{at}], ecx\nbts [{at}], ecx\nmov ecx, -100\nbtr [{at}], ecx\n"
    "bt [{at}], cx\nbtc [{at}], cx\nbts dword [{at}], 100\nbt word [{at}], 20",
    "the FPU": "fnsave [{at}]\nfnstenv [{at}]\no16 fnstenv [{at}]\nfld tword [{at}]\n"
    "fstp tword [{at}]\nfbld [{at}]\nfbstp [{at}]\nfld1\nfist word [{at}]\nfist dword [{at}]\n"
    "fistp qword [{at}]\nfild qword [{at}]\nfstp qword [{at}]\nfnstcw [{at}]\nfldcw [{at}]\n"
    "fnstsw [{at}]\nfadd dword [{at}]\nfiadd word [{at}]\nfcom qword [{at}]\no16 fnsave [{at}]",
    "SSE": "stmxcsr [{at}]\nldmxcsr [{at}]\nmovups [{at}], xmm0\n"
    "movups xmm0, [{at}]\nmovaps [{at}], xmm1\nmovss [{at}], xmm1\nmovhps [{at}], xmm1\n"
    "movlps [{at}], xmm1\nmovhps xmm1, [{at}]\nmovlps xmm1, [{at}]\nmovntps [{at}], xmm1\n"
    "movq [{at}], mm1\nmovq mm1, [{at}]\nmovd [{at}], mm1\nmovd mm1, [{at}]\nmovntq [{at}], mm1\n"
    "paddb mm1, [{at}]\naddss xmm1, [{at}]\naddps xmm1, [{at}]\ncvtpi2ps xmm1, [{at}]\n"
    "prefetcht0 [{at}]\npinsrw mm1, [{at}], 1",
    "system": "mov [{at}], ds\nsmsw [{at}]\nmov [{at}], fs",
    "the rest": "xadd [{at}], eax\ncmpxchg [{at}], ecx\ncmpxchg8b [{at}]\nlea eax, [{at}]\n"
    "nop dword [{at}]\nmov dword [{at}], 5\nmov dword [{at} + 4], 9\nmov eax, 6\n"
    "bound eax, [{at}]\nimul eax, [{at}]\nimul eax, [{at}], 7\nshld [{at}], eax, 3\n"
    "movzx eax, byte [{at}]\nmovsx eax, word [{at}]\ncmove eax, [{at}]\nsetc [{at}]\n"
    "test [{at}], eax\nmul dword [{at}]\nneg word [{at}]\nrcl byte [{at}], 1\nxchg ax, [{at}]",
}  # fmt: skip


@pytest.mark.parametrize("text", KINDS.values(), ids=KINDS)
def test_all_kinds(text):
    code = assemble(f"bits 32\norg {stage.CODE}\n" + text.format(at=f"{AT:#x}"))
    values = [7, 0, 3, 0, stage.STACK0, stage.STACK0 - 64, AT, AT + 64]
    assert compare(code, values) > 1


@pytest.mark.parametrize(
    ("code", "size", "written"),
    [
        ("frstor [{at}]", 108, 0),
        ("o16 frstor [{at}]", 94, 0),
        ("fldenv [{at}]", 28, 0),
        ("fxrstor [{at}]", 512, 0),
        ("fxsave [{at}]", 512, 512),
    ],
)
def test_an_image_is_touched_whole(code, size, written):
    """The engine leaves out what it has no use for: SDM Vol. 1 8.1.10, Vol. 2A FXSAVE."""
    code = assemble(f"bits 32\norg {stage.CODE}\n" + code.format(at=f"{AT:#x}"))
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0, stage.MEMORY)
    uc.mem_write(stage.CODE, code)
    insn = decode(code.ljust(15, b"\x90"), 32)
    ours = told([0] * 8, insn)
    assert [len(one) for one in ours] == [size, written]
    assert all(
        one <= all_ for one, all_ in zip(touched(uc, stage.CODE), ours, strict=True)
    )
