"""The documentation is true: its code is the source's, its examples run."""

import doctest
import importlib.util
import re
import shlex

import click
import pytest

from emu86.cli import commands
from emu86.rings.insn.table import RECORDS
from support.places import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SPEC = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
make_docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_docs)


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_lines_are_short(path):
    long = [line for line in path.read_text().splitlines() if len(line) > 100]
    assert not long


@pytest.mark.parametrize("path", make_docs.pages(), ids=name)
def test_is_up_to_date(path):
    assert path.read_text() == make_docs.pages()[path], "run tools/make_docs.py"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_files_exist(path):
    named = (
        r"`((?:emu86|tests|tools|docs|bench|firmware)/[\w./]+|\w+/\w+\.(?:py|md|asm))`"
    )
    for file in re.findall(named, path.read_text()):
        places = ROOT / file, ROOT / "emu86" / file
        assert any(place.exists() for place in places), file


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_tests_exist(path):
    text = path.read_text()
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in tests, test


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_are_understood(path):
    text = path.read_text().replace("\\\n", " ")
    for line in re.findall(r"(?:^ {4}|`)(emu86 [^`#\n]+)", text, re.MULTILINE):
        verb, *arguments = shlex.split(line.replace("...", ""))[1:]
        command = commands.commands[verb]
        if not arguments:
            continue
        try:
            command.make_context(verb, arguments)
        except click.exceptions.Exit:
            assert "--help" in line


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_make_verbs_exist(path):
    makefile = (ROOT / "Makefile").read_text()
    for verb in re.findall(r"(?:^ {4}|`)make (\w+)", path.read_text(), re.MULTILINE):
        assert f"\n{verb}:" in makefile


@pytest.mark.parametrize("page", ["README.md", "docs/library.md", "docs/testing.md"])
def test_examples(page):
    path = ROOT / page
    blocks = re.findall(r"(?ms)^```pycon\n(.*?)^```$", path.read_text())
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, page, page, 0)
    assert test.examples
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    out = []
    assert runner.run(test, out=out.append).failed == 0, "".join(out)


def test_every_record_has_its_paragraph():
    text = (ROOT / "docs/exits.md").read_text()
    for record in RECORDS:
        assert f"**{record.mnemonic}** reaches the VMM by" in text


def test_no_source_is_lost(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("class A:\n  @property\n  def b(self):\n    return 1\nC = 2\n")
    assert make_docs.source_of(file, "A.b").startswith("@property\ndef b")
    assert make_docs.source_of(file, "C") == "C = 2"
    with pytest.raises(LookupError):
        make_docs.source_of(file, "A.c")


def test_the_figures_are_the_benchmarks():
    """No figure in the README that bench/README.md does not have."""
    readme = (ROOT / "README.md").read_text()
    speed = readme.partition("## Speed")[2].partition("\n## ")[0]
    figures = re.findall(r"\d+\.\d+", speed)
    bench = (ROOT / "bench/README.md").read_text()
    assert figures
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", bench), figure
