"""Missing numbers given the known ones, each row with a mask of its own: :func:`impute`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ansn import levels, ops
from ansn.denoiser import Denoiser, resting, unwrapped
from ansn.errors import whole
from ansn.sampling.common import label_rows
from ansn.sampling.driver import sample
from ansn.sampling.inverse import COVARIANCES, Posterior, Replacement
from ansn.sampling.operators import Mask

IMPUTATIONS = ("particles", *COVARIANCES, "replacement")

_FEW = 2000  # vectors that a network learns by heart
_LARGEST = 256  # dimensions up to which particles are the default: their systems are dense
_NUMBERS = 2**23  # float64 numbers of a batch's systems, 64 MiB


@torch.no_grad()
def impute(
    model: Denoiser,
    x: Tensor,
    draws: int = 1,
    *,
    method: str | None = None,
    y: int | Tensor | None = None,
    particles: int = 16,
    steps: int = 40,
    seed: int = 0,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    r"""Draws of the missing numbers of each row given its known ones; the known ones come back as they are.

    ``"particles"`` is sequential Monte Carlo with twisted weights (Wu et al. 2023): each row has P particles that
    go down the levels by ancestral steps about ``E[x | x~, known]``, where ``p(x | x~)`` is taken for the mixture of
    Gaussians that the noise model knows (one Gaussian where it knows none), moved to the network's mean. Weights make
    up for what is wrong in that, ``p(known | x~)`` times ``p(step) / q(step)``; particles are resampled where their
    effective number is below P / 2. As P grows the draws are those of the model's own conditional.

    The other methods are the posteriors of :mod:`ansn.sampling.inverse`, which have no such weights: ``"adapted"``,
    ``"jacobian"`` (MMPS), ``"isotropic"`` (PiGDM's V) and ``"replacement"``. Where the missing number has several
    likely values they get their shares wrong, which ``tests/sampling/test_impute.py`` shows on 8 Gaussians.
    A model that has learned a few rows by heart has a conditional that is too narrow, and particles follow it;
    ``"jacobian"`` now and then ends far away.

    Args:
        model: the denoiser, as it is or wrapped for training.
        x: float ``[N, *shape]``, the model's units, NaN where a number is missing.
        draws: of each row.
        method: a name in :data:`IMPUTATIONS`; where noise has no regions ``"adapted"`` by default for vectors
            of which fewer than 2,000 were learned from, else ``"particles"`` up to 256 dimensions; else ``"jacobian"``.
        y: labels, a number or int64 ``[N]``, of a class-conditional network.
        particles: P of a row; at least ``4 draws`` are taken.
        steps: levels.
        seed: draws are functions of it and of the row's place among those with holes.
        batch_size: particles, or samples, at a time; by default 4096, above 256 dimensions 256.
        options: for the other methods, to :func:`ansn.sample`; ``sampler`` is its ``method``.

    Returns float32 ``[draws, N, *shape]`` on the CPU. Raises TypeError or ValueError naming the argument.
    """
    model, draws, particles = unwrapped(model), whole("draws", draws, 1), whole("particles", particles, 2)
    seed, steps, covariance = whole("seed", seed, 0), whole("steps", steps, 1), model.noise.covariance
    usual = 4096 if covariance.dim <= _LARGEST else 256
    batch_size = usual if batch_size is None else whole("batch_size", batch_size, 1)
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, expected floats with NaN where a number is missing")
    if tuple(x.shape[1:]) != covariance.shape or x.ndim < 2 or bool(x.isinf().any()):
        told = f"{list(x.shape)}" + (" with infinite numbers" if bool(x.isinf().any()) else "")
        raise ValueError(f"x: got {told}, expected finite [N, {', '.join(map(str, covariance.shape))}] or NaN")
    free = covariance.regions == 1
    if method is None:
        few = free and len(covariance.shape) == 1 and (covariance.rules.distinct or _FEW) < _FEW
        method = "adapted" if few else "particles" if free and covariance.dim <= _LARGEST else "jacobian"
    if method not in IMPUTATIONS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(IMPUTATIONS)}")
    if method == "particles" and not free:
        raise ValueError(f"method: got particles for noise of {covariance.regions} regions, expected another")
    labels = label_rows(y, len(x))
    x = x.detach().float().cpu()
    out = x.repeat(draws, *[1] * x.ndim)
    rows = x.isnan().flatten(1).any(1).nonzero().squeeze(1)
    labels = None if labels is None else labels[rows]
    if not len(rows):
        return out
    if method == "particles":
        if options:
            raise TypeError(f"{next(iter(options))}: got an unknown option of particles, expected none")
        count = max(particles, 4 * draws)
        filter_ = _Filter(model, count, draws, steps, seed)
        each = filter_.rows(batch_size)
        for start in range(0, len(rows), each):
            part = rows[start : start + each]
            label = None if labels is None else labels[start : start + each]
            out[:, part] = filter_(x[part], start, label)
        return out
    known = ~x[rows].isnan().repeat_interleave(draws, 0)
    given = x[rows].nan_to_num().repeat_interleave(draws, 0)
    wrap = model  # where nothing is known
    if bool(known.any()):
        mask = Mask(known, covariance.shape)
        knows = method == "replacement"
        wrap = Replacement(model, mask, given) if knows else Posterior(model, mask, given, 0.0, method)
    sampler = options.pop("sampler", "dpmpp_2m_sde")
    if labels is not None:
        options["y"] = labels.repeat_interleave(draws)
    found = sample(wrap, len(given), sampler, steps, seed=seed, batch_size=batch_size, **options)
    out[:, rows] = torch.where(known, given, found.float()).unflatten(0, (len(rows), draws)).transpose(0, 1)
    return out


class _Filter:
    """The particles of :func:`impute`. Shapes: n rows, P particles, K Gaussians, d numbers; U different masks."""

    def __init__(self, model: Denoiser, particles: int, draws: int, steps: int, seed: int) -> None:
        self.model, noise = resting(model), model.noise
        self.particles, self.draws, self.seed = particles, draws, seed
        self.mixture = noise.mixture
        self.pencil = noise.covariance.pencil if self.mixture is None else self.mixture.pencil(noise.deviation)
        ladder = noise.levels
        one = len(ladder) == 1 or steps == 1
        self.taus = (ladder.maximum,) if one else levels.karras(ladder.maximum, ladder.minimum, n=steps).tau

    def rows(self, batch_size: int) -> int:
        """Rows at a time."""
        d = self.pencil.structure.dim
        return max(1, min(batch_size // self.particles, _NUMBERS // (self.pencil.regions * d * (d + self.particles))))

    def __call__(self, x: Tensor, row: int, y: Tensor | None) -> Tensor:
        """Draws ``[draws, n, *shape]`` of rows ``[n, *shape]`` whose first has the number ``row``."""
        n, count, shape, covariance = len(x), self.particles, x.shape[1:], self.model.noise.covariance
        device = self.model.noise.tau.device
        self._learn(x.flatten(1).double().to(device))
        self.extra = {} if y is None else {"y": y.repeat_interleave(count).to(device)}
        counters: dict[str, Any] = {"seed": self.seed, "row": row * count}
        state = self.model.prior(n * count, self.taus[0], **counters, **self.extra)
        mean, posterior, fit = self._twisted(state, self.taus[0])
        logs = fit
        for i, (tau, lower) in enumerate(zip(self.taus, self.taus[1:], strict=False)):
            share, ratio = logs.softmax(1), (lower / tau) ** 2
            poor = 1.0 / share.square().sum(1) < 0.5 * count
            if bool(poor.any()):
                all_ = torch.arange(count, device=device).expand(n, count)
                picked = torch.where(poor.unsqueeze(1), self._picked(share, count, row, i), all_)
                state, mean, posterior = (_taken(v, picked) for v in (state, mean, posterior))
                fit = fit.gather(1, picked)
                logs = torch.where(poor.unsqueeze(1), 0.0, logs)
            c, b = 1.0 - ratio, lower * math.sqrt(1.0 - ratio)
            z = ops.colored_step(torch.zeros_like(state), b=1.0, **counters, step=i, stream=ops.REVERSE)
            moved = covariance.whiten(c / b * (posterior - mean)).flatten(1).double()
            state = state + c * (posterior - state) + b * covariance.color(z)
            before = fit
            mean, posterior, fit = self._twisted(state, lower)
            away = (z.flatten(1).double() * moved).sum(1) + 0.5 * moved.square().sum(1)
            logs = logs + fit - before - away.unflatten(0, (n, count))
        picked = self._picked(logs.softmax(1), self.draws, row, len(self.taus))
        out = _taken(posterior, picked).unflatten(0, (n, self.draws)).transpose(0, 1).float().cpu()
        return torch.where(x.isnan(), out, x).reshape(self.draws, n, *shape)

    def _learn(self, x: Tensor) -> None:
        known = ~x.isnan()
        self.known, self.given = known, torch.where(known, x, 0.0)
        self.patterns, self.pattern = torch.unique(known, dim=0, return_inverse=True)

    def _twisted(self, x: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        """``D``, ``E[x | x~, known]``, shapes of ``x`` ``[n P, *shape]``, and ``ln p(known | x~)`` ``[n, P]``."""
        n, count, d = len(self.known), self.particles, self.known.shape[1]
        mean = self.model(x, tau, **self.extra)
        flat = mean.flatten(1).double().reshape(n, 1, count, d)
        l = self.pencil.l.double()
        spread = self.pencil.matrix(self.pencil.deviation.double().square() * l / (1.0 + l / tau**2)).double()
        spread = 0.5 * (spread + spread.mT)  # [K, d, d]
        shares = torch.zeros(n, 1, count, dtype=torch.float64, device=x.device)
        if self.mixture is not None and len(spread) > 1:
            sigma = tau * float(self.model.noise.deviation)
            responsibilities = self.mixture.responsibilities(x, sigma)
            shares = responsibilities.clamp_min(1e-300).log().mT.reshape(-1, n, count).transpose(0, 1)
            center = self.mixture.covariance.center.double().reshape(1, -1, 1, d)
            each = center + (x.flatten(1).double().reshape(n, 1, count, d) - center) @ spread / sigma**2
            # What the network knows better than the mixture moves all of its Gaussians alike.
            flat = each + flat - (shares.exp().unsqueeze(3) * each).sum(1, keepdim=True)
        seen = self.patterns.double()
        system = seen[:, None, :, None] * spread * seen[:, None, None, :]  # [U, K, d, d]
        diagonal = system.diagonal(dim1=2, dim2=3)
        diagonal += torch.where(self.patterns.unsqueeze(1), 1e-6 * spread.diagonal(dim1=1, dim2=2), 1.0)
        root = torch.linalg.cholesky(system)
        volume = root.diagonal(dim1=2, dim2=3).log().sum(2)[self.pattern]  # [n, K]
        inverse = torch.cholesky_inverse(root)[self.pattern]
        missing = torch.where(self.known[:, None, None, :], self.given[:, None, None, :] - flat, 0.0)
        solved = missing @ inverse  # [n, K, P, d]
        logs = shares - 0.5 * (missing * solved).sum(3) - volume.unsqueeze(2)
        weights = logs.softmax(1).unsqueeze(3)
        moved = torch.where(self.known[:, None, None, :], solved, 0.0) @ spread
        posterior = (weights * (flat + moved)).sum(1).flatten(0, 1).to(x.dtype).reshape(x.shape)
        return mean, posterior, logs.logsumexp(1)

    def _picked(self, share: Tensor, count: int, row: int, step: int) -> Tensor:
        """Systematic resampling: which particles, int64 ``[n, count]``."""
        zero = torch.zeros(len(share), 1, dtype=torch.float64, device=share.device)
        normal = ops.colored_step(zero, b=1.0, seed=self.seed, row=row, step=step, stream=ops.REGIONS)
        first = torch.special.ndtr(normal)
        places = (torch.arange(count, dtype=torch.float64, device=share.device) + first) / count
        return torch.searchsorted(share.cumsum(1).contiguous(), places.contiguous()).clamp_max(share.shape[1] - 1)


def _taken(v: Tensor, picked: Tensor) -> Tensor:
    """Particles ``picked`` ``[n, m]`` of ``[n P, *shape]``: ``[n m, *shape]``."""
    n = len(picked)
    index = picked + (len(v) // n) * torch.arange(n, device=v.device).unsqueeze(1)
    return v[index.flatten()]
