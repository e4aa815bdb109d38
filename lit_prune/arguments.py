"""Numbers that a user gives: of the right kind and within bounds, or refused in one sentence."""

from __future__ import annotations

from numbers import Integral, Real


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``.

    Args:
        name: The user's argument, for the message.
        value: What was given.
        least: The smallest that is allowed.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is too small.

    Example:
        >>> check_whole("round_to", 8.0)
        Traceback (most recent call last):
        TypeError: round_to must be a whole number, but got 8.0.
        >>> check_whole("round_to", 0)
        Traceback (most recent call last):
        ValueError: round_to must be at least 1, but got 0.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, but got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be {f'at least {least}' if least else '0 or more'}, but got {value!r}.")


def check_number(name: str, value: object) -> None:
    """Raise unless ``value`` is a number; the caller knows its bounds.

    Args:
        name: The user's argument, for the message.
        value: What was given.

    Raises:
        TypeError: If it is none.

    Example:
        >>> check_number("amount", "0.5")
        Traceback (most recent call last):
        TypeError: amount must be a number, but got '0.5', a str.
    """
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but got {value!r}, a {type(value).__name__}.")
