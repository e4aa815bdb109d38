"""The table itself, and how a rule gets into it."""

from __future__ import annotations

from collections.abc import Callable

from lit_prune.graph.trace import Rule

RULES: dict[str, Rule] = {}


def register_rule(*operations: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of the named operations.

    Args:
        operations: Names without namespace, leading and trailing underscores for aten (``"add"`` serves ``aten::add_``
            as well), qualified ones for others (``"mylib::scale"``).

    Example:
        >>> from lit_prune.graph.rules import RULES, register_rule
        >>> @register_rule("mylib::scale")
        ... def _scale(trace, operation):
        ...     trace.assign_blocks(operation.output, trace.blocks(operation["x"]))
        >>> RULES.pop("mylib::scale") is _scale
        True
    """

    def register(rule: Rule) -> Rule:
        for name in operations:
            RULES[name] = rule
        return rule

    return register
