"""The table itself, and how a rule gets into it."""

from __future__ import annotations

from collections.abc import Callable

from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.graph.trace import Rule

RULES: dict[str, Rule] = {}


def register_rule(*operations: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of the named operations.

    Args:
        operations: Names without namespace, leading and trailing underscores for aten (``"add"`` serves ``aten::add_``
            as well), qualified ones for others (``"mylib::scale"``). Overloads share a rule.

    Raises:
        ArgumentTypeError: If it is given anything but names, or decorates what can't be called.
        ArgumentError: If no operation can have such a name.

    Example:
        >>> from lit_prune.graph.rules import RULES, register_rule
        >>> @register_rule("mylib::scale")
        ... def _scale(trace, operation):
        ...     trace.assign_blocks(operation.output, trace.blocks(operation["x"]))
        >>> RULES.pop("mylib::scale") is _scale
        True
    """
    if not operations or not all(isinstance(name, str) for name in operations):
        given = ", ".join(map(repr, operations)) or "nothing"
        raise ArgumentTypeError(
            f'register_rule takes names of operations, as @register_rule("mylib::scale"). It got {given}.'
        )
    for name in operations:
        _check(name)

    def register(rule: Rule) -> Rule:
        if not callable(rule):
            raise ArgumentTypeError(f"A rule is a function of the tracer and the operation. It got {rule!r}.")
        for name in operations:
            RULES[name] = rule
        return rule

    return register


def _check(name: str) -> None:
    namespace, _, own = name.rpartition("::")
    short = own.partition(".")[0]
    # Names of aten alone lose their namespace and underscores.
    wanted = short.strip("_") if namespace in ("", "aten") else f"{namespace}::{short}"
    if name != wanted:
        raise ArgumentError(f"Rules are not found by the name {name!r}: every overload has the rule of {wanted!r}.")
    if not all(part.isidentifier() for part in wanted.split("::")):
        raise ArgumentError(f'{name!r} is no name of an operation. Expected one such as "add" or "mylib::scale".')
