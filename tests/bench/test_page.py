"""The page of performance is what the results say."""

from xml.etree import ElementTree as ET

import pytest

from bench import page
from bench.__main__ import BENCHMARKS
from bench.plot import plot
from bench.results import FILE, Result, load, shown, spread
from support.places import ROOT

ROWS = ("boot, CPU s", "a | b, CPU s", "c, ns", "d & e, ns", "f, MiB")


def result(*ratios):
    """Return rounds in which patch takes so many times what QEMU takes."""
    rounds = [
        {
            "QEMU": dict.fromkeys(ROWS, 2.0),
            "patch": dict.fromkeys(ROWS, 2.0 * ratio),
            "iopl": {ROWS[0]: 123.456},
        }
        for ratio in ratios
    ]
    return Result("27 November, a machine", rounds)


def test_a_section():
    text = page.page(BENCHMARKS.values(), {"linux": result(1.5, 1.25, 3)})
    assert "## Debian's kernel\n" in text
    assert "|  | QEMU | patch | iopl | patch ÷ QEMU | iopl ÷ QEMU |\n" in text
    assert "| boot, CPU s | 2 | 3 | 123 | 1.50 (1.25 to 3.00) | 61.73 |\n" in text
    assert "| a \\| b, CPU s | 2 | 3 | - | 1.50 (1.25 to 3.00) | - |\n" in text
    assert "3 pairs: 27 November, a machine" in text
    assert "](performance-linux.svg)" in text
    assert "## Computing" not in text


def test_rows_without_a_base():
    text = page.page(
        BENCHMARKS.values(), {"size": Result("", [{"patch": {"all, MB": 88}}])}
    )
    assert "| all, MB | 88 |\n" in text
    assert "Measured once" in text
    assert "svg" not in text


def test_a_plot():
    text = plot("Title & more", result(0.5, 4, 2), "QEMU")
    root = ET.fromstring(text)
    assert root.findtext("{*}title") == "Title & more, divided by QEMU"
    shown_texts = [one.text for one in root.iterfind("{*}text")]
    assert {"boot", "a | b", "d & e", "patch", "iopl"} <= set(shown_texts)
    # Powers of two around all ratios, 1 among them.
    assert [one for one in shown_texts if one[0].isdigit()] == [
        "0.5", "1", "2", "4", "8", "16", "32", "64"
    ]  # fmt: skip


def test_a_few_rows_have_no_plot():
    few = Result("", [{"QEMU": {"a, s": 1.0}, "patch": {"a, s": 2.0}}])
    assert plot("Title", few, "QEMU") == ""


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0.01234, "0.0123"), (1.5, "1.5"), (99.96, "100"), (12345.6, "12,346")],
)
def test_figures(figure, text):
    assert shown(figure) == text


def test_spread():
    assert spread([]) == "-"
    assert spread([1.0]) == "1.00"
    assert spread([1.0, 1.5, 3.0]) == "1.50 (1.00 to 3.00)"
    assert spread([99.0, 1234.0, 5678.0]) == "1,234 (99.00 to 5,678)"


def test_the_page_is_what_the_results_say(tmp_path):
    results = load(FILE)
    assert results
    page.write(tmp_path, BENCHMARKS.values(), results)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    there = {
        path.name: path.read_text() for path in (ROOT / "docs").glob("performance*")
    }
    assert made == there, "run make bench ARGS=--page"
