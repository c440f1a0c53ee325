"""Try the properties with fresh random examples, for as many minutes as asked.

Ends with status 1 at the first failure, with the line that has it again in the output.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROPERTIES = (
    "tests/oracles/test_equivalence.py",
    "tests/oracles/test_interrupts.py",
    "tests/oracles/test_host.py",
    "tests/testing/test_reset.py",
    "tests/machine/test_snapshot.py",
    "tests/mmu/test_tlb_rules.py",
    "tests/rings/events/test_accesses.py",
    "tests/devices/test_rubbish.py",
    "tests/fuzz/test_random.py",
)


def main(minutes: float) -> int:
    """Run round after round; return the exit status."""
    end = time.monotonic() + 60 * minutes
    seed = int(time.time())
    rounds = 0
    while time.monotonic() < end:
        seed += 1
        rounds += 1
        left = (end - time.monotonic()) / 60
        print(f"soak: round {rounds}, seed {seed}, {left:.0f} minutes left", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", *PROPERTIES,
             f"--emu86-seed={seed}", "--emu86-examples=2"],
            cwd=ROOT,
            env=os.environ | {"EMU86_FUZZ_FIRST": str(seed % 10**9)},
            check=False,
        )  # fmt: skip
        if done.returncode:
            return 1
    print(f"soak: {rounds} rounds without a failure")
    return 0


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise ValueError
    return minutes


_minutes.__name__ = "number of minutes"  # what argparse calls it


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "minutes", nargs="?", type=_minutes, default=60, help="default: 60"
    )
    sys.exit(main(parser.parse_args().minutes))
