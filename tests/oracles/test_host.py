"""The host's CPU as the oracle of ring 3: emu86 and the engine compute what it does."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu86.testing import cage, stage
from emu86.testing.computations import (
    computations,
    computing_programs,
    computing_states,
    defined,
)
from emu86.testing.host import missing
from emu86.testing.ring3 import User, UserOutcome, run_on_engine, run_on_host
from emu86.testing.semantics import compare_with_host, run_on_emu86
from emu86.testing.undefined import disassembly
from support.assembler import assemble

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
    pytest.mark.xdist_group("host"),
]


def scaled(examples):
    return settings(
        deadline=None,
        derandomize=True,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
    )


def of_both_widths(code, **kind):
    """Pairs of code and where it starts: the examples are shared between widths."""
    return st.one_of(
        *(st.tuples(code(bits, **kind), computing_states(bits)) for bits in (32, 64))
    )


@scaled(150)
@given(of_both_widths(computations))
def test_one_instruction(case):
    assert compare_with_host(*case) == []


@scaled(150)
@given(of_both_widths(computing_programs))
def test_programs(case):
    assert compare_with_host(*case) == []


@scaled(2000)
@given(of_both_widths(computations, engine=True))
def test_one_instruction_on_the_engine(case):
    assert compare_with_host(*case, run_on_engine) == []


@scaled(800)
@given(of_both_widths(computing_programs, engine=True))
def test_programs_on_the_engine(case):
    assert compare_with_host(*case, run_on_engine) == []


# -- what the engine has wrong ---------------------------------------------------------


def engine_and_host(code, user):
    program = bytes.fromhex(code)
    return run_on_engine(program, user), run_on_host(program, user)


@pytest.mark.parametrize("lock", ["", "f0"])
def test_cmpxchg8b_takes_its_flags_from_before_the_block(lock):
    # mov [DATA + 8], ecx (the page is there); add eax, eax; cmpxchg8b [DATA]
    program = bytes.fromhex(f"890d0800050001c0{lock}0fc70d00000500")
    user = User(32, {"eax": 1 << 31, "edx": 1}, data=bytes(8))
    # OF, PF and CF of ADD should stay.
    found = compare_with_host(program, user, run_on_engine)
    assert found[:-1] == ["flags 0, on the host 805"]
    assert compare_with_host(program, user) == []


@pytest.mark.parametrize("machine", [run_on_engine, run_on_emu86])
@pytest.mark.parametrize(("code", "flags"), [("f3a6", "44"), ("f2ae", "11")])
def test_a_repeated_comparison_that_faults_keeps_its_flags(machine, code, flags):
    registers = {"ecx": 8, "esi": stage.DATA, "edi": stage.DATA + 0xFFC}
    user = User(32, registers, 0x8D7)
    here, there = (
        machine(bytes.fromhex(code), user),
        run_on_host(bytes.fromhex(code), user),
    )
    assert here.registers["flags"] == int(flags, 16)
    # The former as the SDM has it; AMD's family 25 does as the engine.
    assert there.registers["flags"] in (0x8D5, int(flags, 16))


@pytest.mark.parametrize(
    "code", ["0f2903", "0f5803", "0fae13"]
)  # movaps [ebx], xmm0; addps xmm0, [ebx]; ldmxcsr [ebx]
def test_an_operand_of_sse_that_is_refused(code):
    user = User(32, {"ebx": stage.DATA + 4}, 0x8D5, data=b"\xff" * 64)
    program = bytes.fromhex(code)
    found = compare_with_host(program, user, run_on_engine)
    assert found[0] == "done, on the host #GP"
    assert compare_with_host(program, user) == []


@pytest.mark.parametrize("machine", [run_on_engine, run_on_emu86])
@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("0fc2c108", "#UD, on the host done"),  # cmpps xmm0, xmm1, 8
        ("f6c812", "#UD, on the host done"),  # test al, 12h, as /1
        ("c8666b00", "done, on the host #PF"),  # enter 6B66h, 0
        ("dbe3d9eed9eedbf1", "flags 8D0, on the host 40"),  # fldz; fldz; fcomi
    ],
)
def test_what_else_a_guest_can_tell(machine, code, found):
    user = User(32, {"ebx": stage.DATA + 4}, 0x8D5, data=b"\xff" * 64)
    assert compare_with_host(bytes.fromhex(code), user, machine)[0] == found


# pushfd; or dword [esp], 40000h; popfd: EFLAGS.AC is set
AC = "9c810c24000004009d"
FORBIDDEN = {
    "#GP": (
        "31c08ed88b03 31c08ee0648b03 31c08ee0648b0424 31c08ee064ff33 31c08ec0aa"
        " 31c08ed8a4 31c08ed80fa303 31c08ee064d93b 31c08ee064a100000000 31c08ee064ff23"
        " 2e8903 2e0103 2e0fb103 2ea300000000"
    ),
    "done": "31c08ec031c9f3aa 31c08ee0648d03 31c08ee0640f1f03 2e3903 2e8b03",
    "#AC": (
        "8b4301 668b4301 894302 dd4304 db6b04 d9e8db7b04 d94302 df4301 0f6f4304"
        " a101000000 83ec0250 83ec02e800000000 83ec02c3 0fc74b04 0fa34302 c44302 624302"
        " d97302 d97b01 83c602a5 0fae5302 83ec02c8040000 8d6b01c9 df6302 508f4302"
        " 0fb74301 83ec029d a1fe0f0500"
    ),
    "aligned": "8b03 668b4302 8a4301 db6b08 66d97302 d7",
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "end"),
    [(code, end) for end, codes in FORBIDDEN.items() for code in codes.split()],
)
def test_what_segments_and_alignment_forbid(code, end):
    if end in ("#AC", "aligned"):
        code, end = AC + code, end.replace("aligned", "done")
    data = stage.DATA
    user = User(32, {"ebx": data, "esi": data, "edi": data + 0x100}, 2, b"\1" * 64)
    assert compare_with_host(bytes.fromhex(code), user) == []
    assert run_on_emu86(bytes.fromhex(code), user).end == end


@pytest.mark.parametrize("code", ["31c08ee0648b03", "31c08ed88b03", "2e8903"])
def test_the_engine_looks_at_no_segment(code):
    # mov fs, 0; mov eax, fs:[ebx]. mov ds, 0; mov eax, [ebx]. mov cs:[ebx], eax.
    user = User(32, {"ebx": stage.DATA})
    found = compare_with_host(bytes.fromhex(code), user, run_on_engine)
    assert found[0] == "done, on the host #GP"


@pytest.mark.parametrize("machine", [run_on_engine, run_on_emu86])
def test_cr2_of_a_pusha_that_faults(machine):
    # xchg eax, esp; pusha: the CPU pushes EAX first, the engine stores EDI first.
    found = compare_with_host(b"\x94\x60", User(32), machine)
    assert found[:-1] == ["cr2 FFFFFFE0, on the host FFFFFFFC"]


def test_cmpxchg_of_32_bits_that_fails():
    user = User(registers={"rax": 1, "rcx": 2 << 32 | 2})
    engine, host = engine_and_host("0fb1d1", user)  # cmpxchg ecx, edx
    assert host.registers["rcx"] == 2 << 32 | 2
    assert engine.registers["rcx"] == 2


def test_cmpxchg_of_32_bits_that_succeeds():
    user = User(registers={"rax": 1 << 32 | 5}, data=b"\5\0\0\0")
    # cmpxchg [DATA], ecx
    engine, host = engine_and_host("0fb10c2500000500", user)
    assert engine.data == host.data
    assert host.registers["rax"] == 1 << 32 | 5
    assert engine.registers["rax"] == 5


def test_what_the_default_model_lacks_is_compared_too():
    """PUNPCKLBW of XMM registers: SSE2."""
    assert compare_with_host(bytes.fromhex("66 0f 60 c1"), User(32)) == []


@pytest.mark.parametrize(
    ("code", "user"),
    [
        # add al, al; setp [CODE], which is not writable
        ("00c00f9a0500000400", User(32)),
        ("00c00f9a0500f0ff0f", User(32)),  # add al, al; setp [FFFF000]
        # add eax, eax; rcl dword [CODE], 1
        ("01c0d11500000400", User(32, {"eax": 0xC0000000})),
    ],
)
def test_what_faults_on_the_engine_loses_its_flags(code, user):
    program = bytes.fromhex(code)
    assert compare_with_host(program, user, run_on_engine) != []
    assert compare_with_host(program, user) == []


def test_setcc_of_a_page_not_there_yet():
    program = bytes.fromhex("00c00f900500000500")  # add al, al; seto [DATA]
    assert compare_with_host(program, User(32), run_on_engine) == []
    assert compare_with_host(program, User(32)) == []


def test_a_rotate_through_carry_of_a_page_read_before():
    # mov eax, [DATA]; clc; rcl dword [DATA], 1: the first write to a page read before
    program = bytes.fromhex("a100000500f8d11500000500")
    assert compare_with_host(program, User(32), run_on_engine) == []
    assert compare_with_host(program, User(32)) == []


@pytest.mark.parametrize("code", ["f0d11500000500", "f0d1d0", "f00f920500000500"])
def test_lock_before_what_takes_none(code):
    # lock rcl dword [DATA], 1; lock rcl eax, 1; lock setc [DATA]
    outcome = run_on_host(bytes.fromhex(code), User(32))
    assert outcome.end == "#UD"
    if code != "f0d1d0":  # it is native, and the engine runs it
        assert compare_with_host(bytes.fromhex(code), User(32)) == []


def test_lahf_and_sahf_with_a_rex_prefix():
    # The engine takes AH for SPL, which an operand of ModRM would be.
    user = User(registers={"rax": 0x1200}, flags=0x3)
    engine, host = engine_and_host("409f", user)
    assert (host.registers["rax"], host.registers["rsp"]) == (0x300, stage.STACK3)
    assert engine.registers["rax"] == 0x1200
    assert engine.registers["rsp"] == stage.STACK3 + 3
    engine, host = engine_and_host("409e", User(registers={"rax": 0xD500}))
    assert (engine.registers["flags"], host.registers["flags"]) == (0, 0xD5)


@pytest.mark.parametrize(
    ("code", "registers"),
    [
        ("409f", {"rax": 0x1200}), ("4f9e", {"rax": 0xD500}),
        ("0fb1d1", {"rax": 1, "rcx": 2 << 32 | 2}), ("0fb1d1", {"rcx": 5 << 32}),
        ("8b0414", {"rdx": 1 << 63}), ("8b0414", {"rdx": 1 << 50}),
        ("480fa41df7ff00000d", {"rbx": 0x8123456789ABCDEF}),
        ("0fac1df8ff000001", {"rbx": 0x80000001}),
    ],
)  # fmt: skip
def test_emu86_has_right_what_the_engine_has_wrong(code, registers):
    user = User(registers=registers, flags=3, data=bytes(range(1, 65)))
    assert compare_with_host(bytes.fromhex(code), user) == []


@pytest.mark.parametrize("opcode", ["0fa4", "0fac"])
def test_shld_relative_to_rip(opcode):
    # The engine's RIP is that of the immediate byte.
    program = f"{opcode}05f8ff000000"  # shld [rip + 0xfff8], eax, 0
    engine, host = engine_and_host(program.replace("f8ff0000", "f8ff0100"), User())
    assert (engine.end, host.end) == ("#PF", "#PF")
    assert (engine.cr2, host.cr2) == (0x5FFFF, 0x60000)


def test_movsxd_of_16_bits():
    # movsxd ax, [DATA + FFE]
    engine, host = engine_and_host("66630425fe0f0500", User())
    assert (engine.end, engine.cr2) == ("#PF", stage.DATA + 0x1000)
    # Intel's CPUs read 16 bits, as the SDM has it, AMD's 32, as the engine.
    assert host.end in ("done", "#PF")


def test_a_stack_address_that_is_not_canonical():
    user = User(registers={"rdx": 1 << 63})
    engine, host = engine_and_host("8b0414", user)  # mov eax, [rsp + rdx]
    assert (engine.end, host.end) == ("#GP", "#SS")


# -- the machines ----------------------------------------------------------------------

MACHINES = [run_on_host, run_on_engine, run_on_emu86]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("90", "done"),
        ("0f0b", "#UD"),
        ("f7f0", "#DE"),
        ("cc", "#BP"),
        ("a100000000", "#PF"),
        ("fa", "#GP"),
    ],
)
def test_how_a_program_ends(machine, code, end):
    outcome = machine(bytes.fromhex(code), User(bits=32))
    assert outcome.end == end
    assert outcome.registers["ip"] == stage.CODE + (
        2 if end == "done" else end == "#BP"
    )


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_program_leaves(machine):
    user = User(32, {"eax": 0x7FFFFFFF, "esi": 5}, 0x401, stack=b"\1")
    # inc eax; mov [DATA], esi; push eax
    code = b"\x40\x89\x35" + stage.DATA.to_bytes(4, "little") + b"\x50"
    outcome = machine(code, user)
    assert outcome.registers["eax"] == 0x80000000
    assert outcome.registers["esp"] == stage.STACK3 - 4
    # OF, DF, SF, AF, PF; CF as it was.
    assert outcome.registers["flags"] == 0xC95
    assert outcome.data[:5] == b"\5\0\0\0\xcc"
    assert outcome.stack[:2] == b"\1\xcc"
    assert outcome.stack[-4:] == b"\0\0\0\x80"


@pytest.mark.parametrize("machine", MACHINES)
def test_all_registers_of_64_bits(machine):
    names = [name for name in User().names if name != "rsp"]
    given_ = {name: (i + 1) << 60 | i for i, name in enumerate(names)}
    given_ = {name: value & (1 << 64) - 1 for name, value in given_.items()}
    outcome = machine(b"\x90", User(64, given_))
    assert outcome.registers == given_ | {
        "rsp": stage.STACK3, "ip": stage.CODE + 2, "flags": 0,
    }  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_a_fault_is_told_with_its_address_and_registers(machine):
    # push 5; mov [rax], eax
    outcome = machine(bytes.fromhex("6a058900"), User(registers={"rax": 0x123456}))
    assert (outcome.end, outcome.cr2) == ("#PF", 0x123456)
    assert outcome.registers["ip"] == stage.CODE + 2
    assert outcome.registers["rsp"] == stage.STACK3 - 8


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("machine", MACHINES[:2])
def test_an_endless_program_ends(machine, bits):
    assert machine(b"\xeb\xfe", User(bits)).end == "endless"


def test_the_next_program_finds_its_segments():
    run_on_host(bytes.fromhex("31c08ed88ec08ee0"), User(32))  # mov ds, es and fs, 0
    outcome = run_on_host(b"\xa1" + stage.DATA.to_bytes(4, "little"), User(32))
    assert outcome.registers["eax"] == 0xCCCCCCCC


def test_a_program_that_calls_linux():
    before = cage.cage()
    # mov eax, 162 (nanosleep); int 80h: seccomp kills it, or it fails, or it sleeps.
    run_on_host(bytes.fromhex("b8a2000000cd80"), User(32))
    assert run_on_host(b"\x90", User()).end == "done"
    before.close()
    assert run_on_host(b"\x90", User()).end == "done"


def test_a_killed_cage_is_told():
    cage.cage().close()
    lost = cage.cage()
    lost._process.kill()
    kept = lost.run((0,) * 16, 2, 64)
    assert (kept.end, lost.alive) == ("killed", False)


def test_the_image_of_the_cage_is_its_source():
    folder = Path(cage.__file__).parent
    source = (folder / "cage.asm").read_text()
    assert assemble(source) == (folder / "cage.bin").read_bytes()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OSError(1, "Operation not permitted"), "no process for the stage: Operation"),
        (UserOutcome("killed", {}, 0, b"", b""), "no code of 32 bits: killed"),
    ],
)
def test_why_a_host_is_no_oracle(monkeypatch, answer, reason):
    def fail(*_):
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("emu86.testing.host.run_on_host", fail)
    assert missing.__wrapped__().startswith(reason)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"bits": 16}, "bits: 16"),
        ({"bits": 32, "registers": {"rax": 1}}, "registers"),
        ({"registers": {"eax": 1}}, "registers"),
        ({"registers": {"rsp": 1}}, "registers"),
        ({"registers": {"rax": 1 << 64}}, "registers"),
        ({"registers": None}, "registers"),
        ({"registers": {"rax": 1.5}}, "registers"),
        ({"flags": -1}, "flags: -1"),
        ({"flags": "2"}, "flags: '2'"),
        ({"data": "abc"}, "data"),
        ({"data": bytes(0x1001)}, "data"),
        ({"stack": bytes(0x1001)}, "stack"),
    ],
)
def test_no_such_user(fields, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        User(**fields)


@pytest.mark.parametrize("machine", [run_on_host, run_on_engine, run_on_emu86])
def test_a_program_is_less_than_a_page(machine):
    assert machine(b"\x90" * 0xFFF, User(32)).end == "done"
    with pytest.raises(ValueError, match="program: 4096 bytes are more than"):
        machine(b"\x90" * 0x1000, User(32))


# -- the comparison --------------------------------------------------------------------


def test_a_machine_for_the_bits_of_a_user():
    assert compare_with_host(b"\x90", User()) == []
    assert compare_with_host(b"\x90", User(32)) == []


@pytest.mark.parametrize(("program", "user"), [("90", User()), (b"\x90", None)])
def test_what_is_no_program_of_a_user(program, user):
    with pytest.raises(TypeError, match="^(program: .90.|user: None) is of type"):
        compare_with_host(program, user)


@pytest.mark.parametrize(
    "strategy", [computations, computing_programs, computing_states]
)
def test_code_of_other_bits(strategy):
    with pytest.raises(ValueError, match="bits: 16 is neither 32 nor 64"):
        strategy(16)


def test_a_difference_is_told(monkeypatch):
    real = run_on_host(b"\x40", User(32))
    wrong = type(real)(
        "#UD", real.registers | {"eax": 7}, 5, real.data[:-1] + b"\0", real.stack
    )
    monkeypatch.setattr("emu86.testing.semantics.run_on_host", lambda *_: wrong)
    assert compare_with_host(b"\x40", User(32)) == [
        "done, on the host #UD",
        "eax 1, on the host 7",
        "cr2 0, on the host 5",
        "[50FFF] CC, on the host 00",
        "inc eax",
    ]


@pytest.mark.parametrize("machine", [run_on_engine, run_on_emu86])
@pytest.mark.parametrize("code", ["8b00", "8b2424", "6a01"])
def test_an_access_over_4_gib_is_one_of_two_faults(machine, code):
    # mov esp, eax; mov eax, [eax]; mov esp, [esp]; push 1
    user = User(32, {"eax": 1 if code == "6a01" else 0xFFFFFFFD})
    code = bytes.fromhex("89c4" + code)
    assert run_on_host(code, user).end in ("#PF", "#GP", "#SS")
    assert compare_with_host(code, user, machine) == []


@pytest.mark.parametrize(
    ("eax", "end", "found"),
    [
        (0xFFFFFFFF, "#GP", []),
        (0xFFFFFFFF, "#UD", ["#PF, on the host #UD", "cr2 FFFFFFFF, on the host 0"]),
        (0xFFFFFF00, "#GP", ["#PF, on the host #GP", "cr2 FFFFFF00, on the host 0"]),
    ],
)
def test_no_other_fault_is_open(monkeypatch, eax, end, found):
    user = User(32, {"eax": eax})
    faulted = replace(run_on_engine(b"\x8b\x00", user), end=end, cr2=0)
    monkeypatch.setattr("emu86.testing.semantics.run_on_host", lambda *_: faulted)
    assert compare_with_host(b"\x8b\x00", user, run_on_engine)[:-1] == found


def test_undefined_flags_do_not_leak():
    code = bytes.fromhex("f7e3")  # mul ebx
    assert disassembly(defined(code)) == [
        "mul ebx",
        "pushfd",
        "and dword ptr [esp], 0xffffff2b",
        "popfd",
    ]
    assert defined(b"\x40") == b"\x40"
    ends = {
        machine(defined(code) + b"\x9f", User(32, {"eax": 3, "ebx": 5})).registers[
            "eax"
        ]
        for machine in MACHINES
    }
    assert ends == {0x020F}
