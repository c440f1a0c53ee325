"""The chips of the board: one chip, one file.

A device knows its registers, its interrupt line and its next deadline, and nothing
else: neither its address nor its interrupt number, which are the board's
(``emu86.machine``). Time is virtual, an int in nanoseconds, and comes in as ``now``;
it never runs backwards.
"""
