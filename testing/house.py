"""The structure of the package, from the imports of its files: `python -m testing.house` prints it.

A room is a file or a folder at the top of `lit_prune`; what is above may import what is below.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lit_prune"

FLOORS = (
    "__main__ cli demo __init__ yolo callback training policy report repair select cost criteria checkpoint graph "
    "surgery modules schedule activations data common plan errors"
).split()
"""Rooms from the top floor down; those that don't need each other might as well change places."""

KNOWS = {
    "lightning": {"callback", "training", "checkpoint", "yolo", "cli", "demo", "data"},
    "ultralytics": {"yolo", "modules", "demo", "cli"},
}
"""Packages, and the rooms that may import them."""


def modules() -> dict[str, Path]:
    """Qualified name of each module to its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(path: Path) -> list[tuple[str, int]]:
    """Each module that a file imports, wherever in it and for types too, with the line."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.append((node.module, node.lineno))
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def room(module: str) -> str:
    """The room that a module of the package lies in.

    Example:
        >>> room("lit_prune.graph.rules.norms"), room("lit_prune")
        ('graph', '__init__')
    """
    return module.split(".")[1] if "." in module else "__init__"


def arrows() -> dict[str, dict[str, int]]:
    """Module to the modules of the package that it imports, each with the line."""
    known = modules()
    found: dict[str, dict[str, int]] = {}
    for name, path in known.items():
        mine: dict[str, int] = {}
        for target, line in imported(path):
            # `from lit_prune.x import y`: the module y where there is one, else x alone.
            if target in known and target != name:
                mine.setdefault(target, line)
        found[name] = {
            target: line for target, line in mine.items() if not any(other.startswith(f"{target}.") for other in mine)
        }
    return found


def upward() -> list[str]:
    """Imports from a lower floor to a higher one."""
    height = {name: number for number, name in enumerate(FLOORS)}
    return [
        f"{name}:{line} imports {target}"
        for name, targets in arrows().items()
        for target, line in targets.items()
        if height[room(target)] < height[room(name)]
    ]


def circles() -> list[list[str]]:
    """Files that import each other in a loop: the strongly connected parts of more than one."""
    edges = {name: list(targets) for name, targets in arrows().items()}
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for target in edges.get(name, ()):
            if target not in number:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], number[target])
        if low[name] == number[name]:
            part = [stack.pop()]
            while part[-1] != name:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for name in edges:
        if name not in number:
            visit(name)
    return found


def strangers(package: str) -> set[str]:
    """Rooms that import a package which they should not know."""
    rooms = {
        room(name)
        for name, path in modules().items()
        for target, _ in imported(path)
        if target.split(".")[0] == package
    }
    return rooms - KNOWS[package]


def namesakes() -> dict[str, list[str]]:
    """File names that stand in more than one folder, with the folders."""
    places = defaultdict(list)
    for name, path in modules().items():
        if path.name != "__init__.py":
            places[path.name].append(name.rpartition(".")[0])
    return {name: folders for name, folders in places.items() if len(folders) > 1}


def table() -> Iterable[str]:
    """Each room with its lines and the rooms that it imports."""
    lines: dict[str, int] = defaultdict(int)
    below: dict[str, set[str]] = defaultdict(set)
    imports = arrows()
    for name, path in modules().items():
        lines[room(name)] += len(path.read_text(encoding="utf-8").splitlines())
        below[room(name)] |= {room(target) for target in imports[name]} - {room(name)}
    for name in FLOORS:
        yield f"{name:<12}{lines[name]:>6}  {' '.join(other for other in FLOORS if other in below[name])}"
    yield f"{'':<12}{sum(lines.values()):>6}  rooms: {len(lines)}; upward: {len(upward())}; circles: {len(circles())}"


if __name__ == "__main__":
    print(*table(), sep="\n")
