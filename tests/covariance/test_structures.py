"""Every structure by its properties: its basis, its sums, and the pencil of S and R against float64 matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from ansn import AdaptiveCovariance, ops
from ansn.covariance import STRUCTURES, Moments, Pencil, Structure
from ansn.covariance.separable import cosines, squared_cosines
from tests.covariance.exact import root_of, rows_of
from tests.oracles import randn
from tests.tolerances import EXACT, rms_ratio

# Channels and an odd axis; one channel; a line; a first axis that is no channels'; three axes of which one is short.
SHAPES = [(3, 5), (1, 4, 3), (7,), (18, 2), (2, 2, 3)]
ROOTS = [(name, root) for name, kind in STRUCTURES.items() for root in kind.roots]


@pytest.fixture(params=STRUCTURES, ids=STRUCTURES)
def kind(request: pytest.FixtureRequest) -> type[Structure]:
    return STRUCTURES[request.param]


def any_basis(structure: Structure, regions: int) -> dict[str, Tensor]:
    """One that no data asked for."""
    sizes = structure.parts(regions).items()
    return {name: torch.linalg.qr(randn(*size, seed=i))[0] for i, (name, size) in enumerate(sizes)}


def matrix_of(structure: Structure, basis: dict[str, Tensor], regions: int) -> Tensor:
    """Q, ``[K, d, d]``."""
    eye = torch.eye(structure.dim, dtype=torch.float64)
    owners = [None] if regions == 1 else [torch.full((structure.dim,), k) for k in range(regions)]
    return torch.stack([structure.turn(eye, basis, owner, False).T for owner in owners])


def variances_in(q: Tensor, c: Tensor) -> Tensor:
    return torch.einsum("kij,kil,klj->kj", q, c, q)


def correlated(rows: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Rows of uneven variances, correlated along every axis and off it."""
    x = randn(rows, *shape, seed=seed) * torch.linspace(0.2, 1.0, shape[-1], dtype=torch.float64)
    for axis in range(1, x.ndim):
        x = x + 0.7 * x.roll(1, axis)
    return 2.0 + x * (1.0 + randn(*shape, seed=seed + 1).square())


# -- the basis


@pytest.mark.parametrize("regions", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_turn_is_orthonormal_and_squares_its_square(kind, shape, regions):
    structure = kind(shape)
    basis, d = any_basis(structure, regions), structure.dim
    q, eye = matrix_of(structure, basis, regions), torch.eye(d, dtype=torch.float64)
    assert rms_ratio(q.mT @ q, eye.expand_as(q)) < EXACT
    v, owner = randn(6, d), torch.arange(6) % regions
    region = owner if regions > 1 else None
    assert rms_ratio(structure.turn(v, basis, region, False), torch.einsum("bij,bj->bi", q[owner], v)) < EXACT
    assert rms_ratio(structure.turn(v, basis, region, True), torch.einsum("bji,bj->bi", q[owner], v)) < EXACT
    values = randn(regions, d, seed=3).square()
    assert rms_ratio(structure.squares(values, basis), torch.einsum("kij,kj->ki", q.square(), values)) < EXACT
    assert rms_ratio(structure.squares(values, basis), Structure.squares(structure, values, basis)) < EXACT
    # In float32 it does not leave float32, and its basis may be float64.
    single = structure.turn(v.float(), {name: part.float() for name, part in basis.items()}, region, True)
    assert single.dtype == torch.float32
    assert rms_ratio(single, structure.turn(v, basis, region, True)) < 1e-6


def test_it_says_what_it_is(kind):
    structure = kind((2, 3))
    assert STRUCTURES[kind.name] is kind
    assert kind.summary
    assert (structure.shape, structure.dim) == ((2, 3), 6)
    start = structure.start(2)
    assert {name: tuple(part.shape) for name, part in start.items()} == structure.parts(2)
    sizes = [structure.bytes(k, torch.float64, torch.float32) for k in (1, 2)]
    moments = Moments(structure, 2)
    assert sizes[1] == 2 * sizes[0] > sum(b.nbytes for b in moments.buffers())
    assert structure.points() > 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_cosines_are_scipy_s(n):
    x = randn(3, n, 2)
    theirs = torch.as_tensor(scipy.fft.dct(x.numpy(), type=2, axis=1, norm="ortho"))
    assert rms_ratio(cosines(x, 1, True), theirs) < EXACT
    assert rms_ratio(cosines(theirs, 1, False), x) < EXACT
    q = torch.as_tensor(scipy.fft.dct(np.eye(n), type=2, axis=0, norm="ortho")).T
    values = randn(4, n, 2).square()
    expected = torch.einsum("jk,bkc->bjc", q.square(), values)
    assert rms_ratio(squared_cosines(values, 1), expected) < EXACT


def test_a_long_axis_of_a_separable_structure_has_cosines(monkeypatch):
    monkeypatch.setattr("ansn.covariance.separable.LONG", 4)
    structure = STRUCTURES["separable"]((3, 5))
    assert structure.parts(1) == {"basis0": (1, 3, 3)}
    v = randn(4, 15)
    theirs = scipy.fft.dct(v.reshape(4, 3, 5).numpy(), type=2, axis=2, norm="ortho").reshape(4, 15)
    assert rms_ratio(structure.turn(v, structure.start(1), None, True), torch.as_tensor(theirs)) < EXACT


# -- the sums


@pytest.mark.parametrize("regions", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_variances_are_those_of_the_sample_covariance_in_the_basis(kind, shape, regions):
    """However the rows came; ``lambda = diag(Q^T C Q)``, for the basis that was there and the one that it finds."""
    structure = kind(shape)
    x, owner = correlated(90, shape), torch.arange(90) % regions
    moments = Moments(structure, regions)
    if structure.oriented:
        moments.face(any_basis(structure, regions))
    for rows in torch.arange(90).split([1, 40, 20, 29]):
        moments.update(x[rows], owner[rows] if regions > 1 else None)
    c = torch.stack([torch.cov(x[owner == k].flatten(1).T) for k in range(regions)])
    warm, nothing = torch.ones(regions, dtype=torch.bool), structure.guess(torch.tensor(1.0, dtype=torch.float64))
    for full in (False, True):
        basis, values = structure.spectrum(moments, any_basis(structure, regions), full, warm, nothing)
        q = matrix_of(structure, basis, regions)
        assert rms_ratio(values, variances_in(q, c)) < EXACT
    if kind.name == "dense":
        assert rms_ratio(q.mT @ c @ q, torch.diag_embed(values)) < EXACT
    if kind.name == "cosine":  # uncorrelated channels at each frequency
        blocks = (q.mT @ c @ q).reshape(regions, structure.channels, structure.frequencies, structure.channels, -1)
        blocks = blocks.diagonal(dim1=2, dim2=4).movedim(3, 1)
        assert rms_ratio(blocks, torch.diag_embed(blocks.diagonal(dim1=2, dim2=3))) < EXACT


def test_a_separable_basis_is_of_each_axis_s_second_moments_and_keeps_the_trace():
    """A new one, from the sums alone; by rows gathered in two bases too."""
    structure, x = STRUCTURES["separable"]((3, 5)), correlated(90, (3, 5))
    c = torch.cov(x.flatten(1).T).reshape(3, 5, 3, 5)
    axes = {"basis0": c.diagonal(dim1=1, dim2=3).sum(2), "basis1": c.diagonal(dim1=0, dim2=2).sum(2)}
    whole, other = Moments(structure, 1), Moments(structure, 1)
    other.face(any_basis(structure, 1))
    whole.update(x[:50])
    other.update(x[50:])
    whole.merge(other)
    structure.reorient(whole)
    for name, expected in axes.items():
        q = whole.basis[name][0]
        inside = q.T @ expected @ q
        assert rms_ratio(inside, inside.diagonal().diag()) < 1e-10
        assert bool((inside.diagonal().diff() < 0).all())
    assert float(whole.per_point("scatter").sum()) == pytest.approx(float(axes["basis0"].trace()), rel=1e-12)


def test_a_new_separable_basis_is_exact_where_the_data_is_separable():
    """In any state whose coordinates are uncorrelated the carried variances are right."""
    structure = STRUCTURES["separable"]((3, 5))
    root = root_of(structure)
    moments = Moments(structure, 1)
    moments.face({f"basis{a}": torch.linalg.qr(randn(1, n, n, seed=a))[0] for a, n in enumerate((3, 5))})
    moments.update(rows_of(root, 60))
    structure.reorient(moments)  # the basis of this data, with variances that were gathered in another
    moments.reset(moments.basis)
    moments.update(rows_of(root, 60))
    warm, nothing = torch.ones(1, dtype=torch.bool), torch.zeros(15, dtype=torch.float64)
    assert rms_ratio(structure.covariance(moments, warm, nothing)[0], root @ root.T) < 1e-10
    back = {name: part.flip(2) for name, part in moments.basis.items()}
    moments.scatters["scatter"].copy_(structure.carried(moments.scatters, moments.basis, back)["scatter"])
    moments.face(back)
    structure.reorient(moments)
    assert rms_ratio(structure.covariance(moments, warm, nothing)[0], root @ root.T) < 1e-10


# -- the pencil


def learned(structure: str, root: str, regions: int, **options: Any) -> tuple[AdaptiveCovariance, Pencil]:
    x, owner = correlated(160, (3, 4)), torch.arange(160) % regions
    covariance = AdaptiveCovariance(
        (3, 4), regions, structure, root=root, factor_dtype=torch.float64, eps_floor=0.0, **options
    )
    for rows in torch.arange(160).split(60):
        covariance.update(x[rows] * (1.0 + owner[rows, None, None]), owner[rows] if regions > 1 else None)
    return covariance, covariance.freeze().track().pencil


def whole(value: Tensor) -> Tensor:
    return value if value.ndim == 3 else torch.diag_embed(value)


@pytest.mark.parametrize("options", [{"rho": 0.6}, {"gamma": 0.5}, {"gamma": -0.5}], ids=str)
@pytest.mark.parametrize("regions", [1, 2])
@pytest.mark.parametrize(("structure", "root"), ROOTS)
def test_the_pencil_is_the_algebra_of_s_and_r(structure, root, regions, options):
    covariance, pencil = learned(structure, root, regions, **options)
    s, r = whole(covariance.covariance()), whole(covariance.noise_shape())
    k, d, tau = regions - 1, 12, 0.7
    v, owner = randn(d, d, seed=4), None if regions == 1 else torch.full((d,), k)
    eye, s, r = torch.eye(d, dtype=torch.float64), s[k], r[k]

    # R is the function of S that the family says.
    values, vectors = np.linalg.eigh(s.numpy())
    level = values.mean()
    shape = options.get("rho", 0) * values + (1 - options.get("rho", 0)) * level
    if "gamma" in options:
        powered = (values + (1e-3 * level if options["gamma"] < 0 else 0.0)) ** options["gamma"]
        shape = powered * level / powered.mean()
    assert rms_ratio(r, torch.as_tensor((vectors * (shape + 1e-3 * level)) @ vectors.T)) < 1e-11
    assert rms_ratio(pencil.matrix(pencil.variances())[k], s) < 1e-11
    assert rms_ratio(pencil.matrix(pencil.noise_variances())[k], r) < 1e-11
    assert rms_ratio(covariance.snapshot.noise_diagonal()[k], r.diagonal()) < 1e-11

    # L, of the kind that was asked for.
    factor = covariance.color(eye, owner).T
    assert rms_ratio(factor @ factor.T, r) < 1e-11
    kinds = {"cholesky": torch.linalg.cholesky(r), "symmetric": factor.T, "basis": pencil.outward(eye, owner).T}
    assert rms_ratio(factor, kinds[root]) < 1e-11
    assert rms_ratio(covariance.color(v, owner, transpose=True), v @ factor) < 1e-11
    assert rms_ratio(covariance.whiten(v, owner), torch.linalg.solve(factor, v.T).T) < 1e-9
    assert rms_ratio(covariance.whiten(v, owner, transpose=True), torch.linalg.solve(factor.T, v.T).T) < 1e-9
    for half in (covariance.snapshot, pencil):
        assert half.log_volume()[k].item() == pytest.approx(0.5 * float(torch.linalg.slogdet(r)[1]), rel=1e-11)

    # B, in which both are diagonal.
    b = pencil.outward(eye, owner).T
    assert rms_ratio(b @ b.T, r) < 1e-11
    assert rms_ratio((b * pencil.l[k]) @ b.T, s) < 1e-11
    assert rms_ratio(pencil.inward(v, owner), torch.linalg.solve(b, v.T).T) < 1e-10
    assert rms_ratio(pencil.adjoint(v, owner), v @ b) < 1e-11
    assert rms_ratio(pencil.dual(v, owner), torch.linalg.solve(b.T, v.T).T) < 1e-10
    q = pencil.directions(eye, owner).T
    assert rms_ratio(q.T @ q, eye) < EXACT
    assert rms_ratio(pencil.coordinates(v, owner), v @ q) < EXACT

    # What is asked of the two together.
    sigma = s + tau**2 * r
    assert rms_ratio(pencil.filter(v, tau, owner), torch.linalg.solve(sigma, v.T).T @ s) < 1e-11
    levels = torch.linspace(0.05, 3.0, d, dtype=torch.float64)
    each = torch.stack([s @ torch.linalg.solve(s + t**2 * r, row) for t, row in zip(levels, v, strict=True)])
    assert rms_ratio(pencil.filter(v, levels, owner), each) < 1e-11
    left = s - s @ torch.linalg.solve(sigma, s)
    level = torch.tensor([tau], dtype=torch.float64)
    assert rms_ratio(pencil.spread(eye, pencil.posterior(level, owner), owner), left) < 1e-10
    assert rms_ratio(pencil.spread(eye, pencil.posterior(level / 0, owner), owner), s) < 1e-11
    counters = {"seed": 3, "row": 5, "step": 2, "stream": ops.PRIOR}
    z = ops.colored_step(torch.zeros(d, d, dtype=torch.float64), b=1.0, **counters)
    values, vectors = torch.linalg.eigh(sigma)
    expected = v + z @ (vectors * values.sqrt()) @ vectors.T
    assert rms_ratio(pencil.start(v, tau, owner, **counters), expected) < 1e-11

    # One region's.
    one = pencil.one(k, torch.float64)
    assert rms_ratio(one.outward(v), pencil.outward(v, owner)) < EXACT
    assert rms_ratio(one.l[0], pencil.l[k]) < EXACT


@pytest.mark.parametrize(("structure", "root"), ROOTS)
def test_a_step_is_its_formula(structure, root):
    """``x + c (D - x) + L (a f + b z)``, with z the contract's."""
    covariance, _ = learned(structure, root, 2)
    region = torch.arange(5) % 2
    x, denoised, f = (randn(5, 3, 4, seed=i) for i in range(3))
    b, counters = torch.linspace(0.1, 2.0, 5, dtype=torch.float64), {"seed": 1, "row": 3, "stream": ops.LANGEVIN}
    z = ops.colored_step(torch.zeros_like(x), b=1.0, **counters)
    made = covariance.step(x, denoised, f, c=0.3, a=0.2, b=b, region=region, **counters)
    pushed = covariance.color(0.2 * f + b.reshape(-1, 1, 1) * z, region)
    assert rms_ratio(made, x + 0.3 * (denoised - x) + pushed) < EXACT
    assert rms_ratio(covariance.step(x, denoised, c=0.3, region=region), x + 0.3 * (denoised - x)) < EXACT
    with pytest.raises(ValueError, match="region: got None"):
        covariance.step(x, b=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("structure", "root"), ROOTS)
def test_rows_keep_their_shape_and_dtype(structure, root, dtype):
    covariance, pencil = learned(structure, root, 1)
    wide = randn(5, 3, 4)
    v, close = wide.to(dtype), {torch.bfloat16: 0.02, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    calls = [
        lambda v: covariance.color(v), lambda v: covariance.whiten(v), lambda v: covariance.step(v, b=0.5),
        lambda v: pencil.filter(v, 0.7), lambda v: pencil.inward(v), lambda v: pencil.outward(v),
    ]  # fmt: skip
    for call in calls:
        out = call(v)
        assert (out.shape, out.dtype) == (v.shape, dtype)
        assert rms_ratio(out, call(v.double())) < close
        assert torch.equal(call(v.flatten(1)), out.flatten(1))
