"""Networks of packages that others prune, small and with random weights: the other sources of the zoo.

Nothing is downloaded: every network is made of a configuration. The packages come with the extra ``zoo``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from testing import hugging_face
from testing.hugging_face import Built, images

SOURCES = {
    "smp": "segmentation_models_pytorch",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "monai": "monai",
    "effdet": "effdet",
    "kornia": "kornia",
    "torchreid": "torchreid",
}
"""The package of each source."""


def names(source: str) -> list[str]:
    """The names of a source's networks, the source left out."""
    return list(_NETWORKS[source])


def build(source: str, name: str) -> Built:
    """The network of that name, in eval mode, and its inputs."""
    network, args = _NETWORKS[source][name]()
    return network.eval(), args


def _segmentation(decoder: str, encoder: str, size: int = 96) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("segmentation_models_pytorch")
        return getattr(package, decoder)(encoder, encoder_weights=None, classes=2), (images(size),)

    return make


_DECODERS = ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3Plus", "MAnet")
_ENCODERS = ("resnet18", "efficientnet-b0", "mobilenet_v2", "tu-regnetx_002")
_OTHER_DECODERS = ("Linknet", "PSPNet", "UPerNet", "Segformer", "DeepLabV3")
_OTHER_ENCODERS = ("mit_b0", "densenet121", "timm-skresnet18", "vgg11_bn", "dpn68", "xception", "mobileone_s0")


def _monai(name: str, *shape: int, **settings: Any) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("monai.networks.nets")
        return getattr(package, name)(**settings), (torch.randn(1, *shape),)

    return make


def _efficientdet(name: str) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("effdet")
        config = package.get_efficientdet_config(name)
        config.image_size = (128, 128)
        return package.EfficientDet(config, pretrained_backbone=False), (images(128),)

    return make


def _kornia(module: str, name: str, *shape: int, **settings: Any) -> Callable[[], Built]:
    def make() -> Built:
        return getattr(importlib.import_module(module), name)(**settings), (torch.randn(*shape),)

    return make


def _person(name: str) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("torchreid.reid.models")
        return package.build_model(name, num_classes=10, pretrained=False), (torch.randn(1, 3, 128, 64),)

    return make


_VOLUME = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_WIDTHS = {"channels": (8, 16, 32), "strides": (2, 2)}

_NETWORKS: dict[str, dict[str, Callable[[], Built]]] = {
    "smp": {
        **{f"{decoder}-{encoder}": _segmentation(decoder, encoder) for decoder in _DECODERS for encoder in _ENCODERS},
        **{f"{decoder}-resnet18": _segmentation(decoder, "resnet18") for decoder in _OTHER_DECODERS},
        # It halves the deepest map three times.
        "PAN-resnet18": _segmentation("PAN", "resnet18", 128),
        **{f"Unet-{encoder}": _segmentation("Unet", encoder) for encoder in _OTHER_ENCODERS},
    },
    "transformers": hugging_face.TRANSFORMERS,
    "diffusers": hugging_face.DIFFUSERS,
    "monai": {
        "unet": _monai("UNet", 1, 16, 16, 16, **_VOLUME, **_WIDTHS, num_res_units=2),
        "unet-plain": _monai("UNet", 1, 32, 32, **_PLANE, **_WIDTHS),
        "attention_unet": _monai("AttentionUnet", 1, 32, 32, **_PLANE, **_WIDTHS),
        "basic_unet": _monai("BasicUNet", 1, 32, 32, **_PLANE, features=(8, 8, 16, 16, 16, 8)),
        "basic_unet_plus_plus": _monai("BasicUNetPlusPlus", 1, 32, 32, **_PLANE, features=(8, 8, 16, 16, 16, 8)),
        "segresnet": _monai("SegResNet", 1, 16, 16, 16, **_VOLUME, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
        "vnet": _monai("VNet", 1, 32, 32, 32, **_VOLUME),
        "dynunet": _monai(
            "DynUNet",
            1,
            32,
            32,
            **_PLANE,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=[8, 16, 32],
            res_block=True,
        ),
        "unetr": _monai(
            "UNETR", 1, 32, 32, **_PLANE, img_size=32, feature_size=8, hidden_size=48, mlp_dim=64, num_heads=4
        ),
        "swin_unetr": _monai("SwinUNETR", 1, 64, 64, **_PLANE, feature_size=12),
        "densenet121": _monai("DenseNet121", 1, 64, 64, **_PLANE),
        "mednext": _monai(
            "MedNeXt",
            1,
            32,
            32,
            **_PLANE,
            init_filters=8,
            blocks_down=(1, 1),
            blocks_up=(1, 1),
            encoder_expansion_ratio=2,
            decoder_expansion_ratio=2,
        ),
    },
    "effdet": {name: _efficientdet(name) for name in ("tf_efficientdet_lite0", "efficientdet_d0")},
    "kornia": {
        "hardnet": _kornia("kornia.feature", "HardNet", 2, 1, 32, 32, pretrained=False),
        "tfeat": _kornia("kornia.feature", "TFeat", 2, 1, 32, 32, pretrained=False),
        "rrdbnet": _kornia(
            "kornia.models",
            "RRDBNet",
            1,
            3,
            16,
            16,
            num_in_ch=3,
            num_out_ch=3,
            num_feat=16,
            num_block=2,
            num_grow_ch=8,
        ),
    },
    "torchreid": {name: _person(name) for name in ("osnet_x0_25", "osnet_ain_x0_25", "osnet_ibn_x1_0", "mlfn")},
}
