"""tests/README.md names every suite, helper and mark there is."""

import re

from support.places import ROOT, TESTS

PAGE = (TESTS / "README.md").read_text()
FOLDERS = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/*.py")}
HELPERS = {
    path.stem
    for path in (TESTS / "support").iterdir()
    if path.suffix == ".py" or path.name == "fuzz"
}


def test_suites():
    ranked = re.findall(r"^(\d+)\. \*\*`(\w+)`\*\*, \d+ s", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in ranked] == list(range(1, len(FOLDERS)))
    assert {suite for _, suite in ranked} == FOLDERS - {"support"}


def test_helpers():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == HELPERS


def test_marks():
    told = set(re.findall(r"`(\w+)`", PAGE.partition("## Marks")[2]))
    ours = (ROOT / "pyproject.toml").read_text().partition("\nmarkers = [")[2]
    names = set(re.findall(r'^    "(\w+): ', ours.partition("]")[0], re.MULTILINE))
    assert names
    assert names <= told
    assert {"emu86_techniques", "emu86_host"} <= told


def test_the_example():
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE)
    names = {}
    exec(code, names)
    names["test_smsw_tells_ring_3"]()
