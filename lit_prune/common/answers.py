"""What a class of a user's answers with: of the right kind, about what it was asked, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lit_prune.common.choices import nearest
from lit_prune.errors import ArgumentError, ArgumentTypeError


def answered(promise: str, answer: Any) -> Mapping[Any, Any]:
    """The answer, which is a mapping; ``promise`` begins the message if it is none."""
    if not isinstance(answer, Mapping):
        raise ArgumentTypeError(f"{promise}, but returned a {type(answer).__name__}.")
    return answer


def check_names(what: str, answer: Mapping[Any, Any], known: Iterable[str]) -> None:
    """Raise where an answer has a name that is not known; ``what`` begins the message."""
    names = list(known)
    for name in answer:
        if name not in names:
            raise ArgumentError(f"{what} {name!r}, which is not a group that takes part. {nearest(str(name), names)}")
