"""Programs of 64 and of 32 bits under one kernel of 64 bits, with 2 GiB of RAM."""

import hashlib
import shutil
import subprocess

import pytest

from support.places import GUESTS, TESTS
from support.shell import INITRD_AMD64, KERNEL_AMD64, Shell
from tools.fetch_guests import archive

pytestmark = [pytest.mark.slow, pytest.mark.guest("vmlinuz-amd64")]

SOURCE = TESTS / "guests" / "processes.c"
PARTS = ("signals", "fpu", "forks", "threads")
OPTIONS = ("-O1", "-mno-red-zone", "-pthread", "-static", "-no-pie")
BITS = (64, 32)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The program by its width, compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    built = {bits: tmp_path_factory.mktemp("programs") / f"p{bits}" for bits in BITS}
    for bits, path in built.items():
        subprocess.run(["gcc", f"-m{bits}", *OPTIONS, "-o", path, SOURCE], check=True)
    return built


@pytest.fixture(scope="module")
def shell(programs):
    """A guest that has the programs beside its own: Linux takes archives in a row."""
    added = archive({f"bin/{it.name}": it.read_bytes() for it in programs.values()})
    initrd = INITRD_AMD64.read_bytes() + added
    return Shell(kernel=KERNEL_AMD64, initrd=initrd, memory=2 << 30)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bits", BITS)
def test_the_host_agrees(programs, bits, part):
    """What the program holds to be right is so on a CPU."""
    done = subprocess.run([programs[bits], part], check=False, capture_output=True)
    assert done.stdout.decode() == f"{part}-ok\n"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bits", BITS)
def test_program(shell, bits, part):
    assert shell.do(f"p{bits} {part}") == f"{part}-ok\n"


def test_all_at_once(shell):
    each = "; ".join(f"p{bits} {part} &" for bits in BITS for part in PARTS)
    shown = shell.do(f"({each.replace('&;', '&')} wait) | sort")
    assert shown == "".join(sorted(f"{part}-ok\n" for part in PARTS for _ in BITS))


def test_a_thousand_times_fork_and_exec(shell):
    again = "i=0; while [ $i -lt 500 ]; do {} || echo bad; i=$((i+1)); done"
    assert shell.do(again.format("p64 nothing && p32 nothing")) == ""


def test_1_gib_of_tmpfs(shell):
    """Written, read twice, copied in part; its pages are all different."""
    size = 1 << 30
    busybox = (GUESTS / "busybox-amd64").read_bytes()
    assert len(busybox) % 4096, "every page of the file would be there many times"
    times = size // len(busybox) + 1
    shell.do("mount -o remount,size=1500m /tmp")
    shell.do(f"for i in $(seq {times}); do cat /bin/busybox; done > /tmp/f")
    shell.do(f"truncate -s {size} /tmp/f")
    whole = hashlib.md5((busybox * times)[:size])
    part = hashlib.sha256((busybox * times)[: size // 8])
    assert shell.do("md5sum /tmp/f") == f"{whole.hexdigest()}  /tmp/f\n"
    copied = f"head -c {size // 8} /tmp/f > /tmp/g; sha256sum /tmp/g; rm /tmp/g"
    assert shell.do(copied) == f"{part.hexdigest()}  /tmp/g\n"
    assert shell.do("md5sum /tmp/f; rm /tmp/f") == f"{whole.hexdigest()}  /tmp/f\n"


def test_the_kernel_has_not_complained(shell):
    shown = shell.do("dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|stall|lockup'")
    assert shown == ""
