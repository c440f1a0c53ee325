"""`python -m emu86` is `emu86`."""

from emu86.cli import main

main()
