"""What the claims share: statistics, cells that go on where they were, closed forms, paired runs, the page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ansn import levels
from ansn.errors import InputError
from experiments.lab import page
from experiments.lab.claim import RESULTS, Cell, Claim, Row, Section, Settings, complete, publish, read, write
from experiments.lab.exact import known_covariance
from experiments.lab.mixture import Mixture
from experiments.lab.problems import anisotropic, fields, problem
from experiments.lab.statistics import (
    Estimate,
    estimate,
    listed,
    log_ratio,
    mean,
    paired,
    ratio,
    reached,
    sooner,
    table,
)
from experiments.lab.training import Setup, distance, fit, floor, frechet, likelihood, noise_model, one_copy, tuned
from tests import oracles

# -- statistics --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_interval_is_students(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    sem = np.std(values, ddof=1) / math.sqrt(len(values))
    if sem > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), sem)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert estimate([2.0]) == Estimate(2.0, math.inf, 1)
    assert estimate([2.0]).sign == 0
    assert "±" not in estimate([2.0]).show()
    with pytest.raises(ValueError, match="values"):
        estimate([])


def test_sign_is_what_the_interval_says() -> None:
    assert [Estimate(m, 1.0, 5).sign for m in (2.0, -2.0, 0.5)] == [1, -1, 0]


def test_pairs_are_of_one_seed_and_remove_what_seeds_share() -> None:
    rows = [{"seed": s, "fd": 10.0 * s + 1.0} for s in (3, 0, 1)]
    control = [{"seed": s, "fd": 10.0 * s} for s in (0, 1, 2, 3)]
    found = paired(rows, control, "fd")
    assert (found.mean, found.half, found.n) == (pytest.approx(1.0), pytest.approx(0.0), 3)
    halved = paired([{"seed": s, "fd": r["fd"] / 2} for s, r in enumerate(rows)], rows[::1], "fd", log_ratio)
    assert halved.n == 2, "seeds that both have"
    with pytest.raises(ValueError, match="seed 0 is there twice"):
        paired(control + control, control, "fd")


def test_ratio_is_a_geometric_mean() -> None:
    assert ratio(estimate([math.log(2), math.log(8)])).startswith("4.00 (")


@given(st.floats(0.2, 5.0), st.floats(0.3, 3.0))
def test_a_power_law_is_reached_where_it_is(scale: float, power: float) -> None:
    at = [50.0, 100.0, 200.0, 400.0]
    values = [scale * -power * math.log(x) for x in at]  # a line in the logarithm of `at`: exact
    target = scale * -power * math.log(150.0)
    assert reached(at, values, target) == pytest.approx(150.0)
    assert reached(at, values, values[-1] - 1) == math.inf
    assert reached(at, values, values[0] + 1) == 50.0


LATE, NEVER = dict.fromkeys(range(3), 400.0), {0: math.inf, 1: 700.0, 2: 800.0}


@pytest.mark.parametrize(
    ("ours", "theirs", "bound", "shown"),
    [
        (dict.fromkeys(LATE, 200.0), LATE, "", "2.00"),
        ({0: 100.0, 1: 200.0, 2: 200.0}, LATE, "at least ", "2.5"),
        (NEVER, LATE, "at most ", "0.52"),
        (LATE, NEVER, "at least ", "1.91"),
        ({0: 100.0, 1: math.inf}, LATE, "about ", "1.4"),
    ],
)
def test_sooner_bounds_what_was_not_seen(
    ours: dict[int, float], theirs: dict[int, float], bound: str, shown: str
) -> None:
    found = sooner(ours, theirs, 100, 800)
    assert found is not None
    assert found.bound == bound
    assert found.show().startswith(bound + shown)


def test_where_neither_is_there_nothing_is_sooner() -> None:
    assert sooner(dict.fromkeys(LATE, math.inf), dict.fromkeys(LATE, math.inf), 100, 800) is None


def test_a_run_that_diverged_counts() -> None:
    control = [{"seed": s, "fd": 1.0} for s in range(3)]
    found = paired([{"seed": s, "fd": math.inf if s else 1.0} for s in range(3)], control, "fd")
    assert found.sign == 1
    assert found.show() == "diverged"


def test_means_are_of_the_rows_of_some_settings() -> None:
    rows = [{"seed": s, "shape": shape, "fd": s + at} for s in range(3) for shape, at in (("a", 0.0), ("b", 5.0))]
    assert mean(rows, "fd", shape="b").mean == 6.0
    assert listed([(1, "x"), (-1, "y"), (-1, "z")]) == "better: y, z; worse: x"


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


# -- cells -------------------------------------------------------------------------------------------------------

LOG = "ran.txt"
VALUES = (3, 1, 2, *range(4, 12))


def some_cells(settings: Settings) -> list[Cell]:
    return [{"value": v, "name": "a"} for v in VALUES]


def squares(cell: Cell, settings: Settings) -> list[Row]:
    with (settings.out / LOG).open("a") as file:
        file.write(f"{cell['value']}\n")
    if (settings.out / f"fail{cell['value']}").exists():
        raise InputError("this one fails")
    return [{"seed": s, "square": cell["value"] ** 2 + 0.5 * s, "none": None} for s in (0, 1)]


def told(rows: list[Row], folder: Path) -> Section:
    return Section(
        "Squares?", f"sum {sum(row['square'] for row in rows):g}", "Of numbers.", [("All", table(["x"], []))]
    )


SQUARES = Claim("squares", some_cells, squares, told)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_are_in_the_order_of_the_cells_and_are_kept(tmp_path: Path, jobs: int) -> None:
    settings = Settings(quick=True, jobs=jobs, out=tmp_path)
    (tmp_path / "fail1").touch()
    with pytest.raises(InputError, match="this one fails"):
        complete(SQUARES, settings)
    (tmp_path / "fail1").unlink()
    before = (tmp_path / LOG).read_text().split()
    rows = read(complete(SQUARES, settings))
    assert [(row["value"], row["seed"]) for row in rows] == [(v, s) for v in VALUES for s in (0, 1)]
    assert rows[1]["square"] == 9.5
    assert rows[0]["none"] is None
    assert rows[0]["cpu"]
    again = (tmp_path / LOG).read_text().split()[len(before) :]
    assert "3" in before
    assert "3" not in again, "what was done is not done again"
    complete(SQUARES, settings)
    assert (tmp_path / LOG).read_text().split() == before + again
    section = publish(SQUARES, settings)
    assert section.answer == "sum 1017.5"
    assert "Squares?" in page.markdown("squares", section)


def test_no_resume_starts_over(tmp_path: Path) -> None:
    for resume in (True, False):
        complete(SQUARES, Settings(quick=True, jobs=1, out=tmp_path, resume=resume))
    assert len((tmp_path / LOG).read_text().split()) == 2 * len(VALUES)


def test_bad_jobs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--jobs: got 0"):
        complete(SQUARES, Settings(jobs=0, out=tmp_path))


def test_csv_round_trip(tmp_path: Path) -> None:
    rows: list[Row] = [{"a": 1, "b": "x", "c": 0.125}, {"a": 2, "b": None, "c": math.inf, "d": 1e-12}]
    write(tmp_path / "r.csv", rows)
    assert read(tmp_path / "r.csv") == [{"a": 1, "b": "x", "c": 0.125, "d": None}, {**rows[1]}]


# -- problems ----------------------------------------------------------------------------------------------------


def test_mixture_is_the_oracle(tmp_path: Path) -> None:
    means, covariances = oracles.randn(3, 4), torch.stack([oracles.spd(4, seed=s) for s in range(3)])
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ours, oracle = Mixture(means, covariances, weights), oracles.Mixture(means, covariances, weights)
    x, sigma = oracles.randn(7, 4, seed=1), torch.stack([oracles.spd(4, seed=10 + s) for s in range(7)])
    torch.testing.assert_close(ours.log_density(x, sigma), oracle.log_density(x, sigma), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours.denoised(x, sigma), oracle.denoised(x, sigma), rtol=1e-11, atol=1e-11)
    one = sigma[:1].expand(7, -1, -1)
    torch.testing.assert_close(ours.denoised(x, sigma[0]), oracle.denoised(x, one), rtol=1e-11, atol=1e-11)
    drawn, owner = ours.sample(20_000)
    assert oracles.covariance_within_five_sigma(drawn - ours.mean(), ours.covariance())
    assert oracles.five_sigma((owner == 0).double()[:, None], 0.5)


def test_anisotropic_has_its_condition() -> None:
    values = torch.linalg.eigvalsh(anisotropic(8, condition=100.0).covariances[0])
    assert float(values[-1] / values[0]) == pytest.approx(100.0)


def test_fields_have_unit_variance_and_their_spectrum() -> None:
    g = fields(20_000, 0, bend=0.0)
    assert float(g.square().mean()) == pytest.approx(1.0, abs=0.03)
    power = torch.fft.rfft(g).abs().square().mean(0)
    slope = np.polyfit(np.log(np.arange(1, 32)), power[1:32].log().numpy(), 1)[0]
    assert slope == pytest.approx(-3.0, abs=0.05)
    assert float(power[0]) < 1e-12
    skew = fields(20_000, 0).pow(3).mean()
    assert float(skew) > 0.5, "not Gaussian"


@pytest.mark.slow
def test_rows_of_a_problem_can_be_few_and_distances_are_to_all() -> None:
    few, whole = problem("digits", rows=200), problem("digits")
    assert (len(few.train), len(few.whole), len(whole.train)) == (200, 1347, 1347)
    assert problem("table", rows=10**6).train is problem("table", None).train
    assert floor(few) == floor(whole) > 0
    assert frechet(one_copy(few.test) * math.nan, few) == math.inf
    with pytest.raises(InputError, match="--data"):
        problem("mnist")


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["scalar rho=0.5", "wiener", "wiener rho=0.5", "mixture"])
def test_runs_of_one_seed_are_paired(arm: str) -> None:
    """Same first weights and data, another arm: after one step only the output layer, zero before, has moved."""
    learned, (skip, rho, _) = problem("mixture"), Setup(arm).begins
    run, control = (next(fit(learned, Setup(a, seed=3, steps=1, structure="dense"))) for a in (arm, "scalar"))
    assert (run.model.skip, run.model.noise.covariance.rules.rho) == (skip, rho)
    assert run.model.noise.covariance.seen == 128
    for (name, ours), theirs in zip(
        run.model.network.named_parameters(), control.model.network.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs) != name.startswith("output"), name


def test_the_network_of_an_arm_that_sees_has_one_more_input() -> None:
    assert Setup("wiener rho=0.5 seen").begins == ("wiener", 0.5, ("estimate",))
    run = next(fit(problem("mixture"), Setup("wiener seen", steps=1)))
    assert run.model.inputs == ("estimate",)


def test_a_fixed_covariance_knows_all_data_from_the_start() -> None:
    learned = problem("mixture")
    noise = noise_model(learned, Setup("scalar rho=1", fixed=True, structure="dense"))
    s = torch.cov(one_copy(learned.train).double().T)
    torch.testing.assert_close(noise.covariance.noise_shape()[0], s, rtol=1e-2, atol=5e-3)
    assert noise.covariance.frozen
    assert noise_model(learned, Setup("scalar rho=1")).covariance.seen == 0


def test_a_run_is_judged_by_finite_numbers() -> None:
    learned = problem("mixture")
    trained = next(fit(learned, Setup("scalar rho=0.5", steps=3)))
    assert distance(trained, learned, 0) > floor(learned) > 0
    assert math.isfinite(likelihood(trained, learned))


def test_the_rate_of_the_lowest_held_out_loss_is_taken_and_one_that_diverges_is_not() -> None:
    learned = problem("mixture")
    assert tuned(learned, Setup("scalar rho=0.5", steps=30), (1e-9, 2e-3, 1e9)) == 2e-3


def test_the_ladder_starts_where_the_data_says() -> None:
    learned = problem("mixture")
    noise = noise_model(learned, Setup("scalar rho=0.5", structure="dense"))
    seen = noise_model(learned, Setup("scalar rho=0.5", structure="dense", fixed=True)).covariance
    assert noise.levels.start == pytest.approx(levels.tau_start(one_copy(learned.train)[:1000], seen), rel=0.05)


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_what_its_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/results.md and the CSV files beside it are of one making; the claims' tests look at figures."""
    for name in ("savefig", "tight_layout"):
        monkeypatch.setattr(f"matplotlib.figure.Figure.{name}", lambda *_, **__: None)
    assert page.PAGE.read_text() == page.page(figures=tmp_path)


def test_answers_of_before_stand_until_their_claim_is_measured(tmp_path: Path) -> None:
    rows = [{"question": f"{until or 'never'}?", "answer": "yes", "command": "c", "revision": "abc", "until": until}
            for until in ("quality", "drift", None)]  # fmt: skip
    write(tmp_path / page.BEFORE, rows)
    (tmp_path / "drift.csv").write_text((RESULTS / "drift.csv").read_text())
    made = page.page(tmp_path, tmp_path / "figures")
    assert "| quality? | yes (`c` at revision abc) |" in made
    assert "| never? |" in made
    assert "| drift? |" not in made
    assert "Not measured in full yet: `quality`" in made


def test_the_page_has_short_lines_and_few() -> None:
    lines = page.PAGE.read_text().splitlines()
    assert len(lines) <= 300
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def test_every_claim_can_be_run(tmp_path: Path) -> None:
    for name in ("mnist", "fashion-mnist", "cifar10"):
        (tmp_path / name).mkdir()
    for name in page.CLAIMS:
        claim = page.claim(name)
        assert claim.name == name
        quick, whole = (claim.cells(Settings(quick=quick, data=tmp_path)) for quick in (True, False))
        assert 0 < len(quick) <= len(whole)
        for cells in (quick, whole):
            assert len({tuple(cell.items()) for cell in cells}) == len(cells), "every cell is there once"


def test_known_moments_are_enough_for_a_spectrum() -> None:
    """``gaussian_2m`` of an exact denoiser would else be that of ``S = R``."""
    density = anisotropic(6)
    covariance = known_covariance(density, rho=0.0)
    ratio = covariance.pencil.l
    wanted = torch.linalg.eigvalsh(density.covariance()) / covariance.noise_shape()[0, 0, 0]
    torch.testing.assert_close(ratio[0].double().sort().values, wanted, rtol=1e-4, atol=0)
