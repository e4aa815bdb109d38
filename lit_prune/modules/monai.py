"""What modules of MONAI remember of their widths, by qualified name."""

from __future__ import annotations

from typing import Any

from lit_prune.modules.registry import register_attributes


@register_attributes("monai.networks.nets.vnet.InputTransition")
def _repeated_input(module: Any) -> None:
    module.out_channels = module.conv_block.conv.out_channels


@register_attributes("monai.networks.nets.unetr.UNETR")
def _tokens(module: Any) -> None:
    module.hidden_size = module.vit.norm.weight.shape[0]
    module.proj_view_shape = [*module.proj_view_shape[:-1], module.hidden_size]
