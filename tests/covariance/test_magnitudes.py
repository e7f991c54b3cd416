"""Data of any size: a snapshot is of numbers, or the data is refused in one line and the one before stays."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ansn import ops
from ansn.covariance import STRUCTURES, AdaptiveCovariance, Moments
from ansn.ops import _checks

SHAPE = (1, 2, 3)
DTYPES = [(torch.float64, torch.float32), (torch.float64, torch.float64), (torch.float32, torch.float32)]
FAMILIES: list[dict[str, Any]] = [{"rho": 0.5}, {"rho": 1.0}, {"gamma": -0.5}, {"noise": 2.0}]
LINE = re.compile(r"(x|covariance|eps): got .*, expected [^\n]*")


def rows(exponent: float, shift: float = 0.0, dtype: torch.dtype = torch.float64, count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64) + shift
    return (x * 10.0**exponent).to(dtype)


def state(covariance: AdaptiveCovariance) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in covariance.state_dict().items()}


def assert_sound(covariance: AdaptiveCovariance) -> None:
    """What is in force is of numbers, and so is what it makes of numbers."""
    for name, value in covariance.state_dict().items():
        assert name.startswith("moments.") or torch.isfinite(value).all(), name
    z = torch.ones(2, *SHAPE, dtype=covariance.center.dtype)
    assert torch.isfinite(covariance.color(z)).all()
    assert torch.isfinite(covariance.whiten(z)).all()
    assert torch.isfinite(covariance.step(z, b=1.0, seed=1)).all()
    assert torch.isfinite(covariance.noise_shape()).all()
    assert (covariance.scale > 0).all()


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=40, deadline=None)
@given(
    exponent=st.integers(-300, 300), shift=st.sampled_from([0.0, 1.0, 1e3]), dtypes=st.sampled_from(DTYPES),
    given_as=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), family=st.sampled_from(FAMILIES),
    tracked=st.booleans(), backend=st.sampled_from(["auto", "reference"]), floor=st.sampled_from([0.0, 1e-6]),
)  # fmt: skip
def test_no_snapshot_is_without_numbers(
    structure: str, exponent: int, shift: float, dtypes: tuple[torch.dtype, torch.dtype], given_as: torch.dtype,
    family: dict[str, Any], tracked: bool, backend: str, floor: float,
) -> None:  # fmt: skip
    state_dtype, factor_dtype = dtypes
    covariance = AdaptiveCovariance(
        SHAPE, 1, structure, dtype=state_dtype, factor_dtype=factor_dtype, eps_floor=floor, **family
    )
    if tracked:
        covariance.track()
    x, before, said = rows(exponent, shift, given_as), state(covariance), ""
    with ops.backend(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            covariance.update(x)
        except ValueError as error:
            said = str(error)
        assert_sound(covariance)
    if said:
        assert LINE.fullmatch(said)
        kept = [name for name in before if said.startswith("x:") or not name.startswith(("moments.", "_extra"))]
        assert all(torch.equal(covariance.state_dict()[name], before[name]) for name in kept)
    else:
        assert float(x.double().std(0).min()) < torch.finfo(factor_dtype).max ** 0.5


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize(("dtypes", "size"), [(DTYPES[0], 1e200), (DTYPES[1], 1e200), (DTYPES[2], 1e30)])
def test_a_value_whose_square_is_no_number_is_refused(
    structure: str, name: str, dtypes: tuple[torch.dtype, torch.dtype], size: float
) -> None:
    """In one line that has it, and the state is as it was; also in the middle of a batch."""
    covariance = AdaptiveCovariance(SHAPE, 1, structure, dtype=dtypes[0], factor_dtype=dtypes[1]).update(rows(0))
    before, x = state(covariance), rows(0, dtype=torch.float32 if size == 1e30 else torch.float64)
    x[7, 0, 1, 2] = -size
    line = rf"x: got a value of size {re.escape(f'{size:.3g}')}, expected at most .*; the covariance was left as it was"
    with ops.backend(name), pytest.raises(ValueError, match=f"^{line}$"):
        covariance.update(x)
    assert all(torch.equal(value, before[key]) for key, value in state(covariance).items())
    with ops.backend(name):
        assert covariance.update(rows(0)).points == 80


@pytest.mark.parametrize("structure", STRUCTURES)
def test_moments_refuse_it_too(structure: str) -> None:
    moments = Moments(STRUCTURES[structure](SHAPE), 1)
    with pytest.raises(ValueError, match=r"^x: got a value of size 1e\+200, expected at most 2\.05e\+149"):
        moments.update(torch.full((4, *SHAPE), 1e200, dtype=torch.float64))
    assert not moments.weight.any()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize(("exponent", "shift"), [(200, 0.0), (100, 0.0), (40, 1e9), (-60, 0.0)])
def test_what_is_not_looked_at_is_refused_by_the_refresh(
    structure: str, tracked: bool, exponent: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a look would wait: the snapshot before stays in force, and each refresh says why."""
    covariance = AdaptiveCovariance(SHAPE, 1, structure, eps_floor=0.0)
    if tracked:
        covariance.track()
    before = state(covariance)
    monkeypatch.setattr(_checks, "readable", lambda _: False)
    for _ in range(2):
        with ops.backend("reference"), pytest.raises(ValueError, match=r"^covariance: got a mean or dev") as caught:
            covariance.update(rows(exponent, shift))
        assert re.fullmatch(LINE, str(caught.value))
        assert "which a snapshot in float32 holds" in str(caught.value)
    assert_sound(covariance)
    kept = [name for name in before if name.startswith("snapshot.") or name in ("center", "scale", "share")]
    assert all(torch.equal(covariance.state_dict()[name], before[name]) for name in kept)
