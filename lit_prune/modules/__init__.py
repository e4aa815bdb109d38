"""What module classes remember of their widths, and what they demand: one file a library."""

from lit_prune.modules import timm, timm_attention, torch_layers, ultralytics
from lit_prune.modules.registry import register_attributes, register_fixed, register_ties, register_whole

__all__ = [
    "register_attributes",
    "register_fixed",
    "register_ties",
    "register_whole",
    "timm",
    "timm_attention",
    "torch_layers",
    "ultralytics",
]
