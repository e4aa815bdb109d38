"""Networks of Hugging Face's transformers and diffusers, made of small configurations: nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# A network, and what it is run on.
Built = tuple[nn.Module, tuple[Any, ...]]


def images(size: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.randn(1, channels, size, size)


def _transformers(model: str, config: str, size: int = 64, **settings: Any) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("transformers")
        return getattr(package, model)(getattr(package, config)(**settings)), (images(size),)

    return make


def _pyramid(name: str) -> Callable[[], Built]:
    return _transformers(
        f"{name}ForImageClassification",
        f"{name}Config",
        image_size=64,
        hidden_sizes=[16, 32, 40, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 8],
    )


_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "patch_size": 16,
}


def _resnet_config() -> Any:
    package = importlib.import_module("transformers")
    return package.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def _detr() -> Built:
    package = importlib.import_module("transformers")
    config = package.DetrConfig(
        backbone_config=_resnet_config(),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=10,
    )
    # Its backbone is frozen in part.
    return package.DetrForObjectDetection(config).requires_grad_(), (images(96),)


def _rt_detr() -> Built:
    package = importlib.import_module("transformers")
    backbone = package.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = package.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[24, 32, 40],
        encoder_ffn_dim=48,
        encoder_attention_heads=4,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_layers=2,
        decoder_ffn_dim=48,
        decoder_attention_heads=4,
        num_queries=10,
        num_denoising=0,
    )
    return package.RTDetrForObjectDetection(config), (images(96),)


def _depth() -> Built:
    package = importlib.import_module("transformers")
    config = package.DPTConfig(
        **_ENCODER | {"num_hidden_layers": 4},
        is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 24, 32, 40],
        fusion_hidden_size=32,
    )
    return package.DPTForDepthEstimation(config), (images(),)


def _clip() -> Built:
    package = importlib.import_module("transformers")
    return package.CLIPVisionModel(package.CLIPVisionConfig(**_ENCODER)), (images(),)


def _hifi_gan() -> Built:
    package = importlib.import_module("transformers")
    config = package.SpeechT5HifiGanConfig(
        model_in_dim=16,
        upsample_initial_channel=32,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3], [1, 3]],
    )
    network = package.SpeechT5HifiGan(config)
    network.apply_weight_norm()
    return network, (torch.randn(1, 20, 16),)


def _codec(model: str, config: str, **settings: Any) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("transformers")
        network = getattr(package, model)(getattr(package, config)(**settings))
        for name, buffer in network.named_buffers():
            if name.endswith("codebook.embed"):
                # They are learnt, and zero before that.
                buffer.normal_()
        return network, (torch.randn(1, 1, 960),)

    return make


def _diffusion_unet(model: str, *extra: torch.Tensor, **settings: Any) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("diffusers")
        network = getattr(package, model)(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, **settings
        )
        return network, (images(16, network.config.in_channels), torch.tensor([10]), *extra)

    return make


def _autoencoder(model: str, **settings: Any) -> Callable[[], Built]:
    def make() -> Built:
        package = importlib.import_module("diffusers")
        return getattr(package, model)(block_out_channels=(32, 64), **settings), (images(32),)

    return make


_WINDOWS: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}

TRANSFORMERS: dict[str, Callable[[], Built]] = {
    "vit": _transformers("ViTForImageClassification", "ViTConfig", **_ENCODER),
    "deit": _transformers("DeiTForImageClassification", "DeiTConfig", **_ENCODER),
    "beit": _transformers("BeitForImageClassification", "BeitConfig", **_ENCODER),
    "dinov2": _transformers("Dinov2ForImageClassification", "Dinov2Config", **_ENCODER),
    "yolos": _transformers(
        "YolosForObjectDetection", "YolosConfig", **_ENCODER | {"image_size": [64, 64]}, num_detection_tokens=5
    ),
    "swin": _transformers("SwinForImageClassification", "SwinConfig", **_WINDOWS),
    "convnext": _transformers(
        "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1]
    ),
    "convnextv2": _transformers(
        "ConvNextV2ForImageClassification", "ConvNextV2Config", hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1]
    ),
    "segformer": _transformers(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        hidden_sizes=[16, 32, 40, 64],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=48,
    ),
    "glpn": _transformers(
        "GLPNForDepthEstimation",
        "GLPNConfig",
        hidden_sizes=[16, 32, 40, 64],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=16,
    ),
    "pvt": _pyramid("Pvt"),
    "pvt_v2": _pyramid("PvtV2"),
    "swinv2": _transformers("Swinv2ForImageClassification", "Swinv2Config", **_WINDOWS),
    "data2vec": _transformers("Data2VecVisionForImageClassification", "Data2VecVisionConfig", **_ENCODER),
    "vitpose": _transformers(
        "VitPoseBackbone", "VitPoseBackboneConfig", **_ENCODER | {"image_size": [64, 64], "patch_size": [16, 16]}
    ),
    "mobilevit": _transformers("MobileViTForImageClassification", "MobileViTConfig", image_size=64),
    "mobilenet_v2": _transformers("MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.5),
    "resnet": _transformers(
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=16,
        hidden_sizes=[32, 48, 64, 80],
        depths=[1, 2, 1, 1],
    ),
    "regnet": _transformers(
        "RegNetForImageClassification",
        "RegNetConfig",
        embedding_size=16,
        hidden_sizes=[32, 48, 64, 80],
        depths=[1, 2, 1, 1],
        groups_width=8,
    ),
    "efficientnet": _transformers(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        width_coefficient=0.5,
        depth_coefficient=0.3,
        image_size=64,
        hidden_dim=640,
    ),
    "poolformer": _transformers(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 1, 1],
    ),
    "levit": _transformers("LevitForImageClassification", "LevitConfig", image_size=64, size=64),
    "detr": _detr,
    "rt_detr": _rt_detr,
    "dpt": _depth,
    "clip": _clip,
    "hifi_gan": _hifi_gan,
    "encodec": _codec("EncodecModel", "EncodecConfig", num_filters=8, hidden_size=16, codebook_dim=16),
    "dac": _codec("DacModel", "DacConfig", encoder_hidden_size=8, decoder_hidden_size=64, n_codebooks=2),
}

DIFFUSERS: dict[str, Callable[[], Built]] = {
    "unet": _diffusion_unet(
        "UNet2DModel",
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "unet-conditional": _diffusion_unet(
        "UNet2DConditionModel",
        torch.randn(1, 7, 24),
        cross_attention_dim=24,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "autoencoder_kl": _autoencoder(
        "AutoencoderKL",
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "vq": _autoencoder(
        "VQModel",
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
}
