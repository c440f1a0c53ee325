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
    *(ROOT / folder / "README.md" for folder in ("bench", "firmware", "tests")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SPEC = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
make_docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_docs)


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.guest
def test_what_the_readme_shows_of_debian():
    page = (ROOT / "README.md").read_text()
    fresh = make_docs.up_to_date(page, everything=True)
    assert page == fresh, "run tools/make_docs.py --all"


def headings(page):
    """Return the headings of a page as links have them."""
    found = re.findall(r"^#+ (.*)", page, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in found]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_lines_are_short(path):
    """A table's row cannot be cut."""
    lines = [one for one in path.read_text().splitlines() if not one.startswith("|")]
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_is_up_to_date(path):
    page = path.read_text()
    assert page == make_docs.up_to_date(page), "run tools/make_docs.py"


def test_figures_of_the_readme_are_those_of_commands():
    """They stand in what make_docs.py writes: output, bench's tables, boots."""
    page = (ROOT / "README.md").read_text()
    for made in (make_docs._OUTPUT, make_docs._TABLE, make_docs._BOOT):
        page, count = made.subn("", page)
        assert count, made.pattern
    assert re.findall(r"(?<!\w)\d[\d,.]* ?(?:[nµm]?s|seconds?|%|exits)\b", page) == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, heading = target.partition("#")
        if "://" not in target:
            page = path.parent / file
            assert page.exists(), target
            assert not heading or heading in headings(page.read_text()), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_files_exist(path):
    named = (
        r"`((?:emu86|tests|tools|docs|bench|firmware)/[\w./]+|\w+/\w+\.(?:py|md|asm))`"
    )
    for file in re.findall(named, path.read_text()):
        places = ROOT / file, ROOT / "emu86" / file
        assert any(place.exists() for place in places), file


SOURCES = [file.read_text() for file in (ROOT / "emu86").rglob("*.py")]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_members_exist(path):
    """What is written as `Class.member`; registers, as CR4.TSD, are no classes."""
    for owner, member in re.findall(r"`([A-Z]+[a-z]\w*)\.(\w+)", path.read_text()):
        pattern = rf"class {owner}\b.*\b(def )?{member}\b"
        assert any(re.search(pattern, text, re.DOTALL) for text in SOURCES), member


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_tests_exist(path):
    text = path.read_text()
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in tests, test


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_are_understood(path):
    text = re.sub(r"\\\n(>\s)?", " ", path.read_text())
    for line in re.findall(r"(?:^ {4}|^\$ |`)(emu86 [^`#<\n]+)", text, re.MULTILINE):
        verb, *arguments = shlex.split(line.replace("...", ""))[1:]
        if verb == "--help":
            continue
        command = commands.get_command(click.Context(commands), verb)
        assert command, verb
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


@pytest.mark.not_quick
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/library.md",
        "docs/package.md",
        "docs/testing.md",
        "docs/timeline.md",
    ],
)
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


OUTPUT = """\
[    0.500000] boots
INT 03h         1  12.00
INT 80h    12,345   3.00
sites patched: CMPXCHG8B 161, IRET 4, POPF 4
after 1.5 s and 777 exits
"""


def test_what_a_page_shows_of_an_output_is_renewed():
    shown = """\
[    0.4] boots
[...]
after [...] s and 1 exits
INT 80h    9[...]
sites patched: CMPXCHG8B 2, IRET 1, [...]
"""
    renewed = make_docs.renewed(shown, OUTPUT)
    assert renewed.splitlines() == [
        "[    0.500000] boots",
        "[...]",
        "after [...] s and 777 exits",
        "INT 80h    12,345[...]",
        "sites patched: CMPXCHG8B 161, IRET 4, [...]",
    ]
    assert make_docs.renewed(renewed, OUTPUT) == renewed


@pytest.mark.parametrize("line", ["INT 81h", "boots", "after [...] s and x exits"])
def test_what_is_not_shown_any_more(line):
    with pytest.raises(LookupError, match="shown"):
        make_docs.renewed(line, OUTPUT)


def test_outputs_are_those_of_commands():
    shown = make_docs.output_of("emu86 explain \\\n    'cf'")
    assert "IRET (CF): sensitive" in shown
