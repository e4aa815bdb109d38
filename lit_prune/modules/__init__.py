"""What module classes remember of their widths, and what they demand: one file a library."""

from lit_prune.modules import (
    diffusers,
    monai,
    segmentation_models,
    timm,
    timm_attention,
    torch_layers,
    transformers,
    ultralytics,
)
from lit_prune.modules.registry import register_attributes, register_fixed, register_ties, register_whole

__all__ = [
    "diffusers",
    "monai",
    "register_attributes",
    "register_fixed",
    "register_ties",
    "register_whole",
    "segmentation_models",
    "timm",
    "timm_attention",
    "torch_layers",
    "transformers",
    "ultralytics",
]
