"""Errors that lit_prune raises on purpose have one base, and each is of the built-in class that fits it."""

import ast
import builtins
from pathlib import Path

import pytest

import lit_prune
from lit_prune import errors

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
