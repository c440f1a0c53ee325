"""Assemble guests for the tests, with nasm."""

import shutil

import pytest

from emu86.testing.assembler import nasm


def assemble(text: str) -> bytes:
    """The flat binary that nasm makes of `text`; skips the test without nasm."""
    if shutil.which("nasm") is None:
        pytest.skip("nasm is not installed")
    return nasm(text)
