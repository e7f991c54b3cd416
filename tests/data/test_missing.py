"""Missing numbers: the Gaussian of rows with holes, and draws of what is missing from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn.data.missing import completions, fitted
from tests.oracles import covariance_within_five_sigma, five_sigma, randn, spd

D = 5
MEAN, S = 3.0 * randn(D, seed=1), spd(D, 2, 0.05, 4.0)


def gaussian(n: int, seed: int = 0) -> Tensor:
    return MEAN + randn(n, D, seed=seed) @ torch.linalg.cholesky(S).T


def with_holes(x: Tensor, share: float = 0.3, seed: int = 0) -> Tensor:
    chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return x.masked_fill(chosen, torch.nan)


def test_a_gaussian_with_holes_is_found_again():
    """Within its sampling error: five times that of ``0.7^2`` of the rows, in which a pair of columns is known."""
    x = with_holes(gaussian(8000))
    mean, covariance = fitted(x)
    error = 5 / (0.49 * len(x)) ** 0.5
    scale = S.diagonal().sqrt()
    assert ((mean - MEAN) / scale).abs().max() < error
    assert ((covariance - S) / torch.outer(scale, scale)).abs().max() < 2**0.5 * error
    filled = torch.where(torch.isnan(x), x.nanmean(0), x).T.cov()
    assert ((filled - S) / torch.outer(scale, scale)).abs().max() > 3 * error, "what the fit is better than"


def test_numbers_missing_by_what_is_known_do_not_bias_it():
    """The second column is missing where the first is large: its mean over what is left is off by far more."""
    x = gaussian(8000)
    x[x[:, 0] > MEAN[0], 1] = torch.nan
    mean, _ = fitted(x)
    off = abs(float(mean[1] - MEAN[1]))
    assert off < 0.1 * S[1, 1].sqrt()
    assert off < 0.3 * abs(float(x[:, 1].nanmean() - MEAN[1]))


def test_completed_rows_are_of_the_gaussian_and_keep_what_is_known():
    x = with_holes(gaussian(8000).float())
    holes = torch.isnan(x)
    rows = holes.any(1)
    out = completions(x, draws=3, seed=1)
    assert out.shape == (int(rows.sum()), 3, D)
    assert out.dtype == torch.float32
    known = ~holes[rows].unsqueeze(1).expand_as(out)
    assert torch.equal(out[known], x[rows].unsqueeze(1).expand_as(out)[known])
    whole = x.clone()
    whole[rows] = out[:, 1]
    assert five_sigma(whole, MEAN.float())
    away = (whole.double() - MEAN) / S.diagonal().sqrt()
    truth = S / torch.outer(S.diagonal().sqrt(), S.diagonal().sqrt())
    assert (away.T.cov() - truth).abs().max() < 5 * 2**0.5 / (0.49 * len(x)) ** 0.5


def test_draws_have_the_conditional_mean_and_covariance():
    x = torch.cat((gaussian(6000), gaussian(1, seed=5).expand(3000, D)))
    known = torch.tensor([True, False, True, False, False])
    x[6000:, ~known] = torch.nan
    out = completions(x, draws=1)[:, 0].double()
    mean, covariance = fitted(x)
    slope = torch.linalg.solve(covariance[known][:, known], covariance[known][:, ~known])
    expected = mean[~known] + (x[-1, known] - mean[known]) @ slope
    left = covariance[~known][:, ~known] - covariance[~known][:, known] @ slope
    assert five_sigma(out[:, ~known], expected)
    assert covariance_within_five_sigma(out[:, ~known] - expected, left)


def test_a_row_of_which_nothing_is_known_is_a_draw_of_the_gaussian():
    x = torch.cat((gaussian(4000), torch.full((4000, D), torch.nan)))
    out = completions(x, draws=1, seed=3)[:, 0].double()
    mean, covariance = fitted(x)
    assert five_sigma(out, mean)
    assert covariance_within_five_sigma(out - mean, covariance)


def test_draws_are_functions_of_the_seed_and_the_row(monkeypatch: pytest.MonkeyPatch):
    x = with_holes(gaussian(300))
    out = completions(x, seed=4)
    assert not torch.equal(out, completions(x, seed=5))
    assert not torch.equal(out[:, 0], out[:, 1])
    monkeypatch.setattr("ansn.data.missing._NUMBERS", 7 * D**2)
    assert torch.allclose(completions(x, seed=4), out, atol=1e-4)


@pytest.mark.parametrize("n", [3, 20])
def test_few_rows_columns_that_repeat_each_other_and_constants(n: int):
    x = with_holes(gaussian(n), 0.2).repeat(1, 2)
    x[:, 3] = 7.0
    x[0, :] = torch.nan
    out = completions(x)
    assert torch.isfinite(out).all()
    assert (out[:, :, 3] - 7.0).abs().max() < 1e-3


def test_many_rows_are_fitted_by_a_part(monkeypatch: pytest.MonkeyPatch):
    """The column that is known in few rows, of which none may be in the part, too."""
    monkeypatch.setattr("ansn.data.missing._ROWS", 100)
    x = with_holes(gaussian(10_000)).float().repeat(1, 13)
    x[3:, 3] = torch.nan
    x[0, 3] = 1.0
    mean, _ = fitted(x, iterations=1)
    assert torch.isfinite(mean).all()
    assert not torch.equal(mean, fitted(x, seed=1, iterations=1)[0]), "rows of another choice"


def test_wrong_arguments_are_named():
    x = gaussian(5)
    x[:, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^x: got no known number in column 2, expected at least one$"):
        completions(x)
    with pytest.raises(TypeError, match=r"^x: got torch.int64 of shape \[3, 2\], expected floats \[N, d\]$"):
        completions(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^draws: got 0"):
        completions(gaussian(5), draws=0)
