"""Dense and diagonal structures: the same algebra in two storages, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ansn.structures import STRUCTURES, Dense, Diagonal
from tests.oracles import randn, spd
from tests.tolerances import EXACT, rms_ratio

K, D = 3, 5


def matrices() -> torch.Tensor:
    return torch.stack([spd(D, seed) for seed in range(K)])


def stored(structure, full: torch.Tensor) -> torch.Tensor:
    return full if structure.name == "dense" else full.diagonal(dim1=1, dim2=2).clone()


def restored(structure, value: torch.Tensor) -> torch.Tensor:
    return value if structure.name == "dense" else torch.diag_embed(value)


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES)
def structure(request):
    return request.param


def test_names():
    assert {name: type(s) for name, s in STRUCTURES.items()} == {"dense": Dense, "diagonal": Diagonal}


def test_storage_and_bytes(structure):
    size = structure.storage(K, D)
    assert size == ((K, D, D) if structure.name == "dense" else (K, D))
    assert structure.bytes(K, D, torch.float64, torch.float32) == int(np.prod(size)) * (7 * 8 + 2 * 4)


def test_covariance_reads_the_lower_triangle_and_gives_it_whole(structure):
    full = matrices()
    scatter = stored(structure, full)
    if structure.name == "dense":
        scatter = torch.where(torch.ones(D, D).triu(1).bool(), float("nan"), scatter)
    divisor = torch.tensor([2.0, 5.0, float("inf")], dtype=torch.float64)
    expected = stored(structure, full / divisor.reshape(-1, 1, 1))
    assert rms_ratio(structure.covariance(scatter, divisor), expected) < EXACT


def test_parts(structure):
    v, full = randn(K, D), matrices()
    outer = restored(structure, structure.outer(v))
    wanted = stored(structure, v.unsqueeze(2) * v.unsqueeze(1))
    assert rms_ratio(outer.tril(), restored(structure, wanted).tril()) < EXACT
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.equal(
        restored(structure, structure.scaled_identity(scale, D)), scale.reshape(-1, 1, 1) * torch.eye(D).double()
    )
    assert torch.equal(structure.variances(stored(structure, full)), full.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_factor_and_gram(structure, root):
    r = stored(structure, matrices())
    factor, status = structure.factor(r, root)
    assert status.tolist() == [0] * K
    assert status.dtype == torch.int32
    assert rms_ratio(structure.gram(factor), r) < EXACT
    if structure.name == "dense" and root == "cholesky":
        assert torch.equal(factor, factor.tril())
    if structure.name == "dense" and root == "symmetric":
        assert rms_ratio(factor, factor.mT) < EXACT


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_status_of_what_has_no_factor(structure, root):
    r = stored(structure, matrices())
    if structure.name == "dense":
        r[1] -= 3.0 * torch.eye(D)
    else:
        r[1, 2] = 0.0
    _, status = structure.factor(r, root)
    assert [int(s != 0) for s in status] == [0, 1, 0]


@pytest.mark.parametrize("gamma", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_power(structure, gamma):
    """By NumPy's eigendecomposition; a negative power is of S + eps I."""
    full, eps = matrices(), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    if structure.name == "diagonal":
        full = torch.diag_embed(full.diagonal(dim1=1, dim2=2))
    expected = []
    for k in range(K):
        values, vectors = np.linalg.eigh(full[k].numpy())
        values = values + float(eps[k]) if gamma < 0 else values
        expected.append((vectors * values**gamma) @ vectors.T)
    got = restored(structure, structure.power(stored(structure, full), gamma, eps))
    assert rms_ratio(got, torch.as_tensor(np.stack(expected))) < 1e-11


def test_power_of_a_matrix_without_full_rank(structure):
    """Rounding may leave an eigenvalue just under zero; its root is 0, not NaN."""
    v = randn(K, D)
    s = structure.outer(v) if structure.name == "diagonal" else v.unsqueeze(2) * v.unsqueeze(1)
    for gamma in (-0.5, 0.0, 0.5):
        assert bool(torch.isfinite(structure.power(s, gamma, torch.full((K,), 1e-3).double())).all())


def test_eigenvalues_ascend(structure):
    r = stored(structure, matrices())
    values = structure.eigenvalues(r)
    assert values.shape == (K, D)
    expected = np.stack([np.sort(np.linalg.eigvalsh(m)) for m in restored(structure, r).numpy()])
    assert rms_ratio(values, torch.as_tensor(expected)) < 1e-11


@pytest.mark.parametrize("correlated", [True, False])
def test_spectrum(structure, correlated):
    """``S = Q diag(l r) Q^T`` and ``R = Q diag(r) Q^T`` from S and an R of the same eigenbasis."""
    s = stored(structure, matrices() if correlated else torch.diag_embed(randn(K, D).square()))
    r = 0.5 * s + structure.scaled_identity(torch.tensor([0.1, 1.0, 2.0]).double(), D)
    basis, ratio = structure.spectrum(s, r, torch.zeros(K).double())
    q = torch.eye(D).double().expand(K, D, D) if basis is None else basis
    assert rms_ratio(q.mT @ q, torch.eye(D).double().expand(K, D, D)) < EXACT
    spread = torch.einsum("kij,kil,klj->kj", q, restored(structure, r), q)
    assert rms_ratio((q * (ratio * spread).unsqueeze(1)) @ q.mT, restored(structure, s)) < EXACT
    floor = torch.tensor([0.0, 0.2, 0.7], dtype=torch.float64)
    raised = structure.spectrum(s, r, floor)[1]
    assert rms_ratio(raised * spread, torch.maximum(ratio * spread, floor.unsqueeze(1))) < EXACT
