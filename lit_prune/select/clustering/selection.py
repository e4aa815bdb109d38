"""The selection by what channels see: of those that tell the same classes apart, one stays."""

from __future__ import annotations

import warnings
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from lit_prune.activations.calibration import Calibration
from lit_prune.activations.moments import Moments, jeffries_matusita
from lit_prune.common._compat import ConvTransposeNd
from lit_prune.common.arguments import check_choice
from lit_prune.common.packages import require
from lit_prune.criteria import Evidence, batch_norm_scales, power_sums
from lit_prune.errors import SelectionError
from lit_prune.graph import ChannelGroup
from lit_prune.plan import Slot
from lit_prune.select.base import Bundle, Scores, Selection, Target, bundled, flat, lowest
from lit_prune.select.clustering.decisions import Decision, Method, decide, survey_channels
from lit_prune.select.clustering.kmedoids import Embedding, Matrix

_MOST_CLASSES = 100


class ClusterSelection(Selection):
    """Groups the channels of each layer by the classes that they tell apart, and keeps one of each group.

    For every channel and every two classes the Jeffries–Matusita distance of the channel's activations on calibration
    data says how well it tells them apart. Channels with like distances form a cluster (k-medoids, on an embedding),
    and of each cluster one channel stays. The amount says how many clusters there are; with ``amount=None`` the knee
    of the mean simplified silhouette does. The scores of the criterion are ignored, but a group that it can't
    judge stays.

    Layers that are coupled (residual sums, concatenations) get one decision: the distances that a channel has in each
    layer that makes it stand side by side, and so do channels that are alike in all of these layers. Weight norms and
    BatchNorm scales are joined over the layers in the same way. Groups that must stay equally wide (the halves of a
    ``chunk``) keep the mean of what their knees say.

    Args:
        method: Which channel of a cluster stays: ``"max_weight"``, the one with the largest L2 norm of the weights that
            make it; ``"medoid"``, the one in the middle; ``"max_gamma"``, the one with the largest BatchNorm scale |γ|.
            ``"gamma"`` ranks by |γ| alone, without clusters.
        embedding: Where channels are clustered: ``"tsne"``, ``"pca"`` (both in the plane), or ``"none"``.
        seed: The same seed gives the same channels.
        calibration: How much data is looked at, and which objects count.

    Attributes:
        decisions: Group name to what the last event decided and why; see :mod:`lit_prune.select.clustering.plots`.

    Raises:
        ArgumentError: If a name is unknown.
        MissingPackageError: If what the extra ``clusters`` brings is missing.

    Example:
        >>> selection = ClusterSelection(method="medoid", embedding="pca")
        >>> ClusterSelection(method="mediod")
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: method must be one of 'max_weight', 'medoid', ..., but got 'mediod'.
    """

    needs_amount = False

    def __init__(
        self,
        method: Method = "max_weight",
        embedding: Embedding = "tsne",
        seed: int = 0,
        calibration: Calibration | None = None,
    ) -> None:
        check_choice("method", method, get_args(Method))
        check_choice("embedding", embedding, get_args(Embedding))
        packages = ("kmedoids", "kneed", "scikit-learn", "threadpoolctl")
        require('ClusterSelection (selection="clusters")', *packages, extra="clusters")
        self.method: Method = method
        self.embedding: Embedding = embedding
        self.seed = seed
        self.calibration = calibration or Calibration()
        self.decisions: dict[str, Decision] = {}

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Keep one channel of each cluster, in all groups that may lose channels.

        Raises:
            SelectionError: If there are no activations at all, fewer than two classes were seen, or a method needs
                BatchNorm scales and a group has none.
        """
        from threadpoolctl import threadpool_limits

        self._check_classes(evidence)
        bundles = [bundle for bundle in bundled(evidence.groups, scores) if _is_observed(bundle, evidence)]
        self.decisions = {}
        # The steps are many and small: more threads would wait for each other longer than they compute.
        with threadpool_limits(1):
            for bundle in bundles:
                self.decisions |= self._settle(bundle, evidence, target)
        gone = {}
        for bundle in bundles:
            for group in bundle:
                if group.name in self.decisions:
                    stays = np.zeros(group.size, dtype=np.bool_)
                    stays[self.decisions[group.name].kept] = True
                    if not stays.all():
                        gone[group.name] = torch.from_numpy(np.flatnonzero(~stays))
        return gone

    def foretell(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Each group at the width that the amount asks for; nothing where the knee decides.

        Raises:
            SelectionError: If a method needs BatchNorm scales and a group has none.
        """
        bundles = bundled(evidence.groups, scores)
        for group in flat(bundles):
            self._strength(group, evidence)
        if target.ratio is None:
            return {}
        widths = {group.name: target.keep(bundle[0], target.ratio) for bundle in bundles for group in bundle}
        return lowest(flat(bundles), scores, widths)

    def _settle(self, bundle: Bundle, evidence: Evidence, target: Target) -> dict[str, Decision]:
        """Decide about groups that must stay equally wide; nothing where they lose nothing."""
        by_knee = target.ratio is None
        width = bundle[0].size if target.ratio is None else target.keep(bundle[0], target.ratio)
        if not by_knee and width >= bundle[0].size:
            return {}
        # Ranks of |γ| need no clusters, unless to know how many stay.
        embedding = "none" if self.method == "gamma" and not by_knee else self.embedding
        surveys = [
            survey_channels(separability_of(group, evidence), embedding, self.seed, curve=by_knee) for group in bundle
        ]
        if by_knee:
            # Without a knee nothing says how many would do, and all stay.
            knees = [survey.knee or group.size for group, survey in zip(bundle, surveys, strict=True)]
            width = target.allowed(bundle[0], float(np.mean(knees)))
        return {
            group.name: decide(survey, width, self.method, self._strength(group, evidence), self.seed)
            for group, survey in zip(bundle, surveys, strict=True)
        }

    def _strength(self, group: ChannelGroup, evidence: Evidence) -> Matrix | None:
        if self.method == "medoid":
            return None
        if self.method == "max_weight":
            return weight_norms(group, evidence)
        scales = batch_norm_scales(group, evidence)
        if scales is None:
            raise SelectionError(
                f"method={self.method!r} goes by BatchNorm scales, but the channels of {group.name} pass through no "
                "BatchNorm. Use method='max_weight' or 'medoid', or leave the layer out by `exclude`."
            )
        return scales.numpy()

    @staticmethod
    def _check_classes(evidence: Evidence) -> None:
        moments = next(iter(evidence.moments.values()), None)
        if moments is None:
            raise SelectionError(
                "ClusterSelection goes by activations, but there are none: fill `Evidence.moments`, as ChannelPruning "
                "does from `calibration`."
            )
        seen = int((moments.count > 0).sum())
        if seen < 2:
            raise SelectionError(
                f"Objects of {seen} class were seen, but separability is between two. Calibrate on more batches, or "
                "use another selection for a data set of one class."
            )


def separability_of(group: ChannelGroup, evidence: Evidence) -> Matrix:
    """``(size, layers × pairs of classes)`` the distances of a group's channels in all layers that make them.

    Of more than 100 classes, those with the most objects are compared: a thousand would make half a million pairs.
    """
    columns = []
    for layer in group.layers:
        slot = output_slot(group, layer, evidence)
        if slot is None or layer not in evidence.moments:
            continue
        distances = jeffries_matusita(_most_frequent(evidence.moments[layer])).numpy()
        # Pairs of which a class was not seen are 0 for all: they tell nothing, and would only fill memory.
        distances = distances[:, (distances != 0).any(0)]
        members = group.members[slot]
        total = np.zeros((group.size, distances.shape[1]))
        np.add.at(total, members.channels, distances[members.indices])
        # A channel that takes up several places of a layer has the mean of what is seen there.
        places = np.bincount(members.channels, minlength=group.size)
        columns.append(total / np.maximum(places, 1)[:, None])
    return np.concatenate(columns, axis=1)


def _most_frequent(moments: Moments) -> Moments:
    if len(moments.count) <= _MOST_CLASSES:
        return moments
    # Of equally frequent ones the first, on every machine.
    classes = torch.argsort(moments.count, descending=True, stable=True)[:_MOST_CLASSES].sort().values
    return Moments(moments.count[classes], moments.mean[classes], moments.var[classes])


def weight_norms(group: ChannelGroup, evidence: Evidence) -> Matrix:
    """``(size,)`` L2 norm of the weights that make each channel, over all layers that do."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for layer in group.layers:
        slot, weight = output_slot(group, layer, evidence), evidence.parameters.get(f"{layer}.weight")
        if slot is not None and weight is not None:
            total += power_sums(group, slot, weight, p=2)
    return total.sqrt().numpy()


def output_slot(group: ChannelGroup, layer: str, evidence: Evidence) -> Slot | None:
    """The slot of ``layer``'s weight whose indices are the layer's output channels; ``None`` if not in the group."""
    module = evidence.modules.get(layer)
    transposed = isinstance(module, ConvTransposeNd) and module.groups == 1
    slot = (f"{layer}.weight", 1 if transposed else 0)
    return slot if slot in group.members else None


def _is_observed(bundle: Bundle, evidence: Evidence) -> bool:
    """Whether there are activations of all groups of a bundle; says so where there are none."""
    for group in bundle:
        if not any(layer in evidence.moments for layer in group.layers):
            warnings.warn(
                f"{group.name} stays as it is: no layer that makes its channels ({', '.join(group.layers)}) runs in "
                "eval mode, so there are no activations to go by.",
                stacklevel=3,
            )
            return False
    return True
