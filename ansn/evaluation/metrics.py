"""Frechet distance in a named feature space; never called FID, which is Inception's at n = 50,000."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ansn.evaluation.features import Array, checked, checked_pair


def frechet_distance(a: Array, b: Array) -> float:
    r"""``||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)`` of two feature sets ``[n, p]`` (Dowson and
    Landau 1982): the squared 2-Wasserstein distance of Gaussians with their means and unbiased covariances.

    The rows' order, a common rotation and a common shift do not matter. It grows as n falls, about as 1/n, so compare
    numbers of the same n only. Raises ValueError for fewer than two rows, different p, or values that are not finite.
    """
    return frechet_to(b)(a)


def frechet_to(b: Array) -> Callable[[Array], float]:
    """:func:`frechet_distance` to one reference, whose moments are made once."""
    b = checked("b", b)
    mean_b, fb = b.mean(0), _factor(b)

    def distance(a: Array) -> float:
        a = checked_pair(a, b)
        mean, fa = a.mean(0) - mean_b, _factor(a)
        # With C = F^T F for each, the trace of the root is the sum of the singular values of F_a F_b^T: no covariance
        # is squared up and no root taken of one, so rounding stays at 1e-16 of the traces instead of its square root.
        cross = np.linalg.svd(fa @ fb.T, compute_uv=False).sum()
        return float(max(mean @ mean + np.vdot(fa, fa) + np.vdot(fb, fb) - 2.0 * cross, 0.0))

    return distance


def frechet_floor(train: Array, test: Array) -> float:
    """What perfect samples would score: distance of held-out real features ``[m, p]`` to the training ones ``[n, p]``.

    It belongs to m samples, and it holds what the features learned of the training rows by heart: more samples than m,
    and samples copied from those rows, can score below it.
    """
    return frechet_distance(test, train)


def _factor(features: Array) -> Array:
    """``F`` ``[min(n, p), p]`` with ``F^T F`` the unbiased covariance."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"), dtype=np.float64)
