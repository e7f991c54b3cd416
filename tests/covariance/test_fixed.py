"""A covariance given by hand: it is what was given, in every structure and from every source, and refuses the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn import covariance as estimators
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import ansn
from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels
from ansn.covariance import STRUCTURES
from tests.covariance.exact import Rotated, root_of
from tests.oracles import gaussian, randn, spd
from tests.tolerances import EXACT, rms_ratio

SHAPE, D = (2, 3, 4), 24
WIDE: dict[str, Any] = {"factor_dtype": torch.float64}
MEAN = 1e4 + torch.linspace(-1.0, 1.0, D, dtype=torch.float64)  # far from 0: its square must not eat the digits of S


def whole(value: Tensor) -> Tensor:
    return value if value.ndim == 3 else torch.diag_embed(value)


@pytest.mark.parametrize("kind", [*STRUCTURES.values(), Rotated], ids=lambda kind: kind.name)
def test_it_is_what_was_given_in_every_structure(kind: Any):
    root = root_of(kind(SHAPE))
    s = root @ root.T
    made = AdaptiveCovariance.fixed(MEAN, s, shape=SHAPE, structure=kind, rho=1.0, eps=0.0, root="symmetric", **WIDE)
    for reading in (made.covariance(), made.noise_shape(), made.pencil.matrix(made.pencil.variances())):
        assert rms_ratio(whole(reading)[0], s) < EXACT
    assert torch.equal(made.mean[0], MEAN)
    assert torch.equal(made.center[0], MEAN)
    assert bool(made.enough().all())
    assert made.frozen
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.update(randn(9, *SHAPE))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_variances_of_every_form():
    given = torch.linspace(0.0, 2.0, D)
    for s in (given, given.reshape(SHAPE).numpy(), given.tolist()):
        made = AdaptiveCovariance.fixed(np.zeros(SHAPE, np.float32), s)
        assert made.structure.name == "diagonal"
        assert made.shape == SHAPE
        assert rms_ratio(made.covariance()[0], given) < EXACT
    one = AdaptiveCovariance.fixed(0.5, 4, shape=SHAPE, structure="cosine")
    assert rms_ratio(one.covariance()[0], 4.0 * torch.eye(D)) < EXACT
    assert bool((one.mean == 0.5).all())


def test_a_singular_matrix_and_the_family_of_shapes():
    root = randn(D, 5)
    s = root @ root.T
    made = AdaptiveCovariance.fixed(MEAN, s, rho=0.25, eps=0.1, **WIDE)
    level = s.diagonal().mean()
    assert rms_ratio(made.covariance()[0], s) < EXACT
    assert rms_ratio(made.noise_shape()[0], 0.25 * s + (0.75 * level + 0.1) * torch.eye(D, dtype=torch.float64)) < EXACT
    rounded = (s + 1e-7 * randn(D, D)).float()  # what float32 leaves of it
    assert rms_ratio(AdaptiveCovariance.fixed(MEAN, rounded).covariance()[0], s) < 1e-6


@pytest.mark.parametrize("structure", ["dense", "diagonal", "separable"])
def test_regions(structure: str):
    means, share = randn(3, *SHAPE), torch.tensor([1.0, 1e-3, 2.0], dtype=torch.float64)
    s = torch.stack([(root := root_of(STRUCTURES[structure](SHAPE), k)) @ root.T for k in range(3)])
    made = AdaptiveCovariance.fixed(means, s, share=share, structure=structure, **WIDE)
    assert rms_ratio(whole(made.covariance()), s) < EXACT
    assert rms_ratio(made.mean, means.flatten(1)) < EXACT
    assert rms_ratio(made.share, share / share.sum()) < EXACT
    assert bool(made.enough().all())
    alone = AdaptiveCovariance.fixed(means[1], s[1], structure=structure, root="symmetric", **WIDE)
    z = randn(4, *SHAPE)
    several = AdaptiveCovariance.fixed(means, s, share=share, structure=structure, root="symmetric", **WIDE)
    assert rms_ratio(several.color(z, torch.ones(4, dtype=torch.int64)), alone.color(z)) < EXACT


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("share", [None, torch.tensor([0.25, 0.75])])
def test_files(tmp_path: Path, suffix: str, share: Tensor | None):
    k = () if share is None else (2,)
    held = {"mean": randn(*k, 4), "covariance": spd(4).expand(*k, 4, 4).contiguous()}
    held |= {} if share is None else {"share": share}
    path = tmp_path / f"known.{suffix}"
    np.savez(path, **{n: v.numpy() for n, v in held.items()}) if suffix == "npz" else save_file(held, path)
    for source in (path, str(path)):
        made = AdaptiveCovariance.fixed(source)
        assert rms_ratio(made.covariance(), held["covariance"].reshape(-1, 4, 4)) < EXACT
        assert torch.equal(made.mean, held["mean"].reshape(-1, 4))


def test_estimators():
    x = (randn(200, 6) @ spd(6)).numpy() + 3.0
    for estimator in (estimators.LedoitWolf(), estimators.EmpiricalCovariance(), PCA(3), FactorAnalysis(2)):
        made = AdaptiveCovariance.fixed(estimator.fit(x), shape=(2, 3))
        s = estimator.covariance_ if hasattr(estimator, "covariance_") else estimator.get_covariance()
        assert rms_ratio(made.covariance()[0], torch.from_numpy(s)) < 1e-11
        assert rms_ratio(made.mean[0], torch.from_numpy(x.mean(0))) < EXACT
        assert made.shape == (2, 3)


@pytest.mark.parametrize("form", ["full", "tied", "diag", "spherical"])
def test_a_mixture_of_scikit_learn_has_the_same_density(form: Any):
    x = torch.cat([randn(80, 3), 4.0 + randn(40, 3, seed=1) @ spd(3)])
    known = GaussianMixture(2, covariance_type=form, random_state=0).fit(x.numpy())
    mixture = ansn.Mixture(AdaptiveCovariance.fixed(known, **WIDE))
    assert rms_ratio(mixture.log_prob(x), torch.from_numpy(known.score_samples(x.numpy()))) < 1e-9
    assert rms_ratio(mixture.responsibilities(x, 0.0), torch.from_numpy(known.predict_proba(x.numpy()))) < 1e-9


def test_a_denoiser_begins_as_the_exact_wiener_filter():
    mean, s = randn(D), spd(D, 3, 1e-3, 5.0)
    made = AdaptiveCovariance.fixed(mean, s, shape=SHAPE, rho=0.5, **WIDE)
    model = Denoiser(nothing(), NoiseModel(made, levels.karras(8.0, 0.02)))
    x, tau = randn(7, D, seed=4), torch.linspace(0.05, 6.0, 7, dtype=torch.float64)
    sigma = tau.square().reshape(-1, 1, 1) * made.noise_shape()
    exact = gaussian(mean, s).denoised(x, sigma)
    assert rms_ratio(model(x.reshape(7, *SHAPE), tau).flatten(1), exact) < EXACT
    drawn = ansn.sample(model, 4000, "gaussian_2m", steps=2).flatten(1)
    assert bool(((drawn.mean(0) - mean).abs() < 5 * (s.diagonal() / 4000).sqrt()).all())


def nothing() -> nn.Module:
    """A network that adds nothing."""

    class Nothing(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return torch.zeros_like(x)

    return Nothing()


def test_it_is_saved_and_loaded_as_any_other():
    made = AdaptiveCovariance.fixed(randn(4), spd(4), **WIDE)
    loaded = AdaptiveCovariance(4, eps_floor=0.0, **WIDE)
    loaded.load_state_dict(made.state_dict())
    assert loaded.frozen
    assert torch.equal(loaded.color(randn(3, 4)), made.color(randn(3, 4)))
    assert torch.equal(loaded.covariance(), made.covariance())


@pytest.mark.parametrize("size", [4, np.int64(4), torch.tensor(4), [np.int32(4)]])
def test_the_shape_may_be_a_number_of_any_library(size: Any):
    made = AdaptiveCovariance.fixed(0, 1, shape=size)
    assert made.shape == (4,)
    assert torch.equal(made.covariance(), torch.ones(1, 4, dtype=torch.float64))


@pytest.mark.parametrize("s", [0.0, torch.zeros(3), torch.zeros(3, 3)], ids=["variance", "variances", "matrix"])
def test_no_variance_at_all_is_refused_where_the_noise_would_have_none(s: Any):
    zero = torch.zeros(3)
    for options in ({}, {"rho": 0.0}, {"gamma": 0.5}, {"gamma": -0.5}):
        with pytest.raises(ValueError, match=r"^covariance: got no variance at all, expected some, or an eps above 0$"):
            AdaptiveCovariance.fixed(zero, s, **options)
    for options in ({"eps": 0.1}, {"eps_floor": 0.1}, {"noise": 0.1}, {"noise": torch.full((3,), 0.1)}):
        made = AdaptiveCovariance.fixed(zero, s, **options)
        torch.testing.assert_close(made.eigenvalues(), torch.full((1, 3), 0.1, dtype=torch.float64), rtol=1e-6, atol=0)
        assert not made.covariance().any()
    two = torch.stack([torch.eye(3), torch.zeros(3, 3)])
    with pytest.raises(ValueError, match=r"^covariance: got no variance at all of region 1, expected some"):
        AdaptiveCovariance.fixed(torch.zeros(2, 3), two, share=[1, 1])


EYE, M = np.eye(3), np.zeros(3)
LOPSIDED = EYE + np.triu(np.full((3, 3), 0.1), 1)
WRONG = [
    ((M, LOPSIDED), ValueError, r"covariance: got a matrix that is not symmetric \(by 0.1\), expected S = S\^T"),
    ((M, -EYE), ValueError, "covariance: got a matrix whose smallest eigenvalue is -1, expected a positive semidef"),
    ((M, np.diag([1.0, 2.0, -1e-9])), ValueError, "covariance: got a matrix whose smallest eigenvalue is -1e-09"),
    ((M, [1.0, -2.0, 1.0]), ValueError, "covariance: got a variance of -2, expected none below 0"),
    ((M, np.eye(4)), ValueError, r"covariance: got shape \[4, 4\], expected a variance, \[3\] or \[3, 3\]"),
    ((M, EYE * np.nan), ValueError, "covariance: got a value that is not finite, expected finite numbers"),
    ((M + np.inf, EYE), ValueError, "mean: got a value that is not finite"),
    ((M, EYE.astype(complex)), TypeError, "covariance: got an array of complex128, expected real numbers"),
    ((np.array(["a"] * 3), EYE), TypeError, "mean: got an array of <U1, expected real numbers"),
    ((0.0, EYE), ValueError, r"mean: got shape \[\], expected \[\*shape\]"),
    ((M,), ValueError, "mean: got ndarray without a covariance, expected arrays, a .npz or .safetensors file, or"),
    ((estimators.LedoitWolf(),), ValueError, "mean: got LedoitWolf without a covariance, expected arrays"),
    (("known.csv",), ValueError, "mean: got the path known.csv, expected arrays"),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG)
def test_what_is_no_covariance_is_named(given: tuple[Any, ...], kind: type[Exception], message: str):
    with pytest.raises(kind, match=message) as told:
        AdaptiveCovariance.fixed(*given)
    assert "\n" not in str(told.value)


def test_options_and_regions_that_do_not_fit_are_named(tmp_path: Path):
    two = {"mean": np.zeros((2, 3)), "covariance": np.stack([EYE, -EYE]), "share": [1, 1]}
    for changed, message in (
        ({}, "covariance: got a matrix of region 1 whose smallest eigenvalue is -1"),
        ({"covariance": EYE}, r"covariance: got shape \[3\], expected 2 of a variance"),
        ({"share": [1, 0]}, r"share: got \[1.0, 0.0\], expected \[K\] positive numbers"),
        ({"share": [1, 1, 1]}, r"mean: got shape \[2, 3\], expected \[3, 3\]"),
        ({"shape": (2, 2)}, r"mean: got shape \[2, 3\], expected \[2, 2, 2\]"),
        ({"shape": 0}, "shape: got 0, expected at least 1"),
        ({"initial": 2.0}, "initial: got 2.0 for a covariance that is fixed, expected none"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptiveCovariance.fixed(**two | changed)
    np.savez(tmp_path / "half.npz", mean=M)
    with pytest.raises(ValueError, match=r"mean: got a file of \['mean'\] .* expected one of mean and covariance"):
        AdaptiveCovariance.fixed(tmp_path / "half.npz")
    np.savez(tmp_path / "objects.npz", mean=M, covariance=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        AdaptiveCovariance.fixed(tmp_path / "objects.npz")
