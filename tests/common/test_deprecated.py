"""Old names work, and say what they are called now."""

import importlib

import pytest

import lit_prune
from lit_prune import Recovery
from lit_prune.common.deprecated import MOVED
from lit_prune.select import bundled, units


@pytest.mark.parametrize("old", MOVED)
def test_modules_are_found_by_their_old_names(old, monkeypatch):
    monkeypatch.delitem(importlib.sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"{old} is deprecated: write {MOVED[old]}."):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    for name in [name for name in vars(new) if not name.startswith("_")]:
        assert getattr(module, name) is getattr(new, name)
    with pytest.raises(AttributeError):
        getattr(module, "nothing_of_this_name")  # noqa: B009 - not set is what is asked


def test_a_class_path_of_old_is_found(monkeypatch):
    monkeypatch.delitem(importlib.sys.modules, "lit_prune.recovery", raising=False)
    with pytest.warns(FutureWarning):
        from lit_prune.recovery import Recovery as Old
    assert Old is Recovery


def test_other_modules_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"lit_prune\.nothing"):
        importlib.import_module(f"{lit_prune.__name__}.nothing")


def test_units_are_called_bundles():
    with pytest.warns(FutureWarning, match="units is deprecated: write bundled"):
        assert units([], {}) == bundled([], {})
