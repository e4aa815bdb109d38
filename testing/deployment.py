"""Networks as their libraries deploy them: branches merged, norms folded; before and after pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lit_prune import ChannelGraph, shrink_
from testing.invariant import random_removal, randomise_, tensors
from testing.zoo import build

# Families of timm with branches that are merged, beside those in the zoo.
MERGING = """
mobileone_s1 repvgg_a1 fastvit_s12 fastvit_sa12 fastvit_mci0 repghostnet_100 repvit_m1 repvit_m1_1
efficientvit_m1 levit_128 tiny_vit_11m_224 ghostnetv3_050 iformer_t shvit_s1 efficientvim_m1 lcnetv2_base mobileone_s4
""".split()


def deploy(network: nn.Module) -> nn.Module | None:
    """A copy as its library deploys it; `None` where it has no such form."""
    network = copy.deepcopy(network).eval()
    library = type(network).__module__.partition(".")[0]
    if library == "ultralytics":
        return network.fuse(verbose=False)
    if library == "timm":
        from timm.utils.model import reparameterize_model

        merged = reparameterize_model(network)
        return merged if len([*merged.modules()]) != len([*network.modules()]) else None
    return None


def difference(mine: Any, theirs: Any) -> float:
    """The largest difference of two outputs, relative to the largest value of each tensor."""
    if isinstance(theirs, dict) and "one2many" in theirs and "one2many" not in mine:
        # Of Ultralytics' two heads one is left.
        theirs = theirs["one2many"]
    pairs = zip(tensors(mine), tensors(theirs), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs if b.numel())


def uneven_removal(graph: ChannelGraph) -> dict[str, list[int]]:
    """Random channels, of each group another part: of layers that were equally wide each has a width of its own."""
    removal = random_removal(graph, 0.4)
    parts = {name: 1 + number % 5 for number, name in enumerate(removal)}
    for group in graph.groups:
        for name in group.balanced or ():
            parts[name] = min(parts[each] for each in group.balanced if each in parts)
    return {name: gone[: max(1, len(gone) * parts[name] // 5)] for name, gone in removal.items()}


def measure(name: str) -> dict[str, Any]:
    """What comes out: `differs` from the pruned network, `dense` of the dense one; or the `error`."""
    case = build(name)
    network = randomise_(case.network.eval())
    run: Callable[[nn.Module], Any] = case.forward or (lambda module: module(*case.args))
    with torch.no_grad():
        try:
            deployed = deploy(network)
        except Exception as error:
            return {"dense": f"{type(error).__name__}: {error}"}
        if deployed is None:
            return {}
        wanted = run(network)
        found: dict[str, Any] = {"dense": difference(run(deployed), wanted)}
        graph = ChannelGraph.trace(network, *case.args)
        pruned = shrink_(copy.deepcopy(network), graph.plan(uneven_removal(graph))).eval()
        wanted = run(pruned)
        try:
            found["differs"] = difference(run(deploy(pruned)), wanted)  # type: ignore[arg-type]
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
    return found
