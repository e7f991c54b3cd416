"""Several processes: moments, flags and means of all ranks, and the device that each takes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ansn.covariance import STRUCTURES, Moments
from ansn.covariance.ranks import all_reduce_moments
from ansn.distributed import any_rank, choose_device, mean_over_ranks, processes, say_device
from ansn.errors import InputError
from tests.tolerances import EXACT

SHAPE, DIM, RANKS = (1, 2, 3), 6, 2
CASES = {"uneven": (20, 7), "an idle rank": (0, 20), "all idle": (0, 0)}  # rows of each rank


def shares(case: str, regions: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows and regions of each rank; one of several regions gets no point."""
    generator = torch.Generator().manual_seed(7)
    out = []
    for count in CASES[case]:
        x = torch.randn(count, DIM, generator=generator, dtype=torch.float64) * 3 + 100
        out.append((x, torch.randint(0, max(regions - 1, 1), (count,), generator=generator)))
    return out


def moments_of(x: torch.Tensor, region: torch.Tensor, regions: int, structure: str) -> Moments:
    """In a basis of no special kind, the same for every rank, where one is learned."""
    moments = Moments(STRUCTURES[structure](SHAPE), regions)
    generator = torch.Generator().manual_seed(3)
    for part in moments.basis.values():
        part.copy_(torch.linalg.qr(torch.randn(part.shape, generator=generator, dtype=torch.float64))[0])
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
    for rank in range(RANKS):
        merged = Moments(STRUCTURES[structure](SHAPE), regions)
        with np.load(reduced / f"{case}-{structure}-{regions}-{rank}.npz") as values:
            merged.load_state_dict({k: torch.from_numpy(values[k]) for k in values.files})
        assert torch.equal(merged.weight, whole.weight)
        assert torch.equal(merged.weight2, whole.weight2)
        torch.testing.assert_close(merged.mean, whole.mean, rtol=EXACT, atol=0)
        for name, scatter in whole.scatters.items():
            found, largest = merged.scatters[name], float(scatter.abs().max())
            torch.testing.assert_close(found, scatter, rtol=0, atol=EXACT * largest)
        assert all(torch.equal(merged.basis[name], part) for name, part in whole.basis.items())


def test_flags_and_means_over_ranks(reduced: Path) -> None:
    for rank in range(RANKS):
        assert np.load(reduced / f"{rank}.npy").tolist() == [0.0, 1.0, 0.5]


def test_alone_there_is_nothing_to_reduce() -> None:
    assert any_rank(True, torch.device("cpu")) is True
    assert any_rank(False, torch.device("cpu")) is False
    assert mean_over_ranks(torch.tensor(2.5)) == 2.5


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


@pytest.mark.parametrize(("environment", "index"), [({}, 1), ({"WORLD_SIZE": "4", "LOCAL_RANK": "3"}, 3)])
def test_the_device_is_said(
    environment: dict[str, str], index: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name; of torchrun's processes each takes a GPU of its own."""
    fake = {"is_available": lambda: True, "device_count": lambda: 4, "get_device_name": lambda d: f"GPU {d.index}"}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in ("cuda:1", "cpu"):
        say_device(choose_device(name))
    assert capsys.readouterr().err == f"device: cuda:{index}, GPU {index}\ndevice: cpu, 2 threads\n"


def test_a_gpu_of_too_high_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: dict[str, Any] = {"is_available": lambda: True, "device_count": lambda: 1}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(InputError, match=r"--device: got 'cuda:3' \(GPU 3\), but there are 1"), processes("cuda:3"):
        pass
