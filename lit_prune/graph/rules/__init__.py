"""The table of rules: what each aten operation says of its channel labels.

Whatever has no rule freezes all that enters it. A rule that can't be exact freezes too; it never guesses.
"""

from lit_prune.graph.rules import (
    attention,
    elementwise,
    fourier,
    indexing,
    losses,
    norms,
    pieces,
    products,
    quantised,
    recurrent,
    reductions,
    shapes,
    spatial,
    wrapped,
)
from lit_prune.graph.rules.table import RULES, register_rule

__all__ = [
    "RULES",
    "attention",
    "elementwise",
    "fourier",
    "indexing",
    "losses",
    "norms",
    "pieces",
    "products",
    "quantised",
    "recurrent",
    "reductions",
    "register_rule",
    "shapes",
    "spatial",
    "wrapped",
]
