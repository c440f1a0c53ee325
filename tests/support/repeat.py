"""Boot Debian's kernel, work at its prompt; print digests of all that there is, as
JSON.

python -m support.repeat TIMES
"""

import hashlib
import json
import sys

from support.shell import PATIENCE, Shell


def digest(machine, size):
    """Digest the registers and all RAM."""
    found = hashlib.sha256(repr(sorted(machine.registers.items())).encode())
    for start in range(0, size, 1 << 20):
        found.update(machine.read_physical(start, 1 << 20))
    return found.hexdigest()


SIZE = 64 << 20
ON_THE_WAY = (b"devtmpfs", b"Registered PF_INET", b"No Plug & Play", b"Run /init")


class Watched(Shell):
    """One that is stopped and digested on its way to the first prompt, too."""

    def _until_prompt(self):
        if self.stop is None:
            self.way = [self._until(text) for text in ON_THE_WAY]
        return super()._until_prompt()

    def _until(self, text):
        stop = self.machine.run(until=text, timeout=PATIENCE)
        assert stop.reason == "until", f"{text!r}: {stop}"
        return self.machine.now, digest(self.machine, SIZE)


def history():
    """Boot, work, and return what the machine was like on the way."""
    shell = Watched(memory=SIZE)
    marks = []
    for command in ("ldt; sigs", "fpu; ls -l /proc /dev /bin | md5sum", "sleep 5; ps"):
        shown = shell.do(command)
        marks.append((shown, shell.machine.now, digest(shell.machine, SIZE)))
    stats = shell.machine.stats
    exits = {reason: stat.count for reason, stat in stats.exits.items()}
    counts = {"blocks": stats.blocks, "patched": stats.patched, "shadow": stats.shadow}
    told = {"way": shell.way, "boot": shell.boot, "marks": marks, "exits": exits}
    return told | counts


if __name__ == "__main__":
    json.dump([history() for _ in range(int(sys.argv[1]))], sys.stdout)
