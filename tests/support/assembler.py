"""Assemble guests for the tests, with nasm."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest


@cache
def assemble(text: str) -> bytes:
    """The flat binary that nasm makes of `text`; skips the test without nasm."""
    nasm = shutil.which("nasm")
    if nasm is None:
        pytest.skip("nasm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "guest.asm"), Path(folder, "guest.bin")
        source.write_text(text)
        done = subprocess.run(
            [nasm, "-f", "bin", "-O1", "-w-all", "-o", output, source],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[:4000]
        return output.read_bytes()
