"""Errors that lit_prune raises on purpose have one base, and each is of the built-in class that fits it."""

import ast
import builtins
from pathlib import Path

import pytest
import torch
from torch import nn

import lit_prune
from lit_prune import (
    ArgumentTypeError,
    ChannelGraph,
    CheckpointError,
    MissingFileError,
    PruningPlan,
    accept_pruned,
    errors,
    load_pruned,
    mask_,
    plan_pruning,
    prune_,
    shrink_,
)
from lit_prune.cost import Cost, measure_latency, peak_memory, profile_latency
from lit_prune.select import LatencyBudget, NamedWidths

CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]
PACKAGE = Path(lit_prune.__file__).parent
# What a caller can't cause by what it gives: attributes of modules, and steps that a developer forgot to name.
OTHERS = {"AttributeError", "LookupError"}


def raised():
    """Every `raise Name(...)` of the package, with its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", call.func.id


def test_no_built_in_error_is_raised():
    wrong = [(place, name) for place, name in raised() if hasattr(builtins, name) and name not in OTHERS]
    assert wrong == []


@pytest.mark.parametrize("kind", CLASSES)
def test_one_base(kind):
    assert issubclass(kind, errors.LitPruneError)
    if kind is not errors.LitPruneError:
        assert {base for base in kind.__mro__ if base.__module__ == "builtins"} > {object, BaseException, Exception}


def test_all_can_be_imported_from_the_package():
    assert {kind.__name__ for kind in CLASSES} <= set(lit_prune.__all__)


def test_a_name_that_is_not_there_reads_without_quotes():
    assert str(errors.UnknownNameError("no such group")) == "no such group"


@pytest.mark.parametrize("given", [None, "net.pt", nn.Conv2d])
def test_what_is_no_network_is_told(given):
    images = torch.zeros(1, 3, 8, 8)
    plan = PruningPlan({})
    for call in (
        lambda: plan_pruning(given, images, amount=0.5),
        lambda: prune_(given, plan),
        lambda: shrink_(given, plan),
        lambda: mask_(given, plan),
        lambda: accept_pruned(given),
        lambda: ChannelGraph.trace(given, images),
        lambda: Cost.of(given, images),
        lambda: peak_memory(given, images),
        lambda: measure_latency({"network": given}, images),
        lambda: profile_latency(given, images),
    ):
        with pytest.raises(ArgumentTypeError, match=r"(network|module|model) must be a Module, but got "):
            call()


@pytest.mark.parametrize("given", [None, {}, torch.zeros(1), PruningPlan])
def test_what_is_no_plan_is_told(given):
    for cut in (prune_, shrink_, mask_):
        with pytest.raises(ArgumentTypeError, match="plan must be a PruningPlan, but got "):
            cut(nn.Conv2d(3, 8, 1), given)


def test_files_that_are_not_there_and_paths_that_are_none(tmp_path):
    for read in (NamedWidths.like, lambda path: load_pruned(nn.Linear, path), LatencyBudget):
        with pytest.raises(MissingFileError, match=r"There is no .*none\.pt"):
            read(tmp_path / "none.pt")
        with pytest.raises(ArgumentTypeError, match="but got None"):
            read(None)
    with pytest.raises(CheckpointError, match="can't be read: Is a directory"):
        NamedWidths.like(tmp_path)
