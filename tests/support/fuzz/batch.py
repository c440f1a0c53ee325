"""Run a batch of programs in a process: `python -m support.fuzz.batch KIND ...`.

A crash of the process, or a hang, is then a failed test that knows the seed: each seed
is written to stderr before its program runs.
"""

import faulthandler
import json
import sys
import time
from collections import Counter

from support.fuzz import guests, programs


def one(kind: str, seed: int, technique: str) -> str:
    """Run one program; return why it stopped."""
    plan = programs.plan(kind, seed, technique)
    return guests.run(guests.build(plan), plan.budget).reason


def main(kind: str, first: str, count: str, technique: str = "patch") -> None:
    """Run seeds `first` to `first + count - 1`; print how often each reason came."""
    reasons: Counter[str] = Counter()
    slowest = 0.0, -1
    faulthandler.enable()
    for seed in range(int(first), int(first) + int(count)):
        sys.stderr.write(f"seed {seed}\n")
        sys.stderr.flush()
        faulthandler.dump_traceback_later(2 * guests.GUARD, exit=True)
        start = time.perf_counter()
        reasons[one(kind, seed, technique)] += 1
        slowest = max(slowest, (time.perf_counter() - start, seed))
    sys.stdout.write(json.dumps({"reasons": reasons, "slowest": slowest}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
