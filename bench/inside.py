"""The time inside the VMM of a whole Linux boot, by exit reason.

As `Machine.stats` measures it, dearer than without a stopwatch in each exit. While
exits are measured the compiled hook leaves all to Python.
"""

from bench.tools import GUESTS, BenchError, asked, doing, say, terminal
from emu86 import Machine
from emu86.cli.report import exit_table, summary


def main() -> None:
    """Measure and print."""
    machine = Machine(memory=256 << 20)
    machine.load_kernel(
        GUESTS / "vmlinuz", append="console=ttyS0", initrd=GUESTS / "workload.cpio"
    )
    machine.measure()
    doing("inside: Linux boots, and every exit is timed")
    stop = machine.run(until=b"GUEST-DONE", timeout=300)
    if stop.reason != "until":
        raise BenchError(f"the Linux workload ended with {stop}")
    say("")
    say("the Linux workload, technique patch, every exit measured by perf_counter_ns")
    terminal.print(exit_table(machine.stats))
    for line in summary(machine.stats):
        say(line)


if __name__ == "__main__":
    asked(__doc__)
    main()
