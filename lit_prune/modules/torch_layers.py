"""What torch's own layers remember of their widths, and what they insist on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common._compat import ConvNd, ConvTransposeNd, NormBase, weight_hooks
from lit_prune.common.running import evaluating
from lit_prune.modules.registry import (
    MULTIPLIER,
    register_attributes,
    register_fixed,
    register_ties,
)
from lit_prune.plan import Slot


def _weight(module: Any) -> Tensor:
    """The weight of a layer; where each forward computes it (weight_norm, a parametrization), as the next one will."""
    own: Tensor | None = module._parameters.get("weight")
    if own is not None:
        return own
    # In train mode some go on with an estimate that they keep.
    with torch.no_grad(), evaluating(module):
        for hook in weight_hooks(module):
            hook(module, ())
        computed: Tensor = module.weight
        return computed


def _remember(module: Any, **values: int) -> None:
    """Set what differs: most modules of a network are as they were, and setting an attribute of one is slow."""
    for name, value in values.items():
        if getattr(module, name, None) != value:
            setattr(module, name, value)


@register_attributes(ConvNd)
def _convolution(module: Any) -> None:
    first, second = _weight(module).shape[:2]
    transposed = isinstance(module, ConvTransposeNd)
    if module.groups > 1 and not hasattr(module, MULTIPLIER):
        # Noted once: of one group left, a depthwise one looks like any; of one input a group, a grouped one like it.
        depthwise = module.groups == module.in_channels
        setattr(module, MULTIPLIER, module.out_channels // module.groups if depthwise else 0)
    if multiplier := getattr(module, MULTIPLIER, 0):
        # The groups go with the channels. Otherwise their number stays.
        _remember(module, groups=first if transposed else first // multiplier)
    if transposed:
        _remember(module, in_channels=first, out_channels=second * module.groups)
    else:
        _remember(module, in_channels=second * module.groups, out_channels=first)


@register_attributes(nn.Linear)
def _linear(module: Any) -> None:
    outputs, inputs = _weight(module).shape
    _remember(module, out_features=outputs, in_features=inputs)


@register_attributes(NormBase)
def _batch_norm(module: Any) -> None:
    for tensor in (module.weight, module.running_mean):
        if tensor is not None:
            _remember(module, num_features=tensor.shape[0])


for _name in (nn.LayerNorm, "torch.nn.modules.normalization.RMSNorm", "timm.layers.norm.RmsNorm"):

    @register_attributes(_name)
    def _layer_norm(module: Any) -> None:
        if module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)


@register_attributes(nn.GroupNorm)
def _group_norm(module: Any) -> None:
    if module.weight is not None:
        if module.num_groups > 1 and not hasattr(module, MULTIPLIER):
            setattr(module, MULTIPLIER, int(module.num_groups == module.num_channels))
        if getattr(module, MULTIPLIER, 0):
            _remember(module, num_groups=len(module.weight))
        _remember(module, num_channels=len(module.weight))


@register_attributes(nn.Unflatten)
def _unflatten(module: Any) -> None:
    size = module.unflattened_size
    if isinstance(size, tuple) and len(size) > 1 and all(isinstance(part, int) and part > 0 for part in size):
        # Channels come first; how many is what its input says.
        module.unflattened_size = (-1, *size[1:])


@register_attributes(nn.PReLU)
def _prelu(module: Any) -> None:
    module.num_parameters = len(module.weight)


@register_attributes(nn.Embedding)
def _embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = _weight(module).shape


@register_fixed(nn.MultiheadAttention)
def _multihead_attention(module: Any) -> Iterable[tuple[Slot, str]]:
    # Its forward asserts that queries are `embed_dim` wide, and views their projections as that.
    reason = "is the embed_dim of a MultiheadAttention, which its forward insists on"
    for weight in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        yield (weight, 0), reason
        yield (weight, 1), reason
    yield ("out_proj.weight", 1), reason


@register_attributes(nn.RNNBase)
def _recurrent(module: Any) -> None:
    projected = getattr(module, "weight_hr_l0", None)
    width = module.weight_hh_l0.shape[1]
    _remember(
        module,
        input_size=module.weight_ih_l0.shape[1],
        hidden_size=width if projected is None else projected.shape[1],
        proj_size=0 if projected is None else width,
    )
    # cuDNN wants them side by side.
    module.flatten_parameters()


@register_attributes(nn.RNNCellBase)
def _cell(module: Any) -> None:
    _remember(module, input_size=module.weight_ih.shape[1], hidden_size=module.weight_hh.shape[1])


@register_ties(nn.RNNCellBase)
def _state_of_a_cell(module: Any) -> Iterable[tuple[Slot, Slot]]:
    # A single step that begins with zeros does not show that what comes out would be what goes in.
    yield ("weight_hh", 0), ("weight_hh", 1)
