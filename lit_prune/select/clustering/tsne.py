"""t-SNE of some hundred points: scikit-learn's, with its exact gradient as matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lit_prune.select.clustering._compat import STEPS_TO_CHECK, OwnDescent

Array = npt.NDArray[np.float32]

# As in scikit-learn.
_EXPLORATION = 250
_LEAST = float(np.finfo(np.double).eps)


class DenseTSNE(OwnDescent):
    """scikit-learn's ``TSNE(method="exact")`` in the plane, with a gradient that takes no loop over points.

    Neighbourhoods, start and schedule are scikit-learn's own. Of its two gradients one visits a tree, which
    approximates, and one loops over points in Python; below a thousand points both are slower than all pairs at once.

    Args:
        perplexity: How many neighbours count.
        iterations: Steps of the gradient descent, more than 250.
        random_state: Seed; the start is that of PCA.

    Example:
        >>> points = np.random.default_rng(0).random((40, 10))
        >>> DenseTSNE(perplexity=10, random_state=0).fit_transform(points).shape
        (40, 2)

    References:
        van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008, equation 5.
    """

    def __init__(self, perplexity: float = 10.0, iterations: int = 1000, random_state: int | None = None) -> None:
        super().__init__(perplexity=perplexity, init="pca", random_state=random_state, method="exact")
        self.iterations = iterations

    def descend(self, target: npt.NDArray[Any], start: npt.NDArray[Any]) -> Array:
        """Move points (n, 2) from their start to where their neighbours are those of ``target``, (n, n)."""
        gradient = DenseGradient(target)
        points = start.astype(np.float32).ravel()
        # Twice, as scikit-learn does: first with like points drawn together, then as they are.
        last = self._descend(gradient, points, range(_EXPLORATION), 0.5, self.early_exaggeration, _EXPLORATION)
        rest = range(last + 1, self.iterations)
        self.n_iter_ = self._descend(gradient, points, rest, 0.8, 1.0, self.n_iter_without_progress)
        self.kl_divergence_ = gradient(points)[0]
        embedded: Array = points.reshape(start.shape)
        return embedded

    def _descend(
        self,
        gradient: DenseGradient,
        points: Array,
        steps: range,
        momentum: float,
        exaggeration: float,
        patience: int,
    ) -> int:
        """Move ``points`` down, each coordinate at a pace of its own; returns the last step that was made.

        References:
            Jacobs, "Increased rates of convergence through learning rate adaptation", Neural Networks 1, 1988.
        """
        update, pace = np.zeros_like(points), np.ones_like(points)
        best, best_step, step = np.inf, steps.start, steps.start
        for step in steps:
            check = (step + 1) % STEPS_TO_CHECK == 0
            error, slope = gradient(points, exaggeration, check)
            turned = update * slope >= 0
            pace = np.where(turned, pace * np.float32(0.8), pace + np.float32(0.2))
            np.maximum(pace, np.float32(0.01), out=pace)
            slope *= pace
            update *= momentum
            update -= slope * np.float32(self.learning_rate_)
            points += update
            if check:
                if error < best:
                    best, best_step = error, step
                elif step - best_step > patience:
                    break
                if np.linalg.norm(slope) <= self.min_grad_norm:
                    break
        return step


class DenseGradient:
    """The divergence of an embedding from its target, and its gradient; the room for its matrices is claimed once.

    Args:
        target: ``(n, n)`` joint probabilities P, symmetric, 0 on the diagonal, in sum 1.
    """

    def __init__(self, target: npt.NDArray[Any]) -> None:
        number = len(target)
        self._target = target.astype(np.float32)
        self._drawn, self._exaggeration = self._target, 1.0
        self._kernel = np.empty((number, number), np.float32)
        self._itself = self._kernel.reshape(-1)[:: number + 1]
        self._weights = np.empty_like(self._kernel)
        self._mean = np.full((1, number), 1 / number, np.float32)
        # 1 + |x - y|² of all pairs is one product of these.
        self._left = np.ones((number, 4), np.float32)
        self._right = np.ones((4, number), np.float32)
        self._points = np.ones((number, 3), np.float32)

    def __call__(self, flat: Array, exaggeration: float = 1.0, compute_error: bool = True) -> tuple[float, Array]:
        """Divergence (NaN unless asked for) and gradient ``(2n,)`` at points ``(2n,)``."""
        if exaggeration != self._exaggeration:
            self._drawn, self._exaggeration = self._target * np.float32(exaggeration), exaggeration
        points, given = self._points[:, :2], flat.reshape(-1, 2)
        # Distances do not change with the origin, but their rounding does.
        np.subtract(given, self._mean @ given, out=points)
        squares = np.einsum("ij,ij->i", points, points)
        np.multiply(points, -2, out=self._left[:, :2])
        np.add(squares, 1, out=self._left[:, 3])
        self._right[:2], self._right[2] = points.T, squares
        kernel = np.matmul(self._left, self._right, out=self._kernel)
        np.reciprocal(kernel, out=kernel)
        self._itself[:] = 0
        total = np.add.reduce(kernel, axis=None)
        error = self._divergence(total) if compute_error else np.nan
        # Each pair pulls by P and pushes by Q = kernel / total, both times the kernel.
        weights = np.multiply(kernel, -1 / total, out=self._weights)
        weights += self._drawn
        weights *= kernel
        sums = weights @ self._points
        forces = sums[:, 2:] * points
        forces -= sums[:, :2]
        forces *= 4
        return error, forces.ravel()

    def _divergence(self, total: float) -> float:
        present = self._target > 0
        wanted = self._drawn[present].astype(np.float64)
        found = np.maximum(self._kernel[present].astype(np.float64) / total, _LEAST)
        return float(wanted @ np.log(np.maximum(wanted, _LEAST) / found))
