"""Frechet distance in a named feature space; never called FID, which is Inception's at n = 50,000."""

from __future__ import annotations

import numpy as np

from ansn.evaluation.features import Array, checked, checked_pair, middle, parted
from ansn.evaluation.resampling import Parts, Statistic, of_all


def frechet_distance(a: Array, b: Array) -> float:
    r"""``||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)`` of two feature sets ``[n, p]`` (Dowson and
    Landau 1982): the squared 2-Wasserstein distance of Gaussians with their means and unbiased covariances.

    The rows' order, a common rotation and a common shift do not matter. It grows as n falls, about as 1/n, so compare
    numbers of the same n only. Raises ValueError for fewer than two rows, different p, or values that are not finite.
    """
    return float(of_all(frechet_to(b), a)[0])


def frechet_to(b: Array) -> Statistic:
    """:func:`frechet_distance` to one reference, whose moments are made once."""
    b = checked("b", b)
    origin = middle(b)
    mean_b, fb = _moments(b, origin)

    def distance(a: Array, parts: Parts) -> Array:
        a, found = checked_pair(a, b), []
        for part in parts:
            if part.all() or part.sum() < 2 * a.shape[1]:
                mean, fa = _moments(a[part], origin)
                spread = np.vdot(fa, fa)
                # With C = F^T F for each, the trace of the root is the sum of the singular values of F_a F_b^T: no
                # covariance is squared up and no root taken of one, so rounding stays at 1e-16 of the traces instead of
                # its square root.
                cross = np.linalg.svd(fa @ fb.T, compute_uv=False)
            else:  # In an error of a few percent the root of rounding is no matter, and it takes a third of the time.
                rows = a[part] - origin
                mean = rows.mean(0)
                rows -= mean
                covariance = rows.T @ rows / (len(rows) - 1)
                spread = np.trace(covariance)
                cross = np.sqrt(np.linalg.eigvalsh(fb @ covariance @ fb.T).clip(0.0))
            shift = mean - mean_b
            found.append(max(shift @ shift + spread + np.vdot(fb, fb) - 2.0 * cross.sum(), 0.0))
        return np.array(found)[:, None]

    return distance


def frechet_floor(train: Array, test: Array) -> float:
    """What perfect samples would score: distance of held-out real features ``[m, p]`` to the training ones ``[n, p]``.

    It belongs to m samples, and it holds what the features learned of the training rows by heart: more samples than m,
    and samples copied from those rows, can score below it.
    """
    return frechet_distance(test, train)


def _moments(rows: Array, origin: Array) -> tuple[Array, Array]:
    """Mean ``[p]`` less ``origin``, and ``F`` ``[min(n, p), p]`` with ``F^T F`` the unbiased covariance."""
    mean, factor = np.zeros(rows.shape[1]), np.empty((0, rows.shape[1]))
    for _, block in parted(rows, 8192, origin):
        mean += block.sum(0) / len(rows)
    for _, block in parted(rows, 8192, origin):
        factor = np.asarray(np.linalg.qr(np.concatenate((factor, block - mean)), mode="r"))
    return mean, factor / np.sqrt(len(rows) - 1)
