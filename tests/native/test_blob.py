"""The machine code that the wheel carries: made from the sources, and proved."""

import ctypes
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from emu86 import Machine, images
from emu86.cpu import probe
from emu86.native import abi, blob, handlers
from tools.native import build

FOLDER = Path(blob.FOLDER)


def test_it_is_what_the_sources_make():
    """If not: `make native`, and commit what it writes."""
    made = build.build()
    assert sorted(made) == sorted(path.name for path in FOLDER.iterdir())
    for name, data in made.items():
        assert (FOLDER / name).read_bytes() == data, name


def test_what_needs_more_than_code_is_refused():
    text = """
        @table = global i64 5
        define i64 @f() {
            %value = load i64, ptr @table
            ret i64 %value
        }
    """
    with pytest.raises(build.BuildError, match="relocations|beside"):
        build.extract(build.compile_for("x86_64", text))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A copy of the folder, and nothing loaded yet."""
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(blob, "FOLDER", str(tmp_path))
    monkeypatch.setattr(blob, "_loaded", [])
    return tmp_path


def change(folder, **entries):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | entries))


def test_a_damaged_file_is_not_run(elsewhere):
    for path in elsewhere.glob("*.bin"):
        path.write_bytes(path.read_bytes()[:-1] + b"\xcc")
    with pytest.raises(blob.BlobError, match="is not what its manifest says"):
        blob.load()


def test_code_for_other_records_is_not_run(elsewhere):
    change(elsewhere, abi="0" * 64)
    with pytest.raises(blob.BlobError, match="another version of emu86"):
        blob.load()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_code_of_another_handler_is_not_run(elsewhere, monkeypatch, machine):
    """The manifest says where each begins; that is proved with the code."""
    manifest = json.loads((elsewhere / "manifest.json").read_text())
    entries = manifest["blobs"][machine]["entries"]
    entries["on_rdtsc"], entries["on_late"] = entries["on_late"], entries["on_rdtsc"]
    change(elsewhere, blobs=manifest["blobs"])
    monkeypatch.setattr(blob.platform, "machine", lambda: machine)
    with pytest.raises(blob.BlobError, match="is not what its manifest says"):
        blob.load()


RETURN = {"x86_64": b"\xc3", "aarch64": (0xD65F03C0).to_bytes(4, "little")}
HOST = blob._ALIASES.get(platform.machine().lower(), platform.machine().lower())


@pytest.mark.parametrize("handler", ["on_rdtsc", "on_exception"])
def test_code_that_does_something_else_is_not_run(elsewhere, handler):
    """Though its hash is right: somebody has built it from another text."""
    manifest = json.loads((elsewhere / "manifest.json").read_text())
    known = manifest["blobs"][HOST]
    code = bytearray((elsewhere / f"{HOST}.bin").read_bytes())
    at = known["entries"][handler]
    code[at : at + len(RETURN[HOST])] = RETURN[HOST]
    (elsewhere / f"{HOST}.bin").write_bytes(code)
    known["sha256"] = blob.digest(bytes(code), known["entries"])
    change(elsewhere, blobs=manifest["blobs"])
    with pytest.raises(blob.BlobError, match="does not do what its text"):
        blob.load()


@pytest.mark.parametrize(
    "text", ["", "\0", "[]", "{}", '{"blobs": 5}', '{"blobs": {"x86_64": 1}}']
)
def test_a_damaged_manifest_is_told(elsewhere, text):
    (elsewhere / "manifest.json").write_text(text)
    with pytest.raises(blob.BlobError, match="manifest.json is not what"):
        blob.load()


@pytest.mark.parametrize("name", ["manifest.json", f"{HOST}.bin"])
def test_a_missing_file_is_told(elsewhere, name):
    (elsewhere / name).unlink()
    with pytest.raises(blob.BlobError, match=f"{name}: No such file"):
        blob.load()


@pytest.mark.parametrize(
    ("function", "value", "why"),
    [("machine", "riscv64", "for riscv64"), ("system", "Windows", "for Windows")],
)
def test_a_host_without_any_is_told(monkeypatch, function, value, why):
    monkeypatch.setattr(blob, "_loaded", [])
    monkeypatch.setattr(blob.platform, function, lambda: value)
    with pytest.raises(blob.BlobError, match=f"there is none {why}"):
        blob.load()


LINE = "emu86: compiled code: it was compiled for another version of emu86; CPython"
LINE += " handles all exits, slowly\n"


@pytest.mark.parametrize("way", ["library", "command"])
def test_that_the_reference_takes_over_is_said_once(elsewhere, way):
    change(elsewhere, abi="")
    program = f"from emu86.native import blob; blob.FOLDER = {str(elsewhere)!r}\n"
    program += {
        "library": "from emu86 import Machine; Machine(); Machine()",
        "command": (
            "from emu86 import cli, images\n"
            "cli.commands(['run', str(images.path('exits')), '--append', '1'])"
        ),
    }[way]
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stderr.count("CPython") == 1
    assert done.stderr.startswith(LINE)


def run_exits(**options):
    machine = Machine(memory=16 << 20, **options)
    machine.load_kernel(images.path("exits"), append="3")
    assert machine.run(timeout=300).reason == "poweroff"
    exits = {name: exit_.count for name, exit_ in machine.stats.exits.items()}
    return exits, machine.now, machine.registers


def test_without_it_the_reference_runs(elsewhere, monkeypatch):
    change(elsewhere, abi="")
    can = probe.probe()
    assert can.live
    assert not can.native
    assert not can.inline
    monkeypatch.undo()
    assert run_exits(abilities=can) == run_exits()


def test_the_reference_can_be_asked_for(monkeypatch):
    seen = []
    really = handlers.on_exception

    def on_exception(uc, vector, control):
        seen.append(vector)
        really(uc, vector, control)

    monkeypatch.setattr(handlers, "on_exception", on_exception)
    compiled = run_exits()
    assert not seen
    assert run_exits(native=False) == compiled
    assert len(seen) > 50


def test_a_run_needs_no_compiler():
    program = (
        "import sys; sys.modules['llvmlite'] = None; from emu86 import Machine\n"
        "from emu86.cpu.engine import abilities\n"
        "assert abilities().native or sys.platform != 'linux'\n"
        "machine = Machine(memory=1 << 20); machine.load_flat(b'\\xfa\\xf4', 0x10000)\n"
        "print(machine.run().reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "halted\n"


def test_the_control_block_is_where_no_code_is():
    """From 128 KiB on malloc maps it by itself, perhaps next to the engine's code.

    Then the engine names it by its distance, and no block can count itself.
    """
    assert ctypes.sizeof(abi.Control) < 120 << 10
