"""A pytest plugin for tests that use `emu86.testing`: seeds, replay, techniques.

Every pytest in whose environment emu86 is installed loads it, so it imports nothing
that is slow: hypothesis only where the tests have, the engine only for `emu86_host`. It
stands outside `emu86.testing`, which would be imported with it.
"""

import math
import os
import random
import re
import shlex
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    import hypothesis

_MARKS: Final = (
    "emu86_techniques(*names): try a test that takes `technique` with each of them",
    "emu86_host: skip the test where the host's CPU cannot be an oracle",
)
_SEED: Final = pytest.StashKey[int]()
_PROFILE: Final = pytest.StashKey[str | None]()
_STARTED: Final = pytest.StashKey[bool]()
_OF_MODULES: Final = pytest.StashKey[set[str]]()
_WORKER_SEED: Final = "emu86_seed"
_THEIR_SEED: Final = "_hypothesis_internal_use_seed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("emu86", "emu86.testing")
    group.addoption(
        "--emu86-seed",
        metavar="N",
        type=int,
        help="try all properties with this seed, derandomised ones too",
    )
    group.addoption(
        "--emu86-examples",
        metavar="FACTOR",
        type=float,
        default=1.0,
        help="try every property with FACTOR times its max_examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks; choose the run's seed."""
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)
    if not 0 < config.option.emu86_examples < math.inf:
        message = "--emu86-examples: a factor is a number above 0"
        raise pytest.UsageError(message)
    given = config.option.emu86_seed
    sent = getattr(config, "workerinput", {}).get(_WORKER_SEED)
    fresh = random.SystemRandom().getrandbits(32) if sent is None else sent
    config.stash[_SEED] = fresh if given is None else given
    config.stash[_OF_MODULES] = set()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401  # xdist has no types
    """Give the run's seed to a worker of pytest-xdist."""
    node.workerinput[_WORKER_SEED] = node.config.stash[_SEED]


def _told(config: pytest.Config) -> list[str]:
    seed = config.stash[_SEED]
    if config.option.emu86_seed is not None:
        return [f"emu86: seed {seed}"]
    if getattr(config.option, "hypothesis_seed", None) is not None:
        return []  # theirs is tried, and they tell
    return [f"emu86: seed {seed}, a fresh one (--emu86-seed={seed} to have it again)"]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Tell the seed at once if it was asked for, or if only the workers will know."""
    workers = getattr(config.option, "numprocesses", None)
    early = config.option.emu86_seed is not None or workers
    return _told(config) if early else []


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Tell a fresh seed when it is known that the tests use emu86."""
    early = config.option.emu86_seed is not None
    return [] if early or not _are_emu86s() else _told(config)


def _are_emu86s() -> bool:
    return "emu86.testing" in sys.modules


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try a test with each technique of its mark."""
    mark = metafunc.definition.get_closest_marker("emu86_techniques")
    if mark is None:
        return
    from emu86.config import DEPRIVILEGED  # noqa: PLC0415 - few tests have the mark
    from emu86.errors import unknown  # noqa: PLC0415

    known = (*DEPRIVILEGED, "bare")
    wrong = [unknown(one, known) for one in mark.args if one not in known]
    wrong += [f"names alone, no {one}=" for one in mark.kwargs]
    if wrong:
        where = metafunc.definition.nodeid
        pytest.fail(f"{where}: emu86_techniques: {wrong[0]}", pytrace=False)
    metafunc.parametrize("technique", mark.args or tuple(DEPRIVILEGED))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the host's CPU, if it cannot serve; start the engine."""
    if _are_emu86s() and _Property.of(item):
        _start(item.config)
    if item.get_closest_marker("emu86_host") is None:
        return
    from emu86.testing.host import missing  # noqa: PLC0415  # the engine is slow

    if reason := missing():
        pytest.skip(reason)


def _start(config: pytest.Config) -> None:
    """Have the engine compiled and tried before the first property.

    That takes longer than hypothesis lets an example take, and is no fault of it.
    """
    if not config.stash.get(_STARTED, False):
        from emu86.testing import run  # noqa: PLC0415 - the engine is slow

        config.stash[_STARTED] = True
        for technique in ("bare", "patch"):
            run(b"\xfa\xf4", technique=technique)  # cli; hlt


@dataclass(frozen=True)
class _Property:
    """A function under @given, or a state machine, and where hypothesis looks.

    seeded: what has the seed; owner, attribute: what has the settings, and as what.
    """

    seeded: Any
    owner: Any
    attribute: str

    @classmethod
    def of(cls, item: pytest.Item) -> "_Property | None":
        """Return what an item tries, or None if that is no property."""
        if "hypothesis" not in sys.modules or not isinstance(item, pytest.Function):
            return None
        from hypothesis import is_hypothesis_test  # noqa: PLC0415

        function = getattr(item.obj, "__func__", item.obj)
        if not is_hypothesis_test(function):
            return None
        machine = getattr(function, "_hypothesis_state_machine_class", None)
        if machine is not None:
            return cls(machine, item.cls, "settings")
        attribute = "_hypothesis_internal_use_settings"
        known = hasattr(function, attribute)
        return cls(function, function, attribute) if known else None

    @property
    def settings(self) -> "hypothesis.settings":
        found: hypothesis.settings = getattr(self.owner, self.attribute)
        return found

    @property
    def seed(self) -> int | None:
        found: int | None = getattr(self.seeded, _THEIR_SEED, None)
        return found

    def prepare(self, factor: float, seed: int | None) -> None:
        """Try `factor` times as many examples, with `seed` if that is ours to say."""
        from hypothesis import settings  # noqa: PLC0415

        # As hypothesis' own plugin does: a test takes the decorators once only.
        found = self.settings
        most = max(round(found.max_examples * factor), 1)
        found = settings(found, max_examples=most)
        if seed is not None:
            setattr(self.seeded, _THEIR_SEED, seed)
            found = settings(found, database=None)  # it would be tried first
        setattr(self.owner, self.attribute, found)


def _seed_for(config: pytest.Config, tried: _Property) -> int | None:
    """Return the seed to try a property with; None if that is not ours to say."""
    if config.option.emu86_seed is not None:
        return config.stash[_SEED]
    theirs = getattr(config.option, "hypothesis_seed", None) is not None
    if theirs or not _are_emu86s() or tried.settings.derandomize:
        return None
    if tried.seed is not None:
        return None  # by a decorator of its own
    return config.stash[_SEED]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Give every property its seed and its number of examples."""
    properties = filter(None, map(_Property.of, items))
    found = {id(tried.seeded): tried for tried in properties}
    for tried in found.values():
        tried.prepare(config.option.emu86_examples, _seed_for(config, tried))


# Those that there are without anybody's doing; "ci" is loaded where CI is set.
_PROFILES: Final = frozenset({"default", "ci"})
# What hypothesis' plugin adds to the name of a profile for other options.
_DERIVED: Final = re.compile(r"-with-\w+-verbosity|-with-explain-phase")


def _profile() -> tuple[str | None, frozenset[str]]:
    """Return hypothesis' profile, None if it is not there yet; all that there are."""
    if "hypothesis" not in sys.modules:
        return None, _PROFILES
    from hypothesis import settings  # noqa: PLC0415

    # Hypothesis does not tell otherwise.
    return settings._current_profile, frozenset(settings._profiles)  # noqa: SLF001


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Keep with which profile a module was imported, and which ones are modules'.

    A module loads its own again when it is imported alone, and there is none of
    another's: neither can be asked for in a replay line.
    """
    if not isinstance(collector, pytest.Module):
        return (yield)
    loaded, before = _profile()
    report = yield
    then, after = _profile()
    modules = collector.config.stash[_OF_MODULES]
    modules |= after - before
    name = _DERIVED.sub("", loaded or then or "default")
    collector.stash[_PROFILE] = None if name in {"default", *modules} else name
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell how to have the failure of a property again."""
    report = yield
    if report.when == "call" and report.failed and (tried := _Property.of(item)):
        report.sections.append(("emu86", f"replay: {_replay(item, tried)}"))
    return report


def _replay(item: pytest.Item, tried: _Property) -> str:
    """Return the command line, for a shell where pytest was called."""
    config = item.config
    here = os.path.relpath(item.path, config.invocation_params.dir)
    _, colons, name = item.nodeid.partition("::")
    words = ["pytest", Path(here).as_posix() + colons + name]
    if tried.seed == config.stash[_SEED]:
        words.append(f"--emu86-seed={tried.seed}")
    # What else the choice of examples depends on.
    module = item.getparent(pytest.Module)
    profile = module.stash.get(_PROFILE, None) if module is not None else None
    if profile is not None:
        words.append(f"--hypothesis-profile={profile}")
    if config.option.emu86_examples != 1:
        words.append(f"--emu86-examples={config.option.emu86_examples:g}")
    theirs = getattr(config.option, "hypothesis_seed", None)
    if theirs is not None:
        words.append(f"--hypothesis-seed={theirs}")
    return shlex.join(words)
