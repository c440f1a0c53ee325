"""Run emu86's command line, and tell what memory that took, as JSON in a file.

python -m support.memory FILE run ...

ram: the guest's RAM that is in the host's memory, as the kernel tells of each page;
peak: the most that the process has had, with it. Both in MiB. Linux alone tells.
"""

import atexit
import json
import sys
from pathlib import Path

from emu86.cli import main
from emu86.mmu.ram import Ram
from emu86.spec import x86

_ENTRY = 8  # bytes of /proc/PID/pagemap for a page; bit 63: it is there


def resident(ram):
    """Return how many pages of RAM the host has given memory."""
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek((ram.address >> x86.PAGE_SHIFT) * _ENTRY)
        entries = memoryview(pagemap.read(ram.pages * _ENTRY)).cast("Q")
    return sum(entry >> 63 for entry in entries)


def tell(path, made):
    (ram,) = made
    status = Path("/proc/self/status").read_text()
    # Not getrusage's, which has been the parent's before this program began.
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    found = {"ram": resident(ram) / 256, "peak": peak}
    path.write_text(json.dumps(found))


if __name__ == "__main__":
    made = []
    build = Ram.__init__

    def kept(self, *sizes):
        build(self, *sizes)
        made.append(self)

    Ram.__init__ = kept
    atexit.register(tell, Path(sys.argv.pop(1)), made)
    main()
