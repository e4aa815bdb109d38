"""What Ultralytics' modules remember and say of their widths, by qualified name: the package is not imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lit_prune.modules.registry import (
    SIZE_ONLY_OUTPUTS,
    register_attributes,
    register_ties,
    register_whole,
)
from lit_prune.plan import Slot

for _name in ("C2f", "C2fAttn", "C2fPSA", "C2PSA", "PSA", "RepNCSPELAN4"):

    @register_attributes(f"ultralytics.nn.modules.block.{_name}")
    def _ultralytics_halves(module: Any) -> None:
        module.c = module.cv1.conv.out_channels // 2


@register_attributes("ultralytics.nn.modules.conv.RepConv")
def _ultralytics_merged_branches(module: Any) -> None:
    if hasattr(module, "conv1"):
        module.c1, module.c2 = module.conv1.conv.in_channels, module.conv1.conv.out_channels
    # Kept from an earlier merge of branches, and of its width.
    vars(module).pop("id_tensor", None)


@register_attributes("ultralytics.nn.modules.block.Attention")
def _ultralytics_attention(module: Any) -> None:
    # Every head keeps equally many; the scale stays that of the dense network, as its weights expect.
    module.head_dim = module.proj.conv.in_channels // module.num_heads
    module.key_dim = (module.qkv.conv.out_channels // module.num_heads - module.head_dim) // 2


@register_attributes("ultralytics.nn.modules.block.AAttn")
def _ultralytics_area_attention(module: Any) -> None:
    # The forward computes the scale from the width of a head, so that heads go whole.
    module.all_head_dim = module.proj.conv.in_channels
    module.num_heads = module.all_head_dim // module.head_dim


@register_attributes("ultralytics.nn.modules.block.MaxSigmoidAttnBlock")
def _ultralytics_guided_attention(module: Any) -> None:
    # The forward computes the scale from the width of a head, so that heads go whole.
    module.nh = len(module.bias)


@register_attributes("ultralytics.nn.modules.block.ImagePoolingAttn")
def _ultralytics_pooling_attention(module: Any) -> None:
    # Likewise.
    module.ec = module.proj.in_features
    module.nh = module.ec // module.hc


@register_attributes("ultralytics.nn.modules.transformer.MSDeformAttn")
def _ultralytics_deformable_attention(module: Any) -> None:
    # What is sampled for each head keeps equally many.
    module.d_model = module.value_proj.out_features


@register_ties("ultralytics.nn.modules.block.Attention")
def _ultralytics_attention_ties(module: Any) -> Iterable[tuple[Slot, Slot]]:
    yield ("qkv.conv.weight", 1), ("proj.conv.weight", 1)


@register_whole("ultralytics.nn.modules.block.AAttn")
def _ultralytics_area_heads(module: Any) -> Iterable[Slot]:
    # The forward computes the scale from the width of a head.
    yield "qkv.conv.weight", 0


# Heads hand their input maps on under this key, and the losses take only height and width from them.
SIZE_ONLY_OUTPUTS["ultralytics.nn.modules.head.Detect"] = frozenset({"feats"})
