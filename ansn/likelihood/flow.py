"""Log-density of data under a model, by the probability flow and the change of variables along it.

Along ``dx/dtau = (x - D)/tau`` (math section 3) the perturbed density obeys
``d log p/dtau = -div = -(d - tr dD/dx)/tau`` (Chen et al. 2018, Theorem 1; Song et al. 2021, section 4.3); at the
ladder's top it is the start of sampling, ``N(m, S + tau_1^2 R)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ansn import levels, traces
from ansn.covariance import Pencil
from ansn.denoiser import Denoiser, resting, unwrapped
from ansn.errors import whole
from ansn.likelihood.conditions import Hypothesis, conditions
from ansn.likelihood.solvers import SOLVERS, integrated
from ansn.traces import PROBES

TRACES = ("auto", *traces.TRACES)
GRADIENTS = 8  # as many a probe "auto" spends on an exact trace: it then takes up to 5 times as long as two probes
BASES = ("spectral", "noise", "data")


@dataclass(frozen=True)
class LogLikelihood:
    """Log-densities of rows.

    Attributes:
        log_density: nats, float64 ``[B]``.
        standard_error: of each, from the spread of its probes, ``[B]``: 0 for an exact trace, NaN for one probe.
        estimates: the probes' independent ones, whose mean it is, float64 ``[P, B]``; P = 1 for an exact trace.
        trace: what was used, "hutchinson" or "exact".
        tau: the level of the density, which is that of the data perturbed by ``N(0, tau^2 R)``.
        evaluations: of the network, a row. gradients: products with its Jacobian, a row.
    """

    log_density: Tensor
    standard_error: Tensor
    estimates: Tensor
    trace: str
    tau: float
    evaluations: int
    gradients: int


@dataclass(frozen=True)
class Rule:
    """How a log-likelihood is computed, checked once: arguments as in :func:`log_likelihood`."""

    taus: tuple[float, ...]  # ascending
    trace: str
    probes: int
    probe: str
    basis: str
    solver: str
    rtol: float
    seed: int

    @classmethod
    def checked(
        cls,
        model: Denoiser,
        taus: Tensor | None,
        steps: int,
        solver: str,
        rtol: float,
        trace: str,
        probes: int,
        probe: str,
        basis: str,
        seed: int,
    ) -> Rule:
        """Raises TypeError or ValueError naming the argument."""
        for name, value, known in (
            ("solver", solver, SOLVERS), ("trace", trace, TRACES), ("probe", probe, PROBES), ("basis", basis, BASES)
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
        steps, probes = whole("steps", steps, 1), whole("probes", probes, 1)
        if not rtol > 0:
            raise ValueError(f"rtol: got {rtol}, expected > 0")
        if taus is None:
            ladder = model.noise.levels
            if len(ladder) < 2:
                raise ValueError("taus: got None for a model of one level, expected a tensor [N] of at least two")
            nodes = levels.karras(ladder.maximum, ladder.minimum, n=steps + 1).tau
        else:
            nodes = tuple(torch.as_tensor(taus).double().flatten().tolist())
            if torch.as_tensor(taus).ndim != 1 or len(nodes) < 2:
                shape = list(torch.as_tensor(taus).shape)
                raise ValueError(f"taus: got shape {shape}, expected [N] of at least two levels")
            levels.Levels(nodes)  # finite, > 0, strictly decreasing
        if trace == "auto":
            trace = "exact" if model.noise.covariance.dim <= GRADIENTS * probes else "hutchinson"
        return cls(nodes[::-1], trace, probes, probe, basis, solver, rtol, seed)

    @property
    def count(self) -> int:
        """Estimates of each row's log-density."""
        return 1 if self.trace == "exact" else self.probes


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    region: Tensor | None = None,
    y: Tensor | None = None,
    taus: Tensor | None = None,
    steps: int = 16,
    solver: str = "rk4",
    rtol: float = 1e-4,
    trace: str = "auto",
    probes: int = 2,
    probe: str = "rademacher",
    basis: str = "spectral",
    seed: int = 0,
    row: int = 0,
    batch_size: int = 256,
) -> LogLikelihood:
    r"""``log p(x)`` in nats, p the density that the model's probability flow carries ``N(m, S + tau_1^2 R)`` to.

    p is the density at the lowest level, that of the data perturbed by ``N(0, tau_min^2 R)``. It integrates to one
    whatever the network does. With u = ln tau, the pencil's coordinates ``x = m + B c``, and ``w_j = c_j / s_j``,
    ``s_j^2 = l_j + tau^2``, in which Gaussian data stands still::

        dw/du = (l w / s - B^-1 (D - m)) / s
        log p(x) = log N(w_1; 0, I) - sum_j ln s_j(tau_min) - ln |det B| + int (sum_j l_j / s_j^2 - tr dD/dx) du

    Hutchinson's estimate of the trace is ``(B^-T z) . dD/dx (B z)``, ``E z z^T = I``, with the same z all along a
    trajectory (FFJORD, Grathwohl et al. 2019). Any basis has the same mean; in this one a Gaussian's Jacobian is
    diagonal, and Rademacher's z has no variance on a diagonal.

    Args:
        x: data ``[B, *shape]``, float32 or float64, in the model's units; the arithmetic is x's, sums are float64.
        region: int64 ``[B]``. None with K > 1 regions: ``log sum_k w_k p_k(x)``, w the data's proportions; K times the
            cost. Under Hutchinson's trace the noisy p_k add up to a little too much, by up to half the variance.
        y: labels, int64 ``[B]``, of a class-conditional network: ``log p(x | y)``. Where there is one region a class,
            label and region are the same and either tells both.
        taus: levels between which to step, decreasing ``[N]``, N >= 2; by default ``steps + 1`` of them, Karras-spaced
            between the ends of the ladder.
        solver: ``"rk4"`` (order 4, 4 evaluations a step), ``"heun"`` (order 2, 2), both on those levels, or ``"rk45"``,
            scipy's Dormand-Prince with its steps chosen for the batch's RMS error to stay within ``rtol`` (its results
            depend on the batch within that).
        trace: ``"exact"``, d gradients an evaluation; ``"hutchinson"``, one a probe, with an error that
            ``standard_error`` tells: on a network for 13 columns two probes are off by 1.5 nats rms, where rows differ
            by 2.3; or ``"auto"``, exact where ``d <= 8 probes``, and Hutchinson's from there on.
        probes: z's a row of Hutchinson's trace. probe: ``"rademacher"`` or ``"gaussian"``. basis: ``"spectral"`` is the
            above, ``"noise"`` has L for B and ``"data"`` the identity.
        seed, row: row r of x draws the probes of ``(seed, row + r)``, whatever the batch.
        batch_size: rows at a time, which bounds the memory.

    The model is not touched; what is in training mode is called as in evaluation mode.
    Raises TypeError or ValueError naming the argument.
    """
    model = unwrapped(model)
    rule = Rule.checked(model, taus, steps, solver, rtol, trace, probes, probe, basis, seed)
    _check_rows(model, x)
    batch_size = whole("batch_size", batch_size, 1)
    hypotheses = conditions(model, len(x), region, y)
    flow = Flow(model, rule)
    parts, evaluations = [], 0
    for start in range(0, len(x), batch_size):
        rows = slice(start, min(start + batch_size, len(x)))
        part, spent = flow.estimates(x[rows], [h.of(rows) for h in hypotheses], row + start)
        parts.append(part)
        evaluations = max(evaluations, spent)
    found = torch.cat(parts, 1)
    gradients = evaluations * (x[0].numel() if rule.trace == "exact" else rule.probes)
    return LogLikelihood(
        found.mean(0), standard_error(found, rule.trace), found, rule.trace, rule.taus[0], evaluations, gradients
    )


def standard_error(found: Tensor, trace: str) -> Tensor:
    """Of the mean of estimates ``[P, B]``: ``[B]``, 0 for an exact trace, NaN where there is one probe."""
    if trace == "exact":
        return torch.zeros_like(found[0])
    return found.std(0) / math.sqrt(len(found)) if len(found) > 1 else torch.full_like(found[0], math.nan)


def _check_rows(model: Denoiser, x: Tensor) -> None:
    """Raises TypeError or ValueError unless x is finite ``[B, *shape]``, float32 or float64, B >= 1."""
    shape = model.noise.covariance.shape
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: got {x.dtype}, expected float32 or float64")
    if tuple(x.shape[1:]) != shape or x.ndim < 2 or not len(x):
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {', '.join(map(str, shape))}] with B >= 1")
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"x: got a value that is not finite in row {row}, expected finite data")


class Flow:
    """The probability flow of a model with the log-density along it, under one rule; a pencil is made once a region."""

    def __init__(self, model: Denoiser, rule: Rule) -> None:
        self.model, self.rule = resting(model, constant=True), rule
        self._pencils: dict[tuple[int, torch.dtype], Pencil] = {}

    def pencil(self, region: int, dtype: torch.dtype) -> Pencil:
        if (region, dtype) not in self._pencils:
            self._pencils[region, dtype] = self.model.noise.covariance.pencil.one(region, dtype)
        return self._pencils[region, dtype]

    def estimates(self, x: Tensor, hypotheses: list[Hypothesis], row: int) -> tuple[Tensor, int]:
        """Independent estimates of ``log sum_h w_h p_h(x)``, float64 ``[P, B]``, and the evaluations of each row."""
        # Autograd refuses tensors made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            x = x.to(self.model.noise.tau.device, copy=True)
            probes = self._probes(x.flatten(1), row)
            logs, evaluations = [], 0
            for hypothesis in hypotheses:
                found = torch.empty(self.rule.count, len(x), dtype=torch.float64, device=x.device)
                spent = 0
                for k, rows in _by_region(hypothesis.region, x):
                    own = None if probes is None else probes[:, rows]
                    found[:, rows], cost = self._region(x[rows], k, hypothesis.of(rows), own)
                    spent = max(spent, cost)
                logs.append(found + hypothesis.log_weight)
                evaluations += spent
            total = torch.stack(logs).logsumexp(0)
        wrong = torch.isnan(total).any(0)
        if bool(wrong.any()):
            raise ValueError(
                f"x: got a flow that leaves the finite numbers in row {row + int(wrong.nonzero()[0])}, expected more"
                " steps, or a model that is trained"
            )
        return total.cpu(), evaluations

    def _probes(self, x: Tensor, row: int) -> Tensor | None:
        """``z`` ``[P, B, d]``; None for an exact trace."""
        rule = self.rule
        if rule.trace == "exact":
            return None
        return traces.probes(x, rule.probes, rule.probe, seed=rule.seed, row=row)

    def _region(self, x: Tensor, k: int, known: Hypothesis, probes: Tensor | None) -> tuple[Tensor, int]:
        """Estimates of rows that are all of region k, ``[P, b]``, and the evaluations."""
        pencil, noise = self.pencil(k, x.dtype), self.model.noise
        region = None if noise.covariance.regions == 1 else torch.full((len(x),), k, device=x.device)
        mean = noise.mean_of(len(x), region, known.y).to(x.dtype)
        l = pencil.l[0]
        extra = {} if known.y is None else {"y": known.y}
        pairs = None if probes is None else self._pairs(pencil, probes, known.region)

        def slopes(u: float, w: Tensor) -> tuple[Tensor, Tensor]:
            tau = math.exp(u)
            s = (l + tau**2).sqrt()
            there = (mean + pencil.outward(w * s)).reshape(x.shape)
            with torch.enable_grad():
                there.requires_grad_()
                denoised = self.model(there, tau, known.region, **extra)
                trace = traces.exact(denoised, there) if pairs is None else traces.hutchinson(denoised, there, *pairs)
            pull = pencil.inward(denoised.detach().flatten(1) - mean)
            return (l * w / s - pull) / s, (l / s**2).double().sum() - trace

        us = [math.log(tau) for tau in self.rule.taus]
        low = (l + self.rule.taus[0] ** 2).sqrt()
        w = pencil.inward(x.flatten(1) - mean) / low
        w, gain, evaluations = integrated(slopes, w, us, self.rule.solver, self.rule.rtol)
        # The coordinates at the top are those of the start: there w is normal by definition.
        volume = pencil.log_volume()[0] + low.double().log().sum() + 0.5 * w.shape[1] * math.log(2 * math.pi)
        return gain - 0.5 * w.double().square().sum(1) - volume, evaluations

    def _pairs(self, pencil: Pencil, z: Tensor, region: Tensor | None) -> tuple[Tensor, Tensor]:
        """``A^-T z`` and ``A z`` of the rule's basis A, ``[P, b, d]`` each."""
        if self.rule.basis == "data":
            return z, z
        if self.rule.basis == "spectral":
            dual, outward = pencil.dual(z.flatten(0, 1)), pencil.outward(z.flatten(0, 1))
            return dual.reshape(z.shape), outward.reshape(z.shape)
        covariance = self.model.noise.covariance
        away = [covariance.whiten(one, region, transpose=True) for one in z]
        return torch.stack(away), torch.stack([covariance.color(one, region) for one in z])


def _by_region(region: Tensor | None, x: Tensor) -> list[tuple[int, Tensor]]:
    """Each region of the rows, and its rows, int64."""
    if region is None:
        return [(0, torch.arange(len(x), device=x.device))]
    return [(k, (region == k).nonzero().squeeze(1)) for k in region.unique().tolist()]
