"""Assemble programs for tests, with nasm where it is installed.

Why nasm: it is kept, and its syntax is that of this project's guests and of most
tutorials. LLVM's assembler, which llvmlite brings, takes POPF, IRET and PUSH CS of
Intel's syntax for their 16-bit forms, and "call far [eax]" for a near call of a symbol
`far`. Keystone is that assembler, of some years ago.
"""

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from emu86.errors import as_int, expect
from emu86.testing import stage

_ERROR: Final = re.compile(r":(\d+): (?:error|fatal): (.*)")


def asm(text: str, at: int = stage.CODE, bits: int = 32) -> bytes:
    """Return machine code for `text`, in nasm's syntax, to stand at the address `at`.

    In one line ";" parts instructions; in several it begins a comment. bits: 16, 32 or
    64. Raises ValueError with nasm's words for what cannot be assembled, RuntimeError
    where nasm is not installed.
    """
    __tracebackhide__ = True
    expect("text", text, str)
    if bits not in (16, 32, 64):
        message = f"bits: {bits!r:.60} is not 16, 32 or 64"
        raise ValueError(message)
    place = as_int("at", at, 0, 1 << max(bits, 32))
    if "\n" not in text:
        text = text.replace(";", "\n")
    return nasm(f"bits {bits}\norg {place}\n{text}\n", 2)


@cache
def nasm(source: str, ahead: int = 0) -> bytes:
    """Return the flat binary that nasm makes of a source.

    ahead: its first lines, which are not the caller's; raises as `asm` does.
    """
    __tracebackhide__ = True
    program = shutil.which("nasm")
    if program is None:
        message = "nasm is not installed (on Debian: apt install nasm)"
        raise RuntimeError(message)
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "program.asm"), Path(folder, "program.bin")
        file.write_text(source)
        done = subprocess.run(  # noqa: S603 - no shell, and a path of our own
            [program, "-f", "bin", "-O1", "-w-all", "-o", output, file],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            found = _ERROR.search(done.stderr)
            where = f"line {int(found[1]) - ahead}: {found[2]}" if found else ""
            message = f"assembly: {where or done.stderr[:200]}"
            raise ValueError(message)
        return output.read_bytes()
