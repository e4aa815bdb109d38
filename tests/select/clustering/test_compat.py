"""Whether what is private in scikit-learn is there, and still means what it meant."""

import numpy as np
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE
from sklearn.manifold._t_sne import _joint_probabilities

from lit_prune.select.clustering._compat import STEPS_TO_CHECK, OwnDescent


def test_all_but_the_descent_is_scikit_learns():
    given = {}

    class Start(OwnDescent):
        def descend(self, target, start):
            given.update(target=target, start=start)
            return start + 1

    points = np.random.default_rng(0).random((30, 5))
    distances = squareform(np.square(points[:, None] - points).sum(2)[np.triu_indices(30, 1)])
    found = Start(perplexity=5.0, init="pca", method="exact", random_state=0).fit_transform(points)
    assert given["start"].shape == (30, 2)
    np.testing.assert_array_equal(found, given["start"] + 1)
    expected = squareform(_joint_probabilities(distances, 5.0, 0))
    np.testing.assert_allclose(given["target"], expected, rtol=1e-5, atol=1e-12)
    # Its own descent starts there.
    assert TSNE(perplexity=5.0, init="pca", method="exact", random_state=0).fit_transform(points).shape == found.shape


def test_steps_between_checks():
    assert STEPS_TO_CHECK == 50
