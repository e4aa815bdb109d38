"""What lies in a batch, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

Place = tuple[Any, ...]
"""Keys, indices and names of fields, from the outside to the inside."""


def parts(batch: Any) -> Iterator[tuple[Place, Any]]:
    """All that lies in mappings, lists, tuples, named tuples and dataclasses, each after what it lies in.

    Example:
        >>> [place for place, _ in parts({"images": [0.1, 0.2], "label": 3})]
        [(), ('images',), ('images', 0), ('images', 1), ('label',)]
    """
    return _parts(batch, (), ())


def part_at(batch: Any, place: Sequence[Any]) -> Any:
    """What lies at a place that :func:`parts` has named, in this batch or another.

    Raises:
        LookupError: If there is no such place.

    Example:
        >>> part_at({"images": [0.1, 0.2]}, ["images", 1])
        0.2
    """
    for key in place:
        is_list = isinstance(batch, (list, tuple)) and isinstance(key, int)
        if is_list or isinstance(batch, Mapping):
            batch = batch[key]
        elif key in (inner := _fields(batch)):
            batch = inner[key]
        else:
            raise LookupError(f"A {type(batch).__name__} has no {key!r}")
    return batch


def _parts(value: Any, place: Place, around: tuple[Any, ...]) -> Iterator[tuple[Place, Any]]:
    yield place, value
    if any(value is outer for outer in around):
        # What holds itself was gone through.
        return
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif named := _fields(value):
        inner = iter(named.items())
    elif isinstance(value, (list, tuple)):
        inner = iter(enumerate(value))
    for key, part in inner:
        yield from _parts(part, (*place, key), (*around, value))


def _fields(value: Any) -> dict[Any, Any]:
    """What a named tuple or a dataclass holds, by name."""
    if isinstance(value, tuple):
        return {name: getattr(value, name) for name in getattr(value, "_fields", ())}
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    # Those with slots have no dict, and others may hold more than their fields.
    held = {each.name: getattr(value, each.name) for each in fields(value) if hasattr(value, each.name)}
    return {**held, **getattr(value, "__dict__", {})}
