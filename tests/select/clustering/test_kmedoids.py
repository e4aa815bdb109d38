import itertools
import warnings

import kmedoids
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances as sklearn_distances

from lit_prune.select.clustering.kmedoids import (
    Clustering,
    cluster,
    cluster_all,
    embed,
    find_knee,
    pairwise_distances,
    simplified_silhouettes,
)
from lit_prune.select.clustering.tsne import DenseTSNE


def separabilities(channels, pairs=45, kinds=6, seed=0):
    rng = np.random.default_rng(seed)
    middles = rng.random((kinds, pairs)) ** 3 * 2
    return np.clip(middles[rng.integers(kinds, size=channels)] + rng.normal(0, 0.1, (channels, pairs)), 0, 2)


def points(channels, dims=2, seed=0):
    return np.random.default_rng(seed).normal(size=(channels, dims)) ** 3


@pytest.mark.parametrize(("channels", "perplexity"), [(16, 5), (31, 10), (40, 10)])
def test_tsne_of_few_channels_has_a_lower_perplexity(channels, perplexity):
    rows = separabilities(channels)
    expected = DenseTSNE(perplexity=perplexity, random_state=3).fit_transform(rows)
    np.testing.assert_array_equal(embed(rows, "tsne", seed=3), expected)
    np.testing.assert_array_equal(embed(rows, "tsne", seed=3), embed(rows.copy(), "tsne", seed=3))


def test_pca_and_none():
    rows = separabilities(20)
    np.testing.assert_allclose(np.abs(embed(rows, "pca")), np.abs(PCA(2).fit_transform(rows)), atol=1e-9)
    assert embed(rows, "none") is rows


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize(
    "rows",
    [
        np.full((12, 6), 0.5),
        np.zeros((12, 0)),
        np.random.default_rng(0).random((12, 1)),
        np.random.default_rng(0).random((3, 6)),
        np.random.default_rng(0).random((2, 6)),
        np.repeat(np.random.default_rng(0).random((2, 6)), 8, axis=0),
    ],
)
def test_degenerate_layers_can_be_embedded(method, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = embed(rows, method)
    assert found.shape == (len(rows), 2)
    assert np.isfinite(found).all()


def test_unknown_embedding():
    with pytest.raises(ValueError, match="embedding must be one of 'tsne', 'pca', 'none', but got 'umap'"):
        embed(separabilities(5), "umap")


def test_distances():
    x = points(30, 4)
    np.testing.assert_allclose(pairwise_distances(x), sklearn_distances(x), atol=1e-7)
    assert not np.diag(pairwise_distances(x)).any()


def brute_force(distances, k):
    return min(distances[list(chosen)].min(0).sum() for chosen in itertools.combinations(range(len(distances)), k))


@pytest.mark.parametrize("seed", range(12))
def test_cost_is_that_of_the_best_medoids_there_are(seed):
    distances = pairwise_distances(points(6 + seed % 6, 1 + seed % 4, seed))
    everywhere = cluster_all(distances)
    assert len(everywhere) == len(distances) - 2
    for k, found in enumerate(everywhere, 2):
        best = brute_force(distances, k)
        assert found.cost <= best * 1.01 + 1e-12
        assert cluster(distances, k).cost <= best * 1.01 + 1e-12


@pytest.mark.parametrize("channels", [48, 96, 128])
def test_cost_is_that_of_the_best_of_many_starts(channels):
    distances = pairwise_distances(points(channels, 2, channels))
    everywhere = cluster_all(distances)
    for k in range(2, channels, 7):
        best = min(kmedoids.fasterpam(distances, k, random_state=seed, n_cpu=1).loss for seed in range(20))
        assert everywhere[k - 2].cost <= best * 1.01
        assert cluster(distances, k).cost <= best * 1.01


@pytest.mark.parametrize("copies", [1, 3])
def test_clusterings_are_what_they_say(copies):
    x = np.repeat(points(30 // copies, 2), copies, axis=0)
    distances = pairwise_distances(x)
    everywhere = cluster_all(distances)
    alone = [cluster(distances, k) for k in range(2, len(x))]
    for k, found in [*enumerate(everywhere, 2), *enumerate(alone, 2)]:
        assert len(np.unique(found.medoids)) == k
        assert np.array_equal(np.unique(found.labels), np.arange(k))
        own = distances[np.arange(len(x)), found.medoids[found.labels]]
        np.testing.assert_allclose(own, distances[:, found.medoids].min(1))
        assert found.cost == pytest.approx(own.sum())
    assert len(np.unique(cluster(np.zeros((5, 5)), 3).medoids)) == 3


@pytest.mark.parametrize("channels", [60, 61, 62])
def test_of_many_channels_some_numbers_are_left_out(channels, monkeypatch):
    monkeypatch.setattr("lit_prune.select.clustering.kmedoids._MOST_COUNTS", 20)
    distances = pairwise_distances(points(channels))
    found = cluster_all(distances)
    assert [len(clustering.medoids) for clustering in found] == list(range(2, channels, 3))
    best = [cluster(distances, len(clustering.medoids)).cost for clustering in found]
    assert sum(clustering.cost for clustering in found) <= sum(best) * 1.01


def test_many_channels_are_clustered_well_on_average():
    distances = pairwise_distances(points(150))
    found = cluster_all(distances)[::10]
    best = [cluster(distances, len(clustering.medoids)).cost for clustering in found]
    assert sum(clustering.cost for clustering in found) <= sum(best) * 1.01


def test_the_same_seed_gives_the_same_clusters():
    distances = pairwise_distances(points(60))
    for first, second in zip(cluster_all(distances, 5), cluster_all(distances.copy(), 5), strict=True):
        assert np.array_equal(first.medoids, second.medoids)
        assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(cluster(distances, 9, 5).medoids, cluster(distances, 9, 5).medoids)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_every_number_of_clusters(k):
    found = cluster(pairwise_distances(points(6)), k)
    assert len(found.medoids) == k
    with pytest.raises(ValueError, match="k must be from 1 to 6"):
        cluster(pairwise_distances(points(6)), 7)


def silhouette_by_hand(distances, clustering):
    """Point by point; None where every point is a medoid."""
    values = []
    for point in range(len(distances)):
        own = clustering.medoids[clustering.labels[point]]
        a = distances[point, own]
        others = [distances[point, medoid] for medoid in clustering.medoids if medoid != own]
        b = sum(others) / len(others)
        if a != 0:
            values.append((b - a) / max(a, b))
    return sum(values) / len(values) if values else None


@pytest.mark.parametrize("copies", [1, 4])
def test_silhouettes_equal_the_formula(copies):
    distances = pairwise_distances(np.repeat(points(10, 3), copies, axis=0))
    clusterings = cluster_all(distances)
    expected = []
    for clustering in clusterings:
        value = 1.0 if expected and expected[-1] == 1.0 else silhouette_by_hand(distances, clustering)
        expected.append(1.0 if value is None else value)
    np.testing.assert_allclose(simplified_silhouettes(distances, clusterings), expected, atol=1e-12)
    if copies > 1:
        assert expected[-1] == 1.0


def test_silhouette_of_two_clusters_is_scikit_learns_with_centres():
    # Where every point's own cluster is its medoid's copies and the other medoid stands alone, both definitions agree.
    line = np.array([0.0, 1.0, 10.0, 11.0])
    distances = np.abs(line[:, None] - line)
    clustering = Clustering(np.array([0, 2]), np.array([0, 0, 1, 1]), 2.0)
    assert simplified_silhouettes(distances, [clustering])[0] == pytest.approx(((9 - 1) / 9 + (11 - 1) / 11) / 2)
    assert simplified_silhouettes(distances, []).shape == (0,)


def test_knee():
    counts = np.arange(2, 40)
    curve = 1 - np.exp(-(counts - 2) / 6)
    knee = find_knee(counts, curve)
    # The parabola that fits is steepest against its chord in the middle of its rise.
    fitted = np.polyval(np.polyfit(counts, curve, 2), counts)
    normed = (fitted - fitted.min()) / np.ptp(fitted) - (counts - 2) / 37
    assert knee == counts[normed.argmax()]


@pytest.mark.parametrize(
    "curve",
    [np.ones(20), np.linspace(0, 1, 20) ** 2, np.array([0.2, 0.5, 0.6]), np.array([0.3])],
)
def test_no_knee(curve):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_knee(np.arange(2, 2 + len(curve)), curve) is None
