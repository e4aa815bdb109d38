"""What modules of Hugging Face's transformers remember of their widths, by qualified name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lit_prune.modules.registry import CACHES, register_attributes, register_ties
from lit_prune.plan import Slot

_MODELS = "transformers.models"


def _heads(module: Any) -> None:
    # The scale is that of the dense network's heads: they go whole.
    module.all_head_size = module.query.out_features
    module.num_attention_heads = module.all_head_size // module.attention_head_size


for _name in (
    "data2vec.modeling_data2vec_vision.Data2VecVisionSelfAttention",
    "dpt.modeling_dpt.DPTSelfAttention",
    "glpn.modeling_glpn.GLPNEfficientSelfAttention",
    "mobilevit.modeling_mobilevit.MobileViTSelfAttention",
    "pvt.modeling_pvt.PvtEfficientSelfAttention",
    "pvt_v2.modeling_pvt_v2.PvtV2SelfAttention",
    "swinv2.modeling_swinv2.Swinv2SelfAttention",
    "vitpose_backbone.modeling_vitpose_backbone.VitPoseBackboneSelfAttention",
    "yolos.modeling_yolos.YolosSelfAttention",
):
    register_attributes(f"{_MODELS}.{_name}")(_heads)


for _name in ("LevitAttention", "LevitAttentionSubsample"):
    # In eval mode a bias is looked up once; with the next train mode it is forgotten.
    CACHES[f"{_MODELS}.levit.modeling_levit.{_name}"] = frozenset({"attention_bias_cache"})


@register_attributes(f"{_MODELS}.pvt.modeling_pvt.PvtPatchEmbeddings")
def _patches(module: Any) -> None:
    module.num_channels = module.projection.in_channels


def _reduction(convolution: str) -> Callable[[Any], Iterable[tuple[Slot, Slot]]]:
    def ties(module: Any) -> Iterable[tuple[Slot, Slot]]:
        # The width that enters is taken for that of the reduced map.
        if hasattr(module, convolution):
            yield (f"{convolution}.weight", 0), (f"{convolution}.weight", 1)

    return ties


for _name, _convolution in (
    ("glpn.modeling_glpn.GLPNEfficientSelfAttention", "sr"),
    ("pvt.modeling_pvt.PvtEfficientSelfAttention", "sequence_reduction"),
    ("segformer.modeling_segformer.SegformerSequenceReduction", "sequence_reduction"),
):
    register_ties(f"{_MODELS}.{_name}")(_reduction(_convolution))


@register_ties(f"{_MODELS}.pvt_v2.modeling_pvt_v2.PvtV2SelfAttention")
def _pyramid(module: Any) -> Iterable[tuple[Slot, Slot]]:
    # What leaves the heads, too.
    yield from _reduction("spatial_reduction")(module)
    yield ("value.weight", 0), ("query.weight", 1)
