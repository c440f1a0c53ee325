"""The machine code that the wheel carries: made from the sources, and proved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emu86 import Machine, images
from emu86.cpu import engine, probe
from emu86.native import blob
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


def test_a_host_without_any_is_told(elsewhere, monkeypatch):
    monkeypatch.setattr(blob.platform, "machine", lambda: "riscv64")
    with pytest.raises(blob.BlobError, match="there is none for riscv64"):
        blob.load()
    assert elsewhere.exists()


def test_without_it_the_reference_runs(elsewhere, monkeypatch):
    change(elsewhere, abi="")
    can = probe.probe()
    assert can.live
    assert not can.native
    assert not can.inline
    counts = []
    for abilities in (engine.abilities(), can):
        monkeypatch.undo()
        machine = Machine(memory=16 << 20, abilities=abilities)
        machine.load_kernel(images.path("exits"), append="3")
        assert machine.run(timeout=300).reason == "poweroff"
        exits = {name: exit_.count for name, exit_ in machine.stats.exits.items()}
        counts.append((exits, machine.now, machine.registers))
    assert counts[0] == counts[1]


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
