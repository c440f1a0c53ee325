"""Find the compiled handlers that came with emu86, prove them, and map them."""

import ctypes
import hashlib
import json
import mmap
import platform
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, get_type_hints

from emu86.cpu import offsets
from emu86.native import (
    abi,
    handlers,
    ia32e,
    ports,
    prologue,
    transfers,
    transfers64,
)
from emu86.native.records import ctype, is_kind
from emu86.native.state import site_index
from emu86.spec import x86

FOLDER: Final = str(resources.files("emu86.native") / "blobs")
# What C calls, or Python: each by its address.
EXPORTS: Final = (
    handlers.on_block, handlers.on_late, handlers.on_guard, handlers.on_rdtsc,
    handlers.on_exception, handlers.on_look, handlers.on_edge,
    ports.on_in, ports.on_out, ports.on_cpuid, ia32e.on_syscall,
    transfers.return_by_plan, transfers.deliver_by_plan, transfers.external,
    transfers64.return64, transfers64.deliver64, transfers64.external64,
    prologue.shorten,
)  # fmt: skip
_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


class BlobError(Exception):
    """There is no compiled code for this host, or it is not what it should be."""


def fingerprint() -> str:
    """Return a hash of all that the compiled code knows of this process's memory.

    The places of all fields and of what they point to, and what handlers there are.
    """
    known = [
        (record.__name__, field[0], getattr(record, field[0]).offset)
        for record in vars(abi).values()
        if isinstance(record, type) and issubclass(record, ctypes.Structure)
        for field in getattr(record, "_fields_", ())
    ]
    constants = {k: v for k, v in vars(abi).items() if isinstance(v, int)}
    layout = {k: v for k, v in vars(offsets).items() if isinstance(v, int)}
    text = json.dumps([known, constants, layout, [f.__name__ for f in EXPORTS]])
    return hashlib.sha256(text.encode()).hexdigest()


def digest(code: bytes, entries: dict[str, int]) -> str:
    """Return a hash of compiled code and of where in it each handler begins."""
    known = json.dumps(entries, sort_keys=True).encode()
    return hashlib.sha256(code + known).hexdigest()


_loaded: list[dict[str, int]] = []


def load() -> dict[str, int]:
    """Return the addresses of the compiled handlers, mapped once per process.

    Raises BlobError where there is none that fits.
    """
    if not _loaded:
        entries = _load()
        if not _agrees(entries):
            raise BlobError("it does not do what its text in Python does")
        _loaded.append(entries)
    return _loaded[0]


def why_not() -> str:
    """Return why there is no compiled code that fits, or ""."""
    try:
        load()
    except BlobError as error:
        return str(error)
    return ""


def bind(handler: Callable[..., Any], *records: int) -> Callable[..., Any]:
    """Return a compiled handler, called without its first arguments, the records."""
    return partial(_at(load()[handler.__name__], handler), *records)


def _at(address: int, handler: Callable[..., Any]) -> Any:
    """Return what calls the compiled handler at an address; records by theirs."""
    hints = get_type_hints(handler, include_extras=True)
    result = _passed(hints.pop("return"))
    return ctypes.PYFUNCTYPE(result, *map(_passed, hints.values()))(address)


def _passed(hint: Any) -> Any:
    """Return the ctype by which C passes what an annotation says."""
    kind = ctype(hint)
    if kind is bool:
        return ctypes.c_int32
    if is_kind(kind, "structure"):
        return ctypes.c_uint64
    return None if kind is type(None) else kind


def _load() -> dict[str, int]:
    """Return the addresses of the compiled handlers, by name.

    The code is mapped for reading and execution, never for writing. Raises BlobError.
    """
    if platform.system() == "Windows":
        raise BlobError("there is none for Windows")  # whose calls are others
    architecture = platform.machine().lower()
    architecture = _ALIASES.get(architecture, architecture)
    folder = Path(FOLDER)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if architecture not in manifest["blobs"]:
            raise BlobError(f"there is none for {architecture}")
        entries = manifest["blobs"][architecture]["entries"]
        expected = manifest["blobs"][architecture]["sha256"], manifest["abi"]
        code = (folder / f"{architecture}.bin").read_bytes()
    except OSError as error:
        raise BlobError(f"{error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BlobError("manifest.json is not what emu86 has written") from error
    if digest(code, entries) != expected[0]:
        raise BlobError(f"{architecture}.bin is not what its manifest says")
    if expected[1] != fingerprint():
        raise BlobError("it was compiled for another version of emu86")
    base = _map(code)
    return {name: base + at for name, at in entries.items()}


def _agrees(entries: dict[str, int]) -> bool:
    """Tell whether compiled code does to a small guest what its text in Python does.

    An RDTSC; a CLI after which the time is over, so that a function of the engine's is
    called; and an exception that goes on to Python.
    """
    control, cpu = abi.Control(), abi.Cpu()
    calls: list[tuple[int, ...]] = []
    kinds = dict(field[:2] for field in abi.Control._fields_)

    def note(*passed: int) -> int:
        calls.append(passed)
        return 0

    for name in ("emu_stop", "on_exception"):
        setattr(control, name, kinds[name](note))
    control.cpu.contents = cpu
    control.uc, control.ns, control.rate = 0x123456789ABCDEF0, 1 << 50, 3 << 30
    control.now, control.stop_at, control.exit_cost = 1 << 40, (1 << 40) + 9, 9
    cpu.rip, cpu.rflags = 0x87654321, x86.IF | x86.CF
    cpu.hflags = offsets.HF_PE | offsets.HF_INHIBIT_IRQ | 1  # CPL 1
    cpu.segments[x86.CS].base = base = 0x9ABCD000
    linear = cpu.rip + base & x86.MASK32
    site = control.sites[site_index(linear)]
    site.place, site.kind = linear, abi.SITE_CLI
    before = bytes(control), bytes(cpu)
    outcomes = []
    texts = handlers.on_rdtsc, handlers.on_exception
    compiled = [_at(entries[text.__name__], text) for text in texts]
    at = ctypes.addressof(control)
    for rdtsc, exception, where in (*texts, control), (*compiled, at):
        ctypes.memmove(at, before[0], len(before[0]))
        ctypes.memmove(ctypes.addressof(cpu), before[1], len(before[1]))
        calls.clear()
        found = rdtsc(control.uc, where)
        for vector in (x86.VEC_GP, x86.VEC_DE):
            exception(control.uc, vector, where)
        outcomes.append((found, bytes(control), bytes(cpu), tuple(calls)))
    return outcomes[0] == outcomes[1]


def _map(code: bytes) -> int:
    """Return where in this process `code` stands, executable from now on."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
        ctypes.c_long,
    )  # fmt: skip
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = -(-len(code) // mmap.PAGESIZE) * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    base = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if base == ctypes.c_void_p(-1).value:
        raise BlobError("the host gives it no memory")
    ctypes.memmove(base, code, len(code))
    if libc.mprotect(base, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise BlobError("the host lets no memory become executable")
    return int(base)
