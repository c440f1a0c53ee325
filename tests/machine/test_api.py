"""The library's front door: loading a guest, how runs end and go on, the console."""

import hashlib
import threading

import pytest

from emu86 import ConfigError, Machine, Stop, config, images
from support.flat import COM1, MEMORY, code, flat, guest, send

POWEROFF = "mov dx, 0x604\nmov ax, 0x2000\nout dx, ax\njmp $\n"
# It says that it is ready for input, RTS, and sends on each character's successor.
ECHO = f"""
    mov edx, {COM1 + 4}
    mov al, 2
    out dx, al
    mov edx, {COM1 + 5}
.wait:
    in al, dx
    test al, 1
    jz .wait
    mov edx, {COM1}
    in al, dx
    inc al
    out dx, al
    mov edx, {COM1 + 5}
    jmp .wait
"""
COUNT = "l: inc dword [0x200000]\njmp l\n"

# -- how a run ends --------------------------------------------------------------------


@pytest.mark.parametrize("between", ["", "jmp short $ + 2\n"])
def test_until_comes_before_the_end(between):
    """The text and the power going off, in one block and in two."""
    built = guest(f"mov edx, {COM1}\nmov al, 'X'\nout dx, al\n{between}{POWEROFF}")
    assert built.run(until=b"X", timeout=120).reason == "until"
    assert built.run(timeout=120).reason == "poweroff"


@pytest.mark.parametrize(
    ("code", "stop"),
    [
        (POWEROFF, Stop("poweroff", 0, "by port 604h")),
        ("mov al, 0xfe\nout 0x64, al\njmp $", Stop("reset")),
        ("mov al, 1\nout 0x92, al\njmp $", Stop("reset", 0, "by port 92h")),
        ("cli\nhlt", Stop("halted")),
        ("lidt [.idtr]\nud2\n.idtr: dw 0, 0, 0", Stop("triple fault")),
        ("mov al, 0x12\nout 0xf4, al\njmp $", Stop("debug exit", 0x12)),
        ("mov eax, 0x3456\nout 0xf4, ax\njmp $", Stop("debug exit", 0x3456)),
        ("mov eax, -2\nout 0xf4, eax\njmp $", Stop("debug exit", 0xFFFFFFFE)),
    ],
)
def test_ends(code, stop):
    built = guest(code, debug_exit=True)
    found = built.run(timeout=120)
    assert (found.reason, found.code) == (stop.reason, stop.code)
    if stop.detail:
        assert found.detail == stop.detail
    assert not found.resumable
    registers, now = built.registers, built.now
    assert built.run(timeout=120) == found, "an ended machine stays ended"
    assert (built.registers, built.now) == (registers, now)


def test_without_debug_exit_port_f4h_is_no_end():
    built = guest("mov al, 1\nout 0xf4, al\n" + POWEROFF)
    assert built.run(timeout=120).reason == "poweroff"


def test_timeout_and_going_on():
    built = guest(COUNT)
    counts = []
    for _ in range(3):
        stop = built.run(timeout=0.05)
        assert stop == Stop("timeout")
        assert stop.resumable
        counts.append(int.from_bytes(built.read_physical(0x200000, 4), "little"))
    assert 0 < counts[0] < counts[1] < counts[2]


def test_a_timeout_of_0_runs_nothing():
    built = guest(COUNT)
    assert built.run(timeout=0).reason == "timeout"
    assert built.now == 0


@pytest.mark.parametrize("timeout", [1e10, float("inf")])
def test_a_timeout_longer_than_the_hosts(timeout):
    """No OverflowError of threading.Timer, and no alarm at once."""
    built = guest(POWEROFF)
    assert built.run(timeout=timeout).reason == "poweroff"


def test_until_is_told_once_and_the_run_goes_on():
    built = guest(send(b"one, two, one.") + POWEROFF)
    shown = bytearray()
    built.on_console(shown.extend)
    assert built.run(until=b"one", timeout=120) == Stop("until")
    assert shown == b"one"
    assert built.run(until=b"one", timeout=120) == Stop("until")
    assert shown == b"one, two, one"
    assert built.run(until=b"one", timeout=120).reason == "poweroff"
    assert shown == b"one, two, one."


def test_stop_from_another_thread():
    built = guest(send(b"A") + COUNT)
    started = threading.Event()
    built.on_console(lambda _: started.set())

    def stop():
        assert started.wait(20)
        built.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    found = built.run(timeout=120)
    thread.join()
    assert found == Stop("interrupted")
    assert found.resumable
    assert built.run(timeout=0.01).reason == "timeout", "one stop, one run"


def test_stop_from_the_console():
    built = guest(send(b"ABC") + COUNT)
    shown = bytearray()

    def see(data):
        shown.extend(data)
        if data == b"B":
            built.stop()

    built.on_console(see)
    assert built.run(timeout=120).reason == "interrupted"
    assert shown.startswith(b"AB")


def test_a_halted_cpu_waits_for_its_timer_without_time_passing():
    """Idle time is virtual: 100 ticks of 54.9 ms, in no time."""
    built = flat(
        """
        gate 8, tick
        mov al, 0x11
        out 0x20, al
        mov al, 8
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 3  ; automatic end of interrupt
        out 0x21, al
        mov al, 0xfe
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 0
        out 0x40, al
        out 0x40, al
        mov ecx, 100
        sti
    .wait:
        hlt
        jmp .wait
    tick:
        loop .back
        mov eax, 5
        jmp fin
    .back:
        iretd
        """
    )
    assert built.run(timeout=120) == Stop("debug exit", 5)
    ideal = 100 * 65536 * 1_000_000_000 // 1_193_182
    assert ideal <= built.now < ideal + 10_000_000


# -- loading ---------------------------------------------------------------------------


def test_a_mistake_in_a_file_is_told_with_its_name(tmp_path):
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_bytes(b"")
    good.write_bytes(images.path("teach").read_bytes())
    for kernel in (bad, str(bad)):
        with pytest.raises(ConfigError, match=f"^kernel: {bad}: the file is empty$"):
            Machine().load_kernel(kernel)
    with pytest.raises(ConfigError, match=f"^initrd: {bad}: the file is empty$"):
        Machine().load_kernel(good, initrd=bad)
    with pytest.raises(ConfigError, match="^kernel: the file is empty$"):
        Machine().load_kernel(b"")


def test_run_without_a_guest():
    with pytest.raises(ConfigError, match="kernel: none was loaded"):
        Machine(memory=MEMORY).run()


@pytest.mark.parametrize(
    ("way", "where"), [("load_kernel", ()), ("load_flat", (0x100000,))]
)
def test_a_second_guest_after_a_run(way, where):
    built = guest(send(b"A") + "jmp $")
    assert built.run(until=b"A", timeout=120).reason == "until"
    image = images.path("teach").read_bytes()
    before = hashlib.sha256(built.read_physical(0, MEMORY)).digest()
    with pytest.raises(ConfigError, match="kernel: this machine has run"):
        getattr(built, way)(image, *where)
    assert hashlib.sha256(built.read_physical(0, MEMORY)).digest() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "memory: 0 is not a multiple of 4 KiB from 1M to 63G"),
        ({"memory": (1 << 20) - 4096}, "memory: .* from 1M to 63G"),
        ({"memory": (1 << 20) + 1}, "memory: .* is not a multiple of 4 KiB"),
        ({"memory": (63 << 30) + 4096}, "memory: .* from 1M to 63G"),
        ({"memory": -4096}, "memory: -4096 is not"),
        ({"cpu": "z80"}, r"cpu: no 'z80' \(there are .*\)"),
        ({"technique": "magic"}, r"technique: no 'magic' \(there are .*patch.*\)"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Machine(**options)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "kernel", [b"", b"\x7fELF", b"nothing that can be started", "no/such/file"]
)
def test_kernels_that_are_none(kernel):
    built = Machine(memory=MEMORY)
    with pytest.raises(ConfigError, match="^kernel: ") as caught:
        built.load_kernel(kernel)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="none was loaded"):
        built.run()


@pytest.mark.parametrize(
    ("data", "address", "entry"),
    [
        (b"", 0x1000, None),
        (b"\xf4", -1, None),
        (b"\xf4", MEMORY, None),
        (b"\xf4" * 4096, MEMORY - 1, None),
        (b"\xf4", 0x1000, 0x1001),
        (b"\xf4", 0x1000, 0xFFF),
    ],
)
def test_flat_images_that_do_not_fit(data, address, entry):
    with pytest.raises(ConfigError):
        Machine(memory=MEMORY).load_flat(data, address, entry)


def test_load_flat_has_an_entry():
    built = Machine(memory=MEMORY)
    built.load_flat(b"\x0f\x0b\xfa\xf4", 0x1000, 0x1002)
    assert built.registers["eip"] == 0x1002
    assert built.run(timeout=120).reason == "halted"
    assert built.registers["eip"] == 0x1004


# -- the console -----------------------------------------------------------------------


def test_console_input():
    built = guest(ECHO)
    shown = bytearray()
    built.on_console(shown.extend)
    built.console_input(b"HAL")
    built.console_input(b"")
    built.console_input(b" 9")
    assert built.console_waiting == 5
    assert built.run(until=b"!:", timeout=120).reason == "until"
    assert shown == b"IBM!:"
    assert built.console_waiting == 0
    built.console_input(b"x")
    assert built.run(until=b"y", timeout=120).reason == "until"


def test_console_input_while_it_runs():
    built = guest(ECHO)
    built.on_console(lambda data: built.console_input(data) if data != b"z" else None)
    built.console_input(b"a")
    assert built.run(until=b"z", timeout=120).reason == "until"


def test_consoles_are_told_in_order_byte_by_byte():
    built = guest(send(b"hi") + POWEROFF)
    told = []
    built.on_console(lambda data: told.append((1, data)))
    built.on_console(lambda data: told.append((2, data)))
    built.run(timeout=120)
    assert told == [(1, b"h"), (2, b"h"), (1, b"i"), (2, b"i")]


# -- the date --------------------------------------------------------------------------

# It ends with a register of the real-time clock.
_DATE = """
    mov al, {}
    out 0x70, al
    xor eax, eax
    in al, 0x71
    jmp fin
"""
_REGISTERS = (0, 2, 4, 7, 8, 9, 0x32)  # seconds to years, and centuries


def shown(rtc):
    """The date as a guest reads it at its start, in BCD."""
    return [code(_DATE.format(index), rtc=rtc) for index in _REGISTERS]


def test_the_guest_is_given_a_date():
    # 2038-01-19 03:14:07, the last second of a 32-bit time.
    assert shown((1 << 31) - 1) == [0x07, 0x14, 0x03, 0x19, 0x01, 0x38, 0x20]
    assert shown(config.RTC) == [0, 0, 0, 1, 1, 0x26, 0x20]


def test_the_second_after_begins_with_its_fraction():
    machine = flat("sti\nl: jmp l", rtc=10.75)
    seconds = machine.board.rtc.seconds_of_day
    assert (seconds(0), seconds(249_999_999), seconds(250_000_000)) == (10, 10, 11)


@pytest.mark.parametrize("rtc", [-1, float("nan"), float("inf"), 253_402_300_800])
def test_dates_that_are_none(rtc):
    with pytest.raises(ConfigError, match="^rtc: .* is no date from 1970 to 9999$"):
        Machine(rtc=rtc)


def test_a_run_that_is_stopped_in_the_midst_of_the_text_may_go_on_to_its_end():
    machine = guest(send(b"XY") + POWEROFF)
    machine.on_console(lambda data: machine.stop() if data == b"X" else None)
    assert machine.run(until=b"XY", timeout=120) == Stop("interrupted")
    assert machine.run(until=b"XY", timeout=120).reason == "until"
