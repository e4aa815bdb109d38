"""Names for classes: what a user may write instead of an object, and what a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from lit_prune.errors import ArgumentError, ArgumentTypeError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """End of an error message: the known names that resemble ``name``, or all of them where none does.

    Example:
        >>> nearest("magnitud", ["magnitude", "random"])
        "Did you mean 'magnitude'?"
        >>> nearest("x", ["magnitude", "random"])
        "Known are 'magnitude', 'random'."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"Known are {', '.join(map(repr, names[:12]))}{' and more' if len(names) > 12 else ''}."


def resolve(argument: str, given: object, base: type[T], known: Mapping[str, type[T]]) -> T:
    """An instance of ``base``: ``given`` itself, or one of the class that has this name.

    Args:
        argument: Name of the user's argument, for the error.
        given: An instance, or a name in ``known``.
        base: The class that instances must have.
        known: Name to class; each can be built without arguments.

    Raises:
        ArgumentError: If the name is unknown; the message has the nearest.
        ArgumentTypeError: If ``given`` is neither an instance nor a name.
    """
    if isinstance(given, base):
        return given
    if isinstance(given, str):
        if given not in known:
            raise ArgumentError(f"{argument}={given!r} is not known. {nearest(given, known)}")
        return known[given]()
    raise ArgumentTypeError(
        f"{argument} must be one of {', '.join(map(repr, known))} or an instance of {base.__name__}, but got "
        f"{given!r}{' (a class: call it to make an instance)' if isinstance(given, type) else ''}."
    )
