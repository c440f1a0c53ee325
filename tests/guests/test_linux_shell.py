"""Debian's kernel at its prompt: processes, signals, memory, time, and its own opinion.

The guest of a technique is booted once; the last test of it ends it.
"""

import hashlib
import re
from datetime import UTC, datetime

import pytest

from emu86 import config
from support.shell import GUESTS, PATIENCE, PROMPT, Qemu, Shell

pytestmark = pytest.mark.guest


# The one technique in `make test`, the other in `make nightly`.
@pytest.fixture(
    scope="module", params=["patch", pytest.param("iopl", marks=pytest.mark.slow)]
)
def shell(request):
    """A guest at its prompt."""
    return Shell(request.param)


@pytest.fixture(scope="module")
def qemu():
    """The same guest on QEMU."""
    guest = Qemu()
    yield guest
    guest.close()


def test_the_only_option_it_needs_is_its_console(shell):
    assert "Kernel command line: console=ttyS0\n" in shell.boot
    assert "Linux version" in shell.boot


def test_it_does_what_is_typed(shell):
    assert shell.do("echo hello $((6*7))") == "hello 42\n"
    assert shell.do("false || echo no | tr no on") == "on\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [("ldt", "ldt-ok\ntls-ok\n"), ("sigs", "signals-ok\n"), ("fpu", "fpu-ok\n")],
    ids=["ldt", "sigs", "fpu"],
)
def test_programs(shell, program, words):
    assert shell.do(program) == words


def test_ports_of_users(shell):
    assert shell.do("userio") == "userio-ok\n"


def test_users_see_the_guests_tables_and_not_ours(shell, qemu):
    # QEMU's IRET leaves the descriptor of CS not accessed; a CPU's does not.
    expected = qemu.do("leaks").replace("lar  0100c0fa00", "lar  0100c0fb00")
    if shell.machine.vmm.name == "iopl":
        # The known price of the technique: IOPL is the guest kernel's ring.
        expected = re.sub("(pshf 0000)0", r"\g<1>1", expected)
    assert shell.do("leaks") == expected


def test_ctrl_c_reaches_the_process(shell):
    # Not before the shell has given its terminal to the process.
    shell.machine.console_input(b"(sleep 1; echo now) & sleep 100000\n")
    shell.machine.run(until=b"\nnow\r\n", timeout=PATIENCE)
    shell.machine.console_input(b"\x03")
    assert shell.machine.run(until=PROMPT, timeout=PATIENCE).reason == "until"
    assert shell.do("echo $?") == "130\n"


def test_a_thousand_times_fork_and_exec(shell):
    again = "i=0; while [ $i -lt 1000 ]; do busybox true || echo bad; i=$((i+1)); done"
    assert shell.do(again) == ""
    count = re.search(r"processes (\d+)", shell.do("cat /proc/stat"))
    assert int(count[1]) > 1000


def test_64_mib_of_tmpfs(shell):
    size = 64 << 20
    busybox = (GUESTS / "busybox").read_bytes()
    assert len(busybox) % 4096, "every page of the file would be there many times"
    times = size // len(busybox) + 1
    shell.do(f"for i in $(seq {times}); do cat /bin/busybox; done > /tmp/f")
    shell.do(f"truncate -s {size} /tmp/f")
    digest = hashlib.md5((busybox * times)[:size]).hexdigest()
    assert shell.do("md5sum /tmp/f") == f"{digest}  /tmp/f\n"
    shell.do("rm /tmp/f")


def seconds(shell):
    """Return the guest's clock as seconds since 1970, its uptime and our time."""
    date, uptime = shell.do("date +%s; cat /proc/uptime").split("\n")[:2]
    return int(date), float(uptime.split()[0]), shell.machine.now / 1e9


def test_the_clock_is_ours(shell):
    date, uptime, now = seconds(shell)
    # The chip's clock is read in whole seconds, and uptime begins after unpacking.
    assert abs(date - config.RTC - now) < 2
    assert 0 < now - uptime < 3
    # A hundred seconds go by at once, give or take the few ms that a command takes.
    assert shell.do("sleep 100") == ""
    later, up, then = seconds(shell)
    assert 100 <= then - now < 101
    assert abs((up - uptime) - (then - now)) < 0.05
    assert abs((later - date) - (then - now)) <= 1
    year = datetime.fromtimestamp(date, UTC).year
    assert shell.do("date +%Y") == f"{year}\n"


# What the kernel says when something is wrong.
TROUBLE = re.compile(
    r"warn|\bbug\b|oops|error|fail|stall|lockup|unstable|timed out|fatal|broken|panic"
    r"|unable|trace|tainted|bad\b|corrupt|spurious|not tainted|cut here|invalid|lost"
    r"|nobody cared|hung|unhandled|unexpected|missing|killed|segfault|overflow",
    re.IGNORECASE,
)
# On a PC whose TSC has but the PIT to check it by, Linux programs the PIT for one shot
# at a time and checks all the same: a timer other than the tick's that is near then
# discredits the TSC, sooner or later. QEMU's time is the host's, so it is chance when.
NAPS = "for i in $(seq 400); do sleep 0.0117; done"
BOOTS = 6


def normalised(line):
    """Return a line of dmesg less its time and numbers."""
    line = re.sub(r"^\[ *\d+\.\d+\] ", "", line)
    return re.sub(r"(0x|-)?\b[0-9a-f]*\d[0-9a-f]*\b", "#", line)


def trouble(dmesg):
    """Return the lines of dmesg that tell of trouble."""
    lines = map(normalised, dmesg.splitlines())
    return {line for line in lines if TROUBLE.search(line)}


def what_qemu_says():
    """Boot QEMU, again and again, and yield the trouble that each boot tells of."""
    for _ in range(BOOTS):
        guest = Qemu()
        try:
            guest.do(NAPS)
            yield trouble(guest.do("dmesg"))
        finally:
            guest.close()


def test_the_kernel_does_not_complain(shell):
    ours = trouble(shell.do("dmesg"))
    for theirs in what_qemu_says():
        ours -= theirs
        if not ours:
            break
    assert not ours


def test_its_hardware_is_what_it_says(shell):
    said = shell.do("dmesg")
    for line in (
        "SMBIOS 2.4 present.",
        "DMI: emu86 ISA PC, BIOS 0.1 ",
        "PCI: PCI BIOS revision 2.10",
        "p6 PMU driver.",
    ):
        assert line in said


def test_interrupts_are_accounted_for(shell):
    shown = shell.do("cat /proc/interrupts")
    counts = dict(re.findall(r"^ *(\w+): +(\d+)", shown, re.MULTILINE))
    assert int(counts["0"]) > 100
    assert int(counts["4"]) > 100
    assert counts["ERR"] == counts["MIS"] == "0"


def test_the_end(shell):
    # Without ACPI and APM there is no switch: Linux halts with interrupts off.
    if shell.machine.vmm.name == "patch":
        assert "reboot: System halted" in shell.end("dmesg -n 8; poweroff -f")
        assert shell.stop.reason == "halted"
    else:
        assert "reboot: Restarting system" in shell.end("dmesg -n 8; reboot -f")
        assert shell.stop.reason == "reset"
