"""The oldest releases that pyproject.toml admits, as constraints for pip: `python -m tests.oldest [EXTRA ...]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def floors(*extras: str) -> dict[str, str]:
    """The lower bound of each package that the project needs with these extras; of several the highest."""
    found: dict[str, str] = {}
    for requirement in requirements(*extras):
        bound = floor(requirement)
        found[requirement.name] = max(bound, found.get(requirement.name, bound), key=Version)
    return found


def requirements(*extras: str) -> Iterator[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            yield from requirements(*requirement.extras)
        else:
            yield requirement


def floor(requirement: Requirement) -> str:
    bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"pyproject.toml: {requirement} states no lower bound. Write {requirement.name}>=VERSION.")
    return bounds[0]


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in floors(*sys.argv[1:]).items())
