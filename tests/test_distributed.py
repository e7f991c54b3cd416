"""Several processes: moments, flags and means of all ranks, and the device that each takes."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ansn
from ansn.covariance import STRUCTURES, AdaptiveCovariance, Moments
from ansn.covariance.ranks import all_reduce_moments
from ansn.distributed import any_rank, choose_device, mean_over_ranks, processes, say_device
from ansn.errors import InputError
from tests.tolerances import EXACT

SHAPE, DIM, RANKS, STEPS = (1, 2, 3), 6, 2, 8
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


def batches(step: int, ranks: int) -> list[torch.Tensor]:
    """A batch for each rank, of different sizes but in the last step, of correlated columns."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(24, DIM, generator=generator).cumsum(1).reshape(24, *SHAPE)
    return [x] if ranks == 1 else [x[:9], x[9:]] if step < STEPS - 1 else [x[:12], x[12:]]


def own_loop(rank: int, ranks: int, structure: str) -> dict[str, Any]:
    """A user's training loop with DistributedDataParallel around the whole denoiser."""
    torch.manual_seed(0)
    noise = ansn.NoiseModel(AdaptiveCovariance(SHAPE, 1, structure), ansn.levels.karras(5.0, 0.01))
    model = trained = ansn.Denoiser(ansn.networks.MLP(SHAPE, hidden=8, blocks=1), noise)
    if ranks > 1:
        trained = DistributedDataParallel(model)
    for step in range(STEPS):
        x = batches(step, ranks)[rank]
        noise.update(x)
    noise.sync()
    points = noise.covariance.points
    noise.covariance.freeze()
    perturbed, level = noise.perturb(x, step=7)
    ansn.dsm_loss(trained, x, perturbed, level).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    state = dict(noise.covariance.state_dict())
    return {"state": state, "points": points, "perturbed": perturbed, "gradients": gradients}


def refused(rank: int) -> list[str]:
    """What is said, on every rank, where ranks were made differently."""
    said = []
    turned = torch.eye(DIM) * (1 - 0.1 * rank) + 0.1 * rank
    for options in ({"top": 5.0 + rank}, {"rho": 0.5 * rank}, {"eps": 0.1 + rank}, {"warmup": 2 + rank},
                    {"refresh": 0.1 + rank}, {"noise": turned}, {"known": 1.0 + rank}):  # fmt: skip
        top, known = options.pop("top", 5.0), options.pop("known", None)
        noise = ansn.NoiseModel(AdaptiveCovariance(SHAPE, **options), ansn.levels.karras(top, 0.01))
        if known:
            noise.update(known * batches(1, 1)[0], sync=False)
        with pytest.raises(ValueError) as caught:
            noise.update(batches(0, 2)[rank])
        said.append(str(caught.value))
    noise.update(batches(0, 2)[rank], sync=False)
    return [*said, str(noise.covariance.seen)]


def alike(rank: int) -> dict[str, Any]:
    """What every rank makes of the same rows, a state that is loaded with rows pending, and an R without a factor."""
    x = batches(1, 1)[0].repeat(20, 1, 1, 1) + torch.randn(480, *SHAPE, generator=torch.Generator().manual_seed(1))
    out: dict[str, Any] = {}
    for name, options in (("regions", {"regions": 2}), ("mixture", {"mixture": 2})):
        noise = ansn.NoiseModel.for_data(x, structure="dense", **options)
        out[name] = dict(noise.state_dict()) | {"levels": torch.tensor(noise.levels.tau)}
    covariance = AdaptiveCovariance(SHAPE, refresh=10.0).update(batches(0, 2)[rank]).sync()
    state = {name: value.clone() for name, value in covariance.state_dict().items()}
    covariance.update(1e3 * batches(1, 2)[rank]).load_state_dict(state)
    out["loaded"] = dict(covariance.update(batches(2, 2)[rank]).sync().state_dict())
    singular = AdaptiveCovariance(SHAPE, rho=1.0, eps=0.0, eps_floor=0.0)
    for step in range(6):
        with contextlib.suppress(ValueError):
            singular.update(torch.ones_like(batches(step, 2)[rank]))
    with contextlib.suppress(ValueError):
        singular.sync()
    return out | {"singular": singular.moments.weight}


def sharded(rank: int) -> dict[str, Any]:
    """A step and samples of a denoiser that is sharded as a whole, or in its network alone."""
    mesh = init_device_mesh("cpu", (RANKS,))
    out: dict[str, Any] = {}
    for prediction, whole in (("denoiser", True), ("whitened", True), ("denoiser", False)):
        torch.manual_seed(0)
        noise = ansn.NoiseModel(AdaptiveCovariance(SHAPE), ansn.levels.karras(5.0, 0.01))
        noise.update(batches(0, 1)[0], sync=False)
        model = ansn.Denoiser(ansn.networks.MLP(SHAPE, hidden=8, blocks=1), noise, prediction)
        fully_shard(model if whole else model.network, mesh=mesh)
        x = batches(STEPS - 1, RANKS)[rank]
        loss = ansn.dsm_loss(model, x, *noise.perturb(x, step=7))
        loss.backward()
        images = ansn.sample(model.eval(), 3, steps=2)
        density = None if whole else ansn.log_likelihood(model, x[:2], steps=1, trace="exact").log_density
        out[f"{prediction} {whole}"] = loss.detach(), images, density
    return out


def interrupted(rank: int) -> dict[str, Any]:
    """A state that is stored at each step, one that never is, and one that goes on from what was stored at one."""
    out: dict[str, Any] = {}
    for structure, stop in itertools.product(STRUCTURES, (2, 6)):  # with nothing merged, and with some
        made = [AdaptiveCovariance(SHAPE, 1, structure, forgetting=0.9, refresh=3.0) for _ in range(3)]
        for step in range(STEPS):
            x = batches(step, RANKS)[rank]
            for covariance in made[:2]:
                covariance.update(x)
            rest = made[0].gathered()
            if step == stop:
                stored = [{name: value.clone() for name, value in made[0].state_dict().items()}, rest]
                dist.broadcast_object_list(stored, 0)  # as all ranks read the first one's file
                made[2].load_state_dict(stored[0])
                made[2].load_gathered(stored[1])
                assert made[2].points == made[0].points
            elif step > stop:
                made[2].update(x)
        out[f"{structure} {stop}"] = *stored, [dict(covariance.sync().state_dict()) for covariance in made]
    return out


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    for case, structure, regions in itertools.product(CASES, STRUCTURES, (1, 4)):
        moments = moments_of(*shares(case, regions)[rank], regions, structure)
        all_reduce_moments(moments)
        values = {k: v.numpy() for k, v in moments.state_dict().items()}
        np.savez(f"{folder}/{case}-{structure}-{regions}-{rank}.npz", **values)
    for structure in STRUCTURES:
        torch.save(own_loop(rank, RANKS, structure), f"{folder}/loop-{structure}-{rank}.pt")
    for make in (refused, alike, sharded, interrupted):
        torch.save(make(rank), f"{folder}/{make.__name__}-{rank}.pt")
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


@pytest.mark.parametrize("structure", STRUCTURES)
def test_processes_of_a_user_s_loop_learn_one_covariance(reduced: Path, structure: str) -> None:
    """The network's gradients and the noise are those of one process with all rows; every rank has every bit."""
    one = own_loop(0, 1, structure)
    found = [torch.load(reduced / f"loop-{structure}-{rank}.pt") for rank in range(RANKS)]
    for name, value in found[0]["state"].items():
        assert torch.equal(found[1]["state"][name], value), name
    assert [f["points"] for f in found] == [24 * STEPS] * RANKS
    for name in ("moments.weight", "moments.mean"):
        torch.testing.assert_close(found[0]["state"][name], one["state"][name], rtol=1e-10, atol=1e-10)
    if structure != "separable":  # whose basis is found in the rows that come first
        torch.testing.assert_close(found[0]["state"]["moments.scatter"], one["state"]["moments.scatter"])
        torch.testing.assert_close(torch.cat([f["perturbed"] for f in found]), one["perturbed"])
        for name, value in one["gradients"].items():
            torch.testing.assert_close(found[0]["gradients"][name], value, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(v, found[1]["gradients"][name]) for name, v in found[0]["gradients"].items())


def test_ranks_that_were_made_differently_are_refused(reduced: Path) -> None:
    for rank in range(RANKS):
        *said, alone = torch.load(reduced / f"refused-{rank}.pt")
        for message, name in zip(said, ("tau = (6.0", "form = ", "rules = ", "rules = ", "refresh = "), strict=False):
            assert re.match(rf"^(levels|covariance): got {re.escape(name)}.* on rank 1, expected", message)
        assert said[-2:] == ["covariance: got other points on some of the processes, expected all to begin alike"] * 2
        assert alone == str((24 + 9, 24 + 15)[rank]), "sync=False is this process alone"


def test_ranks_with_the_same_rows_make_the_same_of_them(reduced: Path) -> None:
    one, other = (torch.load(reduced / f"alike-{rank}.pt") for rank in range(RANKS))
    for name in ("regions", "mixture", "loaded"):
        for key, value in one[name].items():
            assert torch.equal(other[name][key], value), f"{name}: {key}"
    plain = AdaptiveCovariance(SHAPE).update(torch.cat((*batches(0, 2), *batches(2, 2))))
    torch.testing.assert_close(one["loaded"]["moments.mean"], plain.moments.mean, msg="a batch that was taken back")
    assert one["singular"].tolist() == other["singular"].tolist() == [24 * 6], "no row twice, with or without a factor"


def test_a_state_is_stored_with_rows_that_are_not_merged(reduced: Path) -> None:
    """Which changes no bit of what is learned, nor of what goes on from there; one process takes in all of them."""
    for rank in range(RANKS):
        for name, (state, rest, found) in torch.load(reduced / f"interrupted-{rank}.pt").items():
            structure, stop = name.split()
            for key, value in found[0].items():
                assert all(torch.equal(other[key], value) for other in found[1:]), f"{name}: {key}"
            assert rest["counters"][:, 0].tolist() == [rest["counters"][0, 0].item()] * RANKS != [0] * RANKS
            alone, all_rows = (AdaptiveCovariance(SHAPE, 1, structure, forgetting=0.9, refresh=3.0) for _ in range(2))
            alone.load_state_dict(state)
            alone.load_gathered(rest)
            for step in range(int(stop) + 1):
                all_rows.update(torch.cat(batches(step, RANKS)))
            assert alone.points == all_rows.points == 24 * (int(stop) + 1)
            expected = all_rows.moments.state_dict()
            for key, value in alone.moments.state_dict().items():
                if structure != "separable" or key in ("weight", "weight2", "mean"):  # the basis is of other rows
                    torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-10)


def test_a_sharded_denoiser_is_trained_and_drawn_from(reduced: Path) -> None:
    found = [torch.load(reduced / f"sharded-{rank}.pt") for rank in range(RANKS)]
    for name, (_, images, density) in found[0].items():
        prediction, whole = name.split()
        torch.manual_seed(0)
        noise = ansn.NoiseModel(AdaptiveCovariance(SHAPE).update(batches(0, 1)[0]), ansn.levels.karras(5.0, 0.01))
        model = ansn.Denoiser(ansn.networks.MLP(SHAPE, hidden=8, blocks=1), noise, prediction)
        x = batches(STEPS - 1, 1)[0]
        loss = ansn.dsm_loss(model, x, *noise.perturb(x, step=7))
        assert loss.item() == pytest.approx(sum(float(f[name][0]) for f in found) / RANKS, rel=1e-5)
        torch.testing.assert_close(images, ansn.sample(model, 3, steps=2))
        if whole == "False":
            torch.testing.assert_close(density, ansn.log_likelihood(model, x[:2], steps=1, trace="exact").log_density)


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
    with pytest.raises(InputError, match=r"--device: got 'cuda:3' \(GPU 3\), expected one of 1$"), processes("cuda:3"):
        pass
