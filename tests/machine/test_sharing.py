"""A machine among threads, processes, signals and callbacks that raise."""

import copy
import os
import pickle
import signal
import threading

import pytest

from emu86 import ConfigError, Machine, Stop, images
from support.flat import COM1, flat, send

EXITS = 18_191  # of the teaching kernel's script
COUNT = "l: inc dword [0x200000]\njmp l\n"
DONE = "mov al, 1\nout 0xf4, al\njmp $\n"


def teaching_kernel():
    machine = Machine(memory=16 << 20)
    machine.load_kernel(images.path("teach"), append="script")
    return machine


def exits(machine):
    return sum(exit_.count for exit_ in machine.stats.exits.values())


# -- processes -------------------------------------------------------------------------


def in_a_child(work):
    """Have a forked process do `work`, and tell whether it returned True."""
    child = os.fork()
    if not child:
        right = False
        try:
            right = work()
        finally:
            os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("first", [b"", b"== Which ring"])
def test_a_forked_process_has_a_machine_of_its_own(first):
    """Before its first run, and in the midst of the script."""
    machine = teaching_kernel()
    if first:
        assert machine.run(until=first, timeout=120).reason == "until"
    before = machine.now

    def runs():
        return machine.run(timeout=120).reason == "poweroff" and exits(machine) == EXITS

    assert in_a_child(runs)
    assert machine.now == before
    assert runs()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_guest_ram_is_a_processs_own():
    machine = Machine(memory=1 << 20)

    def writes():
        machine.write_physical(0x1000, b"child")
        return machine.read_physical(0x1000, 5) == b"child"

    assert in_a_child(writes)
    assert machine.read_physical(0x1000, 5) == bytes(5)


# -- threads ---------------------------------------------------------------------------


def test_two_machines_run_in_two_threads():
    machines = [teaching_kernel() for _ in range(2)]
    stops = []
    threads = [
        threading.Thread(target=lambda m=machine: stops.append(m.run(timeout=120)))
        for machine in machines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stop.reason for stop in stops] == ["poweroff"] * 2
    assert [exits(machine) for machine in machines] == [EXITS] * 2


def test_one_machine_runs_in_one_thread_at_a_time():
    machine = flat(send(b"X") + COUNT)
    running = threading.Event()
    machine.on_console(lambda _data: running.set())
    stops = []
    thread = threading.Thread(target=lambda: stops.append(machine.run(timeout=120)))
    thread.start()
    assert running.wait(60)
    try:
        with pytest.raises(ConfigError, match="^run: this machine is running already$"):
            machine.run(timeout=1)
        with pytest.raises(ConfigError, match="^state: "):
            machine.save()
        another = "this machine is running in another thread$"
        with pytest.raises(ConfigError, match=f"^memory: {another}"):
            machine.write_physical(0x200000, b"x")
        with pytest.raises(ConfigError, match=f"^registers: {another}"):
            machine.set_register("eax", 1)
        with pytest.raises(ConfigError, match=f"^kernel: {another}"):
            machine.load_flat(b"\xf4", 0x1000)
        assert machine.registers["eip"], "looking is allowed"
        assert len(machine.read_physical(0x200000, 4)) == 4
    finally:
        machine.stop()
        thread.join()
    assert stops == [Stop("interrupted")]
    machine.set_register("eax", 1)
    assert machine.run(timeout=0.01).reason == "timeout"


def test_a_machine_that_nobody_keeps_runs_on():
    machine = flat(send(b"X") + DONE)
    stops = []
    thread = threading.Thread(target=lambda m: stops.append(m.run()), args=[machine])
    del machine
    thread.start()
    thread.join()
    assert stops == [Stop("debug exit", 1)]


# -- callbacks -------------------------------------------------------------------------


def test_a_callback_may_not_run_the_machine():
    machine = flat(send(b"X") + DONE)
    machine.on_console(lambda _data: machine.run())
    with pytest.raises(ConfigError, match="^run: this machine is running already$"):
        machine.run(timeout=120)
    assert machine.run(timeout=120) == Stop("debug exit", 1)


def test_a_callback_that_raises_loses_nothing():
    """The guest sends on, interrupts of the line included, as if nobody had raised."""

    def play(*, raises):
        machine = flat(send(b"one") + DONE)
        heard = []
        if raises:
            machine.on_console(lambda data: 1 // (data != b"n"))
        machine.on_console(heard.append)
        if raises:
            with pytest.raises(ZeroDivisionError):
                machine.run(timeout=120)
        assert machine.run(timeout=120) == Stop("debug exit", 1)
        return b"".join(heard), machine.registers

    assert play(raises=True) == play(raises=False)
    assert play(raises=True)[0] == b"one"


@pytest.mark.parametrize("hook", ["vm_exit", "inject", "shadow_fill", "pio"])
def test_an_observer_that_raises_loses_nothing(hook):
    machine = flat(
        f"gate 0x21, .back\nint 0x21\nmov edx, {COM1}\nmov al, 'A'\nout dx, al\n{DONE}"
        ".back: iret\n"
    )
    told = []

    def raises_first(*what):
        told.append(what)
        if len(told) == 1:
            raise LookupError

    machine.subscribe(type("Observer", (), {hook: staticmethod(raises_first)})())
    with pytest.raises(LookupError):
        machine.run(timeout=120)
    assert machine.run(timeout=120) == Stop("debug exit", 1)
    assert told


# -- Ctrl-C ----------------------------------------------------------------------------


def test_ctrl_c_leaves_a_machine_that_goes_on():
    """In the midst of an OUT, as anywhere; then as if nobody had pressed it."""

    def play(*, pressed):
        machine = flat(send(b"one") + DONE)
        heard = []
        machine.on_console(heard.append)
        if pressed:
            machine.on_console(lambda _data: signal.raise_signal(signal.SIGINT))
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    machine.run(timeout=120)
        assert machine.run(timeout=120) == Stop("debug exit", 1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return heard, machine.registers

    assert play(pressed=True) == play(pressed=False)


def test_the_second_ctrl_c_ends_a_callback():
    machine = flat(send(b"X") + DONE)

    def endless(_data):
        while True:
            signal.raise_signal(signal.SIGINT)

    machine.on_console(endless)
    with pytest.raises(KeyboardInterrupt):
        machine.run(timeout=120)
    assert machine.run(timeout=120) == Stop("debug exit", 1)


def test_the_users_own_handler_stays():
    machine = flat(send(b"X") + DONE)
    machine.on_console(lambda _data: signal.raise_signal(signal.SIGINT))
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(machine.stop()))
    try:
        assert machine.run(timeout=120) == Stop("interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [None]


# -- copies ----------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_machine_cannot_be_copied(copied):
    with pytest.raises(TypeError, match=r"Machine\.restore\(machine\.save\(\)\)"):
        copied(Machine(memory=1 << 20))
