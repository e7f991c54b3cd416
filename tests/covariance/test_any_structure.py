"""A structure is one file: each, and one that only the tests know, does all that a dense covariance of its S does.

Float64, exact denoisers, agreement to rounding: noise, filter, start, levels, samplers, schedules, guidance,
posteriors, likelihood, k-diffusion's noise, files, merges; commands and pictures in ``test_one_more.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import ansn
from ansn import AdaptiveCovariance, NoiseModel, levels, ops
from ansn.covariance import STRUCTURES, Structure
from ansn.sampling import METHODS, Downsample, Guided, Posterior, Replacement, colored_noise_sampler, mmps, pigdm
from ansn.sampling.schedules import SCHEDULES, optimised
from tests.covariance.exact import Rotated, learned, root_of, rows_of
from tests.oracles import ExactDenoiser, Mixture, randn
from tests.tolerances import rms_ratio

SHAPE, ROWS = (2, 4, 4), 200
KINDS = [kind for name, kind in STRUCTURES.items() if name != "dense"] + [Rotated]
CLOSE = 1e-8


@dataclass
class Pair:
    """A structure and a dense covariance that learned the same rows, under the same noise, with exact denoisers."""

    x: Tensor
    ours: AdaptiveCovariance
    dense: AdaptiveCovariance

    def both(self, make: Any) -> None:
        """What is made of either agrees."""
        ours, dense = make(self.model(self.ours)), make(self.model(self.dense))
        assert bool(torch.isfinite(dense).all())
        assert rms_ratio(ours.double(), dense.double()) < CLOSE

    def model(self, covariance: AdaptiveCovariance, **options: Any) -> ExactDenoiser:
        ladder = levels.karras(8.0, 0.02, n=12)
        dim = covariance.dim
        s = self.dense.covariance()[0]
        away = torch.linalg.cholesky(s) @ torch.ones(dim, dtype=torch.float64) / dim**0.5
        target = Mixture(torch.stack((self.x.mean(0) + away, self.x.mean(0) - away)), torch.stack((0.5 * s, 0.5 * s)))
        return ExactDenoiser(NoiseModel(covariance, ladder, seed=3), target, **options)


@pytest.fixture(scope="module", params=KINDS, ids=[kind.name for kind in KINDS])
def pair(request: pytest.FixtureRequest) -> Pair:
    kind: type[Structure] = request.param
    x = rows_of(root_of(kind(SHAPE)), ROWS)
    return Pair(x, *(learned(k, x, SHAPE, rho=0.6) for k in (kind, "dense")))


def test_it_is_the_same_covariance(pair: Pair) -> None:
    def whole(value: Tensor) -> Tensor:
        return value if value.ndim == 3 else torch.diag_embed(value)

    for reading in ("covariance", "noise_shape", "haario"):
        assert rms_ratio(whole(getattr(pair.ours, reading)()), whole(getattr(pair.dense, reading)())) < 1e-10
    for reading in ("condition_number", "effective_rank", "eigenvalues", "scale", "center"):
        ours, dense = (getattr(c, reading) for c in (pair.ours, pair.dense))
        assert rms_ratio(*(v() if callable(v) else v for v in (ours, dense))) < CLOSE
    assert bool(pair.ours.enough().all())


def test_noise_and_filter(pair: Pair) -> None:
    x, tau = pair.x[:7].reshape(7, *SHAPE), torch.linspace(0.1, 4.0, 7, dtype=torch.float64)
    pair.both(lambda m: m.noise.perturb(x, step=2)[0])
    pair.both(lambda m: m.noise.covariance.pencil.filter(x, tau))
    pair.both(lambda m: m.noise.prior(9, 3.0, seed=4))
    pair.both(lambda m: m.noise.covariance.whiten(x, transpose=True))
    pair.both(lambda m: m.f(x, tau))
    pair.both(lambda m: m.score(x, tau))
    f, options = randn(7, *SHAPE, seed=5), {"seed": 2, "row": 3, "stream": ops.LANGEVIN}
    pair.both(lambda m: m.noise.covariance.step(x, 2 * x, f, c=0.3, a=tau, b=0.5, **options))
    pair.both(lambda m: m.noise.covariance.snapshot.noise_diagonal())
    pair.both(lambda m: m.noise.covariance.snapshot.log_volume())


def test_the_start_s_level(pair: Pair) -> None:
    rows = pair.x.reshape(-1, *SHAPE)
    pair.both(lambda m: torch.tensor(levels.tau_start(rows, m.noise.covariance, 1e-3)))
    pair.both(lambda m: torch.tensor(levels.tau_max_langevin(rows, m.noise.covariance)))


@pytest.mark.parametrize("method", METHODS)
def test_every_sampler(pair: Pair, method: str) -> None:
    few = {"steps": 2} if not METHODS[method].flow else {"steps": 6}
    pair.both(lambda m: ansn.sample(m, 5, method, seed=1, **few))


def test_langevin_of_its_other_kinds(pair: Pair) -> None:
    pair.both(lambda m: ansn.sample(m, 5, "langevin", 2, precondition=False, seed=1))
    ours, dense = (pair.model(c, prediction="whitened") for c in (pair.ours, pair.dense))
    found = [ansn.sample(m, 5, "langevin", 2, seed=1) for m in (ours, dense)]
    assert rms_ratio(*found) < CLOSE


@pytest.mark.parametrize("schedule", [*SCHEDULES, "optimised"])
def test_every_schedule(pair: Pair, schedule: str) -> None:
    if schedule == "optimised":
        pair.both(lambda m: optimised(m, 3, 8.0, 0.05, rows=4))
    else:
        pair.both(lambda m: ansn.sample(m, 4, "heun", 4, schedule=schedule))


@pytest.mark.parametrize("posterior", ["adapted", "isotropic", "jacobian", "replacement", "pigdm", "mmps"])
def test_posteriors(pair: Pair, posterior: str) -> None:
    operator = Downsample(SHAPE, 2)
    y = operator(pair.x[:1].reshape(1, *SHAPE))[0] + 0.1
    makers: dict[str, Any] = {
        "replacement": lambda m: Replacement(m, operator, y, 0.1), "pigdm": lambda m: pigdm(m, operator, y, 0.1),
        "mmps": lambda m: mmps(m, operator, y, 0.1, cg_steps=2),
    }  # fmt: skip
    make = makers.get(posterior, lambda m: Posterior(m, operator, y, 0.1, posterior))
    pair.both(lambda m: ansn.sample(make(m), 4, "dpmpp_2m", 5, seed=2))


@pytest.mark.parametrize("options", [{"trace": "exact"}, {"basis": "data"}, {"solver": "heun", "basis": "noise"}])
def test_likelihood(pair: Pair, options: dict[str, Any]) -> None:
    x = pair.x[:2].reshape(2, *SHAPE)
    pair.both(lambda m: ansn.log_likelihood(m, x, steps=3, seed=1, **options).log_density)


def test_bits_of_grey_levels(pair: Pair) -> None:
    rows = (torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 16).floor().to(torch.uint8)
    data = ansn.data.Dataset(rows, name="grey", levels=16)
    for how in ("uniform", "noise"):
        found = [
            ansn.bits_per_dim(pair.model(c), data, dequantisation=how, steps=2, trace="exact", solver="heun")
            for c in (pair.ours, pair.dense)
        ]
        assert found[0].value == pytest.approx(found[1].value, rel=1e-6)


def test_guidance(pair: Pair) -> None:
    class Told(ExactDenoiser):
        """The data's own denoiser, and one that a label moves."""

        def _network(self, x: Tensor, tau: Tensor, region: Tensor | None, extra: dict[str, Any]) -> Tensor:
            y = extra.pop("y", None)
            out = super()._network(x, tau, region, extra)
            return out if y is None else out + 0.1 * (y < 2).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))

    def guided(m: ExactDenoiser) -> Tensor:
        model = Told(m.noise, *m.targets)
        model.num_classes = model.network.num_classes = 2  # type: ignore[assignment]
        model.label_dropout = 0.1
        y = torch.zeros(3, dtype=torch.int64)
        x = m.noise.prior(3, 8.0)
        return ansn.sampling.heun(Guided(model, 2.0), x, m.noise.tau[:4], y=y)

    pair.both(guided)


def test_k_diffusion_s_noise(pair: Pair) -> None:
    x = pair.x[:4].reshape(4, *SHAPE)
    pair.both(lambda m: colored_noise_sampler(m, x, seed=5)(1.0, 0.5))


def test_a_state_that_is_saved_and_one_that_is_merged(pair: Pair) -> None:
    kind = type(pair.ours.structure)
    options: dict[str, Any] = {"root": "symmetric", "factor_dtype": torch.float64, "eps_floor": 0.0, "rho": 0.6}
    loaded = AdaptiveCovariance(SHAPE, 1, kind, **options)
    loaded.load_state_dict(pair.ours.state_dict())
    assert torch.equal(loaded.color(pair.x[:3]), pair.ours.color(pair.x[:3]))
    # Ranks gather apart, in one basis, and merge.
    merged = AdaptiveCovariance(SHAPE, 1, kind, **options).orient(pair.x)
    parts = [merged.gathering() for _ in range(3)]
    for i, part in enumerate(parts):
        part.update(pair.x[i::3])
    for i, part in enumerate(parts):
        merged.merge(part, points=len(pair.x[i::3]))
    assert rms_ratio(merged.freeze().color(pair.x[:9]), pair.dense.color(pair.x[:9])) < CLOSE


def test_it_compiles_whole_and_has_gradients(pair: Pair) -> None:
    covariance, x = pair.ours, pair.x[:3].reshape(3, *SHAPE)

    def filtered(v: Tensor) -> Tensor:
        return covariance.pencil.filter(covariance.step(v, b=0.5, seed=1), 0.7)

    compiled = torch.compile(filtered, fullgraph=True, backend="aot_eager")
    assert rms_ratio(compiled(x), filtered(x)) < 1e-12
    v = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(filtered, (v,))
    assert rms_ratio(torch.func.vmap(lambda r: covariance.color(r[None])[0])(x), covariance.color(x)) < 1e-12
