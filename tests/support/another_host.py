"""A host that is no x86-64 Linux, as far as Python can play one: run before emu86 is.

    python another_host.py SYSTEM emu86's arguments

SYSTEM: "windows" (no termios, no /proc, few signals, no fork, and a `select` that knows
no pipes), "macos" (no /proc) or "aarch64" (a Linux whose machine code is another).
"""

import builtins
import ctypes
import io
import os
import platform
import select
import signal
import sys


def without_proc(really):
    def opened(path, *arguments, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return really(path, *arguments, **options)

    return opened


class Hidden:
    """An importer that says of these modules that there are none."""

    NAMES = ("termios", "tty", "fcntl", "resource", "pwd", "grp", "pty")

    def find_spec(self, name, *_):
        if name in self.NAMES:
            raise ModuleNotFoundError(name, name=name)


def become(system):
    if system in ("windows", "macos"):
        builtins.open = io.open = without_proc(open)
        os.open = without_proc(os.open)
    if system == "windows":
        for name in Hidden.NAMES:
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, Hidden())
        for name in ("SIGHUP", "SIGPIPE", "SIGCONT"):
            delattr(signal, name)
        del os.fork

        def refuse(*_):
            raise OSError(10038, "not a socket")

        select.select = refuse

        class PyDLL(ctypes.PyDLL):
            def __init__(self, name, *arguments, **options):
                if name is None:
                    raise TypeError("bad argument type for built-in operation")
                super().__init__(name, *arguments, **options)

        ctypes.PyDLL = PyDLL
    if system == "aarch64":
        platform.machine = lambda: "aarch64"


if __name__ == "__main__":
    become(sys.argv.pop(1))
    from emu86.cli import main

    main()
