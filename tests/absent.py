"""Hides packages that are installed: all that only the extras bring, or one for a while."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, distribution, distributions
from typing import Any

from lightning_utilities.core import imports
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


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Hide one distribution and its modules, also those that have been imported."""
    modules = set(modules_of(distribution(name)))
    finders, imported = sys.meta_path[:], sys.modules.copy()
    sys.meta_path[:] = [Without(finder, modules, {canonicalize_name(name)}) for finder in finders]
    for module in [each for each in imported if each.partition(".")[0] in modules]:
        del sys.modules[module]
    _forget_what_was_found()
    try:
        yield
    finally:
        sys.meta_path[:] = finders
        sys.modules.update(imported)
        _forget_what_was_found()


def _forget_what_was_found() -> None:
    for remembered in (imports.package_available, imports.module_available):
        remembered.cache_clear()


def hide_extras() -> set[str]:
    """Hide what the core dependencies don't bring, as if no extra were installed; the names of the modules."""
    core = brought_along(list(requirements())) | {"lit-prune", "packaging"}
    installed = {canonicalize_name(each.name): set(modules_of(each)) for each in distributions()}
    hidden = installed.keys() - core
    modules = set().union(*(installed[name] for name in hidden))
    modules -= set().union(*(installed[name] for name in installed.keys() & core))
    # Tools that a virtual environment loads as Python starts can't be hidden, and are no part of any package's.
    modules -= sys.modules.keys()
    sys.meta_path[:] = [Without(finder, modules, hidden) for finder in sys.meta_path]
    return modules


def modules_of(installed: Distribution) -> Iterator[str]:
    # As `packages_distributions` does from Python 3.11 on.
    for file in installed.files or []:
        if file.suffix in (".py", ".so"):
            yield file.parts[0] if len(file.parts) > 1 else file.name.partition(".")[0]


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
