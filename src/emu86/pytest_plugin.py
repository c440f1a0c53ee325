"""A pytest plugin for tests that use `emu86.testing`: seeds, replay, techniques.

Every pytest in whose environment emu86 is installed loads it, so it imports nothing
that is slow: hypothesis only where the tests have, the engine only for `emu86_host`. It
stands outside `emu86.testing`, which would be imported with it.
"""

import math
import os
import random
import shlex
import sys
from collections.abc import Generator
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
_WORKER_SEED: Final = "emu86_seed"


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
    from emu86.rings.vmm import TECHNIQUES  # noqa: PLC0415  # the engine is slow

    unknown = [name for name in mark.args if name not in ("bare", *TECHNIQUES)]
    if unknown:
        where = metafunc.definition.nodeid
        message = f"{where}: emu86_techniques: no {unknown[0]!r}"
        raise pytest.UsageError(message)
    metafunc.parametrize("technique", mark.args or tuple(TECHNIQUES))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the host's CPU, if it cannot serve."""
    if item.get_closest_marker("emu86_host") is None:
        return
    from emu86.testing.host import missing  # noqa: PLC0415  # the engine is slow

    if reason := missing():
        pytest.skip(reason)


def _property(item: pytest.Item) -> Any:  # noqa: ANN401  # a function with attributes
    """Return the function under @given that this item calls, or None."""
    if "hypothesis" not in sys.modules or not isinstance(item, pytest.Function):
        return None
    from hypothesis import is_hypothesis_test  # noqa: PLC0415

    function = getattr(item.obj, "__func__", item.obj)
    known = hasattr(function, "_hypothesis_internal_use_settings")
    return function if known and is_hypothesis_test(function) else None


def _settings(function: Any) -> "hypothesis.settings":  # noqa: ANN401
    found: hypothesis.settings = function._hypothesis_internal_use_settings
    return found


def _seed_of(config: pytest.Config, function: Any) -> int | None:  # noqa: ANN401
    """Return the seed to try a property with; None if that is not ours to say."""
    if config.option.emu86_seed is not None:
        return config.stash[_SEED]
    theirs = getattr(config.option, "hypothesis_seed", None) is not None
    if theirs or not _are_emu86s() or _settings(function).derandomize:
        return None
    if getattr(function, "_hypothesis_internal_use_seed", None) is not None:
        return None  # by a decorator of its own
    return config.stash[_SEED]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Give every property its seed and its number of examples."""
    found = {id(function): function for item in items if (function := _property(item))}
    for function in found.values():
        from hypothesis import seed, settings  # noqa: PLC0415

        value = _seed_of(config, function)
        factor = config.option.emu86_examples
        if factor != 1:
            parent = _settings(function)
            most = max(round(parent.max_examples * factor), 1)
            # As hypothesis' own plugin does: a test takes the decorator once only.
            function._hypothesis_internal_use_settings = settings(
                parent, max_examples=most
            )
        if value is not None:
            seed(value)(function)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell how to have the failure of a property again."""
    report = yield
    if report.when == "call" and report.failed and _property(item) is not None:
        report.sections.append(("emu86", f"replay: {_replay(item)}"))
    return report


def _replay(item: pytest.Item) -> str:
    """Return the command line, for a shell where pytest was called."""
    config = item.config
    here = os.path.relpath(item.path, config.invocation_params.dir)
    _, colons, name = item.nodeid.partition("::")
    words = ["pytest", Path(here).as_posix() + colons + name]
    value = getattr(_property(item), "_hypothesis_internal_use_seed", None)
    if value is not None and value == config.stash[_SEED]:
        words.append(f"--emu86-seed={value}")
    # What else the choice of examples depends on.
    if config.option.emu86_examples != 1:
        words.append(f"--emu86-examples={config.option.emu86_examples:g}")
    for name in ("hypothesis_profile", "hypothesis_seed"):
        given = getattr(config.option, name, None)
        if given is not None:
            words.append(f"--{name.replace('_', '-')}={given}")
    return shlex.join(words)
