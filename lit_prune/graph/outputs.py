"""Which of a network's outputs count: whose channels must stay because a caller reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lit_prune.common._compat import tree_flatten
from lit_prune.common.names import modules_of
from lit_prune.modules.registry import SIZE_ONLY_OUTPUTS, qualified_names


def used_outputs(module: nn.Module, output: Any) -> list[Tensor]:
    """The tensors of an output whose values a caller reads."""
    ignored: frozenset[str] = frozenset().union(
        *(
            SIZE_ONLY_OUTPUTS.get(name, frozenset())
            for cls in {type(child) for _, child in modules_of(module)}
            for name in qualified_names(cls)
        )
    )

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(item) for key, item in value.items() if key not in ignored}
        if type(value) in (list, tuple):
            return [strip(item) for item in value]
        return value

    return [leaf for leaf in tree_flatten(strip(output))[0] if isinstance(leaf, Tensor)]
