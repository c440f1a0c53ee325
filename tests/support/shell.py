"""Somebody at the shell of Debian's kernel, in emu86 or in QEMU."""

import os
import re
import select
import subprocess
import time

from emu86 import Machine
from support.places import GUESTS

KERNEL, INITRD = GUESTS / "vmlinuz", GUESTS / "initrd.cpio"
KERNEL_PAE = GUESTS / "vmlinuz-pae"
KERNEL_AMD64 = GUESTS / "vmlinuz-amd64"
KERNEL_CLOUD = GUESTS / "vmlinuz-cloud-amd64"
INITRD_AMD64 = GUESTS / "initrd-amd64.cpio"
APPEND = "console=ttyS0"
MEMORY = 256 << 20
PROMPT = b"emu86# "
# A shell that does not wrap what is typed, a kernel that does not talk in between.
QUIETLY = "stty cols 999; dmesg -n 1"
# QEMU's program and CPU for CPU models of emu86.
CPUS = {
    "pentium3": ("qemu-system-i386", "pentium3,-apic"),
    "atom": ("qemu-system-x86_64", "n270,+lm,+syscall,+nx,+cx16,-apic"),
}
PATIENCE = 1200  # wall seconds for one command, on a machine that is busy otherwise


def stripped(shown):
    """Return what a command has shown, less the terminal's own matters."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown.decode("latin-1"))
    return text.replace("\r", "")


class Shell:
    """Debian's kernel in a Machine of this process, booted to its prompt."""

    def __init__(
        self,
        technique="patch",
        cpu=None,
        memory=MEMORY,
        kernel=KERNEL,
        initrd=INITRD,
        bits=64,
        **options,
    ):
        self.machine = Machine(memory=memory, cpu=cpu, technique=technique, **options)
        self.shown = bytearray()
        self.stop = None
        self.machine.on_console(self.shown.extend)
        self.machine.load_kernel(kernel, append=APPEND, initrd=initrd, bits=bits)
        self.boot = self._until_prompt()
        self.do(QUIETLY)

    def _until_prompt(self):
        self.shown.clear()
        self.stop = self.machine.run(until=PROMPT, timeout=PATIENCE)
        assert self.stop.reason == "until", f"{self.stop}: {self.shown[-1000:]!r}"
        return stripped(self.shown.removesuffix(PROMPT))

    def do(self, command):
        """Have the shell do `command`; return what it shows, its echo left away."""
        assert self.stop.reason == "until", f"the guest is gone: {self.stop}"
        self.machine.console_input(command.encode() + b"\n")
        return self._until_prompt().partition("\n")[2]

    def end(self, command):
        """Have the shell do `command`, which ends the run; return what it shows."""
        self.machine.console_input(command.encode() + b"\n")
        self.shown.clear()
        self.stop = self.machine.run(timeout=PATIENCE)
        return stripped(self.shown)


class Qemu:
    """The same guest on QEMU's PC without PCI: what to compare with.

    cpu: a name of `CPUS`; more: other options of QEMU.
    """

    def __init__(self, kernel=KERNEL, initrd=INITRD, cpu="pentium3", more=()):
        program, model = CPUS[cpu]
        machine = ["-accel", "tcg", "-M", "isapc", "-cpu", model]
        guest = ["-kernel", kernel, "-initrd", initrd, "-append", APPEND]
        quiet = ["-display", "none", "-serial", "stdio", "-monitor", "none"]
        size = ["-m", str(MEMORY >> 20)]
        command = [*machine, *guest, *quiet, *size, "-no-reboot", *more]
        self._process = subprocess.Popen(
            [program, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._shown = b""
        try:
            self.boot = self._until_prompt()
            self.do(QUIETLY)
        except BaseException:
            self.close()
            raise

    def _until_prompt(self):
        end = time.monotonic() + PATIENCE
        output = self._process.stdout.fileno()
        while PROMPT not in self._shown:
            ready, _, _ = select.select(
                [output], [], [], max(end - time.monotonic(), 0)
            )
            assert ready, f"QEMU shows no prompt: {self._shown[-1000:]!r}"
            more = os.read(output, 65536)
            assert more, f"QEMU ended: {self._shown[-1000:]!r}"
            self._shown += more
        shown, _, self._shown = self._shown.partition(PROMPT)
        return stripped(shown)

    def do(self, command):
        """Have the shell do `command`; return what it shows, its echo left away."""
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        return self._until_prompt().partition("\n")[2]

    def close(self):
        """End QEMU."""
        self._process.kill()
        self._process.communicate()
