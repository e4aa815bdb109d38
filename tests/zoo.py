"""Published architectures with random weights, by name: what the tests and the benchmarks run on.

Names are ``ultralytics/yolov8n.yaml``, ``torchvision/resnet50`` and ``timm/resnet50d``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from lit_prune import ChannelGraph
from tests.networks import Forward, tensors

# Chosen by family, the smallest of each: convolutional, hybrid, transformer, MLP.
TIMM = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_0_224
coatnet_nano_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnext_atto_ols convnext_tiny
convnextv2_atto crossvit_tiny_240 cs3darknet_s cs3darknet_focus_s cs3edgenet_x cspdarknet53 cspresnet50 cspresnext50
darknet17 darknet53 darknetaa53 davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224 deit_tiny_patch16_224
densenet121 densenetblur121d dla34 dla46_c dla60_res2net dm_nfnet_f0 dpn48b dpn68 eca_botnext26ts_256 eca_nfnet_l0
eca_resnet33ts ecaresnet26t edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_em
efficientnet_lite0 efficientnetv2_rw_t efficientnetv2_s efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw
ese_vovnet39b fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet33ts gcresnext26ts gcvit_xxtiny
gernet_s ghostnet_050 ghostnet_100 ghostnetv2_100 ghostnetv3_100 gmixer_12_224 gmlp_ti16_224 hardcorenas_a
haloregnetz_b halonet26t hgnet_tiny hgnetv2_b0 hiera_tiny_224 hrnet_w18_small hrnet_w18_small_v2 inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lamhalobotnet50ts_256 lcnet_050 legacy_senet154
legacy_seresnet18 levit_128s maxvit_pico_rw_256 maxvit_tiny_rw_224 maxxvit_rmlp_nano_rw_256 mambaout_femto
mixer_s32_224 mixnet_s mnasnet_050 mnasnet_100 mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_050 mobilenetv2_100
mobilenetv3_large_100 mobilenetv3_rw mobilenetv3_small_050 mobilenetv3_small_100 mobilenetv4_conv_small
mobilenetv4_hybrid_medium mobilenetv5_base mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge nest_tiny
nextvit_small nf_ecaresnet26 nf_regnet_b0 nf_resnet26 nf_seresnet26 nfnet_l0 pit_ti_224 pnasnet5large poolformer_s12
poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005 regnetz_b16 repghostnet_050
repvgg_a0 repvgg_b1g4 repvgg_d2se repvit_m0_9 res2net50_14w_8s res2net50_26w_4s res2next50 resmlp_12_224 resnest14d
resnest26d resnet10t resnet14t resnet18 resnet18d resnet26 resnet26t resnet32ts resnet33ts resnet50 resnet50_gn
resnet50d resnet51q resnet61q resnetaa34d resnetaa50 resnetblur18 resnetblur50 resnetrs50 resnetv2_18 resnetv2_50
resnetv2_50d_evos resnetv2_50d_gn resnetv2_50x1_bit resnext26ts resnext50_32x4d rexnet_100 rexnetr_100 sebotnet33ts_256
sehalonet33ts selecsls42 selecsls42b semnasnet_075 sequencer2d_s seresnet18 seresnet50 seresnet33ts seresnext26d_32x4d
seresnextaa101d_32x8d skresnet18 skresnext50_32x4d spnasnet_100 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 test_byobnet test_convnext test_efficientnet test_resnet test_vit
tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s tiny_vit_5m_224 tinynet_a tnt_s_legacy_patch16_224 twins_pcpvt_small
twins_svt_small vgg11 vgg11_bn visformer_tiny vit_base_patch16_rpn_224 vit_relpos_small_patch16_224
vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a
wide_resnet50_2 xception41 xception41p xception65 xception71 xcit_nano_12_p16_224 xcit_tiny_12_p8_224
""".split()


@dataclass(frozen=True)
class Case:
    """A network, what it is run on, and how its outputs are compared.

    Attributes:
        network: In eval mode.
        args: Its inputs.
        forward: What is compared; None is the network's output.
    """

    network: nn.Module
    args: tuple[Any, ...]
    forward: Forward | None = None


def names(source: str) -> list[str]:
    """All names of a source: ``"ultralytics"``, ``"torchvision"`` or ``"timm"``."""
    return [
        f"{source}/{name}" for name in {"ultralytics": _yamls, "torchvision": _torchvision, "timm": _timm}[source]()
    ]


def build(name: str) -> Case:
    """The network of that name."""
    source, _, model = name.partition("/")
    torch.manual_seed(0)
    return {"ultralytics": _build_ultralytics, "torchvision": _build_torchvision, "timm": _build_timm}[source](model)


# --- Ultralytics -----------------------------------------------------------------------------------------------


def _yamls() -> list[str]:
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    found = []
    for path in sorted(folder.glob("*/*.yaml")):
        # Families come in sizes; the smallest is the letter n.
        scaled = "scales:" in path.read_text() and "\n  n:" in path.read_text()
        found.append(re.sub(r"^(yoloe-v?|yolov?)(\d+)(?=[-.])", r"\1\2n", path.name) if scaled else path.name)
    return found


def _build_ultralytics(name: str) -> Case:
    from ultralytics.nn import tasks

    config = tasks.yaml_model_load(name)
    task = "detect" if "rtdetr" in name else tasks.guess_model_task(config)
    classes = {
        "classify": "ClassificationModel",
        "detect": "DetectionModel",
        "segment": "SegmentationModel",
        "pose": "PoseModel",
        "obb": "OBBModel",
        "semantic": "SemanticSegmentationModel",
        "depth": "DepthModel",
    }
    kind = classes[task]
    if "rtdetr" in name:
        kind = "RTDETRDetectionModel"
    elif "world" in name:
        kind = "WorldModel"
    elif name.startswith("yoloe"):
        kind = "YOLOESegModel" if "seg" in name else "YOLOEModel"
    network = getattr(tasks, kind)(name, verbose=False).eval()
    size = 128 if "p6" in name or "rtdetr" in name else 64
    images = torch.randn(1, 3, size, size)
    if "rtdetr" in name:
        return Case(network, (images,), same_choice(lambda module: module(images)))
    return Case(network, (images,), lambda module: raw(module(images)))


def raw(output: Any) -> Any:
    """The raw predictions of an Ultralytics head: behind them only a top-k follows, which jumps."""

    def strip(value: Any) -> Any:
        # The head hands its input maps on; of these only the size counts, and their channels shrink.
        if isinstance(value, Mapping):
            return {key: strip(item) for key, item in value.items() if key != "feats"}
        return value

    return strip(output[-1] if isinstance(output, tuple) and isinstance(output[-1], Mapping) else output)


class _Choices(TorchFunctionMode):
    """Records what each top-k chose, or has it choose the same again."""

    def __init__(self, chosen: list[Tensor], replay: bool) -> None:
        super().__init__()
        self._chosen, self._replay = chosen, replay

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.topk, Tensor.topk):
            return func(*args, **kwargs)
        if self._replay:
            indices, dim = self._chosen.pop(0), kwargs.get("dim", args[2] if len(args) > 2 else -1)
            return torch.return_types.topk((args[0].gather(dim, indices), indices))
        result = func(*args, **kwargs)
        self._chosen.append(result.indices)
        return result


def same_choice(forward: Forward) -> Forward:
    """A forward whose top-k chooses at every second call what it did at the call before.

    Near-equal scores of random weights are ordered by rounding; what lies behind can only be compared for one choice.
    """
    chosen: list[Tensor] = []

    def paired(network: nn.Module) -> Any:
        with _Choices(chosen, replay=bool(chosen)):
            return forward(network)

    return paired


# --- torchvision -----------------------------------------------------------------------------------------------


def _torchvision() -> list[str]:
    import torchvision

    models = torchvision.models.list_models()
    # Huge variants say nothing that the small ones of their family do not.
    huge = (
        "vit_h",
        "regnet_y_128",
        "regnet_y_32gf",
        "regnet_x_32gf",
        "convnext_large",
        "vit_l",
        "101_64x4d",
        "efficientnet_b7",
    )
    video = ("mvit", "s3d", "swin3d", "r3d", "mc3", "r2plus1d", "raft", "quantized")
    return [name for name in models if not any(part in name for part in (*huge, *video))]


def _build_torchvision(name: str) -> Case:
    import torchvision

    extra: dict[str, Any] = {}
    if torchvision.models.get_model_builder(name).__module__.startswith(
        ("torchvision.models.detection", "torchvision.models.segmentation")
    ):
        extra["weights_backbone"] = None
    network = torchvision.models.get_model(name, weights=None, **extra).eval()
    size = 224 if name.startswith(("vit", "maxvit")) else 96
    images = torch.randn(2, 3, size, size)
    module = torchvision.models.get_model_builder(name).__module__
    if module.startswith("torchvision.models.detection"):
        return Case(network, (list(torch.rand(1, 3, 96, 96)),), _detections(images))
    return Case(network, (images,))


def _detections(images: Tensor) -> Callable[[nn.Module], Any]:
    """What the heads say before anything is sorted or suppressed, for fixed regions where there are two stages."""
    regions = [torch.tensor([[8.0, 8.0, 60.0, 70.0], [20.0, 4.0, 90.0, 50.0]])] * len(images)
    sizes = [(images.shape[-2], images.shape[-1])] * len(images)

    def forward(network: Any) -> Any:
        maps = network.backbone(images)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        if hasattr(network, "head"):
            return network.head(list(maps.values()))
        roi = network.roi_heads
        found = [network.rpn.head(list(maps.values()))]
        for kind in ("box", "mask", "keypoint"):
            if getattr(roi, f"{kind}_roi_pool", None) is not None:
                pooled = getattr(roi, f"{kind}_roi_pool")(maps, regions, sizes)
                found.append(getattr(roi, f"{kind}_predictor")(getattr(roi, f"{kind}_head")(pooled)))
        return found

    return forward


# --- timm ------------------------------------------------------------------------------------------------------


def _timm() -> list[str]:
    return list(TIMM)


def _build_timm(name: str) -> Case:
    import timm

    network = timm.create_model(name, pretrained=False).eval()
    config = network.pretrained_cfg
    fixed = config.get("fixed_input_size", False)
    size = max(
        config["input_size"][-1] if fixed else min(config["input_size"][-1], 96),
        config.get("min_input_size", (3, 1, 1))[-1],
    )
    return Case(network, (torch.randn(1, 3, size, size),))


@dataclass(frozen=True)
class Shares:
    """How much of a network's width can be pruned, its outputs left out.

    Attributes:
        channels: Share of the output channels of convolutions and linear layers.
        convolutions: Share of those of convolutions.
        convolutional: Share of the channels that are those of convolutions.
        reasons: Number of frozen channels, by reason; the layer at work is left out of it.
    """

    channels: float
    convolutions: float
    convolutional: float
    reasons: dict[str, int]


def shares(graph: ChannelGraph, network: nn.Module) -> Shares:
    """Count the prunable channels of a network."""
    free: dict[tuple[str, int], int] = {}
    for group in graph.groups:
        for slot in group.slots:
            free[slot] = free.get(slot, 0) + len(group.members[slot].indices)
    total, prunable, reasons = [0, 0], [0, 0], Counter[str]()
    for name, module in network.named_modules():
        if not isinstance(module, (_ConvNd, nn.Linear)) or not module.weight.requires_grad:
            continue
        dim, kind = int(isinstance(module, _ConvTransposeNd)), int(isinstance(module, _ConvNd))
        width, mine = module.weight.shape[dim], free.get((f"{name}.weight", dim), 0)
        reason = graph.frozen.get(name, "is in no trace") if mine < width else ""
        if reason.startswith("reaches the network's output"):
            width = mine
        elif reason:
            reasons[re.sub(r"(, in|^)\s[\w.]+(?=:|$)|^[\w.]+(?=:)", "", reason)[:120]] += width - mine
        total[kind] += width
        prunable[kind] += mine
    return Shares(
        sum(prunable) / max(1, sum(total)),
        prunable[1] / max(1, total[1]),
        total[1] / max(1, sum(total)),
        dict(reasons.most_common()),
    )


def trains(case: Case) -> None:
    """Run a forward and a backward in train mode.

    Raises:
        AssertionError: If a parameter gets no gradient of its own shape.
    """
    network = case.network.train()
    args = [torch.cat([arg, arg * 0.5]) if isinstance(arg, Tensor) else arg for arg in case.args]
    outputs = [output for output in tensors(network(*args)) if output.requires_grad]
    loss = sum(output.float().square().mean() for output in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name
