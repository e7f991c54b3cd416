"""Two processes at half the batch each are one process: covariance, loss curve, resumption."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ansn.covariance import AdaptiveCovariance
from ansn.errors import InputError
from ansn.moments import RunningMoments
from ansn.structures import STRUCTURES
from ansn.training import checkpoint, load_run, train
from ansn.training.distributed import all_reduce_moments, any_rank, mean_over_ranks, processes
from ansn.training.trainer import Trainer, _dataset
from tests.tolerances import EXACT
from tests.training.helpers import metrics, small, tensors

LOSS = 1e-5  # relative (1e-7 measured): gradients are summed in another order
DIM, RANKS = 5, 2
CASES = {"uneven": (20, 7), "an idle rank": (0, 20), "all idle": (0, 0)}  # rows of each rank


# -- the merge -------------------------------------------------------------------------------------------------


def shares(case: str, regions: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows and regions of each rank; one of several regions gets no point."""
    generator = torch.Generator().manual_seed(7)
    out = []
    for count in CASES[case]:
        x = torch.randn(count, DIM, generator=generator, dtype=torch.float64) * 3 + 100
        out.append((x, torch.randint(0, max(regions - 1, 1), (count,), generator=generator)))
    return out


def moments_of(x: torch.Tensor, region: torch.Tensor, regions: int, structure: str) -> RunningMoments:
    moments = RunningMoments(DIM, regions, STRUCTURES[structure])
    if len(x):
        moments.update(x, region if regions > 1 else None)
    return moments


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    for case, structure, regions in itertools.product(CASES, STRUCTURES, (1, 4)):
        moments = moments_of(*shares(case, regions)[rank], regions, structure)
        all_reduce_moments(moments)
        values = {k: v.numpy() for k, v in moments.state_dict().items()}
        np.savez(f"{folder}/{case}-{structure}-{regions}-{rank}.npz", **values)
    told = [any_rank(flag, torch.device("cpu")) for flag in (False, rank == 1)]
    np.save(f"{folder}/{rank}.npy", [*told, mean_over_ranks(torch.tensor(float(rank)))])
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, (str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("regions", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_every_rank_gets_the_moments_of_all_rows(reduced: Path, case: str, structure: str, regions: int) -> None:
    parts = shares(case, regions)
    whole = moments_of(torch.cat([x for x, _ in parts]), torch.cat([k for _, k in parts]), regions, structure)
    covariance = whole.covariance()
    for rank in range(RANKS):
        merged = RunningMoments(DIM, regions, STRUCTURES[structure])
        with np.load(reduced / f"{case}-{structure}-{regions}-{rank}.npz") as values:
            merged.load_state_dict({k: torch.from_numpy(values[k]) for k in values.files})
        assert torch.equal(merged.weight, whole.weight)
        assert torch.equal(merged.weight2, whole.weight2)
        torch.testing.assert_close(merged.mean, whole.mean, rtol=EXACT, atol=0)
        torch.testing.assert_close(merged.covariance(), covariance, rtol=0, atol=EXACT * float(covariance.abs().max()))


def test_flags_and_means_over_ranks(reduced: Path) -> None:
    for rank in range(RANKS):
        assert np.load(reduced / f"{rank}.npy").tolist() == [0.0, 1.0, 0.5]


def test_alone_there_is_nothing_to_reduce() -> None:
    assert any_rank(True, torch.device("cpu")) is True
    assert any_rank(False, torch.device("cpu")) is False
    assert mean_over_ranks(torch.tensor(2.5)) == 2.5


@pytest.mark.parametrize("forgetting", [1.0, 0.9])
def test_merges_count_no_point_twice(forgetting: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's path for several ranks, with a reduction that finds no one else: the covariance of one process,
    whatever the interval of its checkpoints."""
    monkeypatch.setattr("ansn.training.trainer.all_reduce_moments", lambda _: None)
    config = small(tmp_path / "one", freeze_after=900, forgetting=forgetting)
    train(config)
    expected = load_run(tmp_path / "one").model.noise.covariance

    built = Trainer(
        small(tmp_path / "two", freeze_after=900, forgetting=forgetting), _dataset(config), 0, 1, torch.device("cpu")
    )
    built.gathered = RunningMoments(64, 1, STRUCTURES["dense"])
    built.run()
    found = load_run(tmp_path / "two").model.noise.covariance
    assert (found.seen, found.seen_at_refresh, found.frozen) == (expected.seen, expected.seen_at_refresh, True)
    assert_covariances_agree(found, expected)


def assert_covariances_agree(found: AdaptiveCovariance, expected: AdaptiveCovariance) -> None:
    torch.testing.assert_close(found.count, expected.count, rtol=EXACT, atol=0)
    s, largest = expected.covariance(), float(expected.covariance().abs().max())
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=EXACT * float(expected.mean.abs().max()))
    torch.testing.assert_close(found.covariance(), s, rtol=0, atol=EXACT * largest)
    # The factor is stored as float32: its last bit may fall the other way.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(found.factor, expected.factor, rtol=0, atol=2 * eps * float(expected.factor.abs().max()))
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
    return subprocess.run(
        list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(tmp_path_factory.mktemp("one"), freeze_after=1000))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(folder, "--steps", 40)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 40/40") == 1, "one process tells the progress"
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


@pytest.mark.slow
def test_two_processes_resume(one: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = (torchrun(run, "--steps", steps) for steps in (22, 40))
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "going on" not in first.stderr
    assert second.stderr.count("going on from step 22") == 1
    assert checkpoint.steps(run) == [40, 30]
    # The line at 22 took two steps from the one at 25.
    assert [line["step"] for line in metrics(run)] == [5, 10, 15, 20, 22, 25, 30, 35, 40]
    assert_loss_curves_agree(run, one, (5, 10, 15, 20, 30, 35, 40))
    expected, found = (load_run(r).model.noise.covariance for r in (one, run))
    assert (found.seen, found.seen_at_refresh) == (expected.seen, expected.seen_at_refresh)
    assert_covariances_agree(found, expected)


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
def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "run", "--batch-size", 33, "--steps", 2)
    assert done.returncode != 0
    assert "ansn-train: error: --batch-size: got 33, expected a multiple of 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cuda", ("'cuda'", "sees no GPU")), ("tpu", ("'tpu'", "cpu, cuda, cuda:N or auto")),
        ("meta", ("'meta'", "cpu, cuda, cuda:N or auto")), ("cuda:x", ("'cuda:x'", "cpu, cuda, cuda:N or auto")),
        ("", ("''", "cpu, cuda, cuda:N or auto")),
    ],
)  # fmt: skip
def test_devices_that_are_not_there(name: str, parts: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as caught, processes(name):
        pass
    assert all(part in str(caught.value) for part in ("--device", *parts))


def test_a_gpu_of_too_high_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: dict[str, Any] = {"is_available": lambda: True, "device_count": lambda: 1}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(InputError, match=r"--device: got 'cuda:3' \(GPU 3\), but there are 1"), processes("cuda:3"):
        pass
