"""The handlers with an error planted in their text, compiled as the build does it."""

import importlib
import importlib.abc
import importlib.util
import linecache
import sys
from contextlib import contextmanager
from pathlib import Path

import emu86.native
from emu86.native import blob
from tools.native import build

_PREFIX = "emu86.native."
_SHARED = {"abi", "blob", "records"}  # which are not handlers' text


class _Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the handlers' modules anew, one of them changed."""

    def __init__(self, names, module, before, after):
        self.texts = {}
        for name in names:
            path = Path(importlib.util.find_spec(name).origin)
            text = path.read_text("utf-8")
            if name == _PREFIX + module:
                assert text.count(before) == 1, f"{before!r} is not once in {path}"
                text = text.replace(before, after)
            self.texts[name] = text

    def find_spec(self, name, _path, _target=None):
        if name in self.texts:
            return importlib.util.spec_from_loader(name, self)
        return None

    def exec_module(self, module):
        text = self.texts[module.__name__]
        name = f"<planted {module.__name__}>"
        linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
        exec(compile(text, name, "exec"), module.__dict__)


@contextmanager
def _anew(module, before, after):
    names = [
        name
        for name in sys.modules
        if name.startswith(_PREFIX) and name[len(_PREFIX) :] not in _SHARED
    ]
    planter = _Planter(names, module, before, after)
    kept = {name: sys.modules.pop(name) for name in names}
    sys.meta_path.insert(0, planter)
    try:
        yield
    finally:
        sys.meta_path.remove(planter)
        sys.modules.update(kept)
        for name, known in kept.items():
            setattr(emu86.native, name[len(_PREFIX) :], known)


def compiled(module, before, after):
    """Where in this process each handler begins; raises SubsetError if it is refused.

    module: of `emu86.native`; before: what stands once in its text.
    """
    with _anew(module, before, after):
        changed = [
            getattr(importlib.import_module(f.__module__), f.__name__)
            for f in blob.EXPORTS
        ]
        text = build.translate(changed)
    code, entries = build.extract(build.compile_for("x86_64", text))
    base = blob._map(code)
    return {name: base + at for name, at in entries.items()}
