"""What exits cost, by what the guest did.

The firmware image `exits`: one operation at a time, many times over, and the time
between two of its lines: all of it is in there, the engine's way out and back too.
"""

from statistics import median
from time import process_time
from typing import Final

from bench.tools import IMAGES, BenchError, asked, doing, show
from emu86 import Machine

COUNT: Final = 20_000
ROUNDS: Final = 3
TECHNIQUES: Final = ("patch", "iopl")
_EMPTY: Final = "nothing"


class Sections:
    """What the firmware says, cut at its lines; one timestamp at either end of each.

    A section lasts from the end of its line to the first byte of the next, so that
    printing is in none of them.
    """

    def __init__(self, machine: Machine) -> None:
        self.cost: dict[str, tuple[float, int]] = {}  # name: CPU seconds, exits
        self._machine = machine
        self._name = ""
        self._line = b""
        self._began = (0.0, 0)
        machine.on_console(self._console)

    def _console(self, data: bytes) -> None:
        now = process_time()
        if self._name:
            exits = self._exits()
            self.cost[self._name] = (now - self._began[0], exits - self._began[1])
            self._name = ""
        self._line += data
        if data == b"\n":
            words = self._line.decode().split()
            self._line = b""
            if len(words) == 3 and words[0] == "section" and words[1] != "end":
                self._name = words[1]
                exits = self._exits()
                self._began = (process_time(), exits)

    def _exits(self) -> int:
        return sum(stat.count for stat in self._machine.stats.exits.values())


def operations(technique: str, count: int) -> dict[str, tuple[float, float]]:
    """CPU microseconds and exits of one operation, by its name."""
    machine = Machine(memory=16 << 20, technique=technique)
    machine.load_kernel(IMAGES / "exits.elf", append=str(count))
    doing(f"exits: {count:,} of each operation, {technique}")
    sections = Sections(machine)
    stop = machine.run(timeout=300)
    cost = sections.cost
    if stop.reason != "poweroff" or _EMPTY not in cost:
        raise BenchError(f"the firmware image exits ended with {stop}")
    empty = cost.pop(_EMPTY)[0]
    return {
        name: ((spent - empty) / count * 1e6, exits / count)
        for name, (spent, exits) in cost.items()
    }


# Paging with one global 4 MiB page (SDM Vol. 3A section 4.3): code at 8000h, directory
# at 4000h.
_DIRECTORY: Final = 0x4000
_PDE: Final = 0x183  # present, writable, a page of 4 MiB, global
_PAGING_ON: Final = bytes.fromhex(
    "b800400000 0f22d8"  # mov eax, 4000h; mov cr3, eax
    "b890000000 0f22e0"  # mov eax, PSE + PGE; mov cr4, eax
    "b811000080 0f22c0"  # mov eax, PG + ET + PE; mov cr0, eax
)
COMPILED: Final = {"cli_sti": "fafb", "invlpg": "0f0138"}


def compiled(body: bytes, count: int) -> float:
    """CPU microseconds of one `body` that needs no Python, out of `count` of them.

    It does so for INVLPG of a register only, which the firmware image has not.
    """
    costs = []
    doing(f"exits: {count:,} times {body.hex()} in the compiled hook")
    for each in (body, b""):
        machine = Machine(memory=4 << 20)
        machine.write_physical(_DIRECTORY, _PDE.to_bytes(4, "little"))
        # mov ecx, count; again: body; loop again; cli; hlt
        back = -2 - len(each) & 0xFF
        code = _PAGING_ON + b"\xb9" + count.to_bytes(4, "little")
        code += each + bytes((0xE2, back, 0xFA, 0xF4))
        machine.load_flat(code, 0x8000)
        begin = process_time()
        stop = machine.run(timeout=300)
        costs.append(process_time() - begin)
        if stop.reason != "halted":
            raise BenchError(f"the loop of {body.hex()} ended with {stop}")
    return (costs[0] - costs[1]) / count * 1e6


def firmware_table(count: int, rounds: int) -> None:
    """Print what one operation costs, by technique."""
    runs = {
        name: [operations(name, count) for _ in range(rounds)] for name in TECHNIQUES
    }

    def cells(technique: str, name: str) -> list[str]:
        cost = median(run[name][0] for run in runs[technique])
        return [f"{cost:.2f}", f"{runs[technique][0][name][1]:.2f}"]

    show(
        f"one operation, {count:,} of each, CPU time, median of {rounds} runs",
        ("operation", *(f"{t} {what}" for t in TECHNIQUES for what in ("µs", "exits"))),
        [
            [name, *(cell for t in TECHNIQUES for cell in cells(t, name))]
            for name in runs["patch"][0]
        ],
    )


def compiled_table(count: int, rounds: int) -> None:
    """Print what the operations cost that need no Python."""
    show(
        f"in the compiled hook, {count:,} of each, CPU time, median of {rounds} runs",
        ("operation", "patch µs"),
        [
            (name, f"{median(costs):.2f}")
            for name, costs in (
                (name, [compiled(bytes.fromhex(body), count) for _ in range(rounds)])
                for name, body in COMPILED.items()
            )
        ],
    )


def rows() -> dict[str, float]:
    """What two trees are compared by."""
    found = {}
    for technique in TECHNIQUES:
        for name, (cost, _) in operations(technique, COUNT // 4).items():
            found[f"{name}, {technique}, µs"] = cost
    for name, body in COMPILED.items():
        found[f"{name}, compiled, µs"] = compiled(bytes.fromhex(body), COUNT * 10)
    return found


def main(count: int = COUNT, rounds: int = ROUNDS) -> None:
    """Measure and print."""
    firmware_table(count, rounds)
    compiled_table(10 * count, rounds)


if __name__ == "__main__":
    main(**asked(__doc__, count=COUNT, rounds=ROUNDS))
