"""Rounds of benchmarks: who is measured when, what is kept, mistakes of the user."""

import json
import sys

import pytest

from bench import __main__ as bench
from bench.results import Result, load
from bench.tools import BenchError, Benchmark, Contender


class Fake:
    """A benchmark of two contenders; `figures` has what they need, by name."""

    def __init__(self, name="one", *, once=False):
        self.name = name
        self.order = []
        self.figures = {"QEMU": 2.0, "patch": 1.0}
        self.benchmark = Benchmark(
            name,
            f"The title of {name}",
            "What it is about.",
            lambda: [Contender("QEMU", "bare"), Contender("patch", "patch")],
            self.measure,
            once=once,
        )

    def measure(self, contender, scale):
        self.order.append(contender.name)
        figure = self.figures[contender.name]
        if isinstance(figure, BaseException):
            raise figure
        return {"work, CPU s": figure * scale}


@pytest.fixture
def fake(monkeypatch):
    one, other = Fake(), Fake("other", once=True)
    both = {each.name: each.benchmark for each in (one, other)}
    monkeypatch.setattr(bench, "BENCHMARKS", both)
    return one, other


@pytest.fixture
def run(fake, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        assert list(bench.BENCHMARKS) == [one.name for one in fake]
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        status = bench.main(tmp_path / "results.json", tmp_path)
        return status, *capsys.readouterr()

    return run


def test_contenders_take_turns_and_the_order_changes(run, fake):
    status, out, err = run("--pairs", "2")
    assert status == 0
    one, other = fake
    assert one.order == ["QEMU", "patch", "patch", "QEMU"]
    assert other.order == ["QEMU", "patch"]  # once
    assert "one: pair 1 of 2, QEMU\n" in err
    assert "0.50" in out


def test_results_and_page_are_written(run, tmp_path):
    run("--pairs", "2")
    results = load(tmp_path / "results.json")
    assert len(results["one"].rounds) == 2
    assert results["one"].rounds[0]["patch"] == {"work, CPU s": 1.0}
    page = (tmp_path / "performance.md").read_text()
    assert "| work, CPU s | 2 | 1 | 0.50 |" in page
    assert "commit" in results["one"].where


def test_what_is_not_asked_for_stays(run, fake, tmp_path):
    run()
    fake[0].figures["patch"] = 4.0
    run("one", "--pairs", "1")
    results = load(tmp_path / "results.json")
    assert results["one"].rounds == [
        {"QEMU": {"work, CPU s": 2.0}, "patch": {"work, CPU s": 4.0}}
    ]
    assert len(results["other"].rounds) == 1
    assert "## The title of other" in (tmp_path / "performance.md").read_text()


def test_a_run_that_is_interrupted_leaves_whole_rounds(run, fake, tmp_path):
    fake[1].figures["patch"] = KeyboardInterrupt()
    status, out, _ = run("--pairs", "3")
    assert status == 130
    assert "interrupted" in out
    results = load(tmp_path / "results.json")
    assert list(results) == ["one"]
    assert "## The title of one" in (tmp_path / "performance.md").read_text()


def test_who_fails_is_left_out_and_told(run, fake, tmp_path):
    fake[0].figures["QEMU"] = BenchError("is out of order")
    status, out, _ = run("--pairs", "2")
    assert status == 1
    assert "skipped: one, QEMU: is out of order" in out
    assert fake[0].order == ["QEMU", "patch", "patch"]
    page = (tmp_path / "performance.md").read_text()
    assert "| work, CPU s | 1 |\n" in page


def test_quick_writes_nothing(run, tmp_path):
    status, out, _ = run("--quick", "--pairs", "1")
    assert status == 0
    assert "0.02" in out
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_written_anew(run, fake, tmp_path):
    run("--pairs", "1")
    written = (tmp_path / "performance.md").read_text()
    (tmp_path / "performance.md").unlink()
    measured = len(fake[0].order)
    assert run("--page") == (0, "", "")
    assert (tmp_path / "performance.md").read_text() == written
    assert len(fake[0].order) == measured


def test_time_left_is_told(run, tmp_path):
    rounds = [{"QEMU": {"work, CPU s": 1.0}}]
    saved = {
        name: {"where": "", "rounds": rounds, "seconds": seconds}
        for name, seconds in (("one", 600), ("other", 120))
    }
    (tmp_path / "results.json").write_text(json.dumps(saved))
    err = run("--pairs", "2")[2]
    # What the first round took counts as soon as it is known.
    assert err.splitlines() == [
        "one: pair 1 of 2, QEMU; about 22 min left",
        "one: pair 1 of 2, patch; about 22 min left",
        "other: pair 1 of 2, QEMU; about 2 min left",
        "other: pair 1 of 2, patch; about 2 min left",
        "one: pair 2 of 2, patch",
        "one: pair 2 of 2, QEMU",
    ]


def test_against_another_tree(run, fake, tmp_path, monkeypatch):
    trees = []
    monkeypatch.setattr(bench, "tree_of", lambda _: tmp_path)

    def measure(contender, _scale):
        trees.append(contender.tree)
        return {"work, CPU s": 3.0 if contender.tree == tmp_path else 1.5}

    monkeypatch.setattr(fake[0], "measure", measure)
    one = Benchmark("one", "", "", fake[0].benchmark.contenders, measure)
    monkeypatch.setitem(bench.BENCHMARKS, "one", one)
    status, out, _ = run("one", "--against", "REV", "--pairs", "2")
    assert status == 0
    assert trees == [tmp_path, bench.ROOT, bench.ROOT, tmp_path]
    assert "patch: work" in out
    assert "÷ old" in out
    assert "0.50" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--pairs", "0"),
        ("--against",),
        ("size", "--against=x"),
        ("--page", "one"),
        ("--page", "--quick"),
        ("--page", "--against="),
    ],
)
def test_a_mistake_is_told_in_a_line(run, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("python -m bench: error: ")


def test_no_such_revision(run):
    for name in ("nothing-of-the-kind", ""):
        status, out, err = run("--against", name)
        assert (status, out, err) == (2, "", f"bench: no revision {name!r}\n")


def test_ratios_are_taken_within_pairs():
    # The machine was twice as slow in the second pair.
    rounds = [
        {"old": {"row": old}, "new": {"row": new}}
        for old, new in ((1.0, 1.1), (2.0, 2.2), (1.0, 1.0))
    ]
    result = Result("", rounds)
    assert result.ratios("row", "new", "old") == [1.0, 1.1, 1.1]
