"""A loop in ring 3 under emu86: the firmware image `spin`, no exits on its way."""

import re
from time import process_time
from typing import Final

from bench.tools import IMAGES, BenchError
from emu86 import Machine

_ROWS: Final = 20  # million iterations


def emulated(millions: int) -> tuple[float, int]:
    """CPU seconds and checksum of the firmware image `spin` under emu86."""
    machine = Machine(memory=16 << 20)
    machine.load_kernel(IMAGES / "spin.elf", append=str(millions))
    text = bytearray()
    # The loop runs between the end of the first line and the next byte.
    times: list[float] = []

    def console(data: bytes) -> None:
        if len(times) < 2 and (data == b"\n" or times):
            times.append(process_time())
        text.extend(data)

    machine.on_console(console)
    machine.run(timeout=600)
    found = re.search(rb"checksum ([0-9a-fA-F]+)", text)
    if found is None:
        raise BenchError(f"spin said {text!r}")
    return times[1] - times[0], int(found[1], 16)


def rows() -> dict[str, float]:
    """What two trees are compared by."""
    return {"loop in ring 3, ns": emulated(_ROWS)[0] * 1000 / _ROWS}
