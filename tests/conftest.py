"""Hypothesis profiles (HYPOTHESIS_PROFILE), and which tests stay together."""

import os
import re

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from support.places import GUESTS

# A failed assert there is told as one in a test.
for _name in ("assembler", "cases", "flat", "fuzz", "shell", "snapshots"):
    pytest.register_assert_rewrite(f"support.{_name}")

LONGEST = ("guest", "slow", "not_quick")
settings.register_profile("dev", max_examples=50)
settings.register_profile("ci", max_examples=60, derandomize=True, deadline=None)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a `guest` test if its guest is not there; in CI that is a mistake."""
    mark = item.get_closest_marker("guest")
    if mark and not (GUESTS / (mark.args or ("vmlinuz",))[0]).exists():
        assert not os.environ.get("CI"), "make guests has not run"
        option = " --nightly" if mark.args else ""
        pytest.skip(f"no guests: run python -m tools.fetch_guests{option}")


def pytest_collection_modifyitems(items):
    """Begin with what takes long, lest one worker end with it alone."""
    items.sort(key=lambda item: not any(map(item.get_closest_marker, LONGEST)))


class ByGuest(LoadScopeScheduling):
    """Gives tests that share a booted guest to one worker, any other to the next."""

    def _split_scope(self, nodeid):
        shared = re.match(
            r"tests/guests/test_(linux_(shell|trap|pae|amd64)|processes_amd64)\.py::\w+"
            r"\[?(patch|iopl)?",
            nodeid,
        )
        return str(shared.groups()) if shared else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Use it in place of xdist's, whose groups pytest 9.2 ignores."""
    return ByGuest(config, log)
