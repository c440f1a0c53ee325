"""Try the properties with fresh random examples, for as many minutes as asked.

Ends with status 1 at the first failure, with the line that has it again in the output.
"""

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


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
