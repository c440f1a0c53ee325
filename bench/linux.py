"""The fixed Linux workload beside QEMU: CPU seconds of the whole process.

Debian's kernel with build/guests/workload.cpio, 256 MiB, console=ttyS0, from the start
of the program until the console shows GUEST-DONE. In each round every contender runs
once, in turn; a ratio is taken within its round: a busy machine is busy for both.
"""

import shutil
from statistics import median
from typing import Final

from bench.tools import EMU86, GUESTS, BenchError, Child, asked, doing, say, show, watch

ROUNDS: Final = 3
TARGET: Final = 2.0  # times QEMU's CPU seconds
MEMORY_TARGET: Final = (256 + 200) << 20  # guest RAM and 200 MiB
TIMEOUT: Final = 300
_QEMU: Final = "qemu-system-i386"

MARKS: Final = {
    "first kernel line": b"Linux version",
    "init": b"GUEST-READY",
    "end": b"GUEST-DONE",
}


def commands() -> dict[str, list[str]]:
    """The contenders, by name; QEMU only where it is installed."""
    guest = {
        "-kernel": str(GUESTS / "vmlinuz"),
        "-initrd": str(GUESTS / "workload.cpio"),
        "-append": "console=ttyS0",
    }
    ours = [*EMU86, "run", "--memory", "256M", "--until", "GUEST-DONE"]
    ours += [word for key, value in guest.items() for word in (f"-{key}", value)]
    qemu = [
        _QEMU,
        "-accel",
        "tcg",
        "-M",
        "isapc",
        "-cpu",
        "pentium3,-apic",
        "-m",
        "256",
    ]
    qemu += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
    qemu += [word for pair in guest.items() for word in pair]
    contenders = {"qemu": qemu} if shutil.which(_QEMU) else {}
    for technique in ("patch", "iopl"):
        contenders[technique] = [*ours, "--technique", technique]
    return contenders


def rows() -> dict[str, float]:
    """What two trees are compared by."""
    return {
        f"Linux and its workload, {name}, CPU s": watch(
            command, list(MARKS.values()), TIMEOUT
        ).cpu
        for name, command in commands().items()
        if name != "qemu"
    }


def main(rounds: int = ROUNDS) -> None:
    """Measure and print."""
    if not (GUESTS / "workload.cpio").exists():
        raise BenchError("there is no Linux guest: make guests")
    runs: dict[str, list[Child]] = {}
    for number in range(rounds):
        for name, command in commands().items():
            doing(f"linux: round {number + 1} of {rounds}, {name}")
            child = watch(command, list(MARKS.values()), TIMEOUT)
            runs.setdefault(name, []).append(child)
            ratio = ""
            if name != "qemu" and "qemu" in runs:
                ratio = f"  {child.cpu / runs['qemu'][number].cpu:.2f} x qemu"
            say(f"round {number + 1}  {name:5}  {child.cpu:.2f} CPU seconds{ratio}")

    def ratio_of(name: str) -> str:
        if "qemu" not in runs:
            return "-"
        pairs = zip(runs[name], runs["qemu"], strict=True)
        return f"{median(ours.cpu / theirs.cpu for ours, theirs in pairs):.2f}"

    show(
        f"the Linux workload, median of {rounds} rounds",
        (
            "",
            *(f"CPU s to {mark}" for mark in MARKS),
            "CPU s in all",
            "ratio",
            "peak MiB",
        ),
        [
            [
                name,
                *(
                    f"{median(child.marks[text].cpu for child in children):.2f}"
                    for text in MARKS.values()
                ),
                f"{median(child.cpu for child in children):.2f}",
                ratio_of(name),
                f"{max(child.peak for child in children) >> 20}",
            ]
            for name, children in runs.items()
        ],
    )
    say(f"target: at most {TARGET} x QEMU; peak at most {MEMORY_TARGET >> 20} MiB")


if __name__ == "__main__":
    main(**asked(__doc__, rounds=ROUNDS))
