"""Packages import what they export when it is asked for, and all of it is there."""

import importlib
import subprocess
import sys

import pytest


def _in_a_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["lit_prune", "lit_prune.cost", "lit_prune.cost.profile"])
def test_all_that_is_exported_is_there(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == dir(module)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_commands_that_need_no_network_start_without_torch():
    code = "from lit_prune.cli import commands, profile; import sys; print('torch' in sys.modules)"
    assert _in_a_process(code) == "False"


def test_with_lightning_there_short_names_are_known():
    code = "import lightning.pytorch, lit_prune, sys; print('lit_prune.callback' in sys.modules)"
    assert _in_a_process(code) == "True"
