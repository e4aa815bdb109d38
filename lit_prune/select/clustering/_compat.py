"""What is private in scikit-learn, and used nevertheless, as in `lit_prune.common._compat`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy.typing as npt
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE

# How often scikit-learn looks whether it is done: without the same number the steps would not be the same.
STEPS_TO_CHECK: int = TSNE._N_ITER_CHECK


class OwnDescent(TSNE):  # type: ignore[misc]
    """scikit-learn's ``TSNE`` with a gradient descent of one's own, for which it has no place.

    All that comes before, neighbourhoods and start, remains scikit-learn's.
    """

    @abstractmethod
    def descend(self, target: npt.NDArray[Any], start: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Move points (n, 2) from their start to where their neighbours are those of ``target``, (n, n)."""

    def _tsne(
        self, P: npt.NDArray[Any], degrees_of_freedom: float, n_samples: int, X_embedded: npt.NDArray[Any], **_: Any
    ) -> npt.NDArray[Any]:
        return self.descend(squareform(P), X_embedded)
