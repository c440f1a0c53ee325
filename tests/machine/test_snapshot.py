"""Saved and restored: both machines go on alike, to the bit, from any stop."""

import zlib
from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu86 import ConfigError, Machine, images
from emu86.cpu.library import Abilities
from emu86.machine import snapshot
from support.flat import flat, guest
from support.fuzz import guests, programs
from support.recorder import Recorder
from support.snapshots import difference, run_both, run_for, twin
from support.snippets import PIC, TIMER

pytestmark = pytest.mark.not_quick

MS = 1_000_000


def teaching(technique):
    machine = Machine(memory=4 << 20, technique=technique)
    machine.load_kernel(images.path("teach"), append="script")
    return machine


# -- the teaching kernel ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("technique", "most", "end"),
    [
        ("patch", 99, "poweroff"), ("iopl", 99, "poweroff"),
        ("trap", 9, "interrupted"), ("bare", 9, "interrupted"),
    ],
)  # fmt: skip
def test_a_kernel_goes_on_alike_from_stops_all_the_way(technique, most, end):
    machine = teaching(technique)
    for stops in range(most):
        other = twin(machine)
        stop = run_both(machine, other, lambda one: run_for(one, 10 * MS - 1))
        if not stop.resumable:
            break
        if stops % 2:
            machine = other  # restored from one that was restored itself
    assert stop.reason == end
    assert machine.stats.exits


def test_from_where_the_console_shows_something():
    machine = teaching("patch")
    for text in (b"teach:", b"Which ring", b"ok", b"checks passed"):
        assert machine.run(until=text, timeout=60).reason == "until"
        run_both(machine, twin(machine), lambda one: run_for(one, MS // 3))


def test_from_where_somebody_has_stopped_it():
    machine = teaching("patch")

    class Stopper(Recorder):
        left = 3000

        def vm_exit(self, *_what):
            self.left -= 1
            if not self.left:
                machine.stop()

    machine.subscribe(Stopper())
    assert machine.run(timeout=60).reason == "interrupted"
    run_both(machine, twin(machine), lambda one: one.run(timeout=60))


def test_saving_costs_time_but_changes_nothing_that_is_seen():
    shown = []
    for stops in (0, 4):
        machine = teaching("patch")
        out = bytearray()
        machine.on_console(out.extend)
        for _ in range(stops):
            run_for(machine, 20 * MS)
            machine.save()
        assert machine.run(timeout=60).reason == "poweroff"
        checks = [line for line in bytes(out).splitlines() if b"passed" in line]
        shown.append((checks, machine.stats.exits["CLI"].count))
    assert shown[0] == shown[1]


# -- random programs -------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(sorted(programs.KINDS)),
    st.integers(0, 1 << 16),
    st.sampled_from(["patch", "iopl", "trap", "bare", "public"]),
    st.lists(st.integers(1, 60_000), min_size=2, max_size=4),
)
def test_random_programs_go_on_alike(kind, seed, technique, spans):
    bare = technique == "bare"
    plan = programs.plan(kind, seed, "patch" if bare else technique)
    if bare:
        plan.technique = "bare"
    machine = guests.build(plan)
    able = {"abilities": Abilities.none()} if plan.public else {}
    for i, span in enumerate(spans):
        other = twin(machine, **able)
        if not bare:
            guests.check(other)
        if not run_both(
            machine, other, lambda one, ns=span: run_for(one, ns)
        ).resumable:
            return
        if i % 2:
            machine = other


# -- where it is not simply between two instructions -----------------------------------

STORES = """
    mov edi, 0xf0000000
.again:
    inc eax
    add [edi], eax
    mov [edi + 4], eax
    jmp .again
"""


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl"])
def test_inside_an_access_to_what_is_no_ram(technique):
    machine = flat(STORES, technique=technique)
    run_for(machine, MS)
    inside = 0
    for ns in range(1, 4000, 501):
        run_for(machine, ns)
        inside += machine.vmm.mmio_step.active
        other = twin(machine)
        assert not machine.vmm.mmio_step.active
        assert not machine.vmm.single_step.forced
        run_both(machine, other, lambda one: run_for(one, 7000))
    assert inside


class Device:
    """Writes down what is written; a machine's own, and so no part of its state."""

    widths = frozenset({1, 2, 4})

    def __init__(self):
        self.log = []

    def read(self, _offset, _width, _now):
        return 7

    def write(self, offset, width, value, _now):
        self.log.append((offset, width, value))


def test_a_store_under_way_is_done_once():
    machine = flat(STORES)
    device = Device()
    machine.board.memory.attach(range(0xF0000000, 0xF0001000), device, "test")
    machine.vmm.mmu.mmio_pages = frozenset({0xF0000})
    run_for(machine, MS)
    inside = 0
    for ns in range(1, 4000, 501):
        run_for(machine, ns)
        inside += machine.vmm.mmio_step.active
        machine.save()
    assert inside
    values = [value for offset, _width, value in device.log if offset == 4]
    assert values == list(range(values[0], values[0] + len(values)))


def test_before_a_patched_block_is_translated():
    machine = flat("mov ecx, 99\n.again:\nsmsw eax\nloop .again\njmp fin")
    vmm = machine.vmm
    while vmm.pending_patch is None:
        assert vmm.end is None
        machine.vmm.engine.clock.run_for(4 * MS)
        vmm.run()
    site, byte = vmm.pending_patch
    assert machine.read_physical(site, 1) == b"\xcc" != bytes([byte])
    other = twin(machine)
    assert vmm.pending_patch is None
    assert other.read_physical(site, 1) == bytes([byte])
    assert (
        run_both(machine, other, lambda one: one.run(timeout=20)).reason == "debug exit"
    )


TICKS = (
    "gate 0x20, ticked"
    + PIC.format(base=0x20, mask="0xFE")
    + TIMER
    + """
    sti
.wait:
    hlt
    jmp .wait
ticked:
    inc dword [0x80000]
    mov al, 0x20
    out 0x20, al
    mov eax, [0x80000]
    cmp eax, 9
    je fin
    iretd
"""
)


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl", "bare"])
def test_while_it_is_halted(technique):
    machine = flat(TICKS, technique=technique)
    halted = 0
    for _ in range(3):
        run_for(machine, 5 * MS)
        halted += machine.vcpu.halted
        machine = twin(machine)
    assert halted
    other = twin(machine)
    assert run_both(machine, other, lambda one: one.run(timeout=20)).code == 9


def test_after_a_timeout():
    machine = flat("again: inc eax\ncall work\njmp again\nwork: smsw edx\ncli\nret")
    assert machine.run(timeout=0.1).reason == "timeout"
    run_both(machine, twin(machine), lambda one: run_for(one, MS))


# DR0 breaks at .here, DR1 on writes to 80000h, and the traps of both are counted.
BROKEN = """
    gate 1, broke
    mov eax, .here
    mov dr0, eax
    mov eax, 0x80000
    mov dr1, eax
    mov eax, 0xd0000a
    mov dr7, eax
    xor ecx, ecx
.again:
    inc ecx
.here:
    mov [0x80000], ecx
    push ds
    pop ss
    pushfd
    pop eax
    cmp ecx, 200
    jne .again
    mov eax, [0x80004]
    jmp fin
broke:
    inc dword [0x80004]
    or dword [esp + 8], 0x10000
    iretd
"""


@pytest.mark.parametrize("technique", ["patch", "trap", "iopl", "bare"])
def test_while_breakpoints_are_armed(technique):
    machine = flat(BROKEN, technique=technique)
    run_for(machine, 3 * MS if technique == "bare" else 100_000)
    armed = 0
    for ns in range(1, 9000, 1301):
        run_for(machine, ns)
        armed += machine.vmm.breakpoints.armed
        other = twin(machine)
        run_both(machine, other, lambda one: run_for(one, 9001))
        machine = other
    assert armed
    stop = machine.run(timeout=20)
    assert (stop.reason, stop.code) == ("debug exit", 400)


@pytest.mark.parametrize("technique", ["patch", "trap"])
def test_in_a_page_that_rewrites_itself(technique):
    """What its pages are used for is found out again, in both."""
    machine = flat(
        """
    xor ecx, ecx
.again:
    inc ecx
    mov [.there + 1], ecx
.there:
    mov eax, 0
    cmp eax, ecx
    jne bad
    cmp ecx, 3000
    jne .again
    jmp fin
""",
        technique=technique,
    )
    for _ in range(4):
        run_for(machine, 20_000)
        other = twin(machine)
        run_both(machine, other, lambda one: run_for(one, 90_000))
    assert run_both(machine, other, lambda one: one.run(timeout=20)).code == 3000


# SMSW becomes STR and STI becomes CLI, and back, after some time in another page.
CHANGED = """
    xor ebx, ebx
    xor ecx, ecx
.again:
    mov edx, 50
.inner:
    call work
    dec edx
    jnz .inner
    mov edx, 2000000
.wait:
    dec edx
    jnz .wait
    xor word [work + 1], 0x2801
    xor byte [work.set], 1
    inc ecx
    cmp ecx, 8
    jne .again
    mov eax, ebx
    jmp fin
    align 4096
work:
    smsw eax
    add ebx, eax
.set:
    sti
    pushfd
    pop eax
    and eax, 0x200
    add ebx, eax
    ret
    align 4096
"""


@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_with_code_that_changes_later(technique):
    """Nothing that was known of it before is left, which nobody would tell of."""
    plain = flat(CHANGED, technique=technique).run(timeout=20)
    machine = flat(CHANGED, technique=technique)
    for _ in range(8):
        run_for(machine, 700_001)
        run_both(machine, twin(machine), lambda one: run_for(one, 900_001))
    assert machine.run(timeout=20) == plain


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_the_level_that_may_do_input_and_output(technique):
    machine = flat("push dword 0x3002\npopfd\n.again: jmp .again", technique=technique)
    run_for(machine, 5 * MS)
    assert twin(machine).registers["eflags"] & 0x3000 == 0x3000


def test_what_was_typed_arrives_in_both():
    machine = flat("""
    mov dx, 0x3fc
    mov al, 2
    out dx, al
    xor ebx, ebx
.again:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz .again
    mov dx, 0x3f8
    in al, dx
    out dx, al
    inc ebx
    cmp ebx, 6
    jne .again
    mov eax, ebx
    jmp fin
""")
    machine.console_input(b"abc")
    machine.console_input(b"def")
    other = twin(machine)
    assert other.console_waiting == 6
    shown = bytearray()
    other.on_console(shown.extend)
    assert run_both(machine, other, lambda one: one.run(timeout=20)).code == 6
    assert shown == b"abcdef"


# -- the state itself ------------------------------------------------------------------


def test_a_run_that_has_ended_has_ended_in_both():
    machine = guest("cli\nhlt")
    stop = machine.run(timeout=20)
    assert Machine.restore(machine.save()).run() == stop


def test_a_machine_without_a_guest():
    other = twin(Machine(memory=1 << 20))
    with pytest.raises(ConfigError, match="none was loaded"):
        other.run()


def test_it_is_as_it_was_built():
    machine = Machine(
        1 << 21,
        "pentium2",
        "iopl",
        debug_exit=True,
        realtime=True,
        hypervisor=True,
        rtc=1.5,
    )
    other = twin(machine)
    assert other.vmm.name == "iopl"
    assert other.vcpu.model is machine.vcpu.model
    assert other.vcpu.hypervisor == machine.vcpu.hypervisor != ""
    assert other.board.rtc.save() == machine.board.rtc.save()
    assert other.save().configuration.rtc == 1.5
    machine.realtime = False
    assert other.realtime
    assert not twin(machine).realtime


def test_counts_go_on():
    machine = teaching("patch")
    machine.run(until=b"Which ring", timeout=60)
    other = twin(machine)
    machine.run(timeout=60)
    other.run(timeout=60)
    one, two = machine.stats, other.stats
    assert (one.exits, one.blocks, one.decoded) == (two.exits, two.blocks, two.decoded)
    assert (one.patched, one.shadow, one.virtual_s) == (
        two.patched,
        two.shadow,
        two.virtual_s,
    )


def test_a_state_stays_what_it_was():
    machine = teaching("patch")
    machine.run(until=b"Which ring", timeout=60)
    state = machine.save()
    ends = set()
    for _ in range(2):
        other = Machine.restore(state)
        other.run(timeout=60)
        ends.add((other.now, other.read_physical(0, 4 << 20)))
    assert len(ends) == 1
    assert difference(state, Machine.restore(state).save()) is None


def plain(value):
    if is_dataclass(value):
        assert type(value).__dataclass_params__.frozen
        return all(plain(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return all(map(plain, (*value, *value.values())))
    if isinstance(value, tuple):
        return all(map(plain, value))
    return value is None or type(value) in (int, bool, str, bytes)


@pytest.mark.parametrize("technique", ["patch", "bare"])
def test_it_is_plain_data(technique):
    machine = teaching(technique)
    machine.console_input(b"x")
    run_for(machine, 30 * MS)
    assert plain(machine.save())


def test_memory_without_anything_takes_no_room():
    machine = guest("cli\nhlt")
    state = machine.save()
    # The BIOS's data area, its extended one, its ROM; a GDT; the guest.
    assert sum(len(data) for _at, data in state.ram) <= 5 * 4096
    assert twin(machine).read_physical(0, 16 << 20) == machine.read_physical(
        0, 16 << 20
    )


@pytest.mark.parametrize("wrong", [None, b"state", {"version": 1}])
def test_what_is_no_state(wrong):
    told = r"^state: .* is not what Machine.save returns$"
    with pytest.raises(ConfigError, match=told):
        Machine.restore(wrong)


def test_a_state_of_another_version():
    state = Machine(memory=1 << 20).save()
    with pytest.raises(ConfigError, match="version is 0"):
        Machine.restore(replace(state, version=0))


def layout(state):
    """The names of all fields of a state and of what it holds, in their order."""
    if is_dataclass(state):
        names = [one.name for one in fields(state)]
        return [type(state).__name__, *((n, layout(getattr(state, n))) for n in names)]
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        pairs = zip(state._fields, state, strict=True)
        return [type(state).__name__, *((n, layout(value)) for n, value in pairs)]
    if isinstance(state, dict):
        return [(name, layout(value)) for name, value in state.items()]
    return None


def test_another_layout_is_another_version():
    """Then pickled states of before are refused: give both numbers anew."""
    told = repr(layout(Machine(memory=1 << 20).save())).encode()
    assert (snapshot.VERSION, zlib.crc32(told)) == (16, 1513767928)


def test_not_while_it_runs():
    machine = teaching("patch")
    told = []

    def look(_data):
        try:
            machine.save()
        except ConfigError as error:
            told.append(str(error))

    machine.on_console(look)
    machine.run(until=b"teach:", timeout=60)
    assert set(told) == {"state: a running machine cannot be saved; stop it"}
