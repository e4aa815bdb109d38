"""What a user gives: of the right kind and within bounds, or refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real

from lit_prune.errors import ArgumentError, ArgumentTypeError


def check_kind(name: str, value: object, kind: type) -> None:
    """Raise unless ``value`` is an instance of a class.

    Args:
        name: The user's argument, for the message.
        value: What was given.
        kind: The class.

    Raises:
        ArgumentTypeError: If it is none.

    Example:
        >>> check_kind("plan", None, dict)
        Traceback (most recent call last):
        lit_prune.errors.ArgumentTypeError: plan must be a dict, but got None.
        >>> check_kind("plan", dict, dict)
        Traceback (most recent call last):
        lit_prune.errors.ArgumentTypeError: plan must be a dict, but got the class dict: make one of it.
    """
    if isinstance(value, kind):
        return
    given = "None" if value is None else f"a {type(value).__name__}"
    if isinstance(value, type):
        given = f"the class {value.__name__}{': make one of it' if issubclass(value, kind) else ''}"
    raise ArgumentTypeError(f"{name} must be a {kind.__name__}, but got {given}.")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``.

    Args:
        name: The user's argument, for the message.
        value: What was given.
        least: The smallest that is allowed.

    Raises:
        ArgumentTypeError: If it is not a whole number.
        ArgumentError: If it is too small.

    Example:
        >>> check_whole("round_to", 8.0)
        Traceback (most recent call last):
        lit_prune.errors.ArgumentTypeError: round_to must be a whole number, but got 8.0.
        >>> check_whole("round_to", 0)
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: round_to must be at least 1, but got 0.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ArgumentTypeError(f"{name} must be a whole number, but got {value!r}.")
    if value < least:
        raise ArgumentError(f"{name} must be {f'at least {least}' if least else '0 or more'}, but got {value!r}.")


def check_number(name: str, value: object) -> None:
    """Raise unless ``value`` is a number; the caller knows its bounds.

    Args:
        name: The user's argument, for the message.
        value: What was given.

    Raises:
        ArgumentTypeError: If it is none.
        ArgumentError: If it is NaN.

    Example:
        >>> check_number("amount", "0.5")
        Traceback (most recent call last):
        lit_prune.errors.ArgumentTypeError: amount must be a number, but got '0.5', a str.
    """
    if not isinstance(value, Real):
        raise ArgumentTypeError(f"{name} must be a number, but got {value!r}, a {type(value).__name__}.")
    if math.isnan(value):
        raise ArgumentError(f"{name} must be a number, but got {value!r}.")


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above zero.

    Raises:
        ArgumentTypeError: If it is no number.
        ArgumentError: If it is not finite, or not positive.

    Example:
        >>> check_positive("weight", 0.0)
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: weight must be positive, but is 0.0.
    """
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be positive{' and finite' if value > 0 else ''}, but is {value}.")


def check_ratio(name: str, value: object) -> None:
    """Raise unless ``value`` is a number between 0 and 1, neither of them.

    Args:
        name: The user's argument, for the message.
        value: What was given.

    Raises:
        ArgumentTypeError: If it is not a number.
        ArgumentError: If it is out of range.

    Example:
        >>> check_ratio("amount", 50)
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: amount must be a ratio in (0, 1), such as 0.5, but got 50.
    """
    check_number(name, value)
    if isinstance(value, bool) or not 0 < float(value) < 1:  # type: ignore[arg-type]
        raise ArgumentError(f"{name} must be a ratio in (0, 1), such as 0.5, but got {value!r}.")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise unless ``value`` is one of ``choices``.

    Args:
        name: The user's argument, for the message.
        value: What was given.
        choices: What is allowed.

    Raises:
        ArgumentError: If it is another.

    Example:
        >>> check_choice("mode", "least", ("max", "min"))
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: mode must be one of 'max', 'min', but got 'least'.
    """
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, but got {value!r}.")
