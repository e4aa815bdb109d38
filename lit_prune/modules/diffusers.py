"""What modules of Hugging Face's diffusers remember of their widths, by qualified name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lit_prune.modules.registry import register_attributes, register_whole
from lit_prune.plan import Slot

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@register_attributes("diffusers.models.downsampling.Downsample1D")
@register_attributes("diffusers.models.downsampling.Downsample2D")
@register_attributes("diffusers.models.upsampling.Upsample1D")
@register_attributes("diffusers.models.upsampling.Upsample2D")
def _resampling(module: Any) -> None:
    convolution = next((child for child in module.children() if isinstance(child, _CONVOLUTIONS)), None)
    # Without one nothing here tells the width.
    if convolution is not None:
        module.channels, module.out_channels = convolution.in_channels, convolution.out_channels


@register_attributes("diffusers.models.attention_processor.Attention")
def _attention(module: Any) -> None:
    if module.scale_qk and module.to_q.out_features == module.to_k.out_features:
        module.inner_dim = module.inner_kv_dim = module.to_q.out_features
        # The scale stays that of the dense network's heads, which go whole.
        module.heads = module.sliceable_head_dim = module.inner_dim // round(module.scale**-2)


@register_whole("diffusers.models.attention_processor.Attention")
def _attention_heads(module: Any) -> Iterable[Slot]:
    # A fused attention takes its scale from the width of a head.
    for name in ("to_q", "to_k", "to_v"):
        yield f"{name}.weight", 0
