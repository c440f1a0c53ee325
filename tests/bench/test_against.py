"""Two trees against each other: each process measures the tree that it is told to."""

import subprocess

import pytest

from bench import against
from bench.tools import BenchError
from support.places import ROOT

pytestmark = pytest.mark.not_quick


def test_ratios_are_taken_within_pairs():
    # The machine was twice as slow in the second pair.
    assert against.compare("row", [1.0, 2.0, 1.0], [1.1, 2.2, 1.0]) == [
        "row", "1", "1.1", "1.100", "1.000 to 1.100"
    ]  # fmt: skip


def test_this_tree_is_measured():
    rows, why = against.measure("spin", ROOT)
    assert list(rows) == ["loop in ring 3, ns"]
    assert 0.1 < rows["loop in ring 3, ns"] < 1000
    assert why == ""


def test_another_tree_than_the_one_meant_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="asked for the emu86 in"):
        against.measure("spin", tmp_path)


@pytest.fixture
def without_machine(tmp_path):
    """Give a tree whose `emu86` has nothing in it."""
    (tmp_path / "src" / "emu86").mkdir(parents=True)
    (tmp_path / "src" / "emu86" / "__init__.py").write_text("")
    return tmp_path


def test_what_a_tree_cannot_do_is_told(without_machine):
    folder = against.parent_of_package(without_machine)
    assert folder == without_machine / "src"
    rows, why = against.measure("spin", folder)
    assert rows == {}
    assert why.startswith("ImportError: cannot import name 'Machine'")


def test_and_skipped(without_machine, monkeypatch, capsys):
    monkeypatch.setattr(against, "unpack", lambda _revision, _folder: None)
    monkeypatch.setattr(against, "parent_of_package", lambda _tree: without_machine)
    rows = {ROOT: {"a": 2.0, "b": 1.0}, without_machine: {"a": 1.0}}
    answers = {"spin": lambda tree: (rows[tree], ""), "exits": lambda _: ({}, "lost")}
    monkeypatch.setattr(against, "measure", lambda kind, tree: answers[kind](tree))
    against.main("REV", ["spin", "exits"], 2)
    shown = capsys.readouterr().out
    assert "2.000 to 2.000" in shown
    assert "skipped: b: only new" in shown
    assert "skipped: exits, old: lost" in shown


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no history here")
def test_a_revision_is_unpacked(tmp_path):
    against.unpack("HEAD", tmp_path)
    show = ["git", "show", "HEAD:Makefile"]
    committed = subprocess.run(show, cwd=ROOT, capture_output=True, check=True).stdout
    assert (tmp_path / "Makefile").read_bytes() == committed
    with pytest.raises(BenchError, match="no revision nothing"):
        against.unpack("nothing", tmp_path)
