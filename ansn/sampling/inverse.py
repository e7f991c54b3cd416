r"""Linear inverse problems ``y = A x + sigma_y n``: denoisers that know a measurement, for any sampler.

Each replaces ``D = E[x | x~]`` by an estimate of ``E[x | x~, y]``. With the noise ``Sigma = tau^2 R`` and
``J = dD/dx~`` Tweedie's formulas read

    D = x~ + Sigma grad log p(x~),      V[x | x~] = Sigma + Sigma (grad^2 log p) Sigma = J Sigma = Sigma J^T,

and where ``p(x | x~)`` is taken for a Gaussian of that mean and a covariance V,

    E[x | x~, y] = D + V A^T (sigma_y^2 I + A V A^T)^-1 (y - A D).

The methods differ in V.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.denoiser import Denoiser
from ansn.sampling.gaussian import MeasuredGaussian, conjugate_gradients
from ansn.sampling.operators import Operator
from ansn.sampling.wrapper import Wrapper

COVARIANCES = ("isotropic", "adapted", "jacobian")


class Measured(Wrapper):
    """What all methods share: the measurement, its rows, and a start of sampling that knows it.

    Args:
        model: the denoiser, guided or not.
        operator: A; its ``input_shape`` is the data's.
        measured: y, ``[*operator.shape]`` for one measurement of all samples, or ``[N, *operator.shape]`` for
            one each: sample i, of any batch, answers to row i. Where the operator has a mask a row, what is not
            known of y is not looked at.
        sigma_y: standard deviation of the measurement's noise, data units.

    With regions, a row's region shapes its V, its start and its noise. The region itself does not follow the
    measurement: give ``y``, the labels, or the mixture's weights stay those of the data.

    Raises ValueError naming the argument for shapes that do not fit, a ``sigma_y`` that is negative or not finite, and
    a measurement that is not finite where it is known.
    """

    measured: Tensor

    def __init__(self, model: Denoiser, operator: Operator, measured: Tensor, sigma_y: float = 0.0) -> None:
        super().__init__(model)
        covariance = model.noise.covariance
        if operator.input_shape != covariance.shape:
            wanted = list(covariance.shape)
            raise ValueError(f"operator: got one that takes {list(operator.input_shape)}, expected the data's {wanted}")
        if not (math.isfinite(sigma_y) and sigma_y >= 0):
            raise ValueError(f"sigma_y: got {sigma_y}, expected a standard deviation >= 0")
        one = tuple(measured.shape) == operator.shape
        if not one and (tuple(measured.shape[1:]) != operator.shape or not len(measured)):
            sizes = ", ".join(map(str, operator.shape))
            raise ValueError(f"measured: got shape {list(measured.shape)}, expected [{sizes}] or [N, {sizes}]")
        device = covariance.center.device
        self.operator, self.sigma_y = operator.to(device), float(sigma_y)
        measured = (measured.unsqueeze(0) if one else measured).to(device)
        if operator.known is not None:
            many = len(operator.known)
            if len(measured) not in (1, many):
                raise ValueError(f"measured: got {len(measured)} measurements, expected {many}, one a mask")
            measured = operator(measured.expand(many, *operator.shape))
        finite = torch.isfinite(measured)
        if not bool(finite.all()):
            at = (~finite).nonzero()[0].tolist()
            where = f"at {at[1:]}" if one else f"in measurement {at[0]}"
            raise ValueError(f"measured: got {float(measured[tuple(at)])} {where}, expected finite numbers")
        self.gaussian = MeasuredGaussian.learned(covariance, self.operator, self.sigma_y)
        self.register_buffer("measured", measured)

    def of_rows(self, row: int, rows: int) -> Denoiser:
        inner = self.model.of_rows(row, rows)
        if len(self.measured) == 1:
            return self.changed(model=inner)
        if row + rows > len(self.measured):
            raise ValueError(f"measured: got {len(self.measured)} measurements, expected {row + rows}, one a sample")
        seen = {k: m for k, m in self._modules.items() if isinstance(m, Operator | MeasuredGaussian)}
        parts = {name: module.of_rows(row, rows) for name, module in seen.items()}
        return self.changed(model=inner, measured=self.measured[row : row + rows], **parts)

    @property
    def top(self) -> float:
        """The ladder's where the model's start is a mixture's: this one's is a Gaussian."""
        return self.model.top if self.noise.mixture is None else self.noise.levels.maximum

    @torch.no_grad()
    def prior(self, n: int, tau: float, **options: Any) -> Tensor:
        """``N(E[x | y], V[x | y] + tau^2 R)`` of Gaussian data of the learned mean and S: what the perturbed posterior
        is at a large tau, while the plain start forgets y.

        Drawn by Matheron's rule: x, x~ and a measurement are drawn together and moved by ``S A^T (sigma_y^2 I +
        A S A^T)^-1`` times what the measurement lacks. ``start="uniform"`` stays what it is.
        """
        if options.get("start", "gaussian") != "gaussian":
            return self.model.prior(n, tau, **options)
        covariance, region = self.noise.covariance, options.get("region")
        counters = {"seed": options.get("seed", 0), "row": options.get("row", 0)}
        clean = self.gaussian.draw(self.noise.mean_of(n, region, options.get("y")), region, **counters)
        x = covariance.step(clean, b=tau, region=region, **counters, stream=ops.PRIOR).reshape(n, *covariance.shape)
        missing = self._missing(clean.reshape(x.shape))
        if self.sigma_y:
            missing = ops.colored_step(missing, b=self.sigma_y, **counters, stream=ops.MEASUREMENT)
        everything = torch.full((1,), math.inf, dtype=torch.float64, device=x.device)
        solved = self.gaussian.solve(missing, everything, region)
        return x + self.gaussian.spread(self.operator.adjoint(solved), everything, region)

    def extra_repr(self) -> str:
        return f"sigma_y={self.sigma_y}"

    def _missing(self, denoised: Tensor) -> Tensor:
        """``y - A D``, ``[B, *operator.shape]``; batches stacked on each other (by guidance) share them."""
        times, rest = divmod(len(denoised), len(self.measured))
        if rest:
            raise ValueError(f"measured: got {len(self.measured)} measurements, expected 1 or {len(denoised)}")
        predicted = self.operator(denoised).unflatten(0, (times, len(self.measured)))
        return (self.measured.to(denoised) - predicted).flatten(0, 1)


class Replacement(Measured):
    r"""``D <- D + lambda A^+ (y - A D)``: what was measured replaces what was predicted; for a mask, pixel by pixel.

    ``A^+ = A^T (A A^T + (sigma_y / s)^2 I)^-1``, ``lambda = min(1, tau s / sigma_y)``, s the data's pixel deviation:
    where the noise of x~ has fallen below the measurement's, the measurement counts less (after DDNM, Wang, Yu and
    Zhang 2023; their noisy form needs A's singular vectors). Without measurement noise A^+ is the pseudo-inverse and
    samples agree with y. The rest of D stays as it is, so what is not measured learns of y only through x~: quick,
    and biased.
    """

    def __init__(self, model: Denoiser, operator: Operator, measured: Tensor, sigma_y: float = 0.0) -> None:
        super().__init__(model, operator, measured, sigma_y)
        self.white = MeasuredGaussian.isotropic(self.noise.covariance, self.operator, self.sigma_y)

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        """``D``, shape and dtype of ``x`` ``[B, *shape]``."""
        denoised = self.model(x, sigma, region, **extra)
        everything = torch.full((1,), math.inf, dtype=torch.float64, device=x.device)
        solved = self.white.solve(self._missing(denoised), everything, region)
        change = self.white.spread(self.operator.adjoint(solved), everything, region)  # V(inf) = s^2 I
        if self.sigma_y:
            seen = self.seen(x, self._tau(x, sigma), region)
            change = change * (seen.tau_column * seen.scale / self.sigma_y).clamp_max(1.0)
        return denoised + change


class Posterior(Measured):
    r"""``D + V A^T (sigma_y^2 I + A V A^T)^-1 (y - A D)``, the posterior mean for a Gaussian ``p(x | x~)``.

    =========== ==================================== ==================================================================
    covariance  V                                    exact for
    =========== ==================================== ==================================================================
    isotropic   ``s^2 tau^2 / (1 + tau^2) I``        white Gaussian data under white noise; what others use
    adapted     ``S - S (S + tau^2 R)^-1 S``, of     Gaussian data; no derivative, costs what D costs
                the learned S
    jacobian    ``Sigma J^T = tau^2 R J^T``, of      data for which p(x | x~) is Gaussian; ``cg_steps + 1``
                the network                          vector-Jacobian products a call
    =========== ==================================== ==================================================================

    ``gradient=True`` keeps that V inside the inverse, but takes the one outside as ``Sigma J^T``: the gradient of
    ``log N(y; A D(x~), sigma_y^2 I + A V A^T)``, V held fixed, put on the score; one product a call. Isotropic with
    gradient is PiGDM, jacobian is MMPS.

    Args:
        model, operator, measured, sigma_y: see :class:`Measured`.
        covariance: which V. gradient: see above; "jacobian" has it anyhow.
        cg_steps: jacobian: steps of conjugate gradients in measurement space. With the exact D, m steps solve the
            system; the Jacobian of a trained network is not symmetric, and more than a few can blow up. For the
            others see :class:`ansn.sampling.gaussian.MeasuredGaussian`.

    The network's products run with gradients on, whatever mode the sampler is in; the result carries none.
    """

    def __init__(
        self,
        model: Denoiser,
        operator: Operator,
        measured: Tensor,
        sigma_y: float = 0.0,
        covariance: str = "adapted",
        *,
        gradient: bool = False,
        cg_steps: int = 1,
    ) -> None:
        super().__init__(model, operator, measured, sigma_y)
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance: got {covariance!r}, expected one of {', '.join(COVARIANCES)}")
        if cg_steps < 1:
            raise ValueError(f"cg_steps: got {cg_steps}, expected at least 1")
        self.covariance, self.gradient, self.cg_steps = covariance, gradient, cg_steps
        self.assumed = self.gaussian
        if covariance == "isotropic":
            self.assumed = MeasuredGaussian.isotropic(self.noise.covariance, self.operator, self.sigma_y)

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        """``D``, shape and dtype of ``x`` ``[B, *shape]``."""
        tau = self._tau(x, sigma)
        shared = not isinstance(sigma, Tensor) or sigma.numel() == 1
        level = tau[:1] if shared else tau
        adjoint = self.operator.adjoint
        if self.covariance != "jacobian" and not self.gradient:
            denoised = self.model(x, sigma, region, **extra)
            solved = self.assumed.solve(self._missing(denoised), level, region)
            return denoised + self.assumed.spread(adjoint(solved), level, region)
        denoised, spread = self._linearised(x, tau, region, extra)
        missing = self._missing(denoised)
        if self.covariance == "jacobian":
            solved = conjugate_gradients(
                lambda p: self.sigma_y**2 * p + self.operator(spread(adjoint(p))), missing, self.cg_steps
            )
        else:
            solved = self.assumed.solve(missing, level, region)
        return denoised + spread(adjoint(solved))

    def extra_repr(self) -> str:
        how = f"covariance={self.covariance}, gradient={self.gradient}, cg_steps={self.cg_steps}"
        return f"{super().extra_repr()}, {how}"

    def _linearised(
        self, x: Tensor, tau: Tensor, region: Tensor | None, extra: dict[str, Any]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """D, and ``v -> Sigma J^T v`` at the same x~."""
        covariance = self.noise.covariance
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: what a sampler made in inference mode cannot be differentiated through.
            point, level = x.detach().clone().requires_grad_(), tau.clone()
            fixed = {k: v.clone() if isinstance(v, Tensor) else v for k, v in extra.items()}
            region = None if region is None else region.clone()
            denoised = self.model(point, level, region, **fixed)
        wide = tau.square().to(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))

        def spread(v: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                (pulled,) = torch.autograd.grad(denoised, point, v.clone(), retain_graph=True)
            return wide * covariance.color(covariance.color(pulled, region, transpose=True), region)

        return denoised.detach(), spread


def pigdm(model: Denoiser, operator: Operator, measured: Tensor, sigma_y: float = 0.0) -> Posterior:
    """Pseudo-inverse guidance (Song et al. 2023): isotropic V inside the inverse, the Jacobian outside.

    ``measured`` ``[*operator.shape]`` or ``[N, *operator.shape]``, ``sigma_y`` data units: see :class:`Measured`. The
    denoiser returned maps x ``[B, *shape]`` to the same shape and dtype."""
    return Posterior(model, operator, measured, sigma_y, "isotropic", gradient=True)


def mmps(
    model: Denoiser, operator: Operator, measured: Tensor, sigma_y: float = 0.0, *, cg_steps: int = 1
) -> Posterior:
    """Moment-matching posterior sampling (Rozet et al. 2024): V by the network's own Jacobian, ``cg_steps`` as in
    :class:`Posterior`.

    ``measured`` ``[*operator.shape]`` or ``[N, *operator.shape]``, ``sigma_y`` data units: see :class:`Measured`. The
    denoiser returned maps x ``[B, *shape]`` to the same shape and dtype."""
    return Posterior(model, operator, measured, sigma_y, "jacobian", cg_steps=cg_steps)
