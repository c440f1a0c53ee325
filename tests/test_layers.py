"""Every module can be imported, and none imports upwards."""

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import emu86
from support.places import ROOT

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(emu86.__path__, "emu86.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_module_can_be_imported(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is"


def test_every_module_stands_in_a_contract():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    ruled = {
        container
        for contract in contracts
        if contract.get("exhaustive")
        for container in contract["containers"]
    }
    assert {name.rpartition(".")[0] for name in MODULES} <= ruled


def test_imports_point_down():
    checker = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [checker, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
