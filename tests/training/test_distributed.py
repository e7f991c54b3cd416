"""Two processes at half the batch each are one process: covariance, loss curve, resumption."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ansn.covariance import AdaptiveCovariance
from ansn.errors import InputError
from ansn.training import checkpoint, load_run, train
from tests.tolerances import EXACT
from tests.training.helpers import assert_same_run, metrics, small, tensors

LOSS = 1e-5  # relative (1e-7 measured): gradients are summed in another order


# -- merges without another process ------------------------------------------------------------------------------


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process, which goes the way of several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr("ansn.covariance.adaptive.several", lambda sync: sync is True)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("structure", ["dense", "separable"])
@pytest.mark.parametrize("forgetting", [1.0, 0.9])
def test_merges_count_no_point_twice(
    structure: str, forgetting: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The way of several ranks, with a reduction that finds no one else: the covariance of one process, whatever the
    interval of its checkpoints."""
    options = {"freeze_after": 900, "forgetting": forgetting, "structure": structure}
    expected = load_run(train(small(tmp_path / "one", **options))).model.noise.covariance
    request.getfixturevalue("gathers")
    found = load_run(train(small(tmp_path / "two", **options))).model.noise.covariance
    assert (found.seen, found.seen_at_refresh, found.frozen) == (expected.seen, expected.seen_at_refresh, True)
    assert_covariances_agree(found, expected)


@pytest.mark.parametrize("skip", ["wiener", "mixture"])
@pytest.mark.parametrize("structure", ["dense", "separable"])
def test_merges_count_no_point_of_a_region_twice(
    structure: str, skip: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same for regions that were found, of the noise and of the skip; a row's region is drawn alike."""
    options = {"freeze_after": None, "structure": structure, "skip": skip, "regions": 3}
    expected = load_run(train(small(tmp_path / "one", **options))).mixture.covariance
    request.getfixturevalue("gathers")
    found = load_run(train(small(tmp_path / "two", **options))).mixture.covariance
    assert (found.seen, found.seen_at_refresh) == (expected.seen, expected.seen_at_refresh)
    assert_covariances_agree(found, expected)


def assert_covariances_agree(found: AdaptiveCovariance, expected: AdaptiveCovariance) -> None:
    torch.testing.assert_close(found.count, expected.count, rtol=EXACT, atol=0)
    s, largest = expected.covariance(), float(expected.covariance().abs().max())
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=EXACT * float(expected.mean.abs().max()))
    torch.testing.assert_close(found.covariance(), s, rtol=0, atol=EXACT * largest)
    # The snapshot is stored as float32: its last bit may fall the other way.
    eps = torch.finfo(torch.float32).eps
    for k in range(expected.regions):
        region = None if expected.regions == 1 else torch.full((expected.dim,), k)
        factor, same = (c.color(torch.eye(c.dim), region) for c in (expected, found))
        torch.testing.assert_close(same, factor, rtol=0, atol=2 * eps * float(factor.abs().max()))
    torch.testing.assert_close(found.center, expected.center, rtol=2 * eps, atol=eps)
    torch.testing.assert_close(found.scale, expected.scale, rtol=2 * eps, atol=0)


# -- the same command under torchrun ---------------------------------------------------------------------------


def torchrun(out: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2` of ansn-train."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "ansn.cli.train", "digits", "--out", out, "--width", 16, "--blocks", 1, "--batch-size", 32,
        "--warmup", 10, "--log-every", 5, "--checkpoint-every", 10, "--device", "cpu", "--samples", 0,
        "--freeze-after", 1000, *options,
    ]  # fmt: skip
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(tmp_path_factory.mktemp("one"), freeze_after=1000))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(folder, "--steps", 40, "--rho", 0.5)
    assert done.returncode == 0, done.stderr
    assert [done.stderr.count(told) for told in ("step 40/40", "device: cpu")] == [1, 1], "one process tells"
    return folder


def assert_loss_curves_agree(found: Path, expected: Path, steps: Sequence[int]) -> None:
    curves = [{line["step"]: line for line in metrics(run)} for run in (found, expected)]
    for step in steps:
        line, same = (curve[step] for curve in curves)
        assert line["loss"] == pytest.approx(same["loss"], rel=LOSS)
        assert line["gradient_norm"] == pytest.approx(same["gradient_norm"], rel=100 * LOSS)
        assert line["condition_number"] == pytest.approx(same["condition_number"], rel=1e-5)
        assert (line["covariance_points"], line["lr"]) == (same["covariance_points"], same["lr"])


def test_two_processes_have_the_covariance_of_one(one: Path, two: Path) -> None:
    expected, found = (load_run(run).model.noise.covariance for run in (one, two))
    assert (found.seen, found.seen_at_refresh, found.frozen) == (1024, 1024, True)
    assert_covariances_agree(found, expected)


def test_two_processes_have_the_loss_curve_of_one(one: Path, two: Path) -> None:
    assert [line["step"] for line in metrics(two)] == list(range(5, 41, 5))
    assert_loss_curves_agree(two, one, range(5, 41, 5))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    done = torchrun(folder, "--steps", 40, "--rho", 0.5, "--shard")
    assert done.returncode == 0, done.stderr
    assert "returned a view" not in done.stderr
    return folder


def assert_weights_agree(found: Path, expected: Path) -> None:
    """And averages, and Adam's moments, which tell more: Adam makes a step of the rounding of a gradient near 0."""
    told, same = tensors(found), tensors(expected)
    assert told.keys() == same.keys()
    for name, value in same.items():
        if name.startswith("optimizer/"):
            torch.testing.assert_close(told[name], value, rtol=0, atol=1e-4 * float(value.abs().max()))
        elif name.startswith(("network/", "ema/")):
            torch.testing.assert_close(told[name], value, rtol=0.01, atol=1e-3)


@pytest.mark.slow
def test_sharded_processes_have_the_weights_of_whole_ones(sharded: Path, two: Path) -> None:
    assert_weights_agree(sharded, two)
    assert load_run(sharded).step == 40


@pytest.mark.slow
def test_a_checkpoint_of_sharded_processes_serves_one(sharded: Path, two: Path, tmp_path: Path) -> None:
    """Which goes on with whole weights and Adam's whole state."""
    runs = [Path(shutil.copytree(run, tmp_path / run.name)) for run in (sharded, two)]
    for run in runs:
        train(small(run, freeze_after=1000, steps=43))
    assert_weights_agree(*runs)


def test_one_process_cannot_share(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--shard: got one process, expected several"):
        train(small(tmp_path / "run", shard=True))


@pytest.mark.slow
@pytest.mark.parametrize("network", [(), ("--network", "unet", "--width", 8), ("--network", "ncsnv2", "--width", 8)])
def test_sharded_processes_resume(network: tuple[object, ...], tmp_path: Path) -> None:
    """From a checkpoint of sharded processes and of others."""
    runs = [tmp_path / name for name in ("whole", "first sharded", "then sharded")]
    shared = [(False, False), (True, True), (False, True)]
    for run, ways in zip(runs, shared, strict=True):
        for steps, shard in zip((4, 8), ways, strict=True):
            options = ("--steps", steps, "--rho", 0.5, *network, *["--shard"] * shard)
            done = torchrun(run, "--structure", "dense", *options)
            assert done.returncode == 0, done.stderr
    for run in runs[1:]:
        assert_weights_agree(run, runs[0])


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(tmp_path: Path) -> None:
    """Whenever they stopped and stored: what is not merged yet is stored as each process has it."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = ("--rho", 0.5, "--freeze-after", "None")
    assert torchrun(whole, "--steps", 40, *options).returncode == 0
    every = ("--checkpoint-every", 7, *options)
    first, second = (torchrun(run, "--steps", steps, *every) for steps in (22, 40))
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "going on" not in first.stderr
    assert second.stderr.count("going on from step 22") == 1
    assert_same_run(run, whole)
    between = [line for line in metrics(run) if line["step"] == 22]
    assert [line for line in metrics(run) if line not in between] == metrics(whole)
    assert [line["steps"] for line in between] == [2]


def test_a_checkpoint_of_two_processes_serves_one(one: Path, two: Path, tmp_path: Path) -> None:
    """Names of weights do not tell how many processes trained them, and one process goes on with them."""
    assert tensors(one).keys() == tensors(two).keys()
    for name, value in tensors(one).items():
        if name.startswith(("network/", "ema/")):
            torch.testing.assert_close(tensors(two)[name], value, rtol=0.01, atol=1e-3)
    run = Path(shutil.copytree(two, tmp_path / "run"))
    train(small(run, freeze_after=1000, steps=43))
    assert checkpoint.steps(run)[0] == 43


@pytest.mark.slow
@pytest.mark.parametrize("use", [("--regions", 4), ("--skip", "mixture", "--regions", 4)])
def test_two_processes_find_the_regions_of_one(use: tuple[object, ...], tmp_path: Path) -> None:
    """A limit of digits' 1,347 rows would end the learning at once, so there is none; 42 batches are known."""
    done = torchrun(tmp_path / "two", "--steps", 60, "--structure", "separable", "--freeze-after", "None", *use)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("regions: 4, separable (found in 1,347 rows)") == 1
    options = {
        "structure": "separable",
        "freeze_after": None,
        "steps": 60,
        "regions": 4,
        "skip": "mixture" if use[0] == "--skip" else None,
    }
    one = train(small(tmp_path / "one", **options))
    expected, found = (load_run(run) for run in (one, tmp_path / "two"))
    assert found.found == expected.found
    assert found.mixture.covariance.seen == 1347 + 18 * 32
    assert_covariances_agree(found.mixture.covariance, expected.mixture.covariance)
    assert_loss_curves_agree(tmp_path / "two", one, range(5, 61, 5))


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "run", "--batch-size", 33, "--steps", 2)
    assert done.returncode != 0
    assert "ansn-train: error: --batch-size: got 33, expected a multiple of 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()
