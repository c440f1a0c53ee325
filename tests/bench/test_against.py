"""Two trees against each other: each contender runs the tree that it is told to."""

import subprocess

import pytest

from bench import against
from bench.exits import run
from bench.tools import BenchError, Contender
from support.places import ROOT


def git(folder, *command):
    who = ["-c", "user.name=a", "-c", "user.email=a@example"]
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def history(tmp_path, monkeypatch):
    """Give a tree of two revisions; in the first the package is below src."""
    root = tmp_path / "root"
    for file in ("src/emu86/__init__.py", "src/emu86/__main__.py", "bench/__init__.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    git(tmp_path, "init", "root")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    git(root, "mv", "src/emu86", "emu86")
    git(root, "commit", "-m", "second")
    git(root, "rm", "-r", "emu86")
    git(root, "commit", "-m", "third")
    monkeypatch.setattr(against, "ROOT", root)
    monkeypatch.setattr(against, "TREES", tmp_path / "trees")
    return root


@pytest.mark.usefixtures("history")
def test_the_package_alone_is_unpacked():
    old, new = against.tree_of("HEAD~2"), against.tree_of("HEAD~1")
    assert old.name == "src"
    assert [path.name for path in old.iterdir()] == ["emu86"]
    # Not the benchmarks beside it: they would run instead of this tree's.
    assert [path.name for path in new.iterdir() if path.name != "emu86"] == []
    assert against.tree_of("HEAD~1") == new  # kept


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize(
    ("revision", "why"),
    [("nothing", "no revision 'nothing'"), ("HEAD", "no package emu86 in 'HEAD'")],
)
def test_no_such_revision(revision, why):
    with pytest.raises(BenchError, match=why):
        against.tree_of(revision)


def test_without_a_history_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(against, "ROOT", tmp_path)
    with pytest.raises(BenchError, match="no revision 'HEAD"):
        against.tree_of("HEAD")


def test_another_tree_than_the_one_meant_is_an_error(tmp_path):
    against.check(ROOT)
    with pytest.raises(BenchError, match="asked for the emu86 in"):
        against.check(tmp_path)


@pytest.mark.usefixtures("history")
def test_what_a_tree_cannot_do_is_told():
    contender = Contender("patch", "patch", against.tree_of("HEAD~1"))
    with pytest.raises(BenchError, match="^ended without 'section in '$"):
        run(contender, "in", 1)
    (contender.tree / "emu86" / "__main__.py").write_text("import emu86.nothing")
    with pytest.raises(BenchError, match="ModuleNotFoundError: No module named 'emu86"):
        run(contender, "in", 1)
