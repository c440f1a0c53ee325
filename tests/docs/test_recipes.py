"""The recipes in the pages work: their files are written, their commands are run.

A page marks what is run:

    <!-- file: hello.c -->   before a block that is the content of a file
    <!-- run -->             before a block: commands after `$ `, and what they show
    <!-- run: slow -->       the same; the whole page waits for `make nightly`

`[...]` stands for what is left out.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.places import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
FILE = re.compile(r"(?ms)^<!-- file: (\S+) -->\n\n```\w+\n(.*?)^```$")
RUN = re.compile(r"(?ms)^<!-- run(?:: \w+)? -->\n\n```console\n(.*?)^```$")
END = "\1"  # of what a command shows
TOOLS = ("nasm", "gcc", "ld", "cpio", "gdb")


def recipes():
    for page in PAGES:
        text = page.read_text()
        if RUN.search(text):
            marks = [pytest.mark.not_quick]
            if "<!-- run: slow -->" in text:
                marks = [pytest.mark.slow, pytest.mark.guest]
            yield pytest.param(text, marks=marks, id=page.name)


def steps(text):
    """Yield each command of a page and what the page says that it shows."""
    for block in RUN.findall(text):
        for step in re.split(r"(?m)^\$ ", block)[1:]:
            lines = step.splitlines()
            more = 1 + sum(line.startswith("> ") for line in lines[1:])
            command = "\n".join([lines[0], *(line[2:] for line in lines[1:more])])
            yield command, "\n".join(lines[more:])


def like(shown, page):
    """Whether a command has shown what the page says, but for `[...]`."""
    lines = "\n".join(map(str.rstrip, shown.strip().splitlines()))
    pattern = re.escape(page.strip()).replace(r"\[\.\.\.\]", ".*?")
    return re.fullmatch(pattern, lines, re.DOTALL)


def installed(text):
    for tool in TOOLS:
        if re.search(rf"\b{tool} -", text) and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")


@pytest.mark.parametrize("text", list(recipes()))
def test_recipe(text, tmp_path):
    installed(text)
    for file, content in FILE.findall(text):
        tmp_path.joinpath(file).write_text(content)
    tmp_path.joinpath("build").symlink_to(ROOT / "build")
    wanted = list(steps(text))
    script = "".join(
        f"{command}\nstatus=$?; printf '\\1'; (exit $status)\n" for command, _ in wanted
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    shown = ran.stdout.replace("\r", "").split(END)
    assert len(shown) == len(wanted) + 1, ran.stdout
    for (command, page), output in zip(wanted, shown, strict=False):
        assert like(output, page), f"{command}\n{output}\ninstead of\n{page}"


def test_a_wrong_recipe_fails():
    assert like("boots\nafter 1.5 s\n", "boots\nafter [...] s")
    assert not like("boots\nand panics\n", "boots")
    assert not like("a.b", "a+b")


def test_services_run_what_was_run_here():
    page = (ROOT / "docs/ci.md").read_text()
    yaml = "".join(re.findall(r"(?ms)^```yaml\n(.*?)^```$", page))
    commands = re.findall(r"(?m)^ *- (?:run: )?((?:nasm|ld|emu86) .*)$", yaml)
    assert len(commands) == 6
    assert set(commands) <= {command for command, _ in steps(page)}
