"""The timeline of a run: all exits are in it, and the guest cannot tell."""

import gzip
import json
import sys
from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings

from emu86 import ConfigError, Machine, images
from emu86.cpu.engine import abilities
from emu86.cpu.library import Abilities
from emu86.machine.filters import Filter
from emu86.machine.symbols import Names
from emu86.machine.trace import Trace
from emu86.machine.tracefile import Code, Exit, TraceFile
from emu86.rings.technique import registry
from emu86.testing import assert_equivalent
from emu86.testing import strategies as guests
from support import watched
from support.assembler import assemble
from support.flat import flat, guest64
from support.watched import counted

BODY = """
    gate 0x80, here
    mov eax, 0x12345
    mov cr2, eax
    cli
    in al, 0x61
    mov al, 0x5a
    out 0x80, al
    rdtsc
    int 0x80
    mov ebx, [0x400000]
    jmp fin
here:
    iret
"""
SYMBOLS = b"00100000 T start\n00200000 D data\n"


def boot(image, append, *, traced, **options):
    watch = Machine.trace if traced else None
    trace, machine, ran = watched.boot(image, append, watch, **options)
    return trace, (*ran, machine.save())


@cache
def teach():
    return boot("teach", "script", traced=True)


@pytest.mark.parametrize(
    ("image", "append", "technique"),
    [
        ("teach", "script", "patch"),
        ("exits", "100", "iopl"),
        ("exits", "100", "trap"),
    ],
)
@pytest.mark.not_quick
def test_the_guest_runs_as_without_a_trace(image, append, technique):
    _, expected = boot(image, append, traced=False, technique=technique)
    if image == "teach":
        trace, found = teach()
    else:
        trace, found = boot(image, append, traced=True, technique=technique)
    assert found == expected
    exits = list(trace.exits())
    assert Counter(one.reason for one in exits) == expected[2]
    assert [one.number for one in exits] == list(range(1, trace.count + 1))
    assert [one.time for one in exits] == sorted(one.time for one in exits)


def test_64_bit_code_runs_as_without_a_trace():
    code = "mov rax, cr3\nmov cr3, rax\ncpuid\nin al, 0x61\nud2\n"
    ran = []
    for traced in (False, True):
        machine = guest64(code)
        trace = machine.trace() if traced else None
        stop = machine.run(timeout=60)
        ran.append((stop, machine.now, counted(machine), machine.save()))
    assert ran[0] == ran[1]
    exits = list(trace.exits())
    assert Counter(one.reason for one in exits) == ran[0][2]
    (to,) = [one for one in exits if one.reason == "MOV to CR"]
    assert (to.code.bits, to.code.text, to.ring, to.engine) == (
        64,
        "mov cr3, rax",
        0,
        1,
    )


@pytest.mark.parametrize("watch", [Machine.trace, Machine.profile])
def test_real_mode_runs_as_unwatched(watch, tmp_path):
    """The engine's own delivery of INT n leaves by a jump: not over Python's frames.

    The first INT 10h pushes into a page that may not be written yet.
    """
    disk = tmp_path / "disk"
    code = assemble("bits 16\nmov ax, 0xe41\nint 0x10\nin al, 0x21\ncli\nhlt")
    disk.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(512 * 2047))
    ran = []
    for is_watched in (False, True):
        machine = Machine(memory=16 << 20, bios=images.bios(), disks=[disk])
        watcher = watch(machine) if is_watched else None
        stop = machine.run(timeout=60)
        ran.append((stop, machine.now, counted(machine), machine.registers))
        machine.close()
    assert ran[0] == ran[1]
    assert ran[0][2]["INT 10h"] > 100
    if isinstance(watcher, Trace):
        told, counts = Counter(one.reason for one in watcher.exits()), ran[0][2]
        # A REP INSW of a sector's 256 words: two records, the last word is Python's.
        assert counts["IN"] - told.pop("IN") == 2 * 254
        assert told == {name: n for name, n in counts.items() if name != "IN"}
        (last,) = [one for one in watcher.exits() if one.reason == "INT 19h"]
        assert (last.code.bits, last.ring, last.events) == (16, 0, ((0x19, None),))


@settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=list(HealthCheck),
)
@given(guests.programs(), guests.states())
def test_no_program_can_tell(program, state):
    module = sys.modules["emu86.testing.run"]
    traces = []

    def build(name, *arguments, **options):
        vmm = registry.build(name, *arguments, **options)
        if name != "bare":
            names = Names(vmm.ram.bytes)
            traces.append(Trace(vmm, None, matching="", last=0, names=names, header={}))
        return vmm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build", build)
        assert_equivalent(program, state)
    assert traces
    for trace in traces:
        assert len(list(trace.exits())) == trace.count


# -- what an exit tells ----------------------------------------------------------------


@pytest.mark.parametrize(
    "can", [None, abilities().reference(), Abilities.none()], ids=["all", "ref", "none"]
)
def test_what_an_exit_tells(can):
    machine = flat(BODY, abilities=can)
    trace = machine.trace(None, SYMBOLS)
    machine.run(timeout=60)
    exits = {one.reason: one for one in trace.exits()}
    assert Counter(one.reason for one in trace.exits()) == counted(machine)
    write = exits["MOV to CR"]
    assert write.changes == {"cr2": (0, 0x12345)}
    assert (write.ring, write.engine, write.to, write.cost) == (0, 1, None, 1000)
    assert write.code.text == "mov cr2, eax"
    assert write.code.function == "start"
    assert (
        write.code.linear
        == write.code.ip
        == 0x100000 + int(write.code.name.partition("+")[2][:-1], 16)
    )
    (read,) = exits["IN"].ports
    assert (read.port, read.width, read.write) == (0x61, 1, False)
    (wrote,) = next(
        one.ports for one in trace.exits() if one.ports and one.ports[0].port == 0x80
    )
    assert (wrote.value, wrote.write) == (0x5A, True)
    assert set(exits["RDTSC"].changes) <= {"eax", "edx"}
    call = exits["INT 80h"]
    assert call.code.text == "int 0x80"
    assert call.events == ((0x80, None),)
    assert call.to[:2] == (0, call.code.cs)
    assert exits["IRET"].to is not None
    fill = [one for one in trace.exits() if one.page and one.page.address == 0x400000]
    assert fill
    assert fill[0].page.after & 1
    assert fill[0].page.after & -0x1000 & (1 << 63) - 1 == 0x400000


def test_changes_of_ring_and_faults():
    trace, ran = teach()
    exits = list(trace.exits())
    into = [one for one in exits if one.to and one.to[0] == 3 and one.ring == 0]
    assert {one.reason for one in into} == {"IRET"}
    out = [one for one in exits if one.ring == 3 and one.to and one.to[0] == 0]
    assert {one.engine for one in out} == {3}
    faults = [one for one in exits if one.reason == "#PF guest"]
    assert len(faults) == ran[2]["#PF guest"]
    assert all(one.events[0][0] == 14 and one.page for one in faults)
    assert all(
        one.changes["cr2"][1] == one.page.address
        for one in faults
        if "cr2" in one.changes
    )
    ticks = [one for one in exits if one.reason == "interrupt"]
    assert {one.events for one in ticks} == {((0x20, None),)}
    assert all(not one.changes["eflags"][1] & 0x200 for one in ticks)


def test_code_that_is_rewritten_is_told_as_it_is():
    trace = (
        machine := flat("""
        mov ecx, 2
    again:
        mov dx, 0x80
    it: out dx, al
        mov byte [it], 0xec  ; in al, dx
        jmp short $ + 2
        dec ecx
        jnz again
        mov eax, 1
        jmp fin
    """)
    ).trace(matching="reason=IN or reason=OUT")
    machine.run(timeout=60)
    texts = [one.code.text for one in trace.exits()]
    assert texts[:2] == ["out dx, al", "in al, dx"]


# -- the file --------------------------------------------------------------------------


def recorded(path, **options):
    machine = flat(BODY)
    trace = machine.trace(path, SYMBOLS, **options)
    machine.run(timeout=60)
    trace.close()
    return machine


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_file_is_read_to_where_it_is_cut_off(tmp_path, name):
    path = tmp_path / name
    recorded(path)
    whole = path.read_bytes()
    exits = list(TraceFile(path))
    assert len(exits) > 10
    assert TraceFile(path).header["technique"] == "patch"
    for part in (2, 3, 5):
        path.write_bytes(whole[: len(whole) - len(whole) // part])
        cut = list(TraceFile(path))
        assert len(cut) < len(exits)
        assert cut == exits[: len(cut)]
    assert cut


def test_the_same_run_has_the_same_file(tmp_path):
    first, second = tmp_path / "1.gz", tmp_path / "2.gz"
    recorded(first)
    recorded(second)
    assert gzip.decompress(first.read_bytes()) == gzip.decompress(second.read_bytes())


def test_the_last_ones_alone(tmp_path):
    recorded(tmp_path / "all")
    recorded(tmp_path / "last", last=3)
    exits = list(TraceFile(tmp_path / "all"))
    assert list(TraceFile(tmp_path / "last")) == exits[-3:]
    codes = (tmp_path / "last").read_text().count('"insn"')
    assert codes <= 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no trace of emu86"),
        (b"\x7fELF\0", "it is no trace of emu86"),
        (b"[1]\n", "it is no trace of emu86"),
        (b'{"emu86 trace": 99}\n', "a trace of version 99, not 1"),
        (b'{"emu86 trace": 1}\n{"n": 1}\n', "this line is none of a trace"),
        (b'{"emu86 trace": 1}\nhello\n', "this line is none of a trace"),
    ],
)
def test_what_is_no_trace(tmp_path, content, message):
    path = tmp_path / "it"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"it: {message}") as raised:
        list(TraceFile(path))
    assert "\n" not in str(raised.value)


def test_a_full_disk_is_told_and_the_guest_runs_on():
    machine = flat(BODY)
    trace = machine.trace("/dev/full")
    assert machine.run(timeout=60).reason == "debug exit"
    with pytest.raises(ConfigError, match=r"^trace: /dev/full: "):
        trace.close()
    trace.close()


def test_what_cannot_be_traced():
    with pytest.raises(ConfigError, match="bare has no exits"):
        Machine(technique="bare").trace()
    with pytest.raises(ConfigError, match="trace: /nonexistent/x: No such"):
        Machine().trace("/nonexistent/x")
    with pytest.raises(TypeError, match="matching"):
        Machine().trace(matching=3)
    machine = Machine()
    machine.trace()
    with pytest.raises(ConfigError, match="^profile: this machine has a trace already"):
        machine.profile()


# -- filters ---------------------------------------------------------------------------


def example(**fields):
    code = Code(0xC0101234, 8, 0xC0101234, 32, b"\xfa", "mov cr3, eax", "switch+4h")
    it = {
        "number": 1, "time": 2_000_000, "ring": 0, "engine": 1, "cr3": 0x109000,
        "code": code, "reason": "MOV to CR", "native": True, "cost": 1000,
    }  # fmt: skip
    return Exit(**it | fields)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("reason=CR3", True),
        ("reason=CR0", False),
        ("reason=cr", True),
        ("reason='MOV to CR'", True),
        ('reason="MOV from CR"', False),
        ("reason!=CR3", False),
        ("ring=3 or reason=CR3", True),
        ("ring=3 and reason=CR3", False),
        ("not (ring=3 and reason=CR3)", True),
        ("not ring=0 or ring=1", False),
        ("ring>=0 and engine=1", True),
        ("ip=c0101234", True),
        ("ip=C0100000..C0101234", False),
        ("ip=c0101000h..c0102000h", True),
        ("ip>c0101234", False),
        ("ip=switch", True),
        ("ip=switch+4h", True),
        ("ip=other", False),
        ("cr3=109000", True),
        ("time=1ms..2ms", False),
        ("time>=2ms", True),
        ("time<0.0021s and by=compiled", True),
        ("by=Python", False),
    ],
)
def test_filters(text, matches):
    assert Filter(text).matches(example()) == matches


def test_a_reason_alone_rules_out():
    assert not Filter("reason=CR3").may_match("RDTSC")
    assert Filter("reason=CR3").may_match("MOV to CR")
    assert Filter("ring=3 or reason=CR3").may_match("RDTSC")
    assert not Filter("ring=3 and reason=CR3").may_match("RDTSC")
    assert not Filter("not reason!=RDTSC").may_match("IN")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "it is empty"),
        ("ring", "it ends too soon"),
        ("ring=", "it ends too soon"),
        ("rnig=3", "did you mean 'ring'"),
        ("ring=x", "'x' is no value of 'ring'"),
        ("ring 3", "= or the like must follow 'ring'"),
        ("(ring=3", r"a \) is missing"),
        ("ring=3 ip=5", "no `and` or `or` before 'ip'"),
        ("time=5", "'5' is no time"),
        ("reason>CR3", "reason has no order"),
        ("by=me", "no 'me'"),
        ("ring='3", "a mistake at"),
        ("ip=1..zz", "'zz' is no value of 'ip'"),
    ],
)
def test_mistakes_in_filters(text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Filter(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "matching",
    [
        "reason=RDTSC",
        "reason=IN",
        "reason=CR",
        "ring=3",
        "reason=interrupt",
        "reason=#PF",
        "by=Python",
    ],
)
def test_a_filter_while_it_runs_is_one_afterwards(matching):
    ran = []
    for now in ("", matching):
        machine = Machine(memory=16 << 20)
        machine.load_kernel(images.path("exits"), append="20")
        trace = machine.trace(matching=now)
        machine.run(timeout=60)
        exits = list(trace.exits())
        wanted = Filter(matching)
        ran.append(
            [{**vars_of(one), "number": 0} for one in exits if wanted.matches(one)]
        )
        ran.append((machine.now, counted(machine)))
    assert ran[:2] == ran[2:]
    assert len(exits) == len(ran[2])


def vars_of(one):
    return {name: getattr(one, name) for name in Exit.__slots__}


def test_lines_are_json(tmp_path):
    recorded(tmp_path / "t")
    lines = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]
    assert lines[0]["emu86 trace"] == 1
    assert {"n", "t", "ring", "engine", "cr3", "at", "reason", "by", "cost"} <= set(
        next(line for line in lines if "n" in line)
    )
