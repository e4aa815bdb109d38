"""Hides what only the extras bring, so that a process sees what plain `pip install lit-prune` gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions, packages_distributions
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.oldest import requirements


class Without:
    """A finder of modules that finds all but some: Python says of those what it says of what is not installed."""

    def __init__(self, finder: Any, modules: set[str], distributions: set[str]) -> None:
        self.finder = finder
        self.modules = modules
        self.distributions = distributions

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self.modules else self.finder.find_spec(name, path, target)

    def find_distributions(self, *context: Any) -> Iterator[Distribution]:
        found = getattr(self.finder, "find_distributions", lambda *_: [])(*context)
        return (each for each in found if canonicalize_name(each.name) not in self.distributions)

    def invalidate_caches(self) -> None:
        getattr(self.finder, "invalidate_caches", lambda: None)()


def hide_extras() -> set[str]:
    """Hide the modules of all distributions that the core dependencies don't bring along; their names."""
    core = brought_along(list(requirements())) | {"lit-prune", "packaging"}
    owners = packages_distributions().items()
    modules = {module for module, names in owners if not core & {canonicalize_name(name) for name in names}}
    hidden = {canonicalize_name(each.name) for each in distributions()} - core
    sys.meta_path[:] = [Without(finder, modules, hidden) for finder in sys.meta_path]
    return modules


def brought_along(needed: list[Requirement]) -> set[str]:
    """The distributions that pip installs for these."""
    found: set[tuple[str, str]] = set()
    while needed:
        requirement = needed.pop()
        for extra in {"", *requirement.extras}:
            if (key := (canonicalize_name(requirement.name), extra)) in found:
                continue
            found.add(key)
            lines = map(Requirement, distribution(requirement.name).requires or [])
            needed += [each for each in lines if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}
