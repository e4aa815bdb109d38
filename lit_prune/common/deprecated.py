"""Old names that users may have written: they work, and say what they are called now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "lit_prune.activations.clusters": "lit_prune.select.clustering.kmedoids",
    "lit_prune.activations.decisions": "lit_prune.select.clustering.decisions",
    "lit_prune.activations.figures": "lit_prune.select.clustering.plots",
    "lit_prune.attributes": "lit_prune.modules.registry",
    "lit_prune.event": "lit_prune.policy.policy",
    "lit_prune.inspection": "lit_prune.report.inspection",
    "lit_prune.pruner": "lit_prune.training.pruner",
    "lit_prune.ranks": "lit_prune.common.ranks",
    "lit_prune.record": "lit_prune.policy.history",
    "lit_prune.recovery": "lit_prune.training.recovery",
    "lit_prune.scope": "lit_prune.policy.scope",
    "lit_prune.select.clusters": "lit_prune.select.clustering.selection",
    "lit_prune.trainer": "lit_prune.repair.prune",
    "lit_prune.yolo.figures": "lit_prune.yolo.drawing",
    "lit_prune.yolo.module": "lit_prune.yolo.lit_yolo",
}
"""Modules by their old names, as class paths in YAML and code of users may have them."""


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Tell that ``old`` still works and is called ``new``.

    Args:
        old: What the user wrote.
        new: What to write.
        stacklevel: Of the user's line, counted from here as for :func:`warnings.warn`.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_renamed("before_wrap=True", "epochs='before_wrap'")
        >>> str(caught[0].message)
        "before_wrap=True is deprecated: write epochs='before_wrap'."
    """
    warnings.warn(f"{old} is deprecated: write {new}.", FutureWarning, stacklevel=stacklevel)


class _Moved(MetaPathFinder, Loader):
    """Finds a module under its old name: one that hands on all that the module has under its new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warn_renamed(module.__name__, new, stacklevel=4)
        vars(module)["__getattr__"] = import_module(new).__getattribute__


def find_moved_modules() -> None:
    """Let modules be imported by their old names, too, with a warning."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
