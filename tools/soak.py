"""Try the properties with fresh random examples, for as many minutes as asked.

Ends with status 1 at the first failure, with the line that has it again in the output.
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "tests/testing"]
        done = subprocess.run(
            [*command, f"--emu86-seed={seed}", "--emu86-examples=10"],
            cwd=ROOT,
            check=False,
        )
        if done.returncode:
            return 1
    print(f"soak: {rounds} rounds without a failure")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
