"""What the attentions of timm's hybrid networks remember of their heads, by qualified name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lit_prune.modules.registry import CACHES, register_attributes, register_whole
from lit_prune.plan import Slot

for _name in (
    "levit.Attention",
    "levit.AttentionDownsample",
    "efficientformer.Attention",
    "efficientformer_v2.Attention2d",
    "efficientformer_v2.Attention2dDownsample",
    "efficientvit_msra.CascadedGroupAttention",
    "tiny_vit.Attention",
):
    # In eval mode a bias is looked up once; with the next train mode it is forgotten.
    CACHES[f"timm.models.{_name}"] = frozenset({"attention_bias_cache"})


def _set_heads(module: Any, values: int, keys: int) -> None:
    """All heads keep equally many; the scale stays that of the dense network, as its weights expect."""
    module.num_heads = len(module.attention_biases)
    module.val_attn_dim, module.key_attn_dim = values, keys
    module.val_dim, module.key_dim = values // module.num_heads, keys // module.num_heads


@register_attributes("timm.models.levit.Attention")
def _levit(module: Any) -> None:
    values = module.proj.ln.linear.weight.shape[1]
    _set_heads(module, values, (module.qkv.linear.weight.shape[0] - values) // 2)


@register_attributes("timm.models.levit.AttentionDownsample")
def _levit_downsample(module: Any) -> None:
    _set_heads(module, module.proj.ln.linear.weight.shape[1], module.q.ln.linear.weight.shape[0])


@register_attributes("timm.models.efficientformer.Attention")
def _efficientformer(module: Any) -> None:
    _set_heads(module, module.proj.in_features, (module.qkv.out_features - module.proj.in_features) // 2)


@register_attributes("timm.models.efficientformer_v2.Attention2d")
@register_attributes("timm.models.efficientformer_v2.Attention2dDownsample")
def _efficientformer_v2(module: Any) -> None:
    module.num_heads = len(module.attention_biases)
    module.dh = module.v.conv.out_channels
    module.d, module.key_dim = module.dh // module.num_heads, module.k.conv.out_channels // module.num_heads


@register_attributes("timm.models.maxxvit.Attention2d")
@register_attributes("timm.models.maxxvit.AttentionCl")
def _maxxvit(module: Any) -> None:
    # A fused attention takes its scale from the width of a head, so that heads go whole.
    module.num_heads = module.proj.weight.shape[1] // module.dim_head


@register_attributes("timm.layers.pos_embed_rel.RelPosBias")
def _relative_positions(module: Any) -> None:
    module.bias_shape = (*module.bias_shape[:2], module.relative_position_bias_table.shape[1])


@register_attributes("timm.layers.pos_embed_rel.RelPosMlp")
def _computed_positions(module: Any) -> None:
    module.num_heads = module.mlp.fc2.out_features
    module.bias_shape = (*module.bias_shape[:2], module.num_heads)


@register_attributes("timm.models.tiny_vit.Attention")
def _tiny_vit(module: Any) -> None:
    module.num_heads, module.out_dim = len(module.attention_biases), module.proj.in_features
    module.val_dim = module.out_dim // module.num_heads
    module.key_dim = (module.qkv.out_features - module.out_dim) // module.num_heads // 2


@register_whole("timm.models.tiny_vit.Attention")
def _tiny_vit_heads(module: Any) -> Iterable[Slot]:
    # The forward takes the scale from the width of a head.
    yield "qkv.weight", 0
