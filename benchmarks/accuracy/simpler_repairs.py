"""Compensations that are simpler than that of :class:`lit_prune.Repair`, to see what its parts are worth.

Each predicts the channels that are gone from those that stay, and folds that into the weights of whoever reads them:
one linear map of channels, the same at all kernel positions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lit_prune import PruningPlan

_POSITIONS = 48
_PENALTY = 1e-3


@torch.no_grad()
def compensated_(left: nn.Module, whole: nn.Module, plan: PruningPlan, images: Tensor, sequential: bool) -> None:
    """Change what is left of a network in place, and measure the statistics of its BatchNorms anew.

    Args:
        left: What the plan leaves.
        whole: The whole network.
        plan: What was cut.
        images: All that is looked at, in one batch.
        sequential: Whether each layer is fitted to what enters it in the network that was changed so far; else to what
            enters it in the whole one.
    """
    readers = {
        name: module
        for name, module in whole.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and 1 in plan.kept.get(f"{name}.weight", {})
        if getattr(module, "groups", 1) == 1
    }
    entering: dict[str, Tensor] = {}

    def keep(name: str, given: Tensor) -> None:
        entering[name] = _rows(name, given)

    _run(whole.eval(), readers, keep, images)

    def fold(name: str, given: Tensor) -> None:
        kept = plan.kept[f"{name}.weight"][1]
        wanted = entering.pop(name)
        rows = _rows(name, given) if sequential else wanted[:, kept]
        layer = left.get_submodule(name)
        weight = readers[name].weight
        outputs = plan.kept[f"{name}.weight"].get(0)
        _fold_(layer, weight if outputs is None else weight[outputs], kept, wanted, rows)

    norms = [module for module in left.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    left.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    _run(left, readers, fold, images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _run(network: nn.Module, names: Iterable[str], note: Callable[[str, Tensor], None], images: Tensor) -> None:
    handles = [
        network.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: note(name, args[0]))
        for name in names
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()


def _rows(name: str, given: Tensor) -> Tensor:
    """``(rows, channels)`` at some positions of each image, the same for each network."""
    if given.dim() == 2:
        return given
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    flat = given.flatten(2)
    places = torch.randint(flat.shape[2], (len(flat), _POSITIONS), generator=generator)
    return flat.gather(2, places[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def _fold_(layer: nn.Module, weight: Tensor, kept: Tensor, wanted: Tensor, rows: Tensor) -> None:
    """Let a layer read all channels as they are predicted from those that enter."""
    means = rows.double().mean(0), wanted.double().mean(0)
    centred, target = rows.double() - means[0], wanted.double() - means[1]
    gram = centred.T @ centred / len(rows)
    gram.diagonal().add_(_PENALTY * gram.diagonal().mean() + 1e-12)
    # From "channels that stay are themselves" only what the data says differs.
    selected = torch.zeros(len(kept), wanted.shape[1], dtype=torch.float64)
    selected[torch.arange(len(kept)), kept] = 1
    guess = selected + torch.linalg.solve(gram, centred.T @ (target - centred @ selected) / len(rows))
    flat = weight.double().flatten(2) if weight.dim() > 2 else weight.double()[..., None]
    layer.weight.copy_(torch.einsum("ocp,kc->okp", flat, guess).reshape(layer.weight.shape))
    if layer.bias is not None:
        constant = means[1] - means[0] @ guess
        layer.bias.add_((flat.sum(2) @ constant).to(layer.bias))
