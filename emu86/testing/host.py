"""The second oracle: the host's own CPU, which runs a user's program.

The program has a process of its own. `ring3` has the programs and `run_on_host`, `cage`
the process, `semantics` the comparison, `computations` the strategies.
"""

import platform
import sys
from functools import cache

from emu86.testing.ring3 import User, run_on_host


@cache
def missing() -> str:
    """Return why this host cannot be the oracle, or "" if it can."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return f"no x86-64 Linux, but {platform.machine()} {sys.platform}"
    for bits, register in ((32, "eax"), (64, "rax")):
        user = User(bits=bits, registers={register: 41})
        try:
            outcome = run_on_host(b"\x83\xc0\x01", user)  # add eax, 1
        except OSError as error:
            return f"no process for the stage: {error.strerror}"
        if (outcome.end, outcome.registers.get(register)) != ("done", 42):
            return f"no code of {bits} bits: {outcome.end}"
    return ""
