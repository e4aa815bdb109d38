"""What modules of segmentation-models-pytorch remember of their widths, by qualified name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lit_prune.modules.registry import register_ties
from lit_prune.plan import Slot


@register_ties("segmentation_models_pytorch.encoders.mix_transformer.Attention")
def _mix_transformer(module: Any) -> Iterable[tuple[Slot, Slot]]:
    # The width that enters is taken for that of the queries, of the reduced map, and of what leaves the heads.
    yield ("q.weight", 0), ("q.weight", 1)
    yield ("proj.weight", 1), ("q.weight", 1)
    if not isinstance(module.sr, nn.Identity):
        yield ("sr.weight", 0), ("sr.weight", 1)
