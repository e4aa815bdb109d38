"""Which channels of a layer stay: what was found out about all of them, and the decision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from lit_prune.common.arguments import check_choice
from lit_prune.errors import ArgumentError
from lit_prune.select.clustering.kmedoids import (
    Clustering,
    Embedding,
    Indices,
    Matrix,
    cluster,
    cluster_all,
    embed,
    find_knee,
    pairwise_distances,
    simplified_silhouettes,
)

Method = Literal["max_weight", "medoid", "max_gamma", "gamma"]


@dataclass(frozen=True)
class Survey:
    """A layer's channels as points, and how well they fall into each number of clusters.

    Attributes:
        points: ``(C, D)`` the channels, embedded, or their separabilities.
        distances: ``(C, C)`` between these points.
        clusterings: In the order of their number of clusters; empty where no curve was asked for.
        silhouettes: ``(len(clusterings),)`` mean simplified silhouette of each.
        knee: Number of clusters at that curve's knee; ``None`` where there is none.
    """

    points: Matrix
    distances: Matrix
    clusterings: tuple[Clustering, ...] = ()
    silhouettes: Matrix = field(default_factory=lambda: np.empty(0))
    knee: int | None = None

    @property
    def counts(self) -> Indices:
        """``(len(clusterings),)`` the numbers of clusters."""
        return np.array([len(clustering.medoids) for clustering in self.clusterings], dtype=np.int64)


@dataclass(frozen=True)
class Decision:
    """What was decided about a layer's channels, and what it rests on.

    Attributes:
        kept: Channels that stay, rising.
        survey: Where all channels lie.
        clustering: The clusters that ``kept`` stands for; ``None`` where the method does without.
    """

    kept: Indices
    survey: Survey
    clustering: Clustering | None = None


def survey_channels(separability: Matrix, embedding: Embedding = "tsne", seed: int = 0, curve: bool = True) -> Survey:
    """Embed the channels of a layer and, for the knee, cluster them into every number of clusters.

    Args:
        separability: ``(C, P)`` Jeffries–Matusita distances of each channel.
        embedding: As for :func:`lit_prune.select.clustering.kmedoids.embed`.
        seed: Of the embedding and of k-medoids.
        curve: Whether a knee is looked for; without it nothing is clustered here.

    Raises:
        ArgumentError: If the embedding is unknown.
    """
    # In the last digits the order shows in which batches and ranks were summed up; that must not tip a decision.
    points = embed(np.round(separability, 6), embedding, seed)
    distances = pairwise_distances(points)
    if not curve:
        return Survey(points, distances)
    clusterings = tuple(cluster_all(distances, seed))
    curved = Survey(points, distances, clusterings, simplified_silhouettes(distances, clusterings))
    return replace(curved, knee=find_knee(curved.counts, curved.silhouettes))


def decide(
    survey: Survey,
    keep: int | None = None,
    method: Method = "max_weight",
    strength: Matrix | None = None,
    seed: int = 0,
) -> Decision:
    """Choose the channels of one layer to keep.

    Args:
        survey: Of its C channels.
        keep: How many stay, from 1 to C; ``None`` is the survey's knee, and all where it has none.
        method: Which channel of a cluster stays: ``"max_weight"`` and ``"max_gamma"`` the one of the greatest
            strength, ``"medoid"`` the one in the middle. ``"gamma"`` keeps the strongest channels, without clusters.
        strength: ``(C,)``, for all methods but ``"medoid"``.
        seed: Of k-medoids.

    Raises:
        ArgumentError: If ``keep`` is out of range, the method is unknown, or its strength is missing.

    Example:
        >>> rows = np.repeat([[0.0, 2.0], [2.0, 0.0]], 8, axis=0)
        >>> decide(survey_channels(rows, "none"), keep=2, method="medoid").kept.tolist()
        [0, 8]
    """
    channels = len(survey.points)
    check_choice("method", method, get_args(Method))
    if keep is not None and not 1 <= keep <= channels:
        raise ArgumentError(f"keep must be from 1 to {channels}, the number of channels, but got {keep}.")
    if method != "medoid" and (strength is None or len(strength) != channels):
        raise ArgumentError(f"method={method!r} needs a strength for each of the {channels} channels.")
    if keep is None:
        keep = survey.knee or channels
    if method == "gamma" and strength is not None:
        return Decision(np.sort(np.argsort(-strength, kind="stable")[:keep]), survey)
    # The curve need only be right on average; what is decided by rests on fresh starts as well.
    known = [clustering for clustering in survey.clusterings if len(clustering.medoids) == keep]
    clustering = min([*known, cluster(survey.distances, keep, seed)], key=lambda found: found.cost)
    return Decision(representatives(clustering, method, strength), survey, clustering)


def representatives(clustering: Clustering, method: Method, strength: Matrix | None = None) -> Indices:
    """One channel of each cluster: its medoid, or the one with the greatest strength.

    Args:
        clustering: The clusters.
        method: ``"medoid"``; ``"max_weight"`` and ``"max_gamma"`` take the greatest strength.
        strength: ``(C,)`` norm of the weights, or size of the BatchNorm's scale; of equal ones the first is taken.

    Returns:
        ``(k,)`` channels, rising.

    Raises:
        ArgumentError: If the method takes no clusters, or lacks its strength.
    """
    if method == "medoid":
        return np.sort(clustering.medoids)
    if method not in {"max_weight", "max_gamma"} or strength is None:
        raise ArgumentError(f"method={method!r} does not choose from clusters by strength.")
    # By cluster, then by falling strength: the first of each cluster is the one to keep.
    order = np.lexsort((-strength, clustering.labels))
    _, first = np.unique(clustering.labels[order], return_index=True)
    return np.sort(order[first])
