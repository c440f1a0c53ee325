"""Debian's 64-bit kernel at its prompt, with programs of 64 and of 32 bits."""

import lzma
import re

import pytest

from emu86 import ConfigError, Machine
from emu86.machine import boot
from support.shell import (
    APPEND,
    INITRD,
    INITRD_AMD64,
    KERNEL_AMD64,
    KERNEL_CLOUD,
    PATIENCE,
    Qemu,
    Shell,
)

pytestmark = pytest.mark.guest

WRONG = r"WARNING|BUG|Oops|general protection|Call Trace|segfault|unchecked MSR"
SUM = "886715e4051e827f4fe215df3053af3f85ad0d352db2c829c7487af6d78efe30"
SUM_COMMAND = "head -c 300000 /dev/zero | sha256sum"


@pytest.fixture(scope="module")
def shell():
    """A guest on the CPU that it needs."""
    return Shell(kernel=KERNEL_AMD64, initrd=INITRD_AMD64)


def test_it_gets_the_cpu_that_it_needs(shell):
    assert shell.machine.stats.cpu == "atom"
    assert shell.do("uname -m") == "x86_64\n"


def test_a_system_call_has_six_exits_and_none_in_python(shell):
    vmm = shell.machine.vmm

    def exits(bytes_):
        before, pythons = vmm.all_exits(), {k: v[0] for k, v in vmm.exits.items()}
        shell.do(f"dd if=/dev/zero of=/dev/null bs=1 count={bytes_} 2>/dev/null")
        after = {k: v[0] - before.get(k, (0, 0))[0] for k, v in vmm.all_exits().items()}
        python = sum(v[0] - pythons.get(k, 0) for k, v in vmm.exits.items())
        return after, python

    (few, python_few), (many, python_many) = exits(1000), exits(5000)
    calls = many["SYSCALL"] - few["SYSCALL"]
    assert 8000 <= calls < 8050  # a read and a write of each byte
    per_call = {k: (many[k] - few.get(k, 0)) / calls for k in many}
    assert {k for k, count in per_call.items() if count > 0.5} == {
        "SYSCALL", "SYSRET", "SWAPGS", "CLI", "STI", "RDTSC",
    }  # fmt: skip
    # RDTSC, a hook and no trap, moves the stack (CONFIG_RANDOMIZE_KSTACK_OFFSET).
    assert per_call["RDTSC"] < 1.1
    assert sum(per_call.values()) - per_call["RDTSC"] < 6.1  # the timer's among them
    assert (python_many - python_few) / calls < 0.01


def test_a_cpu_of_32_bits_is_refused():
    machine = Machine(memory=256 << 20, cpu="pentium3-pae")
    refusal = "needs 64-bit mode, which this CPU model has not: take atom or skylake$"
    with pytest.raises(ConfigError, match=refusal):
        machine.load_kernel(KERNEL_AMD64, initrd=INITRD_AMD64)


def test_what_it_says_of_itself(shell):
    assert not re.search(WRONG, shell.boot)
    assert "NX (Execute Disable) protection: active\n" in shell.boot
    checked = "x86/mm: Checked W+X mappings: passed, no W+X pages found.\n"
    assert checked in shell.boot


def test_it_needs_no_mitigation(shell):
    told = shell.do("cat /sys/devices/system/cpu/vulnerabilities/*")
    assert set(told.split("\n")) == {"Not affected", ""}
    flags = re.search(r"^flags\s*: (.*)$", shell.do("cat /proc/cpuinfo"), re.MULTILINE)
    # Linux's own: rep_good, nopl, cpuid; constant_tsc goes by family and model.
    assert flags[1] == (
        "fpu de pse tsc msr pae mce cx8 sep pge mca cmov pat mmx fxsr sse sse2"
        " syscall nx pdpe1gb lm constant_tsc rep_good nopl cpuid cx16 lahf_lm"
    )


def test_programs_of_32_bits(shell):
    """INT 80h, segments of an LDT, TLS, signals, the FPU, ports."""
    assert shell.do("ldt; sigs; fpu") == "ldt-ok\ntls-ok\nsignals-ok\nfpu-ok\n"
    assert shell.do("userio") == "userio-ok\n"


def test_programs_of_64_bits(shell):
    assert shell.do(SUM_COMMAND) == f"{SUM}  -\n"
    assert shell.do("seq 1 3000 | gzip -c | gunzip | awk '{ s += $1 } END { print s }'")
    assert shell.do(
        "i=0; while [ $i -lt 20 ]; do i=$((i+1)); (true); done; echo $i"
    ) == ("20\n")


@pytest.mark.slow
def test_a_server_is_mitigated():
    """The same kernel with PTI, retpolines and VERW."""
    shell = Shell(cpu="skylake", kernel=KERNEL_AMD64, initrd=INITRD_AMD64)
    told = shell.do("grep -r . /sys/devices/system/cpu/vulnerabilities")
    assert "/meltdown:Mitigation: PTI\n" in told
    assert "/spectre_v2:Mitigation: Retpolines" in told
    assert shell.do(SUM_COMMAND) == f"{SUM}  -\n"
    assert shell.do("ldt; sigs; fpu") == "ldt-ok\ntls-ok\nsignals-ok\nfpu-ok\n"


@pytest.mark.slow
def test_with_iopl_raised():
    shell = Shell("iopl", kernel=KERNEL_AMD64, initrd=INITRD_AMD64)
    assert not re.search(WRONG, shell.boot)
    assert shell.do(SUM_COMMAND) == f"{SUM}  -\n"
    assert shell.do("ldt; sigs; fpu") == "ldt-ok\ntls-ok\nsignals-ok\nfpu-ok\n"


@pytest.mark.slow
def test_what_does_not_trap_goes_wrong():
    """POPF loses IF under `trap`: the kernel finds interrupts off, and panics."""
    machine = Machine(memory=256 << 20, technique="trap")
    shown = bytearray()
    machine.on_console(shown.extend)
    machine.load_kernel(KERNEL_AMD64, append=APPEND, initrd=INITRD_AMD64)
    assert machine.run(timeout=PATIENCE, panics=True).reason == "panic"
    assert b"cpa_flush" in shown


@pytest.mark.slow
@pytest.mark.parametrize("mib", [128, 8192, 16384])
def test_memory(mib):
    memory = mib << 20
    shell = Shell(kernel=KERNEL_AMD64, initrd=INITRD_AMD64, memory=memory)
    total = re.search(r"MemTotal: +(\d+) kB", shell.do("cat /proc/meminfo"))
    assert (mib - 48 - mib // 32) << 10 < int(total[1]) < mib << 10
    assert shell.do(SUM_COMMAND) == f"{SUM}  -\n"


def vmlinux(notes):
    """The ELF file in the bzImage, with its notes or without."""
    image = KERNEL_AMD64.read_bytes()
    # setup_sects, payload_offset and payload_length of the boot protocol
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start:][: int.from_bytes(image[0x24C:0x250], "little")]
    found = lzma.LZMADecompressor().decompress(payload)
    return found if notes else found.replace(b"Xen\0", b"Non\0")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["32 bits", "PVH", "vmlinux"])
def test_other_ways_to_start_it(how):
    """The tests above have taken its 64-bit entry."""
    kernel = KERNEL_AMD64 if how == "32 bits" else vmlinux(how == "PVH")
    assert how != "PVH" or boot.sniff(kernel) == "pvh"
    assert how != "vmlinux" or boot.sniff(kernel) == "elf"
    bits = 32 if how == "32 bits" else 64
    shell = Shell(kernel=kernel, initrd=INITRD_AMD64, bits=bits)
    assert not re.search(WRONG, shell.boot)
    assert shell.machine.stats.cpu == "atom"
    assert shell.do(SUM_COMMAND) == f"{SUM}  -\n"


@pytest.mark.slow
def test_the_kernel_for_clouds():
    shell = Shell(kernel=KERNEL_CLOUD, initrd=INITRD_AMD64)
    assert not re.search(WRONG, shell.boot)
    assert shell.do(SUM_COMMAND) == f"{SUM}  -\n"


@pytest.mark.slow
def test_a_user_land_of_32_bits():
    """Its programs come by SYSENTER and INT 80h."""
    shell = Shell(kernel=KERNEL_AMD64, initrd=INITRD)
    assert shell.do("uname -m") == "x86_64\n"
    assert shell.do(SUM_COMMAND) == f"{SUM}  -\n"
    assert shell.do("ldt; sigs; fpu") == "ldt-ok\ntls-ok\nsignals-ok\nfpu-ok\n"


@pytest.mark.slow
def test_dmesg_warns_of_nothing_that_it_warns_of_on_qemu_not(shell):
    qemu = Qemu(KERNEL_AMD64, INITRD_AMD64, "atom")
    try:
        level = "dmesg -r | grep '^<[0-4]>' | sed 's/^<.>.*\\] //'"
        ours, theirs = (set(one.do(level).split("\n")) for one in (shell, qemu))
    finally:
        qemu.close()
    assert not ours - theirs
