"""The pytest plugin, in a pytest of its own: what it prints can be pasted."""

import re
import shlex
import sys

import pytest

from support.places import ROOT

pytestmark = pytest.mark.not_quick

pytest_plugins = ["pytester"]

# Keeps what was tried, fails at the twentieth program, and does not shrink it.
MINE = """
    from pathlib import Path
    from hypothesis import Phase, given, settings
    from emu86.testing import strategies as guests

    tried = []

    @settings({settings}phases=[Phase.generate], max_examples=40)
    @given(guests.programs("moves"))
    def test_mine(program):
        tried.append(program.hex())
        Path({log!r}).write_text(" ".join(tried))
        assert len(tried) < 20
"""


@pytest.fixture
def mine(pytester, monkeypatch):
    """Makes a test file, and gives a function that runs pytest: output, programs."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def make(source=MINE, settings=""):
        log = pytester.path / "tried"
        folder = pytester.mkdir("tests")
        text = source.format(settings=settings, log=str(log))
        file = pytester.makepyfile(test_mine=text)
        file.rename(folder / "test_mine.py")

        def run(*arguments):
            log.unlink(missing_ok=True)
            command = (sys.executable, "-m", "pytest", "--strict-markers", *arguments)
            result = pytester.run(*command)
            tried = log.read_text().split() if log.exists() else []
            return "\n".join(result.outlines), tried

        return run

    return make


def replay(output):
    """The arguments of the line to paste."""
    (line,) = re.findall(r"^replay: pytest (.*)$", output, re.MULTILINE)
    return shlex.split(line)


# The same without the engine, which a seed that is given does not ask for.
LIGHT = MINE.replace("emu86.testing import strategies", "hypothesis import strategies")
LIGHT = LIGHT.replace('guests.programs("moves")', "guests.binary()")


def test_a_failure_can_be_had_again(mine):
    run = mine()
    output, tried = run()
    arguments = replay(output)
    assert "1 failed" in output
    assert arguments[0] == "tests/test_mine.py::test_mine"
    (seed,) = arguments[1:]
    assert f"({seed} to have it again)" in output
    again, the_same = run(*arguments)
    assert the_same == tried
    assert replay(again) == arguments
    assert re.findall("program=b.*", again) == re.findall("program=b.*", output)


# Fails when it has added up enough, and does not shrink.
MACHINE = """
    from pathlib import Path
    from hypothesis import Phase, settings
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, rule

    tried = []

    class Sum(RuleBasedStateMachine):
        @rule(number=st.integers(0, 255))
        def add(self, number):
            tried.append(str(number))
            Path({log!r}).write_text(" ".join(tried))
            assert len(tried) < 500

    Sum.TestCase.settings = settings({settings}phases=[Phase.generate])
    TestSum = Sum.TestCase
"""


@pytest.mark.parametrize(
    "settings", ["", pytest.param("derandomize=True, ", marks=pytest.mark.slow)]
)
def test_a_state_machine_has_the_seed(mine, settings):
    run = mine(MACHINE, settings)
    output, tried = run("--emu86-seed=5")
    assert replay(output) == ["tests/test_mine.py::TestSum::runTest", "--emu86-seed=5"]
    assert run(*replay(output))[1] == tried
    assert run("--emu86-seed=6")[1] != tried
    # One example has fewer steps than that.
    assert len(run("--emu86-examples=0.01")[1]) < 100


def test_a_state_machine_has_a_fresh_seed(mine):
    run = mine("    import emu86.testing" + MACHINE)
    output, tried = run()
    (seed,) = replay(output)[1:]
    assert f"({seed} to have it again)" in output
    assert run(*replay(output))[1] == tried


def test_another_seed_is_another_run(mine):
    run = mine(LIGHT)
    one, other = (run(f"--emu86-seed={seed}") for seed in (1, 2))
    assert "emu86: seed 1\n" in one[0]
    assert one[1] != other[1]
    # The workers of xdist have it, too.
    assert run("--emu86-seed=1", "-n", "2")[1] == one[1]


@pytest.mark.slow
def test_the_derandomised_stay_so_unless_a_seed_is_given(mine):
    run = mine(settings="derandomize=True, ")
    output, tried = run()
    assert run(*replay(output))[1] == tried
    assert run("--emu86-seed=1")[1] != tried
    assert replay(output) == ["tests/test_mine.py::test_mine"]


@pytest.mark.slow
def test_the_workers_of_xdist_have_the_fresh_seed(mine):
    run = mine()
    output, tried = run("-n", "2")
    (seed,) = replay(output)[1:]
    assert f"({seed} to have it again)" in output
    assert run(*replay(output))[1] == tried


def test_hypothesis_own_seed_is_kept(mine):
    run = mine(LIGHT)
    output, tried = run("--hypothesis-seed=5")
    assert "emu86: seed" not in output
    assert replay(output)[1:] == ["--hypothesis-seed=5"]
    assert run(*replay(output))[1] == tried


# As many have it: which profile is loaded is said by the environment.
CONFTEST = """
import os
from hypothesis import settings

settings.register_profile("few")
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))
"""


@pytest.mark.parametrize("folder", [".", pytest.param("tests", marks=pytest.mark.slow)])
def test_a_profile_that_a_conftest_loads(mine, pytester, monkeypatch, folder):
    run = mine(LIGHT)
    (pytester.path / folder / "conftest.py").write_text(CONFTEST)
    monkeypatch.setenv("HYPOTHESIS_PROFILE", "same")
    output, tried = run("--hypothesis-verbosity=quiet")
    assert replay(output)[1:] == ["--hypothesis-profile=same"]
    monkeypatch.delenv("HYPOTHESIS_PROFILE")
    assert run(*replay(output))[1] == tried
    assert replay(run("--emu86-seed=1")[0])[1:] == [
        "--emu86-seed=1", "--hypothesis-profile=few",
    ]  # fmt: skip


def test_the_profile_of_a_ci_service(mine, monkeypatch):
    run = mine()
    monkeypatch.setenv("CI", "true")
    output, tried = run()
    assert replay(output)[1:] == ["--hypothesis-profile=ci"]
    monkeypatch.delenv("CI")
    assert run(*replay(output))[1] == tried


def test_a_module_loads_its_own_profile_itself(mine, pytester):
    own = "settings.register_profile('{name}', derandomize=True)\n"
    own += "    settings.load_profile('{name}')\n"
    run = mine(
        LIGHT.replace("tried = []", own.replace("{name}", "b") + "    tried = []")
    )
    before = "from hypothesis import settings\n" + own.replace("    ", "")
    (pytester.path / "tests" / "test_before.py").write_text(before.format(name="a"))
    output, tried = run()
    assert replay(output) == ["tests/test_mine.py::test_mine"]
    assert run(*replay(output))[1] == tried


def test_more_or_fewer_examples(mine):
    run = mine(LIGHT.replace("< 20", "< 1000"))
    # hypothesis counts one that it has tried before and does not run again
    assert 70 < len(run("--emu86-examples=2")[1]) <= 80
    assert len(run("--emu86-examples=0.1")[1]) <= 4
    assert run("--emu86-examples=0")[1] == []


def test_replay_has_the_number_of_examples(mine):
    run = mine(LIGHT)
    output, tried = run("--emu86-examples=3", "--emu86-seed=4")
    arguments = replay(output)
    assert arguments[1:] == ["--emu86-seed=4", "--emu86-examples=3"]
    assert run(*arguments)[1] == tried


def test_a_name_that_a_shell_would_take_apart(mine):
    source = LIGHT.replace("    @settings", "    @kinds\n    @settings").replace(
        "(program)", "(kind, program)"
    )
    kinds = 'import pytest\n    kinds = pytest.mark.parametrize("kind", ["a b; $c"])\n'
    run = mine(source.replace("tried = []", f"{kinds}    tried = []"))
    output, tried = run("--emu86-seed=3")
    assert replay(output)[0] == "tests/test_mine.py::test_mine[a b; $c]"
    assert run(*replay(output))[1] == tried


def test_the_marks(mine):
    run = mine("""
        import pytest
        from emu86.testing import host, run

        host.missing = lambda: "no oracle here"

        @pytest.mark.emu86_techniques("patch", "iopl")
        def test_two(technique):
            assert run(b"\\xf4", technique=technique).technique == technique

        @pytest.mark.emu86_techniques
        def test_all(technique):
            pass

        @pytest.mark.emu86_host
        def test_host():
            raise AssertionError
    """)
    output, _ = run("-v", "-rs")
    for name in ("two[patch]", "two[iopl]", "all[trap]", "all[patch]", "all[iopl]"):
        assert f"test_{name} PASSED" in output
    assert "5 passed, 1 skipped" in output
    assert "no oracle here" in output


@pytest.mark.parametrize(
    ("argument", "told"),
    [("'ptach'", "no 'ptach' (did you mean 'patch'? there are trap, patch,"),
     ("technique='trap'", "names alone, no technique=")],
)  # fmt: skip
def test_a_mark_that_names_no_technique(mine, argument, told):
    run = mine(f"""
        import pytest

        @pytest.mark.emu86_techniques({argument})
        def test_one(technique):
            pass
    """)
    output = run()[0]
    error = f"tests/test_mine.py::test_one: emu86_techniques: {told}"
    (found,) = re.findall("(?ms)ERROR collecting.*?$\\n(.*?)$\\n=", output)
    assert found.startswith(error)


def test_the_engine_has_started_before_the_first_example(mine):
    run = mine("""
        from hypothesis import given, strategies as st
        from emu86 import testing
        from emu86.cpu import engine

        def test_0_plain():
            assert not engine._probed

        @given(st.booleans())
        def test_1_property(_):
            assert engine._probed
    """)
    assert "2 passed" in run()[0]


def test_a_traceback_has_no_frame_of_ours(mine):
    run = mine("""
        import pytest
        from emu86.testing import State, assert_equivalent, run

        popf = bytes.fromhex("fb 6a02 9d 9c 58 f4")

        @pytest.mark.parametrize("wrong", [
            lambda: assert_equivalent(popf, None, "trap"),
            lambda: assert_equivalent(b"\\xf4", techniques="magic"),
            lambda: run("f4"),
            lambda: run(b"\\xf4", technique="magic"),
            lambda: run(b"\\xf4" * 0x100000),
            lambda: State(ring=5),
        ])
        def test_one(wrong):
            wrong()
    """)
    output = run()[0]
    assert "6 failed" in output
    places = re.findall(r"(?m)^(\S+\.py):\d+:", output)
    assert len(places) >= 12
    assert set(places) == {"tests/test_mine.py"}


def test_others_pay_nothing(mine):
    run = mine("""
        import sys

        def test_what_is_imported():
            heavy = {{"unicorn", "numpy", "hypothesis", "emu86.testing", "click"}}
            assert not heavy & set(sys.modules)
    """)
    output, _ = run()
    assert "1 passed" in output
    assert "seed" not in output


def test_the_examples_of_the_page(mine):
    page = (ROOT / "docs/testing.md").read_text()
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    assert len(blocks) > 2
    run = mine("\n".join(blocks).replace("{", "{{").replace("}", "}}"))
    output, _ = run("--emu86-examples=0.05", "-rs")
    assert re.search("[67] passed", output)
    assert "failed" not in output
