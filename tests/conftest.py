"""Hypothesis profiles (HYPOTHESIS_PROFILE), and which tests stay together."""

import os
import re

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("dev", max_examples=50)
settings.register_profile("ci", max_examples=500, derandomize=True, deadline=None)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


class ByGuest(LoadScopeScheduling):
    """Gives tests that share a booted guest to one worker, any other to the next."""

    def _split_scope(self, nodeid):
        shared = re.match(
            r"tests/linux/test_(shell|trap)\.py::\w+\[?(patch|iopl)?", nodeid
        )
        return str(shared.groups()) if shared else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Use it in place of xdist's, whose groups pytest 9.2 ignores."""
    return ByGuest(config, log)
