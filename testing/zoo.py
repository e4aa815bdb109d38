"""Published architectures with random weights, by name: what the tests and the benchmarks run on.

Names are ``ultralytics/yolov8n.yaml``, ``torchvision/resnet50`` and ``timm/resnet50d``, and those of the packages in
:mod:`testing.packages`.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from lit_prune import ChannelGraph
from testing import packages
from testing.invariant import Check, Forward, check_invariant, tensors

# Chosen by family, the smallest of each: convolutional, hybrid, transformer, MLP.
TIMM = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_0_224
convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnext_atto_ols convnextv2_atto crossvit_tiny_240
cs3darknet_s cs3darknet_focus_s cs3edgenet_x cspresnet50 darknet17 davit_tiny deit3_small_patch16_224
deit_tiny_patch16_224 densenet121 dla34 dla46_c dla60_res2net dm_nfnet_f0 dpn48b dpn68 eca_nfnet_l0 ecaresnet26t
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t
efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf
gcresnet33ts gcvit_xxtiny gernet_s ghostnet_100 ghostnetv2_100 ghostnetv3_100 gmixer_12_224 gmlp_ti16_224 hardcorenas_a
haloregnetz_b halonet26t hgnet_tiny hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto inception_resnet_v2
inception_v4 lambda_resnet26t lamhalobotnet50ts_256 lcnet_050 legacy_seresnet18 levit_128s maxvit_pico_rw_256
maxxvit_rmlp_nano_rw_256 mambaout_femto mixer_s32_224 mixnet_s mnasnet_100 mobilenet_edgetpu_v2_xs mobilenetv1_100
mobilenetv2_100 mobilenetv3_rw mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s0
mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0 nf_resnet26 pit_ti_224 poolformer_s12
poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005 regnetz_b16 repghostnet_050
repvgg_a0 repvit_m0_9 res2net50_26w_4s res2next50 resmlp_12_224 resnest14d resnet10t resnet18 resnet18d resnet33ts
resnet50 resnet50_gn resnet51q resnetaa34d resnetblur18 resnetrs50 resnetv2_18 resnetv2_50d_evos resnetv2_50d_gn
resnetv2_50x1_bit rexnet_100 rexnetr_100 sebotnet33ts_256 sehalonet33ts selecsls42b semnasnet_075 sequencer2d_s
seresnet18 seresnext26d_32x4d skresnet18 skresnext50_32x4d spnasnet_100 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 test_byobnet test_convnext test_efficientnet
test_resnet test_vit tf_efficientnetv2_b0 tf_mixnet_s tiny_vit_5m_224 tinynet_a tnt_s_legacy_patch16_224
twins_pcpvt_small twins_svt_small vgg11_bn visformer_tiny vit_base_patch16_rpn_224 vit_relpos_small_patch16_224
vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a xception41 xception41p
xcit_nano_12_p16_224
""".split()


# Where not all channels of the convolutions can go: the share that can, and what keeps the others.
LESS: dict[str, tuple[float, str]] = {
    # Text embeddings come from outside; the visual prompts' layers do not run without a prompt.
    "ultralytics/yoloe-11n-seg.yaml": (0.74, "takes no part"),
    "ultralytics/yoloe-11n.yaml": (0.73, "takes no part"),
    "ultralytics/yoloe-26n-seg.yaml": (0.69, "takes no part"),
    "ultralytics/yoloe-26n.yaml": (0.69, "takes no part"),
    "ultralytics/yoloe-v8n-seg.yaml": (0.66, "is contracted with what is not tracked"),
    "ultralytics/yoloe-v8n.yaml": (0.65, "is contracted with what is not tracked"),
    # Image features are normalised to unit length, to be compared with text.
    "ultralytics/yolov8n-world.yaml": (0.73, "is contracted with what is not tracked"),
    "ultralytics/yolov8n-worldv2.yaml": (0.7, "is contracted with what is not tracked"),
    # Pieces of remembered widths go to layers far away.
    "ultralytics/yolov9e-seg.yaml": (0.89, "can't be narrowed"),
    "ultralytics/yolov9e.yaml": (0.89, "can't be narrowed"),
    # Of the maps of several scales some find nothing to look at.
    **dict.fromkeys(
        (
            "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
            "torchvision/fasterrcnn_mobilenet_v3_large_fpn",
            "torchvision/fasterrcnn_resnet50_fpn",
            "torchvision/fasterrcnn_resnet50_fpn_v2",
            "torchvision/maskrcnn_resnet50_fpn",
            "torchvision/maskrcnn_resnet50_fpn_v2",
        ),
        (0.96, "is run on nothing"),
    ),
    # Random weights find nobody, whose keypoints would be looked for.
    "torchvision/keypointrcnn_resnet50_fpn": (0.84, "is run on nothing"),
    # The best places are picked from all classes at once.
    "torchvision/retinanet_resnet50_fpn": (0.97, "is picked from by index"),
    "torchvision/retinanet_resnet50_fpn_v2": (0.97, "is picked from by index"),
    "torchvision/ssd300_vgg16": (0.74, "is picked from by index"),
    "torchvision/ssdlite320_mobilenet_v3_large": (0.85, "is picked from by index"),
    # A shuffle in every block couples channels in long cycles.
    "torchvision/shufflenet_v2_x0_5": (0.86, "can only go all together"),
    "torchvision/shufflenet_v2_x1_0": (0.79, "can only go all together"),
    # A convolution over the channels themselves decides how much of each passes.
    "timm/ecaresnet26t": (0.25, "is convolved over"),
    "timm/eca_nfnet_l0": (0.42, "is convolved over"),
    # A constant blur, whose groups are no layer's channels.
    "timm/resnetblur18": (0.77, "can't be narrowed"),
    # Variances of groups of channels, worked out by hand.
    "timm/resnetv2_50d_evos": (0.0, "can't be narrowed"),
    # Linear attention appends a constant to the values of each head.
    "timm/efficientvit_b0": (0.65, "is padded"),
    # Attention whose widths are remembered.
    "timm/efficientvit_m0": (0.47, "can't be narrowed"),
    "timm/edgenext_xx_small": (0.05, "can't be narrowed"),
    "timm/botnet26t_256": (0.78, "can't be narrowed"),
    "timm/coatnet_0_224": (0.75, "can't be narrowed"),
    "timm/efficientformerv2_s0": (0.62, "can't be narrowed"),
    "timm/focalnet_tiny_srf": (0.55, "can't be narrowed"),
    "timm/lambda_resnet26t": (0.87, "can't be narrowed"),
    "timm/lamhalobotnet50ts_256": (0.85, "can't be narrowed"),
    "timm/mobilenetv4_hybrid_medium": (0.93, "can't be narrowed"),
    "timm/nextvit_small": (0.68, "can't be narrowed"),
    "timm/sebotnet33ts_256": (0.8, "can't be narrowed"),
    "timm/visformer_tiny": (0.72, "can't be narrowed"),
    # Attention over windows that are cut out of the map.
    "timm/halonet26t": (0.78, "meets what is not tracked"),
    "timm/haloregnetz_b": (0.85, "meets what is not tracked"),
    "timm/sehalonet33ts": (0.8, "meets what is not tracked"),
    # One channel of the queries weighs all the others.
    "timm/mobilevitv2_050": (0.81, "is a piece of one channel"),
    "timm/bat_resnext26ts": (0.87, "is convolved over"),
    # What follows the deepest map that a decoder reads.
    **{
        f"smp/{decoder}-efficientnet-b0": (0.95, "takes no part")
        for decoder in ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3Plus")
    },
    "smp/PSPNet-resnet18": (0.29, "takes no part"),
    # Its attention lays out (places, channels) as (channels, places).
    "smp/MAnet-efficientnet-b0": (0.94, "can only go all together"),
    "smp/MAnet-mobilenet_v2": (0.88, "can only go all together"),
    "smp/MAnet-resnet18": (0.78, "can only go all together"),
    "smp/MAnet-tu-regnetx_002": (0.76, "can only go all together"),
    # The width that a token has is taken for that of what is made of it and of another.
    "transformers/dpt": (0.9, "can't be narrowed"),
    # Places are told by sines, one for each channel.
    "transformers/rt_detr": (0.97, "meets what is not tracked"),
    # Gates of one channel.
    "monai/attention_unet": (0.98, "has one channel"),
    # One factor for each group of a convolution in groups, of which none can go.
    "torchreid/mlfn": (0.81, "no other channel could stay"),
}


@dataclass(frozen=True)
class Case:
    """A network, what it is run on, and how its outputs are compared.

    Attributes:
        network: In eval mode.
        args: Its inputs.
        forward: What is compared; None is the network's output.
        targets: Further inputs in train mode.
        fixed_work: Whether its cost is the same whatever it finds.
    """

    network: nn.Module
    args: tuple[Any, ...]
    forward: Forward | None = None
    targets: tuple[Any, ...] = ()
    fixed_work: bool = True


def names(source: str) -> list[str]:
    """All names of a source: ``"ultralytics"``, ``"torchvision"``, ``"timm"`` or one of :mod:`testing.packages`."""
    listed = {"ultralytics": _yamls, "torchvision": _torchvision, "timm": _timm}
    return [f"{source}/{name}" for name in (listed[source]() if source in listed else packages.names(source))]


def build(name: str) -> Case:
    """The network of that name."""
    source, _, model = name.partition("/")
    torch.manual_seed(0)
    if source in packages.SOURCES:
        return Case(*packages.build(source, model))
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
    for _, _, kinds, args in [*config["backbone"], *config["head"]]:
        if kinds == "TorchVision":
            # Weights would be fetched.
            args[2] = None
    network = getattr(tasks, kind)(config, verbose=False).eval()
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


# Of video and optical flow, and quantised, where weights are no parameters.
_ELSEWHERE = ("mvit", "s3d", "swin3d", "r3d", "mc3", "r2plus1d", "raft", "quantized")
# Deeper or wider than another of the same blocks that is in the list: they say nothing that it does not.
_WIDER = frozenset(
    """
    convnext_small convnext_base convnext_large deeplabv3_resnet101 densenet161 densenet169 densenet201 efficientnet_b1
    efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_m
    efficientnet_v2_l fcn_resnet101 mnasnet0_75 mnasnet1_0 mnasnet1_3 regnet_x_16gf regnet_x_1_6gf regnet_x_32gf
    regnet_x_3_2gf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_8gf
    resnet101 resnet152 resnext101_32x8d resnext101_64x4d shufflenet_v2_x1_5 shufflenet_v2_x2_0 swin_s swin_b
    swin_v2_s swin_v2_b vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2
    """.split()
)


def _torchvision() -> list[str]:
    import torchvision

    return [name for name in torchvision.models.list_models() if not name.startswith(_ELSEWHERE) and name not in _WIDER]


def _build_torchvision(name: str) -> Case:
    import torchvision

    extra: dict[str, Any] = {}
    if torchvision.models.get_model_builder(name).__module__.startswith(
        ("torchvision.models.detection", "torchvision.models.segmentation")
    ):
        extra["weights_backbone"] = None
    if name.startswith(("fasterrcnn", "maskrcnn", "keypointrcnn", "fcos", "retinanet")):
        # Images are resized to 800 pixels otherwise.
        extra |= {"min_size": 96, "max_size": 96}
    if "rcnn" in name:
        # What the heads are run on: of random weights there is no end.
        extra |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 4}
    network = torchvision.models.get_model(name, weights=None, **extra).eval()
    sizes = {"vit": 224, "maxvit": 224, "inception": 299, "ssd": 300}
    size = next((size for start, size in sizes.items() if name.startswith(start)), 96)
    images = torch.randn(2, 3, size, size)
    module = torchvision.models.get_model_builder(name).__module__
    if module.startswith("torchvision.models.detection"):
        target = {
            "boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
            "keypoints": torch.tensor([[[20.0, 20.0, 1.0]] * 17]),
        }
        return Case(
            network, (list(torch.rand(1, 3, 96, 96)),), _detections(images), ([target] * 2,), "rcnn" not in name
        )
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
        reasons: Number of unprunable channels, by reason; the layer at work is left out of it.
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
        width, mine = module.weight.shape[dim], max(free.get((f"{name}.{own}", dim), 0) for own in _WEIGHTS)
        reason = graph.unprunable.get(name, "has one channel") if mine < width else ""
        if reason.startswith("reaches the network's output"):
            width = mine
        elif reason:
            reasons[re.sub(r"(, in|^)\s[\w.]+(?=:|$)|^[\w.]+(?=: )", "", reason)[:120]] += width - mine
        total[kind] += width
        prunable[kind] += mine
    return Shares(
        sum(prunable) / max(1, sum(total)),
        prunable[1] / max(1, total[1]),
        total[1] / max(1, sum(total)),
        dict(reasons.most_common()),
    )


# A weight, and what a forward computes it from: under weight_norm, spectral_norm, and these as hooks.
_WEIGHTS = (
    "weight",
    "parametrizations.weight.original1",
    "parametrizations.weight.original",
    "weight_v",
    "weight_orig",
)
TOLERANCE = 1e-4


def check(case: Case, graph: ChannelGraph | None = None) -> Check:
    """The invariant on a case; in double precision where it does not hold in single precision.

    Random weights may amplify rounding; an error of the plan stays what it is.
    """

    def run(case: Case, graph: ChannelGraph | None) -> Check:
        return check_invariant(case.network, *case.args, forward=case.forward, graph=graph, fixed_work=case.fixed_work)

    found = run(case, graph)
    if found.worst > TOLERANCE and case.forward is None:
        args = tuple(arg.double() if isinstance(arg, Tensor) else arg for arg in case.args)
        found = run(replace(case, network=copy.deepcopy(case.network).double(), args=args), None)
    return found


def trains(case: Case) -> None:
    """Run a forward and a backward in train mode.

    Raises:
        AssertionError: If a parameter gets no gradient of its own shape.
    """
    network = case.network.train()
    args = [torch.cat([arg, arg * 0.5]) if isinstance(arg, Tensor) else arg * 2 for arg in case.args]
    outputs = [output for output in tensors(network(*args, *case.targets)) if output.requires_grad]
    loss = sum(output.float().square().mean() for output in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name
