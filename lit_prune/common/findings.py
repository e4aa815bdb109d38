"""How a record says what a budget allowed and what is left: numbers by name, as all that a selection finds out."""

from __future__ import annotations

from collections.abc import Mapping

SPENT = 0.99
"""A budget of which that much is used is used up."""

_ALLOWED, _LEFT = "allowed ", "left "


def allowance(counted: str, allowed: float, left: float) -> dict[str, float]:
    """What may be left after an event, and what is.

    Example:
        >>> allowance("B", 2e6, 1.99e6)
        {'allowed B': 2000000.0, 'left B': 1990000.0}
    """
    return {f"{_ALLOWED}{counted}": float(allowed), f"{_LEFT}{counted}": float(left)}


def allowances(findings: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """What is counted to what was allowed of it and what is left, for each budget.

    Example:
        >>> allowances({"table_ms": 7.5, "allowed ms": 8.0, "left ms": 7.5})
        {'ms': (8.0, 7.5)}
    """
    counted = [name.removeprefix(_ALLOWED) for name in findings if name.startswith(_ALLOWED)]
    return {each: (findings[f"{_ALLOWED}{each}"], findings[f"{_LEFT}{each}"]) for each in counted}
