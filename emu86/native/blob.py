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
from emu86.native import abi
from emu86.native.records import ctype

FOLDER: Final = str(resources.files("emu86.native") / "blobs")
_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


class BlobError(Exception):
    """There is no compiled code for this host, or it is not what it should be."""


def fingerprint() -> str:
    """Return a hash of all that the compiled code knows of this process's memory.

    The places of all fields and of what they point to.
    """
    known = [
        (record.__name__, field[0], getattr(record, field[0]).offset)
        for record in (
            abi.Segment, abi.Cpu, abi.Site, abi.Plan, abi.Leaf, abi.Added, abi.Verw,
            abi.Control,
        )
        for field in record._fields_
    ]  # fmt: skip
    constants = {k: v for k, v in vars(abi).items() if isinstance(v, int)}
    layout = {k: v for k, v in vars(offsets).items() if isinstance(v, int)}
    text = json.dumps([known, constants, layout])
    return hashlib.sha256(text.encode()).hexdigest()


_loaded: list[dict[str, int]] = []


def load() -> dict[str, int]:
    """Return the addresses of the compiled handlers, mapped once per process.

    Raises BlobError where there is none that fits.
    """
    if not _loaded:
        _loaded.append(_load())
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
    hints = get_type_hints(handler, include_extras=True)
    result = hints.pop("return")
    kinds = [
        ctypes.c_uint64 if i < len(records) else _passed(ctype(hint))
        for i, hint in enumerate(hints.values())
    ]
    function = ctypes.PYFUNCTYPE(_passed(ctype(result)), *kinds)
    return partial(function(load()[handler.__name__]), *records)


def _passed(kind: Any) -> Any:
    return ctypes.c_int32 if kind is bool else kind


def _load() -> dict[str, int]:
    """Return the addresses of the compiled handlers, by name.

    The code is mapped for reading and execution, never for writing. Raises BlobError.
    """
    architecture = platform.machine().lower()
    architecture = _ALIASES.get(architecture, architecture)
    folder = Path(FOLDER)
    manifest = json.loads((folder / "manifest.json").read_text())
    blob = manifest["blobs"].get(architecture)
    if blob is None:
        raise BlobError(f"there is none for {architecture}")
    code = (folder / f"{architecture}.bin").read_bytes()
    if hashlib.sha256(code).hexdigest() != blob["sha256"]:
        raise BlobError(f"{architecture}.bin is not what its manifest says")
    if manifest["abi"] != fingerprint():
        raise BlobError("it was compiled for another version of emu86")
    base = _map(code)
    return {name: base + at for name, at in blob["entries"].items()}


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
