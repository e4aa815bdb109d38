"""Which channels tell the same classes apart: embedding, k-medoids for every number of clusters, silhouette, knee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from lit_prune.common.arguments import check_choice
from lit_prune.errors import ArgumentError

Matrix: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]
Embedding = Literal["tsne", "pca", "none"]

_PERPLEXITY = 10.0
# Up to this many channels k-medoids is started afresh so often that the best of all clusterings is found.
_FEW = 32
_RESTARTS = 16
# Above this many channels more sweeps and starts cost more than they find.
_MANY = 128
# So many numbers of clusters are tried at most: all of them up to 256 channels.
_MOST_COUNTS = 254


@dataclass(frozen=True)
class Clustering:
    """Channels in k clusters, each around one of them.

    Attributes:
        medoids: ``(k,)`` channel in the middle of each cluster.
        labels: ``(C,)`` cluster of each channel: that of the nearest medoid.
        cost: Sum of the distances to the own medoid.
    """

    medoids: Indices
    labels: Indices
    cost: float


def embed(separability: Matrix, method: Embedding = "tsne", seed: int = 0) -> Matrix:
    """Place channels in the plane so that those that tell the same classes apart lie together.

    Args:
        separability: ``(C, P)``, a row of Jeffries–Matusita distances for each channel.
        method: ``"tsne"`` (perplexity 10, less below 31 channels; 1000 iterations), ``"pca"``, or ``"none"`` for the
            rows themselves.
        seed: Of t-SNE.

    Returns:
        ``(C, 2)``, or ``(C, P)`` for ``"none"``; the same bits for the same rows and seed.

    Raises:
        ArgumentError: If the method is unknown.

    Example:
        >>> rows = np.repeat([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0]], 20, axis=0)
        >>> embed(rows, "pca").shape
        (40, 2)
    """
    check_choice("embedding", method, get_args(Embedding))
    channels = len(separability)
    if method == "none":
        return separability
    if channels < 3 or not np.ptp(separability, axis=0).any():
        # Two points, or all in one place: there is nothing to unfold.
        return np.pad(separability, ((0, 0), (0, max(0, 2 - separability.shape[1]))))[:, :2]
    from sklearn.decomposition import PCA

    from lit_prune.select.clustering.tsne import DenseTSNE

    wide = np.pad(separability, ((0, 0), (0, max(0, 2 - separability.shape[1]))))
    if method == "pca" or channels < 4:
        points = PCA(2, svd_solver="full").fit_transform(wide)
    else:
        perplexity = min(_PERPLEXITY, (channels - 1) / 3)
        points = DenseTSNE(perplexity=perplexity, random_state=seed).fit_transform(wide)
    return np.asarray(points, dtype=np.float64)


def pairwise_distances(points: Matrix) -> Matrix:
    """Euclidean distances ``(C, C)`` of points ``(C, D)``."""
    from scipy.spatial.distance import pdist, squareform

    return np.asarray(squareform(pdist(points)), dtype=np.float64)


def cluster(distances: Matrix, k: int, seed: int = 0) -> Clustering:
    """k-medoids by FasterPAM: the cheapest of several starts.

    Args:
        distances: ``(C, C)``, symmetric.
        k: Number of clusters, from 1 to C.
        seed: Of the random starts.

    Raises:
        ArgumentError: If ``k`` is out of range.

    Example:
        >>> line = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
        >>> found = cluster(np.abs(line[:, None] - line), 2)
        >>> sorted(found.medoids.tolist()), found.cost
        ([1, 4], 4.0)

    References:
        Schubert and Rousseeuw, "Fast and Eager k-Medoids Clustering", Information Systems 101, 2021.
    """
    if not 1 <= k <= len(distances):
        raise ArgumentError(f"k must be from 1 to {len(distances)}, the number of channels, but got {k}.")
    if k == len(distances):
        return Clustering(np.arange(k), np.arange(k), 0.0)
    many = len(distances) > _MANY
    distances = distances.astype(np.float32)
    starts = [
        _fasterpam(distances, k, "random", seed + again) for again in range(_RESTARTS // 4 if many else _RESTARTS)
    ]
    # BUILD takes k passes over all distances, a random start a few.
    if not many:
        starts.append(_fasterpam(distances, k, "build", seed))
    return min(starts, key=lambda found: found.cost)


def cluster_all(distances: Matrix, seed: int = 0) -> list[Clustering]:
    """k-medoids for every k from 2 to C−1; each number starts from the medoids of its neighbours.

    Sweeps go up, adding the channel that saves most, and down, dropping the medoid that costs least; of all that they
    find, the cheapest clustering is taken. Few channels are started afresh as well; many are swept only upwards, which
    costs a thousandth more on average. Of more than 256 channels only every second k (or third, and so on) is tried,
    for the work grows with their cube; the knee is that of a parabola through all of them, which hardly moves.

    Args:
        distances: ``(C, C)``, symmetric.
        seed: Of the random starts.
    """
    number = len(distances)
    if number < 3:
        return []
    step = -(-(number - 2) // _MOST_COUNTS)
    distances = distances.astype(np.float32)
    sweep = _Sweep(distances, step)
    found = [_fasterpam(distances, 2, "build", seed)]
    for _ in range(2 + step, number, step):
        found.append(sweep.more(found[-1]))
    if number <= _MANY:
        last = len(found) - 1
        down = found[last]
        for index in reversed(range(last)):
            down = sweep.less(down)
            found[index] = _cheaper(found[index], down)
        for index in range(1, last):
            found[index] = _cheaper(found[index], sweep.more(found[index - 1]))
        for index in reversed(range(last)):
            found[index] = _cheaper(found[index], sweep.less(found[index + 1]))
    if number <= _FEW:
        found = [_cheaper(known, cluster(distances, len(known.medoids), seed)) for known in found]
    return found


def simplified_silhouettes(distances: Matrix, clusterings: Sequence[Clustering]) -> Matrix:
    """The mean simplified silhouette of each clustering.

    For a channel, a is the distance to its own medoid and b the mean distance to the other medoids; the mean of
    (b − a) / max(a, b) is taken over channels with a ≠ 0. From the first clustering on that has none, all are 1.

    Args:
        distances: ``(C, C)``.
        clusterings: With at least two clusters each, in the order of their number.

    Returns:
        ``(len(clusterings),)`` in [-1, 1].

    References:
        Hruschka, de Castro and Campello, "Evolutionary algorithms for clustering gene-expression data", ICDM 2004,
        section 3; with the mean over the other medoids.
    """
    if not clusterings:
        return np.empty(0)
    number, tried = len(distances), len(clusterings)
    chosen = np.zeros((tried, number))
    own = np.empty((tried, number), dtype=np.int64)
    for row, clustering in enumerate(clusterings):
        chosen[row, clustering.medoids] = 1
        own[row] = clustering.medoids[clustering.labels]
    a = distances[np.arange(number), own]
    # The sum over all medoids, for all clusterings at once, is one product.
    b = (chosen @ distances - a) / (chosen.sum(1, keepdims=True) - 1)
    counted = a != 0
    scale = np.where(counted, np.maximum(a, b), 1.0)
    totals = np.where(counted, (b - a) / scale, 0.0).sum(1)
    means = totals / np.maximum(counted.sum(1), 1)
    settled = np.flatnonzero(~counted.any(1))
    if len(settled):
        means[settled[0] :] = 1.0
    return np.asarray(means, dtype=np.float64)


def find_knee(counts: Indices, silhouettes: Matrix) -> int | None:
    """The number of clusters from which on more of them hardly help (Kneedle, on a fitted parabola).

    Args:
        counts: ``(n,)`` numbers of clusters, rising.
        silhouettes: ``(n,)``.

    Returns:
        One of ``counts``, or ``None`` where the curve has no knee.

    References:
        Satopää et al., "Finding a 'Kneedle' in a Haystack", ICDCS Workshops 2011.
    """
    if len(counts) < 4 or not np.ptp(silhouettes):
        return None
    from kneed import KneeLocator

    located = KneeLocator(
        counts,
        silhouettes,
        curve="concave",
        direction="increasing",
        interp_method="polynomial",
        polynomial_degree=2,
    )
    # On a curve that never bends this way, Kneedle answers with its beginning.
    return None if located.knee is None or located.knee == counts[0] else int(located.knee)


class _Sweep:
    """Neighbouring numbers of clusters from each other; the room for its matrices is claimed once."""

    def __init__(self, distances: Matrix, step: int) -> None:
        self._distances = distances
        self._step = step
        self._rows = np.arange(len(distances))
        self._scratch = np.empty_like(distances)

    def more(self, known: Clustering) -> Clustering:
        """Start from the medoids of ``known`` and the channels that lower the cost most."""
        nearest = self._distances[self._rows, known.medoids[known.labels]]
        left = np.minimum(self._distances, nearest[:, None], out=self._scratch).sum(0)
        # A medoid lowers nothing; but where all channels are in one place, nothing else does either.
        left[known.medoids] = np.inf
        added = np.argsort(left, kind="stable")[: self._step]
        return _fasterpam(self._distances, np.append(known.medoids, added))

    def less(self, known: Clustering) -> Clustering:
        """Start from the medoids of ``known`` without those that are missed least."""
        k = len(known.medoids)
        nearest = self._distances[self._rows, known.medoids[known.labels]]
        others = np.take(self._distances, known.medoids, axis=0, out=self._scratch[:k])
        others[known.labels, self._rows] = np.inf
        missed = np.bincount(known.labels, others.min(0) - nearest, minlength=k)
        dropped = np.argsort(missed, kind="stable")[: self._step]
        return _fasterpam(self._distances, np.delete(known.medoids, dropped))


def _cheaper(first: Clustering, second: Clustering) -> Clustering:
    return second if second.cost < first.cost else first


def _fasterpam(distances: Matrix, start: int | Indices, init: str = "", seed: int | None = None) -> Clustering:
    import kmedoids

    # On one thread: several make the order of the swaps, and so the result, depend on chance.
    found = kmedoids.fasterpam(distances, start, init=init, random_state=seed, n_cpu=1)
    medoids = np.asarray(found.medoids, dtype=np.int64)
    labels = np.asarray(found.labels, dtype=np.int64)
    missing = (start if isinstance(start, int) else len(start)) - len(medoids)
    if missing:
        # With fewer places than clusters BUILD ends early; the rest are copies, and any of them will do.
        spare = np.setdiff1d(np.arange(len(distances)), medoids)[:missing]
        medoids = np.concatenate([medoids, spare])
    # Of channels in one place, each medoid is its own: no cluster is empty.
    labels[medoids] = np.arange(len(medoids))
    return Clustering(medoids, labels, float(found.loss))
