"""The classifier: Robin and Irvine's list, from observation alone."""

import importlib.util
import json

import pytest
from click.testing import CliRunner

from emu86.cli import commands
from emu86.rings.technique.errata import ERRATA
from emu86.spec import x86
from emu86.testing import run, stage
from emu86.testing.classify import LEFT_OUT, ROBIN_IRVINE, classify, table
from emu86.testing.forms import AT, FORMS
from emu86.testing.lab import LABS, LABS64
from emu86.testing.outcome import differences
from emu86.testing.replay import BareReplay, Replay
from emu86.testing.stage import State
from support.places import ROOT

pytestmark = pytest.mark.not_quick

# With `trap` they give the host's time or randomness.
OF_THE_HOST = {"RDRAND, RDSEED", "VMX, SVM, MONITOR, XGETBV, RDTSCP"}


def robin_and_irvine_and_what_they_left_out():
    holes = {one.name for one in table() if one.hole}
    assert holes == ROBIN_IRVINE | LEFT_OUT


# Data segments that a kernel loads with an RPL of 1: the price of ring compression.
RPL_1 = {"MOV to Sreg", "POP Sreg", "LDS, LES, LFS, LGS"}


def patch_closes_every_hole_but_rpl_1_and_trap_does_not():
    holes = {one.name: one.wrong["patch"] for one in table() if one.wrong["patch"]}
    assert holes.keys() == RPL_1
    assert all(line.startswith("CPL 0: event 0: #GP 10h") for line in holes.values())
    wrong = {one.name for one in table() if one.wrong["trap"]}
    assert wrong > {"POPF", "SGDT", "SIDT", "SLDT", "STR", "SMSW", "LAR", "LSL", "VERR"}
    assert wrong > RPL_1 | {"MOV to SS", "POP SS", "LSS"}
    assert not wrong & {"CLI", "MOV to CR3", "LGDT", "HLT", "RDTSC", "MOV from Sreg"}


def the_price_of_iopl_is_iopl():
    wrong = {one.name for one in table() if one.wrong["iopl"]}
    price = {"CLI", "STI", "PUSHF", "POPF", "IRET", "IN", "OUT", "INS", "OUTS"}
    assert wrong == price | RPL_1


def the_holes_of_64_bit_code():
    holes = {one.name for one in table(64) if one.hole}
    both = ROBIN_IRVINE | LEFT_OUT
    assert holes & both == both - {"INTO", "POP SS", "LDS, LES, LFS, LGS"}
    assert holes - both == {"LFS, LGS", "SYSCALL"}
    wrong = {one.name for one in table(64) if one.wrong["patch"]}
    assert wrong == {"MOV to Sreg", "POP Sreg", "LFS, LGS"}
    # Loads of SS are patched with `trap`, too.
    trap = {one.name for one in table(64) if one.wrong["trap"] and one.hole}
    assert trap & {"MOV to SS", "LSS", "PUSHF", "SYSCALL"} == set()
    assert trap > wrong | {"POPF", "IRET", "SGDT", "LAR"}


def labs_say_what_the_table_says():
    of = {one.name: one for one in table(64)}
    of["SYSCALL, SWAPGS, SYSRET"] = of["SYSCALL"]
    right = {name for name in LABS64 if not of[name].wrong["trap"]}
    assert {name for name, lab in LABS64.items() if lab.right} == right
    price = {name for name in LABS64 if of[name].wrong["patch"]}
    assert {name for name, lab in LABS64.items() if lab.price} == price
    found = {one.name: one for one in table()}
    right = {name for name in LABS if not found[name].wrong["trap"]}
    # In virtual-8086 mode PUSHF is wrong, which the lab says.
    assert {name for name, lab in LABS.items() if lab.right} == right | {"PUSHF"}
    assert {name for name, lab in LABS.items() if lab.price} == RPL_1


def every_erratum_is_seen():
    both = *table(), *table(64)
    seen = {line.split(" (")[0] for one in both for line in one.engine}
    left_out = (  # of no row
        "some take a LOCK prefix", "RCL, RCR, SETcc", "PDPTEs are read at each walk",
        "in 64-bit code some do what", "SSE takes operands that are",
        "no CLAC and STAC",
    )  # fmt: skip
    errata = {one.engine for one in ERRATA if not one.engine.startswith(left_out)}
    assert seen - errata == {"IRET of a user takes VM"}
    assert errata <= seen


@pytest.mark.parametrize(
    ("name", "traps", "iopl3", "vm86", "behaviour", "leaks", "control"),
    [
        ("CLI", "naaa", "never", ("#GP", "runs"), ("IOPL",), (), ("IF",)),
        ("HLT", "naaa", "always", ("#GP", "#GP"), (), (), ("the run",)),
        ("LGDT", "naaa", "always", ("#GP", "#GP"), (), (), ("GDTR",)),
        ("IN", "naaa", "never", ("#GP", "#GP"), ("IOPL", "TR"), (), ("ports",)),
        ("SGDT", "nnnn", "never", ("runs", "runs"), ("GDTR",), ("GDTR",), ()),
        ("STR", "nnnn", "never", ("#UD", "#UD"), ("TR",), ("TR",), ()),
        ("MOV from DR", "naaa", "always", ("#GP", "#GP"), ("CR4", "DR"), ("DR",), ()),
        ("MOV to DR", "naaa", "always", ("#GP", "#GP"), ("CR4",), (), ("DR",)),
        ("WRMSR", "naaa", "always", ("#GP", "#GP"), (), (), ("MSR", "TSC")),
        ("RDTSC", "nnnn", "never", ("runs", "runs"), ("CR4", "TSC"), ("TSC",), ()),
        ("CPUID", "nnnn", "never", ("runs", "runs"), (), (), ()),
    ],
)  # fmt: skip
def test_what_is_observed(name, traps, iopl3, vm86, behaviour, leaks, control):
    one = classify(name)
    assert "".join(word[0] for word in one.traps) == traps
    assert (one.user_iopl3, one.vm86) == (iopl3, vm86)
    assert (one.behaviour, one.leaks, one.control) == (behaviour, leaks, control)


@pytest.mark.parametrize(
    ("name", "traps", "iopl3", "behaviour", "leaks", "control"),
    [
        ("SWAPGS", "naaa", "always", (), (), ("GS",)),
        ("POPF", "nnnn", "never", ("CPL", "IOPL"), ("CPL", "IOPL"), ("IF", "IOPL")),
        ("SYSCALL", "nnnn", "never", ("IF", "IOPL"), ("IF", "IOPL"), ("IF",)),
        ("LIDT", "naaa", "always", (), (), ("IDTR",)),
        ("MOV from CR3", "naaa", "always", ("CR3",), ("CR3",), ()),
        ("MOV from CR8", "naaa", "always", ("CR8",), ("CR8",), ()),
    ],
)
def test_what_is_observed_in_64_bit_code(name, traps, iopl3, behaviour, leaks, control):
    one = classify(name, 64)
    assert "".join(word[0] for word in one.traps) == traps
    assert one.user_iopl3 == iopl3
    assert (one.behaviour, one.leaks, one.control) == (behaviour, leaks, control)
    assert one.wrong["patch"] == ""
    assert one.hole == (name in {"POPF", "SYSCALL"})


def test_what_iret_loses_in_64_bit_code():
    lost = "CPL 3: rflags: 00000202, but 00000002 (bits 00000200)"
    assert classify("IRET", 64).wrong["trap"] == lost


def test_an_engine_that_skips_syscall():
    (mistake,) = classify("SYSCALL", 64).engine
    assert mistake.startswith("SYSCALL, SYSENTER do nothing")


def of_the_cpu_and_of_flags():
    found = {one.name: one for one in table()}
    assert found["IRET"].wrong["trap"].startswith("CPL 3: eflags: 00000202, but 000000")
    assert found["PUSHF"].leaks == ("IF", "IOPL")
    assert found["PUSHF"].vm86 == ("#GP", "runs")
    assert found["POPF"].behaviour == ("CPL", "IOPL")
    assert found["POPF"].control == ("IF", "IOPL")
    assert found["INT n"].vm86 == ("#GP", "#GP, runs")
    assert found["MOV to Sreg"].leaks == ("CPL",)
    assert found["JMP far"].control == ("CR0", "LDTR", "TR")
    # Who holds CR0 decides whether they run, and is told.
    assert found["FPU, MMX, WAIT"].behaviour == ("CR0",)
    assert not found["FPU, MMX, WAIT"].hole


def test_where_the_engine_is_no_cpu():
    (port,) = classify("IN").engine
    assert port.startswith("port I/O never faults (CPL 1: event 0: #GP 0h")
    said = "(CPL 0: a CPU raises #GP, but it runs)"
    (limit,) = classify("MOV beyond a limit").engine
    assert limit.startswith("limits and rights of segments are not looked at")
    returns = "\n".join(classify("RET far").engine)
    for line in (
        f"RET iw releases a signed number of bytes {said}",
        "far returns do not look at the limit (CPL 0: event 0: #GP 0h",
        "any IRET takes VM (CPL 3: event 0: #PF 5h",
    ):
        assert line in returns
    (call,) = classify("CALL far").engine
    assert "as the kernel (CPL 3: event 0: #PF 7h" in call
    (to_dr,) = classify("MOV to DR").engine
    assert "breakpoints on data do not fire (CPL 0: event 0: #DB" in to_dr
    (ltr,) = classify("LTR").engine
    assert ltr.startswith("LTR takes a null selector (CPL 0: event 0: #GP 0h")


def test_what_a_cpu_raises():
    # RET iw of 8000h bytes, where the VMM is right by itself and nobody compares.
    (form,) = (form for form in FORMS if form.cpu and form.name == "RET far")
    state = State(limit=1, patches=form.patches)
    outcome = run(b"".join((*form.before, form.code)), state)
    assert str(outcome.events[0]) == "#GP CCCCh at 8h:0004000A"


@pytest.mark.parametrize("name", ["RDRAND, RDSEED", "LDS, LES of a register"])
def test_what_no_model_has(name):
    one = classify(name)
    assert one.traps == ("always",) * 4
    assert one.vm86 == ("#UD", "#UD")
    assert [t for t, line in one.wrong.items() if line] == ["trap"]
    assert len(one.engine) == 1


@pytest.mark.parametrize("technique", ["bare", "trap", "patch", "iopl"])
def test_what_is_played_again_is_as_if_played_alone(technique):
    replay = BareReplay() if technique == "bare" else Replay(technique)
    for i, form in enumerate(FORMS[::5]):
        if form.clock or form.name in OF_THE_HOST:
            continue
        program = b"".join(form.before) + form.code + b"\xcc"
        flags = (2, 0x202, 0x3002)[i % 3] | form.flags
        fields = {"tr": stage.TSS_B_SELECTOR, "limit": 1, "skip": 0} | form.state
        patches = ((AT, form.data or bytes(8)), *form.patches)
        state = State(ring=i % 4, flags=flags, patches=patches, **fields)
        one, other = run(program, state, technique), replay.play(program, state)
        assert list(differences(one, other)) == [], form
        assert one.end == other.end


def test_debug_registers_and_msrs_are_seen():
    code = b"\x0f\x23\xd0\x0f\x30\xcc"  # mov dr2, eax; wrmsr
    registers = {"eax": 5, "ecx": x86.MSR_BIOS_SIGN_ID}
    state = State(limit=1, registers=registers)
    outcomes = [BareReplay().play(code, state), Replay("patch").play(code, state)]
    for outcome in outcomes:
        assert outcome.registers["dr2"] == 5
        assert outcome.registers["msr"] != 0
    assert outcomes[0].registers == outcomes[1].registers


def test_the_command():
    result = CliRunner().invoke(commands, ["classify", "--json", "popf", "CLI"])
    assert result.exit_code == 0
    popf, cli = json.loads(result.output)
    assert (popf["name"], popf["hole"], cli["privileged"]) == ("POPF", True, True)
    shown = CliRunner().invoke(commands, ["classify", "popf"])
    assert "HOLE" in shown.output
    assert "trap: CPL 0: eflags" in shown.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["CLTS"], ["CLTS"]),
        (["fpu"], ["FPU, MMX, WAIT"]),
        (["sse", "SSE"], ["SSE"]),
        (["lds, les, lfs, lgs"], ["LDS, LES, LFS, LGS"]),
        (["int"], ["INT n"]),
        (["to cr2", "cr2"], ["MOV to CR2", "MOV from CR2"]),
    ],
)
def test_words_of_names(words, found):
    result = CliRunner().invoke(commands, ["classify", "--json", *words])
    assert [one["name"] for one in json.loads(result.output)] == found


def test_the_command_in_64_bit_code():
    found = CliRunner().invoke(
        commands, ["classify", "--bits", "64", "--json", "swapgs"]
    )
    (swapgs,) = json.loads(found.output)
    assert (swapgs["name"], swapgs["privileged"]) == ("SWAPGS", True)
    error = CliRunner().invoke(commands, ["classify", "swapgs"]).exception
    assert str(error) == "classify: 'swapgs' needs --bits 64"
    shown = CliRunner().invoke(commands, ["classify", "--bits", "64", "clts"]).output
    assert "VM86" not in shown


def test_an_unknown_instruction():
    error = CliRunner().invoke(commands, ["classify", "fnord"]).exception
    assert "no 'fnord' (there are CLI; STI; HLT; " in str(error)
    assert "; LDS, LES, LFS, LGS; LSS; " in str(error)


def the_page_is_what_is_observed():
    spec = importlib.util.spec_from_file_location("docs", ROOT / "tools/make_docs.py")
    make_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_docs)
    page = (ROOT / "docs" / "classification.md").read_text()
    fresh = make_docs.up_to_date(page, everything=True)
    assert page == fresh, "run tools/make_docs.py --all"


@pytest.mark.slow
def test_the_table(subtests):
    # One test, so that one worker alone makes the table, which takes a minute.
    for check in (
        robin_and_irvine_and_what_they_left_out,
        patch_closes_every_hole_but_rpl_1_and_trap_does_not,
        the_price_of_iopl_is_iopl,
        the_holes_of_64_bit_code,
        labs_say_what_the_table_says,
        every_erratum_is_seen,
        of_the_cpu_and_of_flags,
        the_page_is_what_is_observed,
    ):
        with subtests.test(check.__name__):
            check()
