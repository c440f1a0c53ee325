"""Where things stand, and how a process of its own finds them."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GUESTS = ROOT / "build" / "guests"


def child(module, *arguments):
    """The command and environment to run a module of `support` by itself."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"support.{module}", *map(str, arguments)]
    return command, os.environ | {"PYTHONPATH": path}
