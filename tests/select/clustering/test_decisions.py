import numpy as np
import pytest

from lit_prune.select.clustering.decisions import decide, representatives, survey_channels
from lit_prune.select.clustering.kmedoids import cluster


def rows(channels=40, kinds=5, seed=0):
    rng = np.random.default_rng(seed)
    middles = rng.random((kinds, 10)) * 2
    return np.clip(middles[np.arange(channels) % kinds] + rng.normal(0, 0.02, (channels, 10)), 0, 2)


STRENGTH = np.random.default_rng(1).random(40)


@pytest.mark.parametrize("method", ["max_weight", "max_gamma"])
@pytest.mark.parametrize("embedding", ["tsne", "pca", "none"])
def test_the_strongest_of_each_kind_stays(method, embedding):
    decision = decide(survey_channels(rows(), embedding, curve=False), 5, method, STRENGTH)
    expected = sorted(max(range(kind, 40, 5), key=lambda channel: STRENGTH[channel]) for kind in range(5))
    assert decision.kept.tolist() == expected


def test_the_middle_of_each_cluster_stays():
    survey = survey_channels(rows(), "pca", curve=False)
    decision = decide(survey, 7, "medoid")
    assert decision.kept.tolist() == sorted(cluster(survey.distances, 7).medoids)


def test_the_strongest_of_all_stay():
    decision = decide(survey_channels(rows(), "none", curve=False), 12, "gamma", STRENGTH)
    assert decision.kept.tolist() == sorted(np.argsort(-STRENGTH)[:12])
    assert decision.clustering is None


def test_of_equal_strengths_the_first_stays():
    clustering = cluster(survey_channels(rows(), "none", curve=False).distances, 5)
    assert representatives(clustering, "max_weight", np.ones(40)).tolist() == [0, 1, 2, 3, 4]


def test_the_knee_decides():
    survey = survey_channels(rows(), "pca")
    assert survey.knee is not None
    decision = decide(survey, None, "max_weight", STRENGTH)
    assert len(decision.kept) == survey.knee
    assert decision.clustering.cost <= survey.clusterings[survey.knee - 2].cost
    assert survey.counts.tolist() == list(range(2, 40))


@pytest.mark.parametrize("channels", [60, 140])
def test_clusters_are_never_worse_than_the_curves_nor_than_fresh_ones(channels):
    survey = survey_channels(rows(channels, kinds=20), "pca")
    for clustering in survey.clusterings[:: channels // 12]:
        k = len(clustering.medoids)
        decided = decide(survey, k, "medoid").clustering
        assert decided.cost <= min(clustering.cost, cluster(survey.distances, k).cost)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_without_a_knee_all_stay(channels):
    survey = survey_channels(rows(channels), "tsne")
    assert survey.knee is None
    assert decide(survey, None, "max_weight", STRENGTH[:channels]).kept.tolist() == list(range(channels))


@pytest.mark.parametrize("keep", [1, 2, 39, 40])
@pytest.mark.parametrize("curve", [False, True])
def test_every_number_can_be_kept(keep, curve):
    decision = decide(survey_channels(rows(), "pca", curve=curve), keep, "max_weight", STRENGTH)
    assert len(np.unique(decision.kept)) == keep


def test_noise_in_the_last_digits_does_not_tip_it():
    exact = rows(64, kinds=20)
    noisy = exact + np.random.default_rng(0).normal(0, 1e-13, exact.shape)
    first = survey_channels(exact, "tsne")
    second = survey_channels(noisy, "tsne")
    assert np.array_equal(first.points, second.points)
    assert first.knee == second.knee


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0, "method": "medoid"}, "keep must be from 1 to 40"),
        ({"keep": 41, "method": "medoid"}, "keep must be from 1 to 40"),
        ({"method": "max"}, "method must be one of"),
        ({"method": "max_weight"}, "needs a strength for each of the 40 channels"),
        ({"method": "gamma", "strength": np.ones(3)}, "needs a strength for each of the 40 channels"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        decide(survey_channels(rows(), "none", curve=False), **options)
