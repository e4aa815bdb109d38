"""Packages that import what they export when it is asked for: a command that needs no network starts without torch."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazily(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, by the imports under its `if TYPE_CHECKING:`.

    Args:
        package: Its name.
        file: Its `__init__.py`.

    Example:
        >>> import lit_prune.cost
        >>> get, _ = lazily("lit_prune.cost", lit_prune.cost.__file__)
        >>> get("Cost").__name__
        'Cost'
        >>> get("Costs")
        Traceback (most recent call last):
        AttributeError: module 'lit_prune.cost' has no attribute 'Costs'
    """
    places = {
        alias.name: node.module or ""
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(places[name]), name)

    return get, lambda: sorted(places)
