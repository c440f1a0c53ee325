"""Real time against a clock of the host that goes as the tests say."""

import ctypes
import random

import pytest

from emu86 import Stop
from emu86.cpu.clock import Clock
from emu86.cpu.engine import abilities
from emu86.machine import loop, realtime
from emu86.machine.realtime import RealTime
from emu86.native import abi
from support.flat import flat
from support.snippets import HUNDREDTH
from support.ticks import TICKS

MS = 1_000_000
INT = ctypes.c_int32
KINDS = {
    "sem_clockwait": (INT, ctypes.c_uint64, INT, ctypes.c_uint64),
    "clock_gettime": (INT, INT, ctypes.c_uint64),
}
SECOND = 1000 * MS


class Host:
    """A host whose clock goes by the guest's work, and by what is slept."""

    def __init__(self, clock, cost):
        self.clock = clock
        self.cost = cost  # ns of CPU time for a unit of the guest's work
        self.share = 1  # that the guest has of its CPU
        self.late = 0  # ns that a sleeper wakes too late
        self.sleeps = 0  # of compiled code
        self.kept = []
        self._cpu = 7 * SECOND
        self._ns = 10 * SECOND
        self._seen = clock.work

    def thread_time_ns(self):
        work = self.clock.work
        spent = (work - self._seen) * self.cost
        self._cpu += spent
        self._ns += spent / self.share
        self._seen = work
        return int(self._cpu)

    def monotonic_ns(self):
        self.thread_time_ns()
        return int(self._ns)

    def monotonic(self):
        return self.monotonic_ns() / SECOND

    def pass_(self, ns):
        self.monotonic_ns()
        self._ns += ns

    def skip(self, to):
        """Advance the guest's clock for no work at all."""
        self.monotonic_ns()
        passed = Clock.advance_to(self.clock, to)
        self._seen = self.clock.work
        return passed

    def sleep_in_machine(self, control):
        """Have compiled code sleep by this clock, too."""
        if not control.sem_clockwait:
            return

        def wait(_semaphore, _clock, at):
            until = abi.Timespec.from_address(at)
            ns = until.seconds * SECOND + until.nanoseconds - self.monotonic_ns()
            self.pass_(max(ns, 0) + self.late)
            self.sleeps += 1
            return -1

        def get_time(_clock, at):
            now = abi.Timespec.from_address(at)
            now.seconds, now.nanoseconds = divmod(self.monotonic_ns(), SECOND)
            return 0

        for name, call in (("sem_clockwait", wait), ("clock_gettime", get_time)):
            kind = getattr(abi.Control, name)
            made = ctypes.CFUNCTYPE(*KINDS[name])(call)
            self.kept.append(made)
            word = ctypes.c_uint64.from_buffer(control, kind.offset)
            word.value = ctypes.cast(made, ctypes.c_void_p).value

    def wait(self, seconds):
        self.pass_(seconds * SECOND + self.late)
        return False


@pytest.fixture
def control():
    return memoryview(bytearray(8 * abi.WORDS)).cast("q")


@pytest.fixture
def host(control, monkeypatch):
    made = Host(Clock(control), 0.25)
    monkeypatch.setattr(realtime, "monotonic_ns", made.monotonic_ns)
    monkeypatch.setattr(realtime, "thread_time_ns", made.thread_time_ns)
    monkeypatch.setattr(made.clock, "advance_to", made.skip)
    return made


class Guest:
    """What computes for a while of the host's time, slice by slice."""

    def __init__(self, host, control):
        self.host, self.control = host, control
        self.pace = RealTime(host.clock)
        self.start = host.monotonic_ns(), host.clock.now
        self.pace.start()

    @property
    def ahead(self):
        host, now = self.start
        passed = self.host.monotonic_ns() - host
        return self.host.clock.now - now - passed

    def compute(self, ns):
        end = self.host.monotonic_ns() + ns
        while self.host.monotonic_ns() < end:
            before = self.host.clock.now
            self.pace.pace()
            assert self.host.clock.now == before, "time does not jump"
            self.control[abi.NOW] = self.control[abi.STOP_AT]

    def idle(self, due):
        """Halt until then, as the run loop has it; return how long it slept."""
        slept = 0
        while self.host.clock.now < due:
            ns = self.pace.left(due)
            if ns:
                ns += self.host.late
                self.host.pass_(ns)
            self.pace.slept(due)
            slept += ns
        return slept


@pytest.fixture
def guest(host, control):
    return Guest(host, control)


@pytest.mark.parametrize("cost", [0.05, 0.2, 1, 5, 50])
def test_work_takes_the_time_that_it_takes_the_host(host, guest, cost):
    host.cost = cost
    guest.compute(SECOND)
    assert abs(guest.ahead) < 5 * MS


@pytest.mark.parametrize("seed", range(5))
def test_one_kind_of_work_after_another(host, guest, seed):
    """System calls, delay loops by RDTSC, new code: a factor of 50 between them."""
    chance = random.Random(seed)
    for _ in range(20):
        host.cost = 10 ** chance.uniform(-1, 0.7)
        guest.compute(chance.randrange(100, 300) * MS)
        assert abs(guest.ahead) < 50 * MS


def test_a_host_that_was_away_is_caught_up_with(host, guest):
    guest.compute(SECOND)
    host.pass_(300 * MS)
    guest.compute(10 * MS)
    assert guest.ahead < -250 * MS, "not at once"
    guest.compute(200 * MS)
    assert abs(guest.ahead) < 50 * MS


@pytest.mark.parametrize("share", [0.5, 0.4])
def test_a_busy_host(host, guest, share):
    host.share = share
    guest.compute(3 * SECOND)
    assert abs(guest.ahead) < 50 * MS


def test_on_a_host_that_is_too_busy_time_falls_behind_until_the_guest_is_idle(
    host, guest
):
    """Or it would do nothing but serve its timer."""
    host.share = 0.1
    guest.compute(SECOND)
    assert -800 * MS < guest.ahead < -600 * MS
    slept = [guest.idle(host.clock.now + 10 * MS) for _ in range(80)]
    assert slept[0] == 0
    assert slept[-1] == 10 * MS
    assert guest.ahead == 0


def test_who_wakes_late_sleeps_less_the_next_time(host, guest):
    host.late = 3 * MS
    for tick in range(1, 500):
        guest.idle(10 * tick * MS)
        assert host.clock.now == 10 * tick * MS, "every tick in its turn"
        assert abs(guest.ahead) < 4 * MS


def test_who_is_late_by_more_does_not_sleep_at_all(host, guest):
    host.pass_(95 * MS)
    slept = [guest.idle(10 * tick * MS) for tick in range(1, 12)]
    assert slept[:9] == [0] * 9
    assert slept[9:] == [5 * MS, 10 * MS]


def test_who_is_ahead_sleeps_longer(host, guest):
    Clock.advance_to(host.clock, 30 * MS)
    host._seen = host.clock.work
    assert guest.idle(40 * MS) == 40 * MS
    assert guest.ahead == 0


def test_sleep_is_no_work(host, guest):
    """Work costs after it what it cost before."""
    guest.compute(SECOND)
    rate = host.clock.rate
    guest.idle(host.clock.now + 10 * SECOND)
    guest.compute(4 * MS)
    assert host.clock.rate == pytest.approx(rate, rel=0.2)


SET_ANEW = f"""
    {HUNDREDTH}
    mov eax, esi
"""
# A tick each 10 ms; the 300th ends the run. In between it computes or halts.


def hosted(monkeypatch, machine, cost):
    """Have a machine run on such a host, which wakes it 2 ms too late."""
    clock = machine.vmm.clock
    host = Host(clock, cost)
    host.late = 2 * MS
    monkeypatch.setattr(realtime, "monotonic_ns", host.monotonic_ns)
    monkeypatch.setattr(realtime, "thread_time_ns", host.thread_time_ns)
    monkeypatch.setattr(loop, "time", host)
    monkeypatch.setattr(clock, "advance_to", host.skip)
    monkeypatch.setattr(machine._loop._kicked, "wait", host.wait)
    host.sleep_in_machine(machine.vmm.engine.shared)
    return host


@pytest.mark.parametrize(
    ("between", "cost"), [("hlt", 1), ("nop", 90), ("cpuid", 10), ("rdtsc", 20)]
)
def test_a_guest_has_a_tick_each_10_ms_of_the_host(monkeypatch, between, cost):
    machine = flat(TICKS.format(between=between), realtime=True)
    host = hosted(monkeypatch, machine, cost)
    before = host.monotonic_ns()
    assert machine.run() == Stop("debug exit", 300)
    passed = host.monotonic_ns() - before
    assert abs(passed - 3 * SECOND) < 50 * MS + passed // 100
    assert abs(machine.now - passed) < 50 * MS


@pytest.mark.skipif(not abilities().native, reason="no compiled code here")
@pytest.mark.parametrize("mode", ["0x34", "0x38"])
def test_compiled_code_sleeps_for_a_halted_guest(monkeypatch, mode):
    """A timer that goes on, and one that its guest sets anew, as Linux does."""
    code = TICKS.format(between="hlt").replace("0x34", mode)
    if mode == "0x38":
        code = code.replace("cmp eax, 300", SET_ANEW + "cmp eax, 300")
    machine = flat(code, "local", realtime=True)
    host = hosted(monkeypatch, machine, 1)
    looks = []
    pace = machine._loop._pace.pace
    monkeypatch.setattr(machine._loop._pace, "pace", lambda: looks.append(pace()))
    before = host.monotonic_ns()
    assert machine.run() == Stop("debug exit", 300)
    passed = host.monotonic_ns() - before
    # The first tick makes the plan, and Python looks each 250 ms.
    assert host.sleeps > 280
    assert len(looks) < 40
    exits = machine.vmm.all_exits()
    assert (exits["HLT"][0], exits["interrupt"][0]) == (300, 300)
    assert machine.vmm.exits["interrupt"][0] < 20
    assert abs(passed - 3 * SECOND) < 50 * MS + 300 * host.late
    assert abs(machine.now - passed) < 50 * MS
    assert abs(machine._loop.slept - passed / SECOND) < 0.7


def test_what_is_asked_for_before_a_sleep_is_done_at_once(monkeypatch):
    machine = flat("sti\nagain: hlt\njmp again", realtime=True)
    run = machine.vmm.run

    def asked():
        run()
        machine.stop()

    monkeypatch.setattr(machine.vmm, "run", asked)
    monkeypatch.setattr(loop, "_LONGEST_SLEEP", 1000)
    assert machine.run(timeout=30) == Stop("interrupted")


def test_what_is_asked_for_after_the_check_is_not_slept_over(monkeypatch):
    machine = flat("sti\nagain: hlt\njmp again", realtime=True)
    its_loop = machine._loop
    check, kicked, calls = its_loop._reason_to_stop, its_loop._kicked, []

    def checked(deadline):
        reason = check(deadline)
        if machine.vmm.vcpu.halted and not calls:
            machine.stop()
        return reason

    def wait(_seconds):
        calls.append(kicked._held.acquire(blocking=False))

    monkeypatch.setattr(its_loop, "_reason_to_stop", checked)
    monkeypatch.setattr(kicked, "wait", wait)
    assert machine.run(timeout=30) == Stop("interrupted")
    assert calls == [True]
