"""`python -m bench.rows KIND`: its rows as JSON, and whose `emu86` they are of.

It runs in a process of its own, with the tree to measure on its path.
"""

import json
import sys
from importlib import import_module

import emu86

if __name__ == "__main__":
    rows = import_module(f"bench.{sys.argv[1]}").rows()
    json.dump({"emu86": emu86.__file__, "rows": rows}, sys.stdout)
