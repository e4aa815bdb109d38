"""What modules of timm remember of their widths, by qualified name: the package is not imported."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from lit_prune.modules.registry import register_attributes


@register_attributes("timm.models.cspnet.CrossStage")
@register_attributes("timm.models.cspnet.CrossStage3")
def _timm_cross_stage(module: Any) -> None:
    module.expand_chs = module.conv_exp.conv.out_channels


@register_attributes("timm.layers.attention.Attention")
def _timm_attention(module: Any) -> None:
    # A fused attention takes its scale from the width of a head, so that heads go whole.
    module.attn_dim = module.proj.in_features
    module.num_heads = module.attn_dim // module.head_dim


@register_attributes("timm.models.res2net.Bottle2neck")
@register_attributes("timm.models.dla.DlaBottle2neck")
def _timm_scales(module: Any) -> None:
    module.width = module.conv1.out_channels // module.scale


@register_attributes("timm.layers.mixed_conv2d.MixedConv2d")
def _timm_mixed_kernels(module: Any) -> None:
    module.splits = [conv.in_channels for conv in module.values()]


@register_attributes("timm.layers.selective_kernel.SelectiveKernel")
def _timm_selective_kernel(module: Any) -> None:
    entering = module.paths[0].conv.in_channels
    module.in_channels = entering * module.num_paths if module.split_input else entering


@register_attributes("timm.models.fasternet.MLPBlock")
def _timm_partial_convolution(module: Any) -> None:
    partial = module.spatial_mixing
    partial.dim_conv3 = partial.partial_conv3.in_channels
    partial.dim_untouched = module.mlp[0].in_channels - partial.partial_conv3.out_channels


@register_attributes("timm.models.inception_next.MetaNeXtBlock")
def _timm_inception_kernels(module: Any) -> None:
    mixer = module.token_mixer
    if hasattr(mixer, "split_indexes"):
        # Depthwise: as many go in as come out.
        widths = [conv.in_channels for conv in (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h)]
        mixer.split_indexes = (module.norm.num_features - sum(widths), *widths)


@register_attributes("timm.models.mambaout.GatedConvBlock")
def _timm_gated_convolution(module: Any) -> None:
    hidden, convolved = module.fc2.in_features, module.conv.in_channels
    module.split_indices = (hidden, hidden - convolved, convolved)


@register_attributes("timm.models.metaformer.Scale")
def _timm_scale(module: Any) -> None:
    module.shape = (len(module.scale), *module.shape[1:])


@register_attributes("timm.models.rexnet.LinearBottleneck")
def _timm_linear_bottleneck(module: Any) -> None:
    first = module.conv_dw if module.conv_exp is None else module.conv_exp
    module.in_channels = first.conv.in_channels


@register_attributes("timm.models.dpn.DPN")
@register_attributes("segmentation_models_pytorch.encoders.dpn.DPNEncoder")
def _timm_dual_paths(module: Any) -> None:
    # A block's output is the residual path and what it adds to the dense one: the width of the first follows from
    # what goes in, comes out, and enters the next block.
    *blocks, last = [child for name, child in module.features.named_children() if not name.startswith("conv1_")]
    entering = [block.c1x1_a.bn.num_features for block in blocks] + [last.bn.num_features]
    for block, (before, after) in zip(blocks, pairwise(entering), strict=True):
        shortcut = getattr(block, "c1x1_w_s1", None) or getattr(block, "c1x1_w_s2", None)
        if getattr(block, "c1x1_c1", None) is not None:
            block.num_1x1_c = block.c1x1_c1.out_channels
        elif shortcut is None:
            block.num_1x1_c = block.c1x1_c.conv.out_channels - (after - before)
        else:
            block.num_1x1_c = shortcut.conv.out_channels + block.c1x1_c.conv.out_channels - after


@register_attributes("timm.models.lcnetv2.RepDepthwiseSeparable")
def _timm_merged_depthwise(module: Any) -> None:
    pointwise = [layer for layer in module.pw_conv.modules() if isinstance(layer, nn.Conv2d)]
    module.in_chs, module.out_chs = pointwise[0].in_channels, pointwise[-1].out_channels


for _name in (
    "byobnet.RepVggBlock",
    "byobnet.MobileOneBlock",
    "fastvit.MobileOneBlock",
    "ghostnet.GhostModuleV3",
    "ghostnet.ConvRepAct",
):

    @register_attributes(f"timm.models.{_name}")
    def _timm_identity_kernel(module: Any) -> None:
        # Kept from an earlier merge of branches, and of its width.
        vars(module).pop("id_tensor", None)
