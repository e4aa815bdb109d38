import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import TSNE, trustworthiness
from sklearn.manifold._t_sne import _gradient_descent, _joint_probabilities, _kl_divergence

from lit_prune.select.clustering.tsne import DenseGradient, DenseTSNE


def rows(channels, kinds=8, seed=0):
    rng = np.random.default_rng(seed)
    middles = rng.random((kinds, 45)) * 2
    return np.clip(middles[rng.integers(kinds, size=channels)] + rng.normal(0, 0.15, (channels, 45)), 0, 2)


@pytest.mark.parametrize("extent", [1e-4, 1.0, 60.0])
@pytest.mark.parametrize("exaggeration", [1.0, 12.0])
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_gradient_is_scikit_learns_exact_one(extent, exaggeration, offset):
    channels = 70
    target = _joint_probabilities(squareform(pdist(rows(channels), "sqeuclidean")), 10.0, 0)
    points = np.random.default_rng(1).normal(size=2 * channels) * extent
    # Two channels in one place.
    points[2:4] = points[:2]
    expected_error, expected = _kl_divergence(points.copy(), target * exaggeration, 1, channels, 2)
    error, found = DenseGradient(squareform(target))((points + offset * extent).astype(np.float32), exaggeration)
    assert error == pytest.approx(expected_error, rel=1e-3)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_divergence_is_only_computed_when_asked_for():
    target = np.full((5, 5), 1 / 20) - np.eye(5) / 20
    assert np.isnan(DenseGradient(target)(np.arange(10, dtype=np.float32), compute_error=False)[0])


def test_steps_are_scikit_learns():
    target = _joint_probabilities(squareform(pdist(rows(60), "sqeuclidean")), 10.0, 0)
    start = np.random.default_rng(0).normal(size=120)
    options = {"momentum": 0.5, "learning_rate": 50.0}
    expected, _, last = _gradient_descent(_kl_divergence, start, 0, 15, args=[target, 1, 60, 2], **options)
    ours, found = DenseTSNE(), start.astype(np.float32)
    ours.learning_rate_ = 50.0
    assert ours._descend(DenseGradient(squareform(target)), found, range(15), 0.5, 1.0, patience=300) == last
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_embedding_is_as_good_as_scikit_learns():
    data = rows(128)
    ours, theirs = DenseTSNE(random_state=0), TSNE(perplexity=10, init="pca", random_state=0)
    found, expected = ours.fit_transform(data), theirs.fit_transform(data)
    # Rounding decides which of many equally good images comes out: the measures of both agree, their points do not.
    assert ours.kl_divergence_ < theirs.kl_divergence_ * 1.2
    assert 900 < ours.n_iter_ < 1000
    assert trustworthiness(data, found) > trustworthiness(data, expected) - 0.01


def test_same_bits_every_time():
    data = rows(100)
    first, second = (DenseTSNE(random_state=3).fit_transform(data) for _ in range(2))
    np.testing.assert_array_equal(first, second)
